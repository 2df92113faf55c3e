"""The first frames of images and videos, each file by itself: what a prediction goes on from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vgan_fast.errors import UserError

from .decoders import UndecodableError, upright_image
from .search import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_key
from .whole import decoded


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first frames of a file: uint8 (k, size, size, 3), RGB, upright."""

    source: Path
    frames: np.ndarray


def read_beginnings(
    paths: Sequence[Path], *, frames: int, size: int, workers: int
) -> tuple[list[Beginning], dict[Path, str]]:
    """Read the first frames of every image and video that the paths name.

    A folder stands for the images and videos in it, searched recursively in natural order; hidden
    ones are left out. The short side is scaled to `size` and the centre cut out. An image stands
    still for all frames, and so does the last frame of a video that is shorter. Videos are decoded
    in processes of their own, so a script must call this under `if __name__ == "__main__":`.

    Args:
        paths: images, videos and folders.
        frames: k, of each file.
        size: side in pixels.
        workers: decoding processes.

    Returns:
        What could be read, in order, and each broken file with the reason.

    Raises:
        UserError: a path does not exist, or none names an image or a video that can be read.
    """
    files = [file for path in paths for file in _files(path)]
    read: dict[Path, np.ndarray] = {}
    broken: dict[Path, str] = {}
    for file in files:
        if file.suffix.lower() in IMAGE_SUFFIXES:
            try:
                read[file] = _square(upright_image(file), size)[None]
            except MemoryError:
                raise
            except Exception as error:  # damaged images raise whatever their format does
                reason = error if isinstance(error, UndecodableError) else f"no image ({error})"
                broken[file] = " ".join(str(reason).split())
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    if videos:
        with decoded(videos, most=frames, short_side=2 * size, workers=workers) as (found, skipped):
            for file, of in found.items():
                clip = of.read(0, of.length)
                read[file] = np.stack([_square(frame, size) for frame in clip])
        broken |= skipped
    if not read:
        named = f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        reason = f"{next(iter(broken.values()))}" if broken else "no image or video there"
        raise UserError(f"--image {named}: nothing can be read ({reason}); name other files")
    return [Beginning(of, _lengthened(read[of], frames)) for of in files if of in read], broken


def _files(path: Path) -> Iterator[Path]:
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"--image {path}: no such file or folder")
        if path.suffix.lower() not in known:
            raise UserError(f"--image {path}: neither an image nor a video by its suffix")
        yield path
        return
    found = []
    for root, folders, names in os.walk(path):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    yield from sorted(
        (file for file in found if file.suffix.lower() in known),
        key=lambda file: natural_key(str(file)),
    )


def _square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scale the short side to `size` and cut the centre out: uint8 (size, size, 3)."""
    import cv2

    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    shape = max(size, round(width * scale)), max(size, round(height * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(pixels, shape, interpolation=way)
    top, left = (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2
    return scaled[top : top + size, left : left + size]


def _lengthened(frames: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([frames, np.repeat(frames[-1:], count - len(frames), axis=0)])
