import pytest
import torch

from vgan_fast.kernels.frames import normalise_frames


def test_every_grey_level_maps_onto_minus_one_to_one():
    frames = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).view(1, 4, 8, 8, 3)
    clip = normalise_frames(frames)
    assert clip.shape == (1, 3, 4, 8, 8)
    expected = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for channel in range(3):
        torch.testing.assert_close(clip[0, channel].flatten().double(), expected, rtol=0, atol=2e-7)


def test_channels_are_not_mixed_and_stay_last_in_memory():
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    clip = normalise_frames(frames)
    assert clip.is_contiguous(memory_format=torch.channels_last_3d)
    assert clip[1, 2, 0, 3, 4] == pytest.approx(int(frames[1, 0, 3, 4, 2]) / 127.5 - 1, abs=1e-6)


def test_other_inputs_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        normalise_frames(torch.zeros(1, 2, 2, 2, 3))
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 2, 2\)"):
        normalise_frames(torch.zeros(1, 3, 2, 2, 2, dtype=torch.uint8))
