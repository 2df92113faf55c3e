import numpy as np
import pytest

from vgan_fast.baselines.interpolation import recover
from vgan_fast.errors import UserError


def test_a_linear_course_is_exact_between_visible_moments():
    random = np.random.default_rng(0)
    first, slope = random.integers(0, 60, (5, 6, 3)), random.integers(-2, 9, (5, 6, 3))
    clip = (60 + first + slope * np.arange(16)[:, None, None, None]).astype(np.uint8)
    occluded = random.random(clip.shape[:3]) < 0.6
    occluded[[0, -1]] = False
    dirty = clip.copy()
    dirty[occluded] = random.integers(0, 256, (occluded.sum(), 3))
    filled = recover(dirty, occluded)
    assert filled.dtype == np.float32
    np.testing.assert_allclose(filled, clip, atol=1e-3)
    np.testing.assert_array_equal(filled[~occluded], clip[~occluded])


def test_values_are_held_at_the_ends():
    clip = np.zeros((7, 1, 2, 3), np.uint8)
    clip[2], clip[4] = 100, 50
    occluded = np.ones(clip.shape[:3], bool)
    occluded[[2, 4]] = False
    occluded[4, 0, 1] = True  # The second pixel is visible once.
    filled = recover(clip, occluded)
    assert filled[:, 0, 0, 0].tolist() == [100, 100, 100, 75, 50, 50, 50]
    assert filled[:, 0, 1, 2].tolist() == [100] * 7


def test_pixels_never_visible_take_the_nearest_one_s_course():
    clip = np.zeros((3, 5, 9, 3), np.uint8)
    clip[0, :, 0], clip[2, :, 0] = (10, 20, 30), (30, 60, 90)
    clip[:, :, 8] = 200
    occluded = np.ones(clip.shape[:3], bool)
    occluded[::2, :, 0] = False  # The left edge's middle frame is interpolated.
    occluded[:, :, 8] = False
    filled = recover(clip, occluded)
    for column in range(4):
        np.testing.assert_array_equal(filled[1, :, column], np.full((5, 3), (20, 40, 60)))
        np.testing.assert_array_equal(filled[2, :, column], np.full((5, 3), (30, 60, 90)))
    np.testing.assert_array_equal(filled[:, :, 5:], 200)


def test_errors_name_what_is_wrong():
    clip = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(UserError, match="every pixel of the clip is occluded"):
        recover(clip, np.ones((3, 4, 4), bool))
    with pytest.raises(ValueError, match=r"uint8 \(T, H, W, 3\), got uint8 \(3, 4, 4\)"):
        recover(clip[..., 0], np.ones((3, 4, 4), bool))
