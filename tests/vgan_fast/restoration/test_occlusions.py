"""Masks, artificial and from files."""

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from vgan_fast.errors import UserError
from vgan_fast.restoration.occlusions import (
    missing_frames,
    moving_region,
    read_mask,
    salt_and_pepper,
)

SHAPE = (6, 16, 24)
MADE = {
    "salt-and-pepper": lambda seed: salt_and_pepper(SHAPE, 0.5, seed),
    "region": lambda seed: moving_region(SHAPE, 7, seed),
    "frames": lambda seed: missing_frames(SHAPE, 0.5, seed),
}


@pytest.mark.parametrize("kind", MADE)
def test_masks_are_functions_of_their_seed(kind):
    first, again, other = (MADE[kind](seed) for seed in (1, 1, 2))
    assert first.dtype == bool and first.shape == SHAPE
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_salt_and_pepper_occludes_its_share_of_each_frame(share):
    mask = salt_and_pepper((5, 64, 64), share, 0)
    # 4 standard deviations of a frame's share
    assert np.abs(mask.mean((1, 2)) - share).max() <= 4 * np.sqrt(share * (1 - share) / 64**2)
    if 0 < share < 1:
        assert (mask[0] != mask[1]).any()


@pytest.mark.parametrize("side", [1, 7, 16])
def test_a_region_is_one_square_anew_in_each_frame(side):
    mask = moving_region((40, 16, 24), side, 0)
    places = set()
    for frame in mask:
        y, x = np.nonzero(frame)
        assert frame.sum() == side**2
        assert (np.ptp(y), np.ptp(x)) == (side - 1, side - 1)
        places.add((y.min(), x.min()))
    assert len(places) > 5
    if side > 1:  # up to all edges
        tops, lefts = (set(along) for along in zip(*places, strict=True))
        assert {0, 16 - side} <= tops and {0, 24 - side} <= lefts


def test_half_of_the_frames_are_missing_as_in_the_paper():
    mask = missing_frames((70, 4, 4), 0.5, 0)
    whole = mask.all((1, 2))
    assert whole.sum() == 35
    assert not mask[~whole].any()
    assert not whole[:35].all() and not whole[35:].all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: salt_and_pepper(SHAPE, 1.1, 0),
        lambda: missing_frames(SHAPE, -0.1, 0),
        lambda: moving_region(SHAPE, 17, 0),
        lambda: moving_region(SHAPE, 0, 0),
    ],
)
def test_impossible_masks_are_refused(make):
    with pytest.raises(ValueError, match=r"1\.1|-0\.1|17 pixels|0 pixels"):
        make()


def squares(frames=6, height=32, width=48):
    """A white square of 8 pixels that moves by 8 from frame to frame."""
    pictures = np.zeros((frames, height, width, 3), np.uint8)
    for number, picture in enumerate(pictures):
        picture[8:16, 8 * (number % 6) : 8 * (number % 6) + 8] = 255
    return pictures


def read(path, frames=6, size=(32, 48), filmed=(32, 48), start=0):
    return read_mask(path, shape=(frames, *size), filmed=filmed, start=start)


def write_images(folder, pictures):
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")  # 10.png comes after 9.png
    return folder


def test_a_mask_video_is_read_as_it_was_meant_though_compressed(tmp_path):
    file = tmp_path / "mask.mp4"
    iio.imwrite(file, squares(), plugin="pyav", codec="libx264", fps=10)
    read_back = iio.imread(file, plugin="pyav")
    assert ((read_back > 0) & (read_back < 255)).any()  # it did cost something
    np.testing.assert_array_equal(read(file), squares()[..., 0] > 0)
    np.testing.assert_array_equal(read(file, frames=2, start=3), squares()[3:5, ..., 0] > 0)


def test_a_folder_of_images_is_read_in_natural_order(tmp_path):
    pictures = squares(frames=12)
    folder = write_images(tmp_path / "masks", pictures)
    np.testing.assert_array_equal(read(folder, frames=12), pictures[..., 0] > 0)
    np.testing.assert_array_equal(read(folder, frames=3, start=9), pictures[9:, ..., 0] > 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "I;16"])
def test_an_image_stands_still_whatever_its_mode(tmp_path, mode):
    picture = Image.fromarray(squares()[2])
    if mode == "I;16":
        picture = Image.fromarray(squares()[2, ..., 0].astype(np.uint16) * 257)
    picture.convert(mode).save(tmp_path / "mask.png")
    mask = read(tmp_path / "mask.png")
    np.testing.assert_array_equal(mask, np.repeat(squares()[2:3, ..., 0] > 0, 6, axis=0))


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 128), (128, 128, 128)])
def test_any_bright_colour_occludes_and_a_dark_one_does_not(tmp_path, colour):
    picture = np.full((32, 48, 3), 127, np.uint8)
    picture[4:8] = colour
    Image.fromarray(picture).save(tmp_path / "mask.png")
    mask = read(tmp_path / "mask.png")
    assert mask[:, 4:8].all() and mask.sum() == 6 * 4 * 48


def test_a_scaled_pixel_is_occluded_where_any_part_of_it_is(tmp_path):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[9, 21] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    (y,), (x,) = np.nonzero(read(tmp_path / "mask.png", size=(8, 12))[0])
    assert (y, x) == (2, 5)
    # Pixels of 6.4 rows by 6 columns: row 12 lies in the second and in the third of them.
    picture[12, 25] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    mask = read(tmp_path / "mask.png", size=(5, 8))[0]
    assert [*zip(*np.nonzero(mask), strict=True)] == [(1, 3), (1, 4), (2, 4)]


def test_what_is_no_mask_is_told(tmp_path):
    write_images(tmp_path / "few", squares(frames=4))
    broken = write_images(tmp_path / "broken", squares())
    (broken / "3.png").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mask.mp4").write_bytes(b"no video")
    video = tmp_path / "short.mkv"
    iio.imwrite(video, squares(4), plugin="pyav", codec="ffv1", fps=10, in_pixel_format="rgb24")
    Image.fromarray(squares()[0]).save(tmp_path / "wide.png")
    for path, options, said in [
        ("absent.png", {}, "no such file or folder"),
        ("few", {}, "has 4 images, too few for 6 from frame 0 on"),
        ("empty", {}, "has 0 images"),
        ("broken", {}, "3.png: cannot be read as an image"),
        ("mask.mp4", {}, "mask.mp4: PyAV: "),
        ("short.mkv", {}, "has 4 frames, too few for 6 from frame 0 on"),
        ("short.mkv", {"frames": 2, "start": 3}, "has 4 frames, too few for 2 from frame 3 on"),
        ("short.mkv", {"frames": 2, "start": 9}, "it ends before frame 9"),
        ("wide.png", {"filmed": (64, 64)}, "is 48x32 pixels, its video 64x64"),
        ("few", {"frames": 2, "filmed": (48, 32)}, "is 48x32 pixels, its video 32x48"),
    ]:
        with pytest.raises(UserError) as error:
            read(tmp_path / path, **options)
        assert said in str(error.value) and f"--mask {tmp_path / path}" in str(error.value)
        assert "\n" not in str(error.value)
