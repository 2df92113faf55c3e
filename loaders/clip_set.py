"""The files that clips are cut from, and how a clip is cut from each kind."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np

from vgan_fast.errors import UserError

from .epochs import Sample
from .frames import Frames
from .strips import BrokenStripError, Strip, decode_strip

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
    Several threads may read at once.

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

    encoded = False  # whether `read` gives encoded images
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
        self._lock = Lock()
        self._good = len(files)
        self._next = list(range(len(files)))  # itself for a good file; leads to one from others

    @abstractmethod
    def read(self, number: int, moments: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return frames of file `number`, int (T,) and rising, in the form `file_graph` reads.

        Raises:
            OSError: the file cannot be read.
            BrokenStripError: it cannot be decoded.
        """

    @abstractmethod
    def sides(self) -> set[tuple[int, int]]:
        """Return the sizes of frames that occur, (height, width) in pixels."""

    def read_job(self, job: Job) -> tuple[int, tuple[np.ndarray, ...]]:
        """Return the number of the file that was read, and what `read` returns.

        Raises:
            UserError: no good file is left.
        """
        while True:
            number = self.stand_in(job.file)
            try:
                return number, self.read(number, job.moments(number))
            except BrokenStripError as error:
                self._skip([number], self.files[number].source, str(error))
            except OSError as error:
                lost = self.files[number].file  # with every clip in it, if it is a shard
                members = [k for k, file in enumerate(self.files) if file.file == lost]
                name = self.files[number].source if len(members) == 1 else lost
                self._skip(members, name, f"cannot be read any more ({error.strerror})")

    def job(self, sample: Sample) -> Job:
        """Return what there is to read for a sample."""
        return Job(sample.file, partial(self.moments, sample))

    def name(self, job: Job) -> str:
        """Return what a person calls the file that a job reads."""
        return str(self.files[self.stand_in(job.file)].source)

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
        with self._lock:
            if not self._good:
                path, reason = next(iter(self.skipped.items()))
                raise UserError(
                    f"every file has turned out to be broken, the first is {path}: {reason};"
                    " give others with --data"
                )
            found = number
            while self._next[found] != found:
                found = self._next[found]
            while number != found:  # the next search is shorter
                self._next[number], number = found, self._next[number]
            return found

    @property
    def fingerprint(self) -> str:
        """Hash of the files' names and lengths."""
        named = [(str(file.source), file.length) for file in self.files]
        return hashlib.sha256(repr(named).encode()).hexdigest()

    def _skip(self, numbers: list[int], name: Path, reason: str) -> None:
        """Name a file as broken and use it no more."""
        with self._lock:
            fresh = [number for number in numbers if self._next[number] == number]
            for number in fresh:
                self._next[number] = (number + 1) % len(self.files)
            self._good -= len(fresh)
            if fresh:  # else another thread was quicker
                self.skipped[name] = reason
                _log.warning("%s: skipped: %s", name, reason)

    def _windows(self, file: File) -> int:
        return max(1, file.length // self._span)


class FrameSet(ClipSet[Frames]):
    """Files of plain frames: decoded videos and folders, and `.npy` shards."""

    def read(self, number: int, moments: np.ndarray) -> tuple[np.ndarray]:
        """Return the frames, uint8 (T, H, W, 3)."""
        file, first = self.files[number], int(moments[0])
        if np.array_equal(moments, np.arange(first, first + len(moments))):
            return (file.read(first, len(moments)),)
        # What a stride leaves out is not read, and a repeated last frame costs little.
        return (np.concatenate([file.read(int(moment), 1) for moment in moments]),)

    def sides(self) -> set[tuple[int, int]]:
        """See `ClipSet`."""
        return {file.shape[1:3] for file in self.files}


class StripSet(ClipSet[Strip]):
    """Strips: files of their own, and members of shards.

    A strip is decoded here, by a decoder that notices what is missing: DALI's fills it with grey,
    and dies of some damage. Where `encoded`, for a GPU, only its first reading does so; then the
    image's bytes go to DALI.
    """

    def __init__(self, *arguments, encoded: bool, **options):
        super().__init__(*arguments, **options)
        self.encoded = encoded
        self._whole: set[int] = set()  # strips that have been decoded

    def read(self, number: int, moments: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the frames, uint8 (T, side, side, 3), or what `file_graph` takes of a strip."""
        file = self.files[number]
        image = file.read()
        if not self.encoded:
            return (decode_strip(file, image)[moments],)
        if number not in self._whole:
            decode_strip(file, image)
            self._whole.add(number)
        across = file.length if file.horizontal else 1
        grid = np.array([file.length // across, file.side, across, file.side, 3], np.int32)
        stack = np.array([file.length, file.side, file.side, 3], np.int32)
        shapes = (grid, stack) if self.sideways else (stack,)
        return image, *shapes, moments.astype(np.int32)

    @cached_property
    def sideways(self) -> bool:
        """Whether some strips have their frames side by side."""
        return any(file.horizontal for file in self.files)

    def sides(self) -> set[tuple[int, int]]:
        """See `ClipSet`."""
        return {(file.side, file.side) for file in self.files}
