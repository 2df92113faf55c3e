"""Clips as images: strips in the database, and the sheet of both clips that a rater's page plays.

Both clips of a trial travel in one lossless image, so that neither size, name nor loading time of
a file tells them apart.
"""

import io
import math

import imageio.v3 as iio
import numpy as np
from PIL import Image

from vgan_fast.foreign import MalformedError


def encode_strip(clip: np.ndarray) -> bytes:
    """PNG of the frames, uint8 (T, H, W, 3), one below the other."""
    return _png(clip.reshape(-1, *clip.shape[2:]))


def decode_strip(strip: bytes, frames: int, size: int) -> np.ndarray:
    """The clip, uint8 (T, size, size, 3), that `encode_strip` was given.

    Raises:
        MalformedError: it is no such strip.
    """
    try:
        with Image.open(io.BytesIO(strip), formats=("PNG",)) as image:
            if image.size != (size, frames * size) or image.mode != "RGB":  # before it is decoded
                raise ValueError(f"{image.mode} of {image.width}x{image.height} pixels")
            pixels = np.array(image)
    except MemoryError:
        raise
    except Exception as error:  # damaged images raise whatever their format does
        raise MalformedError(f"a clip cannot be decoded ({error})") from None
    return pixels.reshape(frames, size, size, 3)


def sheet_columns(frames: int) -> int:
    """Moments beside each other on a sheet, which are as many as make it about a square."""
    return math.ceil(math.sqrt(frames / 2))


def encode_sheet(left: np.ndarray, right: np.ndarray) -> bytes:
    """PNG of two clips, uint8 (T, H, W, 3): moments in rows of `sheet_columns`, left beside right.

    Moments that the last row lacks are black.
    """
    moments = np.concatenate([left, right], axis=2)
    t, h, w, _ = moments.shape
    columns = sheet_columns(t)
    rows = math.ceil(t / columns)
    tiles = np.zeros((rows * columns, h, w, 3), np.uint8)
    tiles[:t] = moments
    tiles = tiles.reshape(rows, columns, h, w, 3).swapaxes(1, 2)
    return _png(tiles.reshape(rows * h, columns * w, 3))


def freeze(clip: np.ndarray) -> np.ndarray:
    """The clip (T, H, W, 3) with its first frame at every moment."""
    return np.broadcast_to(clip[:1], clip.shape)


def scramble(clip: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A grey still of noise with the brightness of the first frame, uint8 (T, H, W, 3).

    It cannot be taken for a video, but shows whether somebody looks before answering.
    """
    grey = clip[0].mean(axis=2).round().astype(np.uint8)
    still = random.permutation(grey.ravel()).reshape(grey.shape)
    return np.broadcast_to(still[None, :, :, None], clip.shape)


def _png(image: np.ndarray) -> bytes:
    # Level 1: half a megabyte of pixels in 10 ms rather than 100.
    return iio.imwrite("<bytes>", image, extension=".png", plugin="pillow", compress_level=1)
