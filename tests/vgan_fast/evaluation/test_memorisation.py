import pytest
import torch

from vgan_fast.evaluation.memorisation import nearest, usual_distances


def test_copies_are_found_and_named():
    training, held_out = torch.randn(50, 20), torch.randn(40, 20)
    copied = torch.tensor([7, 3, 31])
    samples = torch.cat([3 * torch.randn(5, 20), training[copied] + 1e-3])
    of = nearest(samples, training, usual_distances(training, held_out))
    assert of.closer == pytest.approx(3 / 8)
    assert of.clips[5:].tolist() == copied.tolist()
    assert set(of.order[:3].tolist()) == {5, 6, 7}


def test_other_real_clips_are_as_far_as_usual():
    training, held_out = torch.randn(400, 20), torch.randn(400, 20)
    usual = usual_distances(training, held_out)
    of = nearest(torch.randn(400, 20), training, usual)
    assert of.median_ratio == pytest.approx(1, abs=0.05)
    assert of.closer < 0.02
    assert nearest(training, training, usual).median_ratio < 1e-6
    assert nearest(torch.randn(400, 20) * 10, training, usual).median_ratio > 5


def test_without_held_out_clips_training_clips_are_compared_with_each_other():
    training = torch.randn(400, 20)
    usual = usual_distances(training, None)
    of = nearest(torch.randn(400, 20), training, usual)
    assert of.median_ratio == pytest.approx(1, abs=0.05)
    assert nearest(training, training, usual).closer == 1
    with pytest.raises(ValueError, match="one training clip"):
        usual_distances(training[:1], None)
