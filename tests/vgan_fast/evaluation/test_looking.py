import pytest
import torch

from vgan_fast.evaluation.detectors import random_detector
from vgan_fast.evaluation.looking import look, miniature
from vgan_fast.evaluation.metrics import motion_energy

DETECTOR = random_detector(torch.device("cpu"))


def batch(count):
    video = torch.rand(count, 3, 16, 16, 16) * 2 - 1
    mask = torch.full((count, 1, 16, 16, 16), -0.8)  # A mask of 0.1, stored as pictures are.
    mask[..., 8:] = 1.0
    return {"video": video, "mask": mask}


def test_batches_are_seen_as_one_set():
    batches = [batch(5), batch(2)]
    clips = torch.cat([b["video"] for b in batches])
    seen = look(batches, DETECTOR, shown=6)
    torch.testing.assert_close(seen.features, DETECTOR(clips)[0])
    torch.testing.assert_close(seen.miniatures, miniature(clips))
    assert seen.logits is None
    assert len(seen.shown) == 6
    torch.testing.assert_close(seen.clips(torch.tensor([5, 0])), clips[[5, 0]], rtol=0, atol=0.004)
    assert seen.statistics["motion"] == pytest.approx(motion_energy(clips), rel=1e-5)
    assert seen.statistics["mask mean"] == pytest.approx(0.55)
    assert seen.statistics["mask < 0.3"] == pytest.approx(0.5)


def test_miniatures_average_boxes():
    clip = torch.zeros(1, 3, 16, 32, 32)
    clip[0, 1, :2, :2, :2] = 1
    small = miniature(clip).view(3, 8, 16, 16)
    assert small[1, 0, 0, 0] == 1
    assert small.sum() == 1
