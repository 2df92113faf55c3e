"""Videos decoded once: a folder of frames, filled by processes that may die."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import multiprocessing
import os
import resource
import shutil
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

from tqdm import tqdm

from vgan_fast.errors import UserError
from vgan_fast.foreign import MalformedError, read_json

from . import nvdec
from .decode import decode_source
from .decoders import Settings, UndecodableError, image_files
from .frames import BrokenArrayError, Frames, read_header
from .processes import STARTING, STARTLESS, STARTS, HungError, ProcessDiedError, Processes
from .search import DECODED, Source

# Part of every cache key: raise it when decode.py changes what it writes.
FORMAT = 3
MEMORY = 8 << 30  # bytes that one decoding process may take

_Decode = Callable[[Path, Path, str, Settings], float | None]
_log = logging.getLogger(__name__)

# What is tried on a source, in this order, until one of them reads it.
# OpenCV after PyAV: it hands out memory that nobody wrote where frames are interlaced, and colours
# of its own where they are HDR or of a wide gamut.
DECODER_ORDER = {"video": ("PyAV", "OpenCV"), "images": ("Pillow",)}
# A set that NVDEC fails on so much more often than not is left to the others.
_NVDEC_FAILURES = 3
_MOST_THREADS = 16  # of a decoder, FFmpeg's own bound: each holds frames
_NVDEC_PROCESSES = 4  # each takes half a gigabyte of the GPU
_ATTEMPTS = 3  # of a decoder on a file over which its process is killed from outside


@dataclass(frozen=True, slots=True)
class _Task:
    source: Source
    entry: Path  # where its frames go
    seconds: float  # until a decoder counts as hung
    decoders: tuple[str, ...]  # still to be tried, this one first
    reasons: tuple[str, ...] = ()  # why others failed
    deaths: int = 0  # of this one, from outside

    @property
    def decoder(self) -> str:
        return self.decoders[0]

    @property
    def limit(self) -> float:
        """Seconds until that decoder counts as hung: hardware is quick, or it is broken."""
        return self.seconds / 10 if self.decoder == "NVDEC" else self.seconds

    def after(self, reason: str) -> _Task:
        """Return the task of the decoders after that one, which failed for `reason`."""
        if self.decoder == "NVDEC":  # the others say what is wrong with the file
            _log.info("%s: not decoded by NVDEC: %s", self.source.path, reason)
            return replace(self, decoders=self.decoders[1:], deaths=0)
        one_line = " ".join(reason.split())
        reasons = (*self.reasons, one_line)
        return replace(self, decoders=self.decoders[1:], reasons=reasons, deaths=0)


def time_limit(size: int) -> float:
    """Seconds that decoding a file of `size` bytes may take before it counts as hung.

    Ten minutes, and ten seconds for each megabyte: slower than playing a video of 1 Mbit/s.
    """
    return 600 + 10 * size / 1e6


def decode_videos(
    sources: list[Source],
    cache: Path,
    *,
    short_side: int,
    fps: float | None,
    workers: int,
    device: str = "cpu",
    decode: _Decode = decode_source,
    limit: Callable[[int], float] = time_limit,
    memory: int = MEMORY,
) -> tuple[list[Frames], dict[Path, str]]:
    """Return the frames of every source in order, and each broken source with the reason.

    Sources are of the kinds "video" and "images". One that this cache already holds (same path,
    size, time of change, `short_side` and `fps`; of a folder, the same of each image) is not
    decoded again. The others are decoded in `workers` processes: a video by PyAV, and by OpenCV
    where PyAV fails, gets nothing, crashes, takes longer than `limit(its bytes)` seconds or more
    than `memory` bytes; on `device` "cuda" or "cuda:1", by NVDEC before them. Such a failure costs
    itself only. Frames appear in the cache complete or not at all, and processes that share a
    cache take turns in filling it.

    Raises:
        UserError: the cache cannot be written (full, read-only), or no process can be started.
    """
    settings = Settings(short_side, None if fps is None else float(fps), device=device)
    skipped: dict[Path, str] = {}
    entries: dict[Source, Path] = {}
    tasks: dict[Path, _Task] = {}
    ahead = ("NVDEC",) if device != "cpu" and nvdec.is_there() else ()
    for source in sources:
        try:
            size, identity = _identify(source)
        except OSError as error:
            skipped[source.path] = f"cannot be read ({error.strerror})"
        except UndecodableError as error:
            skipped[source.path] = str(error)
        else:
            entry = cache / _key(identity, settings)
            decoders = (ahead if source.kind == "video" else ()) + DECODER_ORDER[source.kind]
            entries[source] = entry
            tasks[entry] = _Task(source, entry, limit(size), decoders)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if any(read_entry(source, entry) is None for source, entry in entries.items()):
            _check_that_processes_start()  # before the lock, for which such a process would wait
            with open(cache / DECODED, "w") as lock:
                _take_turn(cache, lock)
                missing = [
                    task for task in tasks.values() if read_entry(task.source, task.entry) is None
                ]
                run = partial(_decode_within, memory, decode)
                skipped |= _fill(cache, missing, workers, settings, run)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space, or choose another folder with --decoded"
        else:
            remedy = "choose another folder with --decoded"
        raise UserError(
            f"{cache}: decoded frames cannot be stored ({error.strerror}); {remedy}"
        ) from error
    opened = (read_entry(source, entries[source]) for source in sources if source in entries)
    in_order = {source.path: skipped[source.path] for source in sources if source.path in skipped}
    return [frames for frames in opened if frames is not None], in_order


def _take_turn(cache: Path, lock: IO) -> None:
    """Lock a cache, and say so where another run holds it up."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("%s: another run decodes into it; waiting for that to end", cache)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _identify(source: Source) -> tuple[int, tuple]:
    """Return the bytes of a source, and what changes whenever its content does."""
    status = source.path.stat()
    if source.kind == "images":
        images = [(file.name, file.stat()) for file in image_files(source.path)]
        listed = [(name, image.st_size, image.st_mtime_ns) for name, image in images]
        return sum(size for _, size, _ in listed), (str(source.path.resolve()), listed)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise UndecodableError("not a regular file")
    size = status.st_size
    return size, (str(source.path.resolve()), size, status.st_mtime_ns)


def _key(identity: tuple, settings: Settings) -> str:
    everything = (FORMAT, identity, settings.short_side, settings.fps)
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:32] + ".npy"


def read_entry(source: Source, entry: Path) -> Frames | None:
    """Return what `entry` holds; None when it is absent or damaged, so that it is decoded again."""
    try:
        rate = read_json(entry.with_suffix(".json"), dict[str, float | None])["rate"]
        offset, shape = read_header(entry)
    except (OSError, MalformedError, KeyError, BrokenArrayError):
        return None
    if len(shape) != 4 or not (rate is None or 0 < rate < math.inf):
        return None
    return Frames(source.path, entry, offset, shape, rate, source.label)


def _fill(
    cache: Path, tasks: list[_Task], workers: int, settings: Settings, run: _Decode
) -> dict[Path, str]:
    """Store the frames of every task by the first decoder that succeeds; say why none does."""
    skipped = {}
    # A run that was killed while it held the lock has left its folder behind.
    for left in cache.glob(".decoding-*"):
        shutil.rmtree(left)
    # disable=None: no bar where stderr is not a terminal
    bar = tqdm(desc="decoding videos", total=len(tasks), unit="file", disable=None)
    with bar, tempfile.TemporaryDirectory(prefix=".decoding-", dir=cache) as scratch:
        while tasks:
            # In rounds: a file that kills one decoder's process is tried by the next one after.
            untried, again = {task.entry: task for task in tasks}, []
            nvdec_failures = 0
            with closing(_decode_apart(tasks, Path(scratch), workers, settings, run)) as outcomes:
                for task, target, rate, reason in outcomes:
                    del untried[task.entry]
                    if task.decoder == "NVDEC":
                        nvdec_failures += 1 if reason else -1
                    if reason is None:
                        _store(target, rate, task.entry)
                        bar.update()
                    else:
                        target.unlink(missing_ok=True)
                        task = task.after(reason)
                        if task.decoders:
                            again.append(task)
                        else:
                            skipped[task.source.path] = "; ".join(dict.fromkeys(task.reasons))
                            bar.update()
                    if nvdec_failures == _NVDEC_FAILURES:
                        break
            tasks = again + [
                task.after("it fails on most files") if task.decoder == "NVDEC" else task
                for task in untried.values()
            ]
    return skipped


def _store(target: Path, rate: float | None, entry: Path) -> None:
    """Move finished frames to their entry, after what is to be known about them."""
    notes = target.with_suffix(".json")
    notes.write_text(json.dumps({"rate": rate}))
    os.replace(notes, entry.with_suffix(".json"))
    os.replace(target, entry)


def _decode_apart(
    tasks: list[_Task], scratch: Path, workers: int, settings: Settings, run: _Decode
) -> Iterator[tuple[_Task, Path, float | None, str | None]]:
    """Try the decoder that is next for every task, in processes that it may kill.

    Yields the task, its file of frames, their rate, and the reason it failed or None.
    """
    count = min(workers, len(tasks))
    if any(task.decoder == "NVDEC" for task in tasks):
        count = min(count, _NVDEC_PROCESSES)
    threads = min(max(1, len(os.sched_getaffinity(0)) // max(1, count)), _MOST_THREADS)
    settings = replace(settings, threads=threads)
    waiting = deque(tasks)
    with closing(Processes(count)) as processes:
        while waiting or not processes.idle:
            while waiting and processes.hungry:
                task = waiting.popleft()
                target = scratch / task.entry.name
                arguments = (task.source.path, target, task.decoder, settings)
                processes.submit((task, target), run, arguments, task.limit)
            (task, target), outcome = processes.next()
            rate = reason = None
            try:
                rate = outcome.result()
            except UndecodableError as error:
                reason = str(error)
            except HungError:
                reason = f"{task.decoder} hung: stopped after {task.limit:.0f} s"
            except ProcessDiedError as error:
                if error.from_outside and task.deaths + 1 < _ATTEMPTS:
                    _log.info(
                        "%s: again, %s was killed (%s)", task.source.path, task.decoder, error
                    )
                    waiting.append(replace(task, deaths=task.deaths + 1))
                    continue
                reason = f"{task.decoder} crashed ({error})"
            yield task, target, rate, reason


def _decode_within(
    memory: int, decode: _Decode, source: Path, target: Path, decoder: str, settings: Settings
) -> float | None:
    """Decode in this process, which may take up to `memory` bytes."""
    limit_memory(None if decoder == "NVDEC" else memory)  # CUDA maps more than it takes
    try:
        return decode(source, target, decoder, settings)
    except (MemoryError, ImportError):  # the second where a library finds no room
        pass
    # Out here, for the error at hand would hold on to that memory and starve the next file.
    raise UndecodableError(f"{decoder} needs over {memory / 2**30:.3g} GiB of memory")


def limit_memory(memory: int | None = MEMORY) -> None:
    """Let this process take up to that many bytes; None lifts an earlier limit."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    bound = most if memory is None or 0 <= most < memory else memory
    resource.setrlimit(resource.RLIMIT_DATA, (bound, most))


def _check_that_processes_start() -> None:
    """A spawned process runs the main script anew: one without a guard would open videos again."""
    for _ in range(STARTS):
        probe = multiprocessing.get_context("spawn").Process(target=int, daemon=True)
        probe.start()
        probe.join(STARTING)
        probe.kill()
        probe.join()
        if probe.exitcode >= 0:  # not killed
            break
    else:
        raise UserError(STARTLESS)
    if probe.exitcode:
        raise UserError(
            "no process to decode videos in can be started: a script must open them under"
            " if __name__ == '__main__':"
        )
