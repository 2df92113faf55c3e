"""Videos prepared in processes of their own, which a bad file may kill or hang."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from vgan_fast.errors import UserError
from vgan_fast.files import remove_unfinished

from ..cache import DECODER_ORDER, MEMORY, limit_memory, time_limit
from ..decoders import UndecodableError
from ..processes import HungError, ProcessDiedError, Processes
from ..search import Kind
from .scenes import SceneClassifier, SceneFilter
from .video import Recipe, prepare_video, write_record

_SLOWER = 10  # than decoding alone, by which a video may be prepared before it counts as hung
_ATTEMPTS = 5  # on a video over which its process is killed from outside
_LOADING = 120  # seconds that a scene classifier may take to load and to run once


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
    with closing(_processes(1)) as processes:
        processes.submit(scenes, _load_scenes, (scenes,), _LOADING)
        try:
            processes.next()[1].result()
        except (ProcessDiedError, HungError):
            raise UserError(
                f"{scenes.model}: OpenCV crashes or hangs over it; it is damaged, export it anew"
            ) from None


def _processes(count: int) -> Processes:
    # Before they import OpenCV, whose complaints would only repeat what is reported by name.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    return Processes(count)


def _load_scenes(scenes: SceneFilter) -> None:
    SceneClassifier(scenes)


class Apart:
    """Processes that prepare videos."""

    def __init__(self, processes: int):
        self._processes: Processes[Task] = _processes(processes)

    def run(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yield each task as it is done, its part being whole.

        What no decoder reads has a record without clips, with the reason under "failed".

        Raises:
            UserError: parts cannot be written, or processes are killed over and over.
        """
        waiting = (replace(task, decoders=DECODER_ORDER[task.kind]) for task in tasks)
        again: list[Task] = []
        while True:
            while self._processes.hungry:
                task = again.pop() if again else next(waiting, None)
                if task is None:
                    break
                arguments = (task.source, task.kind, task.decoders[0], task.recipe, task.part)
                limit = _SLOWER * time_limit(task.size)
                self._processes.submit(task, _within_memory, arguments, limit)
            if self._processes.idle:
                return
            task, outcome = self._processes.next()
            try:
                outcome.result()
                yield task
            except HungError:
                yield from self._failed(task, f"{task.decoders[0]} hung", again)
            except ProcessDiedError as error:
                remove_unfinished(task.part.parent, task.part.name)
                if error.from_outside:
                    again.append(_after_death(task))
                else:
                    yield from self._failed(task, f"{task.decoders[0]} crashed ({error})", again)
            except UndecodableError as error:
                yield from self._failed(task, str(error), again)
            except UserError:
                raise
            except Exception as error:  # one video in millions must not end the run
                yield from self._failed(task, f"{type(error).__name__}: {error}", again)

    def close(self) -> None:
        """Stop the processes, at once."""
        self._processes.close()

    def _failed(self, task: Task, reason: str, again: list[Task]) -> Iterator[Task]:
        """Let the next decoder try, or put down why none reads the video."""
        reasons = (*task.reasons, " ".join(reason.split()))
        if len(task.decoders) > 1:
            again.append(replace(task, decoders=task.decoders[1:], reasons=reasons))
            return
        write_record(task.part, {"failed": "; ".join(dict.fromkeys(reasons))})
        yield task


def _after_death(task: Task) -> Task:
    if task.deaths == _ATTEMPTS:
        raise UserError(
            f"{task.source}: the process that prepares it was killed {_ATTEMPTS} times; is memory"
            " short? Free some, or lower --workers"
        )
    return replace(task, deaths=task.deaths + 1)


def _within_memory(*arguments) -> None:
    """Prepare a video in this process, which may take up to `MEMORY` bytes."""
    limit_memory()
    try:
        return prepare_video(*arguments)
    except (MemoryError, ImportError):  # the second where a library finds no room
        pass
    # Out here, for the error at hand would hold on to that memory and starve the next video.
    raise UndecodableError(f"it needs over {MEMORY / 2**30:.3g} GiB of memory")
