"""Clips of decoded videos and clips of JPEG strips, in the form that the DALI graph reads."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from vgan_fast.errors import UserError

from .cache import Frames
from .strips import Strip

_log = logging.getLogger(__name__)


class Videos:
    """Decoded videos; a clip is up to T frames in a row of one video, from any start."""

    def __init__(self, videos: list[Frames], frames: int):
        self._videos = videos
        self._frames = frames
        # Clips that a video gives without overlap: a long video fills more of an epoch.
        self.clips = [max(1, video.length // frames) for video in videos]

    def read(self, file: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames, uint8 (up to T, H, W, 3), and the order to show them in, int32 (T,).

        `fraction`, in [0, 1), says where among the possible starts the clip begins.
        """
        video = self._videos[file]
        count = min(self._frames, video.length)
        start = int(fraction * (video.length - count + 1))
        return video.read(start, count), _order(count, self._frames)


class Strips:
    """JPEG strips; a clip is the first T frames of one.

    A strip that proves to be broken goes into `skipped` and the log, and the next good one takes
    its place wherever it is drawn: every other clip stays where it was.
    """

    def __init__(self, strips: list[Strip], frames: int, skipped: dict[Path, str]):
        self._strips = strips
        self._frames = frames
        self._skipped = skipped
        self.clips = [1] * len(strips)

    def read(self, file: int, _: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the JPEG, uint8 (bytes,), the shape to cut it into, int32 (4,), and the order.

        Raises:
            UserError: no good strip is left.
        """
        while True:
            strip = self.stand_in(file)
            try:
                jpeg = np.fromfile(strip.source, np.uint8)
            except OSError as error:
                self.skip(strip, f"cannot be read any more ({error.strerror})")
                continue
            shape = np.array([strip.length, strip.side, strip.side, 3], np.int32)
            return jpeg, shape, _order(strip.length, self._frames)

    def stand_in(self, file: int) -> Strip:
        """Return the strip of that number, or the next good one if it is broken."""
        for step in range(len(self._strips)):
            strip = self._strips[(file + step) % len(self._strips)]
            if strip.source not in self._skipped:
                return strip
        path, reason = next(iter(self._skipped.items()))
        raise UserError(
            f"every strip has turned out to be broken, the first is {path}: {reason};"
            " give others with --data"
        )

    def skip(self, strip: Strip, reason: str) -> None:
        """Name a strip as broken and use it no more."""
        self._skipped[strip.source] = reason
        _log.warning("%s: skipped: %s", strip.source, reason)


def _order(count: int, frames: int) -> np.ndarray:
    """Return the first `frames` of 0, 1, …, count−1, count−1, …: the last frame is repeated."""
    return np.minimum(np.arange(frames, dtype=np.int32), count - 1)
