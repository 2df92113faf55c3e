import numpy as np
import pytest
import torch
from scipy import stats

from vgan_fast.evaluation.metrics import frechet_distance
from vgan_fast.evaluation.statistics import Realism, bootstrap, preference


def test_the_bootstrap_of_a_mean_is_its_textbook_interval():
    sample = torch.randn(400, 1, dtype=torch.float64) * 3 + 1
    interval = bootstrap(lambda s: float(s.mean()), [sample], 4000)
    half = 1.96 * float(sample.std()) / 20
    assert interval.low == pytest.approx(float(sample.mean()) - half, abs=0.03)
    assert interval.high == pytest.approx(float(sample.mean()) + half, abs=0.03)
    assert abs(interval.bias) < 0.02


def test_the_bootstrap_s_own_bias_is_taken_out_of_the_interval():
    """Repeated clips make Fréchet distances too large: the interval still holds the estimate."""
    a, b = torch.randn(60, 30), torch.randn(60, 30)
    estimate = frechet_distance(a, b)
    interval = bootstrap(frechet_distance, [a, b], 60)
    assert interval.bias > 0.3 * estimate
    assert interval.low < estimate < interval.high
    assert bootstrap(frechet_distance, [a, b], 60) == interval  # Seeded.
    assert bootstrap(frechet_distance, [a, b], 60, seed=1) != interval


def test_an_interval_ends_where_the_statistic_does():
    scores = torch.cat([torch.ones(20), torch.zeros(1)]).double()
    below = torch.full((20,), 0.5).double()
    free = bootstrap(preference, [scores, below], 400)
    assert free.low < 0.9 < free.value < 0.96 < free.high
    bound = bootstrap(preference, [scores, below], 400, bounds=(0.9, 0.96))
    assert (bound.value, bound.low, bound.high) == (free.value, 0.9, 0.96)


def test_samples_are_resampled_apart():
    a = torch.randn(50, 1, dtype=torch.float64)
    interval = bootstrap(lambda x, y: float((x - y).abs().sum()), [a, a], 20)
    assert interval.bias > 1  # Were they drawn alike, each difference would be 0.


def test_preference_against_counting_pairs():
    a, b = torch.randint(0, 4, (17,)).double(), torch.randint(0, 4, (11,)).double()
    wins = [1.0 if x > y else 0.5 if x == y else 0.0 for x in a.tolist() for y in b.tolist()]
    assert preference(a, b) == pytest.approx(np.mean(wins))
    assert preference(a, b) + preference(b, a) == pytest.approx(1)
    assert preference(a + 10, b) == 1


def test_density_is_that_of_the_shrunken_gaussian():
    real = torch.randn(400, 3).double() @ torch.tensor([[1.0, 2, 0], [0, 1, 0], [0, 0, 5]]).double()
    fitted = real[::2].numpy()
    covariance = np.cov(fitted.T)
    covariance = 0.9 * covariance + 0.1 * np.diag(np.diag(covariance))
    features = torch.randn(7, 3).double()
    expected = stats.multivariate_normal(fitted.mean(0), covariance).logpdf(features.numpy())
    got = Realism(real).log_density(features).numpy()
    np.testing.assert_allclose(got - got[0], expected - expected[0], rtol=1e-4, atol=1e-4)


def test_density_of_fewer_clips_than_features_and_of_constant_ones():
    real = torch.cat([torch.randn(20, 40), torch.zeros(20, 1)], dim=1).double()
    realism = Realism(real)
    other = torch.cat([torch.randn(10, 40), torch.zeros(10, 1)], dim=1).double()
    moved = other.clone()
    moved[:, -1] = 0.1
    assert torch.isfinite(realism(other)).all()
    assert (realism.log_density(moved) < realism.log_density(other)).all()


def test_neither_what_is_far_nor_what_is_blurred_to_the_mean_looks_real():
    realism = Realism(torch.randn(800, 30).double() + 3)
    other = torch.randn(800, 30).double()
    real, far, blurred = realism(other + 3), realism(2 * other + 3), realism(0.3 * other + 3)
    assert preference(far, real) < 0.05
    assert preference(blurred, real) < 0.05
    assert preference(realism(torch.randn(800, 30).double() + 3), real) == pytest.approx(
        0.5, abs=0.05
    )
