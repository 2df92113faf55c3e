from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from vgan_fast.errors import UserError
from vgan_fast.loaders.beginnings import read_beginnings


def write_video(file: Path, frames: np.ndarray) -> None:
    iio.imwrite(file, frames, plugin="pyav", codec="ffv1", fps=10, in_pixel_format="rgb24")


def blocks(seed: int, count: int, height: int = 32, width: int = 32) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(0, 256, (count, height // 8, width // 8, 1))
    return levels.astype(np.uint8).repeat(3, axis=3).repeat(8, axis=1).repeat(8, axis=2)


def near(frames: np.ndarray, wanted: np.ndarray) -> bool:
    """The same but for what a conversion of colours costs."""
    return frames.shape == wanted.shape and np.abs(frames.astype(int) - wanted).mean() < 2


def read(*paths, frames=2, size=32):
    return read_beginnings(paths, frames=frames, size=size, workers=2)


def test_a_video_gives_its_first_frames_and_an_image_stands_still(tmp_path):
    video, image = blocks(0, 6), blocks(1, 1)
    write_video(tmp_path / "b.mkv", video)
    Image.fromarray(image[0]).save(tmp_path / "a.png")
    (of_image, of_video), broken = read(tmp_path)
    assert not broken
    assert (of_image.source.name, of_video.source.name) == ("a.png", "b.mkv")
    np.testing.assert_array_equal(of_image.frames, image[[0, 0]])
    assert near(of_video.frames, video[:2])


def test_a_short_video_repeats_its_last_frame(tmp_path):
    video = blocks(0, 2)
    write_video(tmp_path / "b.mkv", video)
    (found,), _ = read(tmp_path / "b.mkv", frames=4)
    assert near(found.frames, video[[0, 1, 1, 1]])


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (32, 32), (128, 256)])
def test_the_short_side_is_scaled_and_the_centre_cut_out(tmp_path, height, width):
    """Each pixel tells where it is."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 / width, y * 255 / height, 0 * x], axis=2).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    (found,), _ = read(tmp_path / "i.png", frames=1)
    middle = found.frames[0, 15:17, 15:17].mean((0, 1))
    assert np.abs(middle[:2] - 127).max() < 4
    side = min(height, width)
    span = np.abs(found.frames[0, -1, -1, :2].astype(int) - found.frames[0, 0, 0, :2])
    assert np.abs(span - 255 * side / np.array([width, height])).max() < 12


def test_files_come_in_natural_order_and_once_a_naming(tmp_path):
    for name in ("10.png", "9.png", ".hidden.png", "other.txt"):
        Image.fromarray(blocks(0, 1)[0]).save(tmp_path / name, format="png")
    found, _ = read(tmp_path, tmp_path / "10.png")
    assert [of.source.name for of in found] == ["9.png", "10.png", "10.png"]


def test_broken_files_are_told_and_all_broken_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="nothing can be read"):
        read(tmp_path)
    Image.fromarray(blocks(0, 1)[0]).save(tmp_path / "c.png")
    found, broken = read(tmp_path)
    assert [of.source.name for of in found] == ["c.png"]
    assert {file.name for file in broken} == {"a.png", "b.mp4"}
    assert all(broken.values())
