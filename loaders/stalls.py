"""Opening files that may be on a disk or network share that answers no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import TypeVar

from vgan_fast.errors import UserError

SECONDS = 60  # until a file counts as stuck

Result = TypeVar("Result")
_at: tuple[Path | None, float] = (None, 0.0)  # what is read, and since when


def reading(path: Path) -> None:
    """Note what is about to be read, and that what was read before has not been stuck."""
    global _at
    _at = path, time.monotonic()


def attended(function: Callable[[], Result], seconds: float = SECONDS) -> Result:
    """Return what a function does that calls `reading` before each file.

    Args:
        function: runs in a thread of its own, which is left behind where it is stuck.
        seconds: that reading one file may take.

    Raises:
        UserError: it is stuck. What the function raises is passed on.
    """
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    reading(Path("the data"))
    threading.Thread(target=run, daemon=True).start()
    while True:
        path, since = _at
        try:
            return future.result(max(0, since + seconds - time.monotonic()))
        except TimeoutError:
            if future.done():  # by now, or with an error of that class
                return future.result()
            if _at[1] == since:
                raise stuck(path, seconds) from None


def stuck(name: object, seconds: float) -> UserError:
    """Return the error that names what is stuck."""
    return UserError(
        f"{name}: reading it has not ended within {seconds:g} s; is its disk or network share still"
        " there?"
    )
