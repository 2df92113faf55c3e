"""The runs of a comparison: those that are there are taken, the others are trained."""

import dataclasses
import subprocess
import sys
from pathlib import Path

from vgan_fast.checkpoint import find_checkpoint, list_checkpoints
from vgan_fast.device import resolved
from vgan_fast.errors import UserError
from vgan_fast.settings import Settings
from vgan_fast.train import CHANGEABLE

MODELS = ("two-stream", "one-stream", "autoencoder")  # of the paper's Table 1


def trained(folder: Path, preset: str, given: dict) -> dict[str, Path]:
    """The run of each model in `folder/MODEL`, trained or resumed where it lacks steps.

    Args:
        folder: of the comparison.
        preset: of the settings not given.
        given: settings by name, the same for all models.

    Raises:
        UserError: when a folder holds a run of other settings, or training fails; nothing is
            trained before all folders are looked at.
    """
    runs = {model: folder / model for model in MODELS}
    wanted = {m: resolved(Settings.chosen(preset, {**given, "model": m})) for m in MODELS}
    lacking = [m for m, run in runs.items() if not _finished(run, wanted[m])]
    for model in lacking:
        run = runs[model]
        options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
        command = [sys.executable, "-m", "vgan_fast.train", f"--out={run}"]
        if list_checkpoints(run):
            command += ["--resume", f"--steps={wanted[model].steps}"]
        else:
            command += [f"--model={model}", f"--preset={preset}", *options]
        print(f"training {model}: {' '.join(command[1:])}", flush=True)
        if status := subprocess.run(command).returncode:
            raise UserError(
                f"{run}: training ended with status {status}; mend what it says above and run this "
                "command again"
            )
    return runs


def _finished(run: Path, wanted: Settings) -> bool:
    """Whether a run has its steps.

    Raises:
        UserError: when it is another run.
    """
    if not list_checkpoints(run):
        return False
    checkpoint = find_checkpoint(run)
    own = Settings.load(checkpoint / "settings.json")
    for field in dataclasses.fields(Settings):
        if field.name in CHANGEABLE - {"data"}:
            continue
        has, asked = getattr(own, field.name), getattr(wanted, field.name)
        if has != asked:
            raise UserError(
                f"{run}: holds a run with --{field.name.replace('_', '-')} {has}, not {asked}; "
                "give that value or choose another --compare folder"
            )
    return int(checkpoint.name.removeprefix("step-")) >= wanted.steps
