"""Frames in a file: what decoding leaves, and what `.npy` shards hold."""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np


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
