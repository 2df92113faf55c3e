"""A run whose processes died, and which `torchrun --max-restarts` starts again."""

import json
import os
import platform
import time
from pathlib import Path

from vgan_fast.checkpoint import find_checkpoint, is_whole, list_checkpoints
from vgan_fast.foreign import MalformedError, read_json

NOTE = "torchrun.json"  # in the folder of a run: which torchrun it belongs to


def note_job(run: Path) -> None:
    """Leave in the folder of a run which torchrun has begun it, if any."""
    if (job := _job()) is not None:
        run.mkdir(parents=True, exist_ok=True)
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

    Broken ones after it are set aside under another name: the run will write them again.
    """
    for checkpoint in reversed(list_checkpoints(run)):
        if is_whole(checkpoint):
            return find_checkpoint(checkpoint)
        aside = checkpoint.rename(
            checkpoint.with_name(f"{checkpoint.name}-broken-{time.time_ns()}")
        )
        print(f"{checkpoint}: is missing, truncated or corrupt; set aside as {aside.name}")
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
        return read_json(path, dict, most=1 << 12)
    except (OSError, MalformedError):
        return None
