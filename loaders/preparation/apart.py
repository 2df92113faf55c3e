"""Videos prepared in processes of their own, which a bad file may kill or hang."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from vgan_fast.errors import UserError
from vgan_fast.files import remove_unfinished

from ..cache import DECODER_ORDER, MEMORY, death, limit_memory, time_limit
from ..decoders import UndecodableError
from ..search import Kind
from .scenes import SceneClassifier, SceneFilter
from .video import Recipe, prepare_video, write_record

_SLOWER = 10  # than decoding alone, by which a video may be prepared before it counts as hung
# Deaths that come from outside, such as an operator's or the kernel's for want of memory: they say
# nothing of the file, which is tried again.
_KILLED = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ATTEMPTS = 5
_LOADING = 120  # seconds that a scene classifier may take to load and to run once
_AHEAD = 2  # tasks that wait for each process


@dataclass(frozen=True, slots=True)
class Task:
    """One video to prepare."""

    source: Path
    kind: Kind  # "video" or "images"
    size: int  # bytes
    part: Path
    recipe: Recipe
    decoders: tuple[str, ...] = ()  # left to try
    reasons: tuple[str, ...] = ()  # why others failed
    deaths: int = 0


def check_scenes(scenes: SceneFilter) -> None:
    """Load a scene classifier once, in a process of its own, which a damaged network may kill.

    Raises:
        UserError: it cannot be loaded or used.
    """
    pool = _pool(1)
    try:
        pool.schedule(_load_scenes, (scenes,), timeout=_LOADING).result()
    except (ProcessExpired, BrokenProcessPool, TimeoutError):
        raise UserError(
            f"{scenes.model}: OpenCV crashes or hangs over it; it is damaged, export it anew"
        ) from None
    finally:
        pool.stop()
        pool.join()


def _pool(processes: int) -> ProcessPool:
    # Before they import OpenCV, whose complaints would only repeat what is reported by name.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    context = multiprocessing.get_context("spawn")
    return ProcessPool(max_workers=processes, context=context)


def _load_scenes(scenes: SceneFilter) -> None:
    SceneClassifier(scenes)


class Apart:
    """Processes that prepare videos."""

    def __init__(self, processes: int):
        self._processes = processes
        self._pool = _pool(self._processes)

    def run(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yield each task as it is done, its part being whole.

        What no decoder reads has a record without clips, with the reason under "failed".

        Raises:
            UserError: parts cannot be written, or processes are killed over and over.
        """
        waiting = (replace(task, decoders=DECODER_ORDER[task.kind]) for task in tasks)
        again: list[Task] = []
        futures: dict[Future, Task] = {}
        while True:
            while len(futures) < _AHEAD * self._processes:
                task = again.pop() if again else next(waiting, None)
                if task is None:
                    break
                futures[self._schedule(task)] = task
            if not futures:
                return
            done, _ = wait(futures, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:
                task = futures.pop(future)
                try:
                    future.result()
                    yield task
                except BrokenProcessPool:  # it died before its task was on record
                    again.append(_after_death(task))
                    broken = True
                except TimeoutError:
                    yield from self._failed(task, f"{task.decoders[0]} hung", again)
                except ProcessExpired as error:
                    remove_unfinished(task.part.parent, task.part.name)
                    if -error.exitcode in _KILLED:
                        again.append(_after_death(task))
                    else:
                        reason = f"{task.decoders[0]} crashed ({death(error.exitcode)})"
                        yield from self._failed(task, reason, again)
                except UndecodableError as error:
                    yield from self._failed(task, str(error), again)
                except UserError:
                    raise
                except Exception as error:  # one video in millions must not end the run
                    reason = f"{type(error).__name__}: {error}"
                    yield from self._failed(task, reason, again)
            if broken:
                again += futures.values()
                futures.clear()
                self.close()
                self._pool = _pool(self._processes)

    def close(self) -> None:
        """Stop the processes, at once."""
        self._pool.stop()
        self._pool.join()

    def _schedule(self, task: Task) -> Future:
        arguments = (task.source, task.kind, task.decoders[0], task.recipe, task.part)
        limit = _SLOWER * time_limit(task.size)
        with _uninterrupted():  # the first starts processes
            return self._pool.schedule(_within_memory, arguments, timeout=limit)

    def _failed(self, task: Task, reason: str, again: list[Task]) -> Iterator[Task]:
        """Let the next decoder try, or put down why none reads the video."""
        reasons = (*task.reasons, " ".join(reason.split()))
        if len(task.decoders) > 1:
            again.append(replace(task, decoders=task.decoders[1:], reasons=reasons))
            return
        write_record(task.part, {"failed": "; ".join(dict.fromkeys(reasons))})
        yield task


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put SIGINT and SIGTERM off: a process that is cut off from its parent at birth complains."""
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    came: list[tuple] = []  # (signal, frame)
    handlers = {
        number: signal.signal(number, lambda *arguments: came.append(arguments))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    for number, _ in came:
        signal.raise_signal(number)


def _after_death(task: Task) -> Task:
    if task.deaths == _ATTEMPTS:
        raise UserError(
            f"{task.source}: the process that prepares it was killed {_ATTEMPTS} times; is memory"
            " short? Free some, or lower --workers"
        )
    return replace(task, deaths=task.deaths + 1)


def _within_memory(*arguments) -> None:
    """Prepare a video in this process, which may take up to `MEMORY` bytes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    limit_memory()
    try:
        return prepare_video(*arguments)
    except (MemoryError, ImportError):  # the second where a library finds no room
        pass
    # Out here, for the error at hand would hold on to that memory and starve the next video.
    raise UndecodableError(f"it needs over {MEMORY / 2**30:.3g} GiB of memory")
