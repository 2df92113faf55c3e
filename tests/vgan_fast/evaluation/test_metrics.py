import numpy as np
import pytest
import torch
from scipy import linalg

from vgan_fast.evaluation.detectors import RandomExtractor, features
from vgan_fast.evaluation.metrics import (
    flicker,
    frechet_distance,
    frechet_of_gaussians,
    inception_score,
    mask_auc,
    motion_energy,
)


def test_frechet_distance_against_scipys_matrix_root():
    a = torch.randn(400, 6).double() @ torch.randn(6, 6).double() + torch.randn(6)
    b = torch.randn(300, 6).double() @ torch.randn(6, 6).double()
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-8)


def test_frechet_distance_of_a_shift_is_its_square_and_of_nothing_zero():
    a = torch.randn(500, 4)
    shift = torch.tensor([1.0, 2.0, 0.0, 0.0])
    assert frechet_distance(a, a + shift) == pytest.approx(5, rel=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    # Fewer samples than dimensions: the covariances are singular.
    few = torch.randn(5, 40)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("n", "m"), [(5, 9), (9, 200), (200, 9), (40, 39)])
def test_frechet_distance_of_few_samples_is_that_of_their_gaussians(n, m):
    a, b = torch.randn(n, 40).double() + 0.3, 2 * torch.randn(m, 40).double()
    expected = frechet_of_gaussians(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_refuses_what_has_no_covariance():
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        frechet_distance(torch.randn(1, 3), torch.randn(9, 3))


def test_the_extractor_is_fixed_and_sees_motion():
    torch.manual_seed(1)
    first = RandomExtractor()
    torch.manual_seed(2)
    second = RandomExtractor()
    clip = torch.rand(2, 3, 16, 16, 16) * 2 - 1
    assert torch.equal(first(clip), second(clip))
    assert first(clip).shape == (2, 512)
    for layer in first.layers:
        flat = layer.weight.flatten(1)
        torch.testing.assert_close(flat @ flat.T, torch.eye(len(flat)), rtol=0, atol=1e-5)
        assert not layer.bias.any()
    frozen = first(clip[:, :, :1].expand_as(clip))
    assert not frozen[:, 256:].any()  # Features of the frame differences.
    assert first(clip)[:, 256:].any()


def test_features_of_batches_are_those_of_the_clips():
    clips = torch.rand(5, 3, 16, 16, 16) * 2 - 1
    extractor = RandomExtractor()
    got = features(extractor, [clips[:2], clips[2:]])
    torch.testing.assert_close(got, extractor(clips).double(), rtol=1e-4, atol=1e-6)


def test_motion_energy_of_a_known_change():
    clip = torch.zeros(1, 3, 4, 2, 2)
    clip[:, :, 2:] = 0.5  # One of three transitions changes every pixel by a half.
    assert motion_energy(clip) == pytest.approx(0.25 / 3)
    assert motion_energy(clip[:, :, :1].expand_as(clip)) == 0


def test_mask_auc_against_counting_pairs():
    video = torch.rand(1, 3, 5, 4, 5)
    mask = torch.randint(0, 5, (1, 1, 5, 4, 5)) / 4  # With ties.
    departure = (video - video.median(2, keepdim=True).values).abs().mean(1).flatten()
    moving = departure >= departure.sort(descending=True).values[9]
    values = mask.flatten()
    wins = [
        1.0 if m > s else 0.5 if m == s else 0.0
        for m in values[moving].tolist()
        for s in values[~moving].tolist()
    ]
    assert mask_auc(mask, video) == pytest.approx(sum(wins) / len(wins), rel=1e-9)


def test_mask_auc_of_perfect_inverted_and_constant_masks():
    video = torch.zeros(1, 3, 10, 8, 8)
    truth = torch.zeros(1, 1, 10, 8, 8)
    for t in range(10):
        truth[0, 0, t, t % 8, :] = 1  # An eighth of the pixels, each rarely: the median is still.
    video += truth * torch.linspace(0.5, 1, 8)
    assert mask_auc(truth, video) > 0.97
    assert mask_auc(1 - truth, video) < 0.03
    assert mask_auc(torch.full_like(truth, 0.4), video) == pytest.approx(0.5)


def rotation(dimensions):
    return torch.linalg.qr(torch.randn(dimensions, dimensions, dtype=torch.float64))[0]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [([1, 4, 9, 0.25], [4, 1, 1, 16]), ([1, 4, 0, 0], [4, 0, 9, 0]), ([0] * 4, [1, 2, 3, 4])],
    ids=["full", "singular", "point"],
)
def test_frechet_of_gaussians_in_closed_form_of_commuting_covariances(ours, theirs):
    """In common axes the distance is |mu|^2 plus the squared differences of the deviations."""
    turn = rotation(4)
    ours, theirs = (torch.tensor(v, dtype=torch.float64) for v in (ours, theirs))
    mean = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)
    expected = 5.25 + float((ours.sqrt() - theirs.sqrt()).square().sum())
    cov_a, cov_b = turn @ ours.diag() @ turn.T, turn @ theirs.diag() @ turn.T
    got = frechet_of_gaussians(mean, cov_a, torch.zeros(4), cov_b)
    assert got == pytest.approx(expected, abs=1e-6)


def test_frechet_of_gaussians_in_closed_form_of_two_dimensions():
    """Covariances that do not commute: tr (A B)^(1/2) = (tr A B + 2 (det A B)^(1/2))^(1/2)."""
    a = torch.tensor([[2.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
    b = torch.tensor([[1.0, -0.7], [-0.7, 3.0]], dtype=torch.float64)
    cross = ((a @ b).trace() + 2 * (torch.det(a) * torch.det(b)).sqrt()).sqrt()
    expected = float(a.trace() + b.trace() - 2 * cross)
    got = frechet_of_gaussians(torch.zeros(2), a, torch.zeros(2), b)
    assert got == pytest.approx(expected, abs=1e-6)
    # One singular and correlated: tr (v v' B)^(1/2) = (v' B v)^(1/2).
    v = torch.tensor([1.0, 2.0], dtype=torch.float64)
    expected = float(5 + b.trace() - 2 * (v @ b @ v).sqrt())
    got = frechet_of_gaussians(torch.zeros(2), v.outer(v), torch.zeros(2), b)
    assert got == pytest.approx(expected, abs=1e-6)


def test_inception_score_of_sure_unsure_and_mixed_predictions():
    sure = 1000.0 * torch.eye(5).repeat(3, 1)  # Other classes' probabilities are exactly 0.
    assert inception_score(sure) == pytest.approx(5)
    assert inception_score(sure[:1].expand(7, 5)) == pytest.approx(1)
    assert inception_score(torch.zeros(7, 5)) == pytest.approx(1)
    given = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    marginal = given.mean(0)
    divergence = (given * (given / marginal).log()).sum(1).mean()
    assert inception_score(given.log()) == pytest.approx(float(divergence.exp()), rel=1e-9)
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        inception_score(torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("waves", "expected"), [([(4, 1.0)], 1), ([(1, 1.0)], 0), ([(2, 1.0)], 0), ([(3, 1.0)], 1)]
)
def test_flicker_is_the_energy_of_fast_waves(waves, expected):
    time = torch.arange(8)
    wave = sum(a * torch.cos(2 * torch.pi * k * time / 8) for k, a in waves)
    clip = 0.3 + 0.2 * wave.view(1, 1, 8, 1, 1).expand(2, 3, 8, 4, 4)
    assert flicker(clip) == pytest.approx(expected, abs=1e-6)


def test_flicker_weighs_frequencies_by_their_energy_in_time():
    """The alternating wave has twice the energy of another of its amplitude."""
    time = torch.arange(8)
    slow, fast = torch.cos(2 * torch.pi * time / 8), torch.cos(torch.pi * time)
    clip = (slow + fast).view(1, 1, 8, 1, 1).expand(1, 3, 8, 2, 2)
    assert flicker(clip) == pytest.approx(2 / 3, abs=1e-6)
    assert flicker(torch.ones(1, 3, 8, 2, 2)) == 0
    odd = torch.randn(16, 3, 7, 16, 16)
    assert flicker(odd) == pytest.approx(4 / 6, abs=0.02)  # 2 and 3 of the frequencies 1, 2, 3.
