"""Videos decoded once: a folder of memory-mapped frames, filled by processes that may die."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from vgan_fast.errors import UserError

from .decode import UndecodableError, decode_video

# Part of every cache key: raise it when decode.py changes what it writes.
FORMAT = 1


@dataclass(frozen=True)
class Frames:
    """The decoded frames of one video: uint8 (F, H, W, 3), RGB, in a `.npy` file."""

    source: Path
    file: Path
    offset: int  # bytes before the first frame
    shape: tuple[int, int, int, int]

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


@dataclass(frozen=True)
class _Task:
    source: Path
    target: Path
    short_side: int
    seconds: float  # until it counts as hung


def time_limit(size: int) -> float:
    """Seconds that decoding a file of `size` bytes may take before it counts as hung.

    Ten minutes, and ten seconds for each megabyte: slower than playing a video of 1 Mbit/s.
    """
    return 600 + 10 * size / 1e6


def decode_videos(
    sources: list[Path],
    cache: Path,
    *,
    short_side: int,
    workers: int,
    decode: Callable[[Path, Path, int], None] = decode_video,
    limit: Callable[[int], float] = time_limit,
) -> tuple[list[Frames], dict[Path, str]]:
    """Return the frames of every source in order, and each broken source with the reason.

    A source that this cache already holds (same path, size, time of change and `short_side`) is
    not decoded again. The others are decoded in `workers` processes; one that kills its process,
    or takes longer than `limit(its bytes)` seconds, costs itself only. Frames appear in the cache
    complete or not at all, and processes that share a cache take turns in filling it.

    Raises:
        UserError: the cache cannot be written (full, read-only), or no process can be started.
    """
    skipped: dict[Path, str] = {}
    entries: dict[Path, Path] = {}
    seconds: dict[Path, float] = {}
    for source in sources:
        try:
            status = source.stat()
        except OSError as error:
            skipped[source] = f"cannot be read ({error.strerror})"
        else:
            entries[source] = cache / _key(source, status, short_side)
            seconds[source] = limit(status.st_size)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if any(_open(source, entry) is None for source, entry in entries.items()):
            _check_that_processes_start()  # before the lock, for which such a process would wait
            with open(cache / ".lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                skipped |= _fill(cache, entries, seconds, short_side, workers, decode)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space, or choose another --out"
        else:
            remedy = "choose an --out that can be written"
        raise UserError(
            f"{cache}: decoded frames cannot be stored ({error.strerror}); {remedy}"
        ) from error
    opened = (_open(source, entry) for source, entry in entries.items() if source not in skipped)
    in_order = {source: skipped[source] for source in sources if source in skipped}
    return [frames for frames in opened if frames is not None], in_order


def _fill(
    cache: Path,
    entries: dict[Path, Path],
    seconds: dict[Path, float],
    short_side: int,
    workers: int,
    decode: Callable[[Path, Path, int], None],
) -> dict[Path, str]:
    """Decode every source whose entry is absent; return those that failed, and why."""
    skipped = {}
    # A run that was killed while it held the lock has left its folder behind.
    for left in cache.glob(".decoding-*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=".decoding-", dir=cache) as scratch:
        tasks = [
            _Task(source, Path(scratch, entry.name), short_side, seconds[source])
            for source, entry in entries.items()
            if _open(source, entry) is None
        ]
        with closing(_decode_apart(tasks, workers, decode)) as outcomes:
            # disable=None: no bar where stderr is not a terminal
            bar = tqdm(outcomes, "decoding videos", len(tasks), unit="file", disable=None)
            for task, reason in bar:
                if reason is None:
                    os.replace(task.target, entries[task.source])
                else:
                    task.target.unlink(missing_ok=True)
                    skipped[task.source] = reason
    return skipped


def _key(source: Path, status: os.stat_result, short_side: int) -> str:
    identity = (FORMAT, str(source.resolve()), status.st_size, status.st_mtime_ns, short_side)
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:32] + ".npy"


def _open(source: Path, entry: Path) -> Frames | None:
    """Return what `entry` holds; None when it is absent or damaged, so that it is decoded again."""
    try:
        array = np.load(entry, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    if array.dtype != np.uint8 or array.ndim != 4:
        return None
    return Frames(source, entry, array.offset, array.shape)


def _decode_apart(
    tasks: list[_Task], workers: int, decode: Callable[[Path, Path, int], None]
) -> Iterator[tuple[_Task, str | None]]:
    """Run every task in a process that it may kill; yield it and the reason it failed, or None."""
    while tasks:
        pool = ProcessPool(
            max_workers=min(workers, len(tasks)), context=multiprocessing.get_context("spawn")
        )
        lost = []
        try:
            futures = {
                pool.schedule(
                    decode, args=[task.source, task.target, task.short_side], timeout=task.seconds
                ): task
                for task in tasks
            }
            for future in as_completed(futures):
                task = futures[future]
                try:
                    future.result()
                    yield task, None
                except UndecodableError as error:
                    yield task, str(error)
                # Both are OSErrors in Python, as a full disk is: that one passes through.
                except TimeoutError:
                    yield task, f"the decoder hung: stopped after {task.seconds:.0f} s"
                except ProcessExpired as error:
                    yield task, f"the decoder crashed ({_death(error.exitcode)})"
                except BrokenProcessPool:
                    lost.append(task)
        finally:
            pool.stop()
            pool.join()
        # A worker that dies before its task is on record breaks the pool: what was left is tried
        # again, as long as that leads on.
        if len(lost) == len(tasks):
            raise UserError(
                "the processes that decode videos are killed as they start; is memory short?"
                " Free some memory and try again"
            )
        tasks = lost


def _check_that_processes_start() -> None:
    """A spawned process runs the main script anew: one without a guard would open videos again."""
    probe = multiprocessing.get_context("spawn").Process(target=int)
    probe.start()
    probe.join()
    if probe.exitcode:
        raise UserError(
            "no process to decode videos in can be started: a script must open them under"
            " if __name__ == '__main__':"
        )


def _death(exitcode: int) -> str:
    return signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
