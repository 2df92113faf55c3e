"""Frames in a file: what decoding leaves, and what `.npy` shards hold."""

from __future__ import annotations

import errno
import io
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_PIXELS = 1 << 26  # per frame, 8192x8192: 192 MiB as RGB
_HEADER = 2**14  # bytes; NumPy itself takes no header over 10,000
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LARGEST = 2**48  # along an axis: no file holds more, and a number may have thousands of digits


class BrokenArrayError(Exception):
    """The file is no `.npy` array of frames; the message says why."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Consecutive frames of one video: uint8 (F, H, W, 3), RGB, C-contiguous within `file`."""

    source: Path  # what a person calls it: the video, the folder of images, the shard and its clip
    file: Path
    offset: int  # bytes before the first frame
    shape: tuple[int, int, int, int]
    rate: float | None = None  # frames a second; None where the source does not tell
    label: str | None = None  # name of its class

    @property
    def length(self) -> int:
        """Number of frames."""
        return self.shape[0]

    def read(self, start: int, count: int) -> np.ndarray:
        """Return frames `start` to `start + count`: uint8 (count, H, W, 3).

        Raises:
            OSError: the file cannot be read, or is shorter than it was.
        """
        # Read and not mapped: a file that is cut short under a mapping kills the process.
        frame_bytes = math.prod(self.shape[1:])
        frames = np.fromfile(
            self.file, np.uint8, count * frame_bytes, offset=self.offset + start * frame_bytes
        )
        if frames.size < count * frame_bytes:
            raise OSError(errno.EIO, "shorter than it was")
        return frames.reshape(count, *self.shape[1:])


def read_header(file: Path, min_side: int = 1) -> tuple[int, tuple[int, ...]]:
    """Return where the pixels begin, in bytes, and the shape of an array of frames.

    Nothing but the header is read. The array is uint8 (F, H, W, 3) or (N, F, H, W, 3), each axis
    at least 1, H and W at least `min_side`, in C order, and the file holds all of it.

    Raises:
        OSError: the file cannot be read.
        BrokenArrayError: it is something else.
    """
    with open(file, "rb") as stream:
        header = io.BytesIO(stream.read(_HEADER))
        file_bytes = os.fstat(stream.fileno()).st_size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, of odd text in a header
            version = np.lib.format.read_magic(header)
            shape, columns_first, dtype = _HEADERS[version](header)
    except Exception as error:  # the header is a line of Python: whatever parsing that raises
        reason = str(error).partition("\n")[0][:200]
        raise BrokenArrayError(f"not a .npy array, or its header is damaged ({reason})") from None
    if any(abs(axis) > _LARGEST for axis in shape):
        raise BrokenArrayError("its header is damaged (its shape cannot be)")
    if dtype != np.uint8 or len(shape) not in (4, 5) or shape[-1] != 3:
        raise BrokenArrayError(
            f"{str(dtype)[:40]} of shape {str(shape)[:80]}; save it as uint8 (clips, frames,"
            " height, width, 3) or (frames, height, width, 3)"
        )
    needed = header.tell() + math.prod(shape)
    reason = None
    if min(shape) < 1:
        reason = f"shape {shape}: holds no frames"
    elif min(shape[-3:-1]) < min_side:
        reason = f"shape {shape}: under {min_side} pixels a side"
    elif shape[-3] * shape[-2] > MAX_PIXELS:
        reason = f"shape {shape}: over {MAX_PIXELS} pixels a frame"
    elif columns_first:
        reason = "in Fortran order; save it with numpy.ascontiguousarray"
    elif needed > file_bytes:
        reason = f"cut off: shape {shape} needs {needed} bytes, the file has {file_bytes}"
    if reason:
        raise BrokenArrayError(reason)
    return header.tell(), tuple(map(int, shape))
