"""Writing so that a reader never meets half a file."""

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from vgan_fast.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, a limit on a file's size
# Of a folder that something is being written in: a program removes what those of its machine left.
_SCRATCH = f".{zlib.crc32(platform.node().encode()):08x}.vgan_fast"
_OURS = re.compile(rf"\.(.+)-[a-z0-9_]{{8}}{re.escape(_SCRATCH)}")
_LEFT = 60  # seconds after which such a folder that nobody holds is what a killed program left
_cleared: set[Path] = set()  # folders that this process has looked through for those


@contextlib.contextmanager
def written_whole(
    path: Path, folder: bool = False, remedy: str = "choose another --out"
) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it there when the block succeeds.

    Args:
        path: where the file (or, with `folder`, the folder) shall be; its parent is made.
        folder: make and rename a folder; `path` must not hold one already.
        remedy: what to do where `path` cannot be written.

    Raises:
        UserError: when the disk is full or the place cannot be written to; nothing is left behind.
    """
    with explained(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path.parent)
        # Renaming is only atomic within one file system, so the temporary lies beside its target.
        scratch = Path(tempfile.mkdtemp(_SCRATCH, f".{path.name}-", path.parent))
    part, held = scratch / path.name, _hold(scratch)
    try:
        with explained(path, remedy):
            if folder:
                part.mkdir()
            yield part
            for file in part.rglob("*") if folder else [part]:
                _flush(file)  # A name must not reach the disk before its content does.
            os.replace(part, path)
            _flush(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if held is not None:
            os.close(held)


def sha256_of(path: Path) -> str:
    """Digest of a file, in hexadecimal; it may be larger than the memory.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def refuse_unwritable(path: Path, remedy: str = "choose another --out") -> None:
    """Find out before long work whether `path` can be written; nothing is left behind.

    Raises:
        UserError: when it cannot, as far as can be told.
    """
    there = next(folder for folder in path.absolute().parents if folder.exists())
    with explained(path, remedy):
        os.rmdir(tempfile.mkdtemp(dir=there, prefix=f".{path.name}-"))


def remove_unfinished(folder: Path, pattern: str) -> None:
    """Remove what `written_whole` was killed over in `folder`; `pattern` matches final names."""
    for scratch in folder.glob(f".{pattern}-*"):
        _remove_unheld(scratch)


@contextlib.contextmanager
def explained(path: Path, remedy: str = "choose another --out") -> Iterator[None]:
    """Turn a failure to write `path` into one line that says what to do.

    Raises:
        UserError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            reason, remedy = "the disk is full", f"free some space or {remedy}"
        else:
            reason = f"cannot be written ({(error.strerror or str(error)).lower()})"
        raise UserError(f"{path}: {reason}; {remedy}") from error


def _hold(scratch: Path) -> int | None:
    """Lock a folder for as long as this process lives; None where the file system cannot."""
    try:
        descriptor = os.open(scratch, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_left(folder: Path) -> None:
    """Remove what programs that were killed have left in a folder, once in a process's life."""
    if folder in _cleared:
        return
    _cleared.add(folder)
    for scratch in folder.glob(f".*{_SCRATCH}"):
        with contextlib.suppress(OSError):  # another process was quicker
            named, age = _OURS.fullmatch(scratch.name), time.time() - scratch.stat().st_mtime
            if named and age > _LEFT and set(os.listdir(scratch)) <= {named[1]}:
                _remove_unheld(scratch)


def _remove_unheld(scratch: Path) -> None:
    held = _hold(scratch)
    if held is not None:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(held)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
