"""The files that clips are cut from, and how a clip is cut from each kind."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from vgan_fast.errors import UserError

from .epochs import Sample
from .frames import Frames
from .strips import Strip

_log = logging.getLogger(__name__)
Start = Literal["random", "fixed"]
File = TypeVar("File", Frames, Strip)


class Job(NamedTuple):
    """A part of one file to read."""

    file: int  # its number
    moments: Callable[[int], np.ndarray]  # frames to read, by the number of the file that is read


class ClipSet(ABC, Generic[File]):
    """Files of one family. A file that proves broken is skipped, and the next good one stands in.

    Wherever a broken file is drawn, that one takes its place: every other clip stays where it was.

    Args:
        files: usable files.
        frames: T, frames in a clip.
        stride: frames of the file from one frame of the clip to the next.
        start: "random", anywhere that a whole clip fits, or "fixed", one after the other from the
            file's beginning.
        skipped: files that are broken, and why; grows.

    Attributes:
        windows: for each file, the clips that it gives without overlap, at least one.
    """

    encoded: bool  # whether `read` gives encoded images
    sideways = False  # whether some of those have their frames side by side

    def __init__(
        self,
        files: list[File],
        *,
        frames: int,
        stride: int,
        start: Start,
        skipped: dict[Path, str],
    ):
        self.files = files
        self.skipped = skipped
        self._span = frames * stride
        self._steps = stride * np.arange(frames)
        self._start = start
        self.windows = [self._windows(file) for file in files]

    @abstractmethod
    def read(self, file: File, moments: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the frames of those numbers, int (T,), in the form that `file_graph` reads."""

    def read_job(self, job: Job) -> tuple[int, tuple[np.ndarray, ...]]:
        """Return the number of the file that was read, and what `read` returns.

        Raises:
            UserError: no good file is left.
        """
        while True:
            number = self.stand_in(job.file)
            try:
                return number, self.read(self.files[number], job.moments(number))
            except OSError as error:
                self.skip(number, f"cannot be read any more ({error.strerror})")

    def job(self, sample: Sample) -> Job:
        """Return what there is to read for a sample."""
        return Job(sample.file, partial(self.moments, sample))

    def name(self, job: Job) -> str:
        """Return what a person calls the file of a job."""
        return str(self.files[job.file].source)

    def moments(self, sample: Sample, number: int) -> np.ndarray:
        """Return the numbers of the frames that the clip shows if file `number` gives it.

        They are int (T,) and rise; beyond the file's end its last frame is repeated.
        """
        file = self.files[number]
        if self._start == "fixed":
            first = sample.window % self._windows(file) * self._span
        else:
            starts = max(1, file.length - int(self._steps[-1]))
            first = int(sample.place * starts)
        return np.minimum(first + self._steps, file.length - 1)

    def stand_in(self, number: int) -> int:
        """Return that number, or that of the next good file if the file is broken.

        Raises:
            UserError: no good file is left.
        """
        for step in range(len(self.files)):
            candidate = (number + step) % len(self.files)
            if self.files[candidate].source not in self.skipped:
                return candidate
        path, reason = next(iter(self.skipped.items()))
        raise UserError(
            f"every file has turned out to be broken, the first is {path}: {reason};"
            " give others with --data"
        )

    def skip(self, number: int, reason: str) -> None:
        """Name a file as broken and use it no more."""
        source = self.files[number].source
        self.skipped[source] = reason
        _log.warning("%s: skipped: %s", source, reason)

    @abstractmethod
    def sides(self) -> set[tuple[int, int]]:
        """Return the sizes of frames that occur, (height, width) in pixels."""

    @property
    def fingerprint(self) -> str:
        """Hash of the files' names and lengths."""
        named = [(str(file.source), file.length) for file in self.files]
        return hashlib.sha256(repr(named).encode()).hexdigest()

    def _windows(self, file: File) -> int:
        return max(1, file.length // self._span)


class FrameSet(ClipSet[Frames]):
    """Files of plain frames: decoded videos and folders, and `.npy` shards."""

    encoded = False

    def read(self, file: Frames, moments: np.ndarray) -> tuple[np.ndarray]:
        """Return the frames, uint8 (T, H, W, 3)."""
        first = int(moments[0])
        frames = file.read(first, int(moments[-1]) - first + 1)
        return (frames if len(frames) == len(moments) else frames[moments - first],)

    def sides(self) -> set[tuple[int, int]]:
        """See `ClipSet`."""
        return {file.shape[1:3] for file in self.files}


class StripSet(ClipSet[Strip]):
    """Strips: files of their own, and members of shards."""

    encoded = True

    def read(self, file: Strip, moments: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the image's bytes, its shapes, and the order of its frames; see `file_graph`."""
        across = file.length if file.horizontal else 1
        grid = np.array([file.length // across, file.side, across, file.side, 3], np.int32)
        stack = np.array([file.length, file.side, file.side, 3], np.int32)
        shapes = (grid, stack) if self.sideways else (stack,)
        return file.read(), *shapes, moments.astype(np.int32)

    @cached_property
    def sideways(self) -> bool:
        """Whether some strips have their frames side by side."""
        return any(file.horizontal for file in self.files)

    def sides(self) -> set[tuple[int, int]]:
        """See `ClipSet`."""
        return {(file.side, file.side) for file in self.files}
