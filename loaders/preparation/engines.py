"""Where videos are prepared: on this machine, or on all machines of a Ray cluster."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

from vgan_fast.errors import UserError

from .apart import Apart, Task

Name = Literal["local", "ray"]

_AHEAD = 2  # tasks in Ray's hands for each of its CPUs


class Engine(Protocol):
    """What prepares videos."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """Yield each task as it is done, its part being whole."""

    def close(self) -> None:
        """Stop, at once."""


def start(name: Name, workers: int) -> Engine:
    """Start an engine.

    Raises:
        UserError: Ray is not installed, or its cluster cannot be reached.
    """
    return Apart(workers) if name == "local" else _RayEngine()


class _RayEngine:
    """Tasks in Ray's hands, which gives those of a lost worker or machine to another.

    Every machine must have this package, and see the videos and the set's folder under the same
    paths.
    """

    def __init__(self):
        try:
            import ray
        except ImportError:
            raise UserError(
                "--engine ray: Ray is not installed; pip install 'vgan_fast[ray]'"
            ) from None
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, logging_level="error")  # the cluster in RAY_ADDRESS
            except (ConnectionError, ValueError, RuntimeError) as error:
                first = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"--engine ray: no cluster ({first}); correct RAY_ADDRESS, or unset it for"
                    " this machine alone"
                ) from None
        # The death of a worker says nothing of the video: what a bad one kills is a process apart.
        self._prepare = ray.remote(num_cpus=1, max_retries=-1)(_prepare_on_worker)

    def run(self, tasks: Iterable[Task]) -> Iterator[Task]:
        """See `Engine`.

        Raises:
            UserError: as `Apart.run` does.
        """
        waiting = iter(tasks)
        running: dict = {}
        while True:
            room = _AHEAD * int(self._ray.cluster_resources().get("CPU", 1))
            while len(running) < room and (task := next(waiting, None)):
                running[self._prepare.remote(task)] = task
            if not running:
                return
            done, _ = self._ray.wait(list(running), timeout=1)
            for reference in done:
                task = running.pop(reference)
                self._ray.get(reference)
                yield task

    def close(self) -> None:
        """See `Engine`."""
        self._ray.shutdown()


@functools.cache
def _apart() -> Apart:
    return Apart(1)


def _prepare_on_worker(task: Task) -> None:
    for _ in _apart().run([task]):
        pass
