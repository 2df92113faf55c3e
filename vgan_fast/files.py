"""Writing so that a reader never meets half a file."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vgan_fast.errors import UserError


@contextlib.contextmanager
def written_whole(path: Path, folder: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it there when the block succeeds.

    Args:
        path: where the file (or, with `folder`, the folder) shall be; its parent is made.
        folder: make and rename a folder; `path` must not hold one already.

    Raises:
        UserError: when the disk is full or the place cannot be written to; nothing is left behind.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renaming is only atomic within one file system, so the temporary lies beside its target;
        # keeping the suffix lets writers choose the format by it.
        scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem}-"))
    part = scratch / path.name
    try:
        with explained(path):
            if folder:
                part.mkdir()
            yield part
            os.replace(part, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(
                f"{path}: the disk is full; free some space or choose another --out"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            reason = os.strerror(error.errno).lower()
            raise UserError(
                f"{path}: cannot be written ({reason}); choose another --out"
            ) from error
        raise
