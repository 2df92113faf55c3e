import imageio.v3 as iio
import numpy as np
import pytest

from vgan_fast.study.sheets import (
    decode_strip,
    encode_sheet,
    encode_strip,
    freeze,
    scramble,
    sheet_columns,
)


def noise(frames, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), np.uint8)


def test_a_strip_gives_its_clip_back_bit_for_bit():
    clip = noise(7)
    assert np.array_equal(decode_strip(encode_strip(clip), *clip.shape[:2]), clip)


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 32])
def test_a_page_finds_every_moment_of_both_clips_on_the_sheet(frames):
    """By the arithmetic of page.js."""
    left, right = noise(frames), noise(frames, seed=1)
    sheet, columns = iio.imread(encode_sheet(left, right)), sheet_columns(frames)
    for moment in range(frames):
        x, y = 16 * (moment % columns), 8 * (moment // columns)
        assert np.array_equal(sheet[y : y + 8, x : x + 8], left[moment])
        assert np.array_equal(sheet[y : y + 8, x + 8 : x + 16], right[moment])


def test_the_size_of_a_sheet_s_file_does_not_tell_the_sides_apart():
    smooth = np.full((32, 8, 8, 3), 90, np.uint8)
    one, other = encode_sheet(noise(32), smooth), encode_sheet(smooth, noise(32))
    assert abs(len(one) - len(other)) < 0.01 * len(one)


def test_the_sheet_is_about_square():
    for frames in (8, 16, 32, 128):
        height, width, _ = iio.imread(encode_sheet(noise(frames), noise(frames))).shape
        assert 0.5 <= height / width <= 2


def test_a_frozen_clip_is_its_first_frame():
    clip = noise(5)
    assert np.array_equal(freeze(clip), np.stack([clip[0]] * 5))


def test_a_scramble_is_a_still_grey_and_has_lost_its_picture():
    clip = np.zeros((5, 16, 16, 3), np.uint8)
    clip[:, 4:12, 4:12] = (200, 100, 0)
    foil = scramble(clip, np.random.default_rng(0))
    assert foil.shape == clip.shape
    assert (foil == foil[0]).all()
    assert (foil == foil[..., :1]).all()
    assert sorted(foil[0, :, :, 0].ravel()) == [0] * 192 + [100] * 64
    assert (foil[0, 4:12, 4:12, 0] == 100).mean() < 0.5
