"""`.t7` files where programs take a run: read once, kept as a run of one checkpoint."""

import contextlib
import shutil
from pathlib import Path

from filelock import FileLock

from vgan_fast.checkpoint import find_checkpoint, list_checkpoints, save_checkpoint
from vgan_fast.errors import UserError
from vgan_fast.files import explained, sha256_of
from vgan_fast.interchange.torch7_networks import Torch7Networks, import_torch7
from vgan_fast.kernels.choice import cache_folder
from vgan_fast.settings import Settings

_FORMAT = "1"  # of what is kept; another one where an import would make something else of a file


def save_run(imported: Torch7Networks, run: Path) -> Path:
    """Write a run that the programs take as one of `vgan_fast.train`; its one checkpoint.

    Args:
        imported: what it shall hold.
        run: folder of the run; must not hold one already.

    Raises:
        UserError: when there is one, or it cannot be written; nothing is left behind.
    """
    if list_checkpoints(run):
        raise UserError(f"{run}: already holds a run; choose another folder")
    return save_checkpoint(run, 0, imported.networks, {}, imported.settings)


def run_of_torch7(file: Path) -> Path:
    """The run that holds the network in a `.t7` file, made where it is not in the user's cache.

    Raises:
        UserError: when the file holds no network of the original (`import_torch7`), or the cache
            cannot be written.
    """
    run = cache_folder() / "torch7" / f"{file.stem[:40]}-{_digest(file)}-{_FORMAT}"
    with explained(run, remedy="set XDG_CACHE_HOME to a folder that can be written"):
        run.mkdir(parents=True, exist_ok=True)
        with FileLock(run / ".lock"):
            with contextlib.suppress(UserError):
                Settings.load(find_checkpoint(run) / "settings.json")
                return run
            shutil.rmtree(run / "checkpoints", ignore_errors=True)  # what damage has left
            save_run(import_torch7(file), run)
    return run


def _digest(file: Path) -> str:
    try:
        return sha256_of(file)[:16]
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{file}: cannot be read ({reason})") from error
