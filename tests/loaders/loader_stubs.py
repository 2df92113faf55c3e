"""Decoders that misbehave. Worker processes import them by name, so they stand in their own file.

What each does depends on the source's name: a file called "good…" is decoded properly.
"""

import errno
import os
import resource
import signal
import time
from pathlib import Path

from vgan_fast.loaders.decode import decode_video


def crashes(source: Path, target: Path, short_side: int) -> None:
    if not source.name.startswith("good"):
        target.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGSEGV)
    decode_video(source, target, short_side)


def hangs(source: Path, target: Path, short_side: int) -> None:
    if not source.name.startswith("good"):
        target.write_bytes(b"half a file")
        time.sleep(600)
    decode_video(source, target, short_side)


def disk_full(source: Path, target: Path, short_side: int) -> None:
    decode_video(source, target, short_side)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def file_too_large(source: Path, target: Path, short_side: int) -> None:
    """The operating system itself refuses to write more than 20 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    decode_video(source, target, short_side)


def forbidden(source: Path, target: Path, short_side: int) -> None:
    raise AssertionError(f"{source} is in the cache and must not be decoded again")
