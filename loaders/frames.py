"""Frames in a file, mapped into memory: what decoding leaves, and what `.npy` shards hold."""

from __future__ import annotations

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
        """Map frames `start` to `start + count`: uint8 (count, H, W, 3), read-only, no copy."""
        frame_bytes = int(np.prod(self.shape[1:]))
        # Mapped for each clip, not once for each video: a mapping holds a file descriptor, and a
        # set has more videos than a process may hold of those.
        return np.memmap(
            self.file,
            np.uint8,
            mode="r",
            offset=self.offset + start * frame_bytes,
            shape=(count, *self.shape[1:]),
        )
