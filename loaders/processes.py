"""Calls in processes of their own, which a bad file may kill or hang.

Each process has a pipe to itself and no lock is shared: one that is killed, at whatever moment,
takes down its own call and nothing else. With a channel for all, one that dies with the lock held
stops the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection, wait
from typing import Generic, NamedTuple, TypeVar

from vgan_fast.errors import UserError

_AHEAD = 2  # calls in the hands of a process: it goes on while the results are looked at
STARTS = 5  # processes that may die one after the other before any begins with a call
STARTING = 120  # seconds until a process must have begun with a call
_ENDING = 10  # seconds that a process may take to end after it has closed its pipe
STARTLESS = (
    "the processes that decode videos are killed or hang as they start; is memory short? Free some"
    " and try again"
)
# Deaths that come from outside, such as an operator's or the kernel's for want of memory: they say
# nothing of the call, which may be tried again.
_KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Key = TypeVar("Key")


class ProcessDiedError(Exception):
    """The process died over the call; the message says of what."""

    def __init__(self, exitcode: int):
        name = f"exit code {exitcode}"
        with contextlib.suppress(ValueError):  # a signal without a name
            name = signal.Signals(-exitcode).name
        super().__init__(name)
        self.from_outside = -exitcode in _KILLS


class HungError(Exception):
    """The call took too long, and its process was killed."""


class _Call(NamedTuple):
    key: object
    work: tuple[Callable, tuple]
    seconds: float


class Processes(Generic[Key]):
    """A number of processes that work off calls.

    They start when they are needed, and end with this process even where that is killed. Use it
    from one thread.

    Args:
        count: of processes.
        initialise: called in each as it starts.
    """

    def __init__(self, count: int, initialise: Callable[[], None] | None = None):
        self._count, self._initialise = count, initialise
        self._workers: list[_Worker] = []
        self._lost: deque[_Call] = deque()  # with a process that died over another one
        self._failed_starts = 0

    @property
    def hungry(self) -> bool:
        """Whether one more call would keep the processes busier."""
        return self._at_hand < _AHEAD * self._count

    @property
    def idle(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._at_hand

    def submit(self, key: Key, function: Callable, arguments: tuple, seconds: float) -> None:
        """Have a call done.

        Args:
            key: what `next` names it by.
            function: what can be pickled, as `arguments`.
            seconds: that it may take; the start of its process does not count.
        """
        self._give(_Call(key, (function, arguments), seconds))

    def next(self) -> tuple[Key, Future]:
        """Wait for a call to end: its key, and what came of it.

        The future holds what the function returned or raised, or `ProcessDiedError` or `HungError`.

        Raises:
            UserError: processes die as they start.
        """
        while True:
            while self._lost:
                self._give(self._lost.popleft())
            busy = {worker.connection: worker for worker in self._workers if worker.calls}
            soonest = min(worker.deadline for worker in busy.values())
            ready = wait(busy, max(0, soonest - time.monotonic()))
            for connection in ready:
                outcome = self._read(busy[connection])
                if outcome is not None:
                    return outcome
            for worker in busy.values():
                if worker.connection not in ready and worker.deadline <= time.monotonic():
                    if worker.at_work:
                        return self._ended(worker, HungError())
                    self._failed_start(worker)

    def close(self) -> None:
        """Kill the processes."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()

    @property
    def _at_hand(self) -> int:
        return len(self._lost) + sum(len(worker.calls) for worker in self._workers)

    def _give(self, call: _Call) -> None:
        while True:
            if len(self._workers) < self._count:
                self._workers.append(_Worker(self._initialise))
            worker = min(self._workers, key=lambda worker: len(worker.calls))
            try:
                worker.connection.send(call.work)
            except OSError:  # it died meanwhile, which costs nothing if it was idle
                self._drop(worker)
                continue
            worker.take(call)
            return

    def _read(self, worker: _Worker) -> tuple[Key, Future] | None:
        """Take a message; the outcome of a call if it was one."""
        try:
            message = worker.connection.recv_bytes()
        except (EOFError, OSError):
            if worker.at_work:
                return self._ended(worker, ProcessDiedError(worker.exitcode()))
            self._failed_start(worker)
            return None
        if not message:
            self._failed_starts = 0
            worker.begin()
            return None
        call, future = worker.end(), Future()
        good, value = pickle.loads(message)
        if good:
            future.set_result(value)
        else:
            future.set_exception(value)
        return call.key, future

    def _ended(self, worker: _Worker, error: Exception) -> tuple[Key, Future]:
        call, future = worker.end(), Future()
        self._drop(worker)
        future.set_exception(error)
        return call.key, future

    def _failed_start(self, worker: _Worker) -> None:
        """Put a process away that has not come to its call, which says nothing of the call."""
        self._failed_starts += 1
        self._drop(worker)
        if self._failed_starts == STARTS:
            raise UserError(STARTLESS)

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.close()
        self._lost += worker.calls


class _Worker:
    """A process, the calls that it has been given, and when the one at hand counts as hung."""

    def __init__(self, initialise: Callable[[], None] | None):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.calls: deque[_Call] = deque()
        self.deadline = 0.0
        self.at_work = False  # on the first of its calls
        self._process = context.Process(target=_serve, args=(theirs, initialise), daemon=True)
        with theirs, _uninterrupted():
            self._process.start()

    def take(self, call: _Call) -> None:
        """Note that it has been given a call."""
        if not self.calls:
            self.deadline = time.monotonic() + STARTING
        self.calls.append(call)

    def begin(self) -> None:
        """Note that it has begun with the first of its calls."""
        self.at_work = True
        self.deadline = time.monotonic() + self.calls[0].seconds

    def end(self) -> _Call:
        """Note that it is done with that call; return it."""
        self.at_work, self.deadline = False, time.monotonic() + STARTING
        return self.calls.popleft()

    def exitcode(self) -> int:
        """What it ended with, having closed its pipe."""
        self._process.join(_ENDING)
        self._process.kill()
        self._process.join()
        return self._process.exitcode

    def close(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


def _serve(connection: Connection, initialise: Callable[[], None] | None) -> None:
    """Do one call after the other; of each the beginning is told, an empty message, and the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initialise is not None:
        initialise()
    while True:
        try:
            call = connection.recv_bytes()
        except (EOFError, ConnectionError):  # the process that waited is gone
            return
        connection.send_bytes(_outcome(call, connection))


def _outcome(call: bytes, connection: Connection) -> bytes:
    # Whatever a call leaves behind, in an error's frames as well, is gone when this returns.
    try:
        function, arguments = pickle.loads(call)
        connection.send_bytes(b"")
        return _pickled(True, function(*arguments))
    except Exception as error:
        return _pickled(False, error)


def _pickled(good: bool, value: object) -> bytes:
    try:
        message = pickle.dumps((good, value))
        pickle.loads(message)  # some errors are pickled and cannot be made again
    except Exception as error:
        what = error if good else value
        message = pickle.dumps((False, RuntimeError(f"{type(what).__name__}: {what}")))
    return message


def _end_with_parent() -> None:
    """End this process with the one that started it, whatever it is busy with."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


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
