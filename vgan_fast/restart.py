"""A run whose processes died, and which `torchrun --max-restarts` starts again."""

import json
import os
import platform
import shutil
from pathlib import Path

from vgan_fast.checkpoint import find_checkpoint, list_checkpoints
from vgan_fast.errors import UserError

NOTE = "torchrun.json"  # in the folder of a run: which torchrun it belongs to


def note_job(run: Path) -> None:
    """Leave in the folder of a run which torchrun has begun it, if any."""
    if (job := _job()) is not None:
        (run / NOTE).write_text(json.dumps(job) + "\n", encoding="utf-8")


def begun_before(out: Path | None) -> Path | None:
    """The run that this process's torchrun began before it started its processes again.

    A run in `out` (by default any in `runs`) that was there before is none of those: a program that
    was refused once must not go on with it when it is started again.
    """
    job = _job()
    if job is None or os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        return None
    runs = sorted(Path("runs").glob("*")) if out is None else [out]
    return next((run for run in runs if _noted(run / NOTE) == job), None)


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint of a run none of whose bytes is missing or changed.

    Broken ones behind it are removed: the run will write them again.
    """
    for checkpoint in reversed(list_checkpoints(run)):
        try:
            return find_checkpoint(checkpoint)
        except UserError as error:
            print(f"removed: {error}")
            shutil.rmtree(checkpoint)
    return None


def _job() -> dict | None:
    """What tells one torchrun from another, None outside of any."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    agent = os.getppid()
    # Ticks from the machine's start to the agent's: a later one may have the same number.
    since = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return {"name": name, "host": platform.node(), "boot": boot, "agent": agent, "since": since}


def _noted(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
