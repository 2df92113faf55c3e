import numpy as np
import pytest
import torch
from scipy import linalg

from vgan_fast.evaluation.detectors import RandomExtractor, features
from vgan_fast.evaluation.metrics import frechet_distance, mask_auc, motion_energy


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
