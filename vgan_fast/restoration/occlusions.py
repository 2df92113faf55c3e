"""Which pixels of a clip are occluded: masks bool (T, H, W), True where a pixel is not seen.

Artificial ones are the three of the paper's experiment 4 (STGConvNet); those of real
occluders are read from files.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vgan_fast.errors import UserError
from vgan_fast.loaders.decode import scaled
from vgan_fast.loaders.decoders import image_files, upright_image
from vgan_fast.loaders.search import IMAGE_SUFFIXES
from vgan_fast.loaders.whole import decoded

THRESHOLD = 127  # levels above it are occluded: compression moves black and white by some
Shape = tuple[int, int, int]


def salt_and_pepper(shape: Shape, share: float, seed: int) -> np.ndarray:
    """Occlude each pixel by itself.

    Args:
        shape: (T, H, W).
        share: probability in [0, 1] that a pixel is occluded.
        seed: of the draws.

    Returns:
        bool (T, H, W).
    """
    _check_share(share)
    return np.random.default_rng(seed).random(shape) < share


def moving_region(shape: Shape, side: int, seed: int) -> np.ndarray:
    """Occlude one square in each frame, placed anew in each, every place within it as likely.

    Args:
        shape: (T, H, W).
        side: of the square in pixels, up to the shorter of H and W.
        seed: of the places.

    Returns:
        bool (T, H, W).
    """
    frames, height, width = shape
    if not 1 <= side <= min(height, width):
        raise ValueError(f"a region of {side} pixels a side, of frames of {width}x{height}")
    random = np.random.default_rng(seed)
    tops = random.integers(0, height - side + 1, frames)[:, None, None]
    lefts = random.integers(0, width - side + 1, frames)[:, None, None]
    y, x = np.arange(height)[:, None], np.arange(width)
    return (tops <= y) & (y < tops + side) & (lefts <= x) & (x < lefts + side)


def missing_frames(shape: Shape, share: float, seed: int) -> np.ndarray:
    """Occlude whole frames.

    Args:
        shape: (T, H, W).
        share: of the T frames that are missing, in [0, 1]; the count is rounded.
        seed: of the choice.

    Returns:
        bool (T, H, W).
    """
    _check_share(share)
    mask = np.zeros(shape, bool)
    chosen = np.random.default_rng(seed).permutation(shape[0])[: round(share * shape[0])]
    mask[chosen] = True
    return mask


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"a share of {share}: must lie in [0, 1]")


def read_mask(path: Path, *, shape: Shape, filmed: tuple[int, int], start: int) -> np.ndarray:
    """Read the mask of a video: where it is not black, the video is occluded.

    A video or a folder of images, in natural order, holds the masks of the video's frames from its
    first one on; one image stands for all of them. Above level 127 in any channel a pixel is not
    black. A pixel of a scaled clip is occluded where the mask covers any part of it, since that
    part is in its value. A mask video is decoded in a process of its own, so a script must call
    this under `if __name__ == "__main__":`.

    Args:
        path: the mask's file or folder.
        shape: (T, H, W) of the clip that the mask is for.
        filmed: (height, width) of the video before it was scaled to that; the mask has this size.
        start: the clip's first frame in the video.

    Returns:
        bool (T, H, W).

    Raises:
        UserError: the mask cannot be read, has another size or ends too early.
    """
    masks = []
    with _pictures(path, start, shape[0]) as pictures:
        for picture in pictures:
            height, width = picture.shape[:2]
            if (height, width) != filmed:
                raise UserError(
                    f"--mask {path}: is {width}x{height} pixels, its video "
                    f"{filmed[1]}x{filmed[0]}; give a mask of the video's size"
                )
            masks.append(_covered(picture.max(axis=2) > THRESHOLD, shape[1:]))
    return np.broadcast_to(np.stack(masks), shape).copy()


@contextmanager
def _pictures(path: Path, start: int, count: int) -> Iterator[Iterable[np.ndarray]]:
    """The `count` pictures uint8 (H, W, 3) of a mask from `start` on, or the one that stands still.

    They can be read as long as the block lasts.
    """
    if os.path.isdir(path):
        try:
            files = image_files(path)
        except OSError as error:
            raise UserError(f"--mask {path}: cannot be read ({error.strerror})") from None
        if len(files) < start + count:
            raise UserError(
                f"--mask {path}: has {len(files)} images, too few for {count} from frame {start} "
                "on; give one for each frame of the video"
            )
        yield map(_image, files[start : start + count])
    elif not os.path.isfile(path):
        raise UserError(f"--mask {path}: no such file or folder")
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        yield [_image(path)]
    else:
        with decoded([path], start=start, most=count, least=count, workers=1) as found:
            videos, broken = found
            for reason in broken.values():
                raise UserError(
                    f"--mask {path}: {reason}; give a mask for each frame of the video, or an image"
                )
            yield (videos[path].read(number, 1)[0] for number in range(count))


def _image(file: Path) -> np.ndarray:
    try:
        return upright_image(file)
    except MemoryError:
        raise
    except Exception as error:  # damaged images raise whatever their format does
        reason = " ".join(str(error).split())
        raise UserError(f"--mask {file}: cannot be read as an image ({reason})") from None


def _covered(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a mask bool (H, W) down to `size`; a pixel that it covers in part is in it."""
    return scaled(mask.astype(np.float32), *size) > 0
