"""Accuracies, intervals over seeds, table and verdict."""

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from vgan_fast.transfer.results import Estimate, Results, Score

WHICH = dict(split="", seed=0, method="random", fraction=Fraction(1), videos=4)


def test_a_video_is_told_by_the_mean_of_its_clips():
    probabilities = np.array(
        [
            [[0.9, 0.1], [0.45, 0.55]],  # one clip wrong, the mean right
            [[0.6, 0.4], [0.1, 0.9]],
            [[0.6, 0.4], [0.7, 0.3]],
        ]
    )
    score = Score.of(probabilities, np.array([0, 1, 1]), **WHICH)
    assert score.video == pytest.approx(2 / 3)
    assert score.clip == pytest.approx(2 / 6)
    assert score.confusion.tolist() == [[1, 0], [1, 1]]


def test_the_interval_is_students():
    values = [0.4, 0.5, 0.45, 0.6, 0.42]
    estimate = Estimate.of(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert f"{estimate:.2f}" == f"0.47 [{expected.low:.2f}, {expected.high:.2f}]"
    assert f"{Estimate.of([0.5]):.1f}" == "0.5"


def results(tuned, random, fraction=Fraction(1, 8)):
    """Two splits that lie 0.2 apart around the accuracies given for each seed."""
    confusion = np.eye(2, dtype=int)
    scores = [
        Score(split, seed, method, fraction, 4, value, value + off, confusion)
        for method, values in (("fine-tuned", tuned), ("random", random))
        for seed, value in enumerate(values)
        for split, off in (("1", 0.1), ("2", -0.1))
    ]
    return Results(scores, ["a", "b"], 0.5)


def test_the_difference_is_of_pairs_and_splits_are_averaged_first():
    # Seeds differ by far more than the methods do within a seed.
    of = results([0.30, 0.50, 0.70], [0.28, 0.47, 0.68])
    fraction = Fraction(1, 8)
    np.testing.assert_allclose(of.accuracies("random", fraction), [0.28, 0.47, 0.68])
    expected = Estimate.of([0.02, 0.03, 0.02])
    assert of.difference(fraction).low == pytest.approx(expected.low)
    assert of.difference(fraction).low > 0
    assert of.gain(fraction).mean == pytest.approx(np.mean([0.3 / 0.28, 0.5 / 0.47, 0.7 / 0.68]))
    assert of.confusion("random").tolist() == [[6, 0], [0, 6]]


@pytest.mark.parametrize(
    ("tuned", "word"),
    [
        ([0.6, 0.62, 0.61], "better than"),
        ([0.2, 0.22, 0.21], "worse than"),
        ([0.3, 0.5, 0.41], "not told apart from"),
        ([0.6], "one seed"),
    ],
)
def test_the_verdict_falls_whichever_way(tuned, word):
    assert word in results(tuned, [0.4, 0.41, 0.42][: len(tuned)]).verdict()


def test_the_table_has_a_row_for_each_fraction():
    of = Results(
        results([0.5, 0.6], [0.4, 0.5], Fraction(1)).scores
        + results([0.5, 0.6], [0.4, 0.5]).scores,
        ["a", "b"],
        0.5,
    )
    rows = of.table().splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| 1", "| 1/8"]
    assert "55.0 [" in rows[2]
    assert "+10.0 [+10.0, +10.0]" in rows[2]
