"""The table of preferences, and whether its intervals hold what they promise."""

import numpy as np
import pytest

from vgan_fast.study import analysis
from vgan_fast.study.analysis import as_markdown, reliable, summarise
from vgan_fast.study.store import Answer

NAMES = ["two-stream", "one-stream", "autoencoder", "real"]
STRENGTHS = np.array([0.2, 0.1, -1.3, 1.7])  # Bradley-Terry: about the paper's table
PAIRS = [(i, j) for i in range(4) for j in range(i + 1, 4)]
TRUTH = {(NAMES[i], NAMES[j]): 1 / (1 + np.exp(STRENGTHS[j] - STRENGTHS[i])) for i, j in PAIRS}


def simulated(random, raters, repeats=4, spread=0.0):
    """Votes of `raters` on each pair; `spread` is how far their own strengths differ."""
    answers = []
    for rater in range(raters):
        own = STRENGTHS + spread * random.standard_normal(4)
        for i, j in PAIRS * repeats:
            wins = random.random() < 1 / (1 + np.exp(own[j] - own[i]))
            chosen, other = (NAMES[i], NAMES[j]) if wins else (NAMES[j], NAMES[i])
            answers.append(Answer(rater, chosen, other, None, random.lognormal(1)))
    return answers


def true_shares(spread):
    """What a rater drawn at random prefers, with own strengths that differ by `spread`."""
    random = np.random.default_rng(1)
    own = STRENGTHS + spread * random.standard_normal((100_000, 4))
    return {
        (NAMES[i], NAMES[j]): (1 / (1 + np.exp(own[:, j] - own[:, i]))).mean() for i, j in PAIRS
    }


def coverage(intervals, spread, raters, repeats):
    truth, held = true_shares(spread), []
    for seed in range(200):
        answers = simulated(np.random.default_rng(seed), raters, repeats, spread)
        for row in summarise(answers, NAMES).preferences:
            low, high = getattr(row, intervals)
            held.append(low <= truth[row.first, row.second] <= high)
    return np.mean(held)


@pytest.fixture
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(analysis, "RESAMPLES", 999)


def test_wilson_covers_the_truth_where_votes_are_independent(fewer_resamples):
    assert 0.93 <= coverage("by_votes", spread=0, raters=15, repeats=4) <= 0.97


def test_resampled_raters_cover_the_truth_where_raters_differ(fewer_resamples):
    """Votes of one rater are then alike, and the interval by votes promises too much."""
    assert 0.90 <= coverage("by_raters", spread=1.0, raters=25, repeats=6) <= 0.99
    assert coverage("by_votes", spread=1.0, raters=25, repeats=6) < 0.88


def test_known_preferences_come_back():
    summary = summarise(simulated(np.random.default_rng(0), raters=60, repeats=10), NAMES)
    assert [(row.first, row.second) for row in summary.preferences] == list(TRUTH)
    assert (summary.raters, summary.votes) == (60, 3600)
    for row in summary.preferences:
        assert row.votes == 600
        assert row.share == pytest.approx(TRUTH[row.first, row.second], abs=0.06)


def answers(votes, missed=None):
    """Votes given as (rater, chosen, other)."""
    return [Answer(*vote, missed, 2.0) for vote in votes]


def test_wilson_s_interval_is_the_textbook_s():
    """Eight of ten: 0.490 to 0.943 (Wilson 1927, z = 1.96)."""
    votes = [(1, "a", "b")] * 8 + [(1, "b", "a")] * 2
    (row,) = summarise(answers(votes), ["a", "b"]).preferences
    assert (row.wins, row.votes) == (8, 10)
    assert row.by_votes == pytest.approx((0.490, 0.943), abs=5e-4)
    assert row.by_raters is None


def test_raters_who_were_not_asked_about_a_pair_do_not_count_for_it():
    votes = [(1, "a", "b"), (2, "b", "c"), (3, "b", "c")]
    first, second = summarise(answers(votes), ["a", "b", "c"]).preferences
    assert (first.first, first.second, first.by_raters) == ("a", "b", None)
    assert second.by_raters == (1, 1)


def test_raters_who_miss_catch_trials_are_left_out():
    good, slip, blind = range(3)
    given = answers([(rater, "real", "scramble") for rater in (good, slip)] * 2, missed=False)
    given += answers([(slip, "scramble", "real")], missed=True)
    given += answers([(blind, "scramble", "real")] * 2, missed=True)
    given += answers([(good, "a", "b"), (slip, "a", "b"), (blind, "b", "a"), (7, "b", "a")])
    assert reliable(given, 0) == {good, 7}  # 7 has not met a catch trial
    assert reliable(given, 1) == {good, slip, 7}
    text = as_markdown(given, ["a", "b"], allowed_misses=0)
    everyone, others = text.split("## ")[1:]
    assert "| a over b | 50 % |" in everyone
    assert "4 raters, 4 votes, median 2.0 s" in everyone
    assert "2 raters, 2 votes" in others
    assert "Left out of the second table: 2 raters." in others
    _, others = as_markdown(given, ["a", "b"], allowed_misses=1).split("## ")[1:]
    assert "| a over b | 67 % |" in others


def test_catch_trials_are_no_preferences():
    given = answers([(1, "real", "scramble")], missed=False)
    assert summarise(given, ["real", "scramble"]) is None
    assert as_markdown([], ["a", "b"], 0).count("No votes.") == 2
