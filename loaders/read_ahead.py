"""Reading ahead of the graph, in threads; a read that never ends is named."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from threading import Thread
from typing import Generic, TypeVar

from .stalls import SECONDS, stuck

BATCHES = 3  # being read, or read and waiting

Job = TypeVar("Job")
Read = TypeVar("Read")


class ReadAhead(Generic[Job, Read]):
    """Results of reading batch after batch of jobs, in order.

    Args:
        jobs: the jobs of batch 0, 1, 2, …; none after the last batch.
        read: does one job; called from several threads.
        name: what a person calls the file that a job waits for.
        threads: number of threads.
        seconds: until a read counts as stuck.
    """

    def __init__(
        self,
        jobs: Callable[[int], list[Job]],
        read: Callable[[Job], Read],
        name: Callable[[Job], str],
        *,
        threads: int,
        seconds: float = SECONDS,
    ):
        self._jobs, self._name, self._seconds = jobs, name, seconds
        self._tasks: queue.SimpleQueue[tuple[Job, Future] | None] = queue.SimpleQueue()
        self._reading: deque[list[tuple[Job, Future]]] = deque()
        self._next = 0
        # Not the standard library's pool: at exit it would wait for a thread that is stuck.
        self._threads = [
            Thread(target=_serve, args=(self._tasks, read), daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        for _ in range(BATCHES):
            self._schedule()

    def take(self) -> list[Read]:
        """Return what the next batch's jobs read.

        Raises:
            UserError: a read is stuck. What `read` raises is passed on.
        """
        results = []
        for job, future in self._reading.popleft():
            try:
                results.append(future.result(self._seconds))
            except TimeoutError:
                raise stuck(self._name(job), self._seconds) from None
        self._schedule()
        return results

    def close(self) -> None:
        """End the threads after the reads at hand; one that is stuck is left behind."""
        with suppress(queue.Empty):
            while True:
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        self._reading.clear()

    def _schedule(self) -> None:
        batch = [(job, Future()) for job in self._jobs(self._next)]
        self._next += 1
        self._reading.append(batch)
        for task in batch:
            self._tasks.put(task)


def _serve(tasks: queue.SimpleQueue, read: Callable[[Job], Read]) -> None:
    while (task := tasks.get()) is not None:
        job, future = task
        try:
            future.set_result(read(job))
        except BaseException as error:
            future.set_exception(error)
        # An idle thread must not keep the last clips, nor the set that they came from.
        del task, job, future
