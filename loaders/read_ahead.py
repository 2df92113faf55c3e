"""Reading ahead of the graph, in threads; a read that never ends is named."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from typing import Generic, TypeVar

from pebble import ThreadPool

from vgan_fast.errors import UserError

BATCHES = 3  # being read, or read and waiting
SECONDS = 60  # until a read counts as stuck

Job = TypeVar("Job")
Read = TypeVar("Read")


class ReadAhead(Generic[Job, Read]):
    """Results of reading batch after batch of jobs, in order.

    Args:
        jobs: the jobs of batch 0, 1, 2, …; none after the last batch.
        read: does one job; called from several threads.
        name: what a person calls the file of a job.
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
        self._jobs, self._read, self._name = jobs, read, name
        self._seconds = seconds
        # Not the standard library's: at exit it would wait for a thread that is stuck.
        self._pool = ThreadPool(max_workers=threads)
        self._reading: deque[list[tuple[Job, Future]]] = deque()
        self._next = 0
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
                raise UserError(
                    f"{self._name(job)}: reading it has not ended within {self._seconds:g} s;"
                    " is its disk or network share still there?"
                ) from None
        self._schedule()
        return results

    def close(self) -> None:
        """Begin no further read; one that is stuck is left behind."""
        self._pool.stop()

    def _schedule(self) -> None:
        jobs = self._jobs(self._next)
        self._next += 1
        self._reading.append([(job, self._pool.schedule(self._read, [job])) for job in jobs])
