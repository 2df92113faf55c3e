"""`python -m vgan_fast.train`: train a video GAN, one command, CPU or GPU."""

import contextlib
import dataclasses
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vgan_fast.cli import SharedProgram, options_of
from vgan_fast.errors import UserError
from vgan_fast.files import explained, written_whole
from vgan_fast.settings import PRESETS, Settings

# PyTorch and DALI are imported where they are used: processes that decode videos run this file's
# top once more, and --help should not wait.
if TYPE_CHECKING:
    from vgan_fast.distributed import Ranks
    from vgan_fast.step import Step
    from vgan_fast.trainer import ClipSource

# Settings that a resumed run may change: how long, where from and how, not what.
CHANGEABLE = {
    *("graph", "on_nan", "skip_limit"),
    *("steps", "sample_every", "checkpoint_every", "keep"),
    *("data", "cache", "decoded", "workers"),
}
PROFILED = 5  # steps in the trace of --profile, after as many of warm-up


@click.command(cls=SharedProgram)
@options_of(Settings, PRESETS)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="values of the options not given: the paper's, or a run of minutes at 32x32 pixels "
    "[default: paper on a GPU, short on a CPU]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="folder of the run  [default: the next free runs/NAME-NUMBER]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="continue the run in --out (by default the newest in runs/) from its last checkpoint",
)
@click.option(
    "--profile", is_flag=True, help=f"trace {PROFILED} steps into OUT/trace.json and stop"
)
@click.option(
    "--history",
    is_flag=True,
    help="draw the losses and samples of the run in --out (by default the newest in runs/) into "
    "OUT/history.png and stop",
)
@click.option("--dry-run", is_flag=True, help="print the settings, sizes and data; write nothing")
def main(
    preset: str | None,
    out: Path | None,
    resume: bool,
    profile: bool,
    history: bool,
    dry_run: bool,
    **given,
) -> int:
    """Train a video model on a folder of clips, or with no argument on synthetic ones.

    torchrun --nproc-per-node N -m vgan_fast.train shares each batch between N devices. With
    --max-restarts a run whose process died goes on from its last checkpoint.
    """
    from vgan_fast.distributed import joined

    given = {name: value for name, value in given.items() if value is not None}
    if history:
        if given or preset or resume or profile or dry_run:
            raise UserError("--history: goes with --out alone; leave the other options out")
        _draw_history(_run_of(out, "--history"))
        return 0
    with joined() as ranks:
        return _train(ranks, preset, out, resume, profile, dry_run, given)


def _train(
    ranks: "Ranks",
    preset: str | None,
    out: Path | None,
    resume: bool,
    profile: bool,
    dry_run: bool,
    given: dict,
) -> int:
    from vgan_fast.checkpoint import find_checkpoint, list_checkpoints
    from vgan_fast.data import describe_data, open_data
    from vgan_fast.device import configure, default_preset, resolved
    from vgan_fast.restart import begun_before, newest_whole, note_job
    from vgan_fast.trainer import strip_of, train

    if resume and preset:
        raise UserError("--preset: a resumed run keeps its settings; leave the option out")
    say = print if ranks.first else _say_nothing
    noted = ranks.decided("begun", lambda: str(begun_before(out) or ""))
    begun = Path(noted) if noted else None

    def beginning() -> str:
        if begun is not None:
            return str(newest_whole(begun) or "")
        return str(find_checkpoint(_run_of(out, "--resume"))) if resume else ""

    checkpoint = Path(found) if (found := ranks.decided("checkpoint", beginning)) else None
    if checkpoint is not None:
        out = checkpoint.parent.parent
        given = {k: value for k, value in given.items() if value != "auto" or k in CHANGEABLE}
        settings = resolved(_resumed(Settings.load(checkpoint / "settings.json"), given))
    else:
        preset = preset or default_preset(given.get("device", "auto"))
        settings = resolved(Settings.chosen(preset, given))
        out = Path(ranks.decided("out", lambda: str(begun or out or _free_run(settings))))
        if list_checkpoints(out):
            raise UserError(f"{out}: already holds a run; add --resume or choose another --out")
    if out.resolve() == Path(settings.data).resolve():
        raise UserError(f"--out {out}: holds the data; choose another folder")
    ranks.share(settings)  # What cannot be shared is better said before networks are built.
    ranks.use_device(settings.device)
    configure(settings)
    data_described = describe_data(settings, out)  # And so are data that are not there.
    step = build_step(settings, ranks)
    if dry_run:
        say(_described(settings, step), data_described, sep="\n")
        return 0
    finished, position, data = restore(step, checkpoint) if checkpoint else (0, 0, None)
    drawn = ranks.decided("drawn", lambda: "yes" * strip_of(out, finished).exists())
    # Without its last picture a run was killed after its last checkpoint.
    complete = finished > settings.steps or (finished == settings.steps and drawn)
    if complete and begun is not None:
        say(f"{out}: had all its {finished} steps when a process of it died")
        return 0
    if begun is not None:
        say(f"a process died: going on from {checkpoint or 'the start'}")
    if complete:
        raise UserError(f"{out}: has all its {finished} steps; give --steps with a larger total")

    if ranks.first:
        with explained(out):  # Opening the data may take hours of decoding, and a restart.
            note_job(out)
    with contextlib.closing(open_data(settings, out, position, ranks=ranks)) as clips:
        with explained(out):
            out.mkdir(parents=True, exist_ok=True)
        say(_described(settings, step), clips.summary, f"writing to {out}", sep="\n")
        for file, reason in clips.skipped.items():
            say(f"skipped {file}: {reason}")
        if data not in (None, clips.fingerprint):
            say("the files are not those of the checkpoint: their clips may come in another order")
        sys.stdout.flush()
        if profile:
            _profile(step, clips, out, ranks)
            return 0
        stopped = train(step, clips, settings, out, finished, ranks)
    if step.skipping and (skipped := int(step.skipping.total)):
        say(f"skipped {skipped} steps whose losses or weights were not finite")
    if stopped:
        say(f"stopped and saved; continue with: python -m vgan_fast.train --resume --out {out}")
        return 128 + stopped
    say(f"done: samples in {out / 'pictures'}")
    if settings.model == "future":
        say(
            f"more: python -m vgan_fast.predict --checkpoint {out} --image IMAGES --out futures.gif"
        )
    else:
        streams = "" if settings.model in ("one-stream", "stgconvnet") else " --streams"
        say(f"more: python -m vgan_fast.generate {out} --out samples.gif{streams}")
    return 0


def build_step(settings: Settings, ranks: "Ranks | None" = None) -> "Step":
    """The training step of the model that the settings name.

    Args:
        settings: with device, precision and graph resolved (`vgan_fast.device.resolved`).
        ranks: the processes that share each batch, this one alone where absent; the weights are
            those of process 0.
    """
    from vgan_fast.autoencoder_step import AutoencoderStep
    from vgan_fast.distributed import ALONE
    from vgan_fast.energy_step import EnergyStep
    from vgan_fast.future_step import FutureStep
    from vgan_fast.gan_step import GANStep

    if settings.model == "stgconvnet":
        return EnergyStep(settings)
    ranks = ranks or ALONE
    of = {"future": FutureStep, "autoencoder": AutoencoderStep}
    step = of.get(settings.model, GANStep)(settings, ranks=ranks)
    # Machines of other kinds may draw others of the same seed.
    ranks.spread([v for network in step.networks.values() for v in network.state_dict().values()])
    return step


def restore(step: "Step", checkpoint: Path) -> tuple[int, int, str]:
    """Fill `step` from a checkpoint; its finished steps, the loader's position and fingerprint.

    Raises:
        UserError: when the checkpoint is not one of such a step.
    """
    from vgan_fast.checkpoint import load_state, load_weights

    state = load_state(checkpoint)
    load_weights(checkpoint, step.networks)
    try:
        step.load_state_dict(state["task"])
        return state["step"], state["position"], state["data"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{checkpoint}: is not of this kind of run ({error})") from error


def _resumed(settings: Settings, given: dict) -> Settings:
    for name, value in given.items():
        if name not in CHANGEABLE and value != getattr(settings, name):
            raise UserError(
                f"--{name.replace('_', '-')} {value}: the run to resume has "
                f"{getattr(settings, name)}; leave the option out or start a new run"
            )
    return dataclasses.replace(settings, **given)


def _free_run(settings: Settings) -> Path:
    name = Path(settings.data).stem or "data"
    number = 1
    while (run := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return run


def _draw_history(run: Path) -> None:
    from vgan_fast.history import draw_history
    from vgan_fast.pictures import write_picture

    write_picture(run / "history.png", draw_history(run))
    print(f"history: {run / 'history.png'}")


def _run_of(out: Path | None, option: str) -> Path:
    from vgan_fast.checkpoint import is_checkpoint, list_checkpoints

    if out is not None:
        if is_checkpoint(out):
            raise UserError(f"{out}: is a checkpoint; give its run, {out.parent.parent}")
        return out
    runs = [p for p in Path("runs").glob("*") if list_checkpoints(p)]
    if not runs:
        raise UserError(f"{option}: no run in ./runs holds a checkpoint; name one with --out")
    return max(runs, key=lambda p: list_checkpoints(p)[-1].stat().st_mtime)


def _described(settings: Settings, step: "Step") -> str:
    sizes = ", ".join(
        f"{name} {count:,} parameters"
        for name, network in step.networks.items()
        if (count := sum(p.numel() for p in network.parameters()))
    )
    shown = " ".join(f"{k}={v}" for k, v in dataclasses.asdict(settings).items())
    return f"{shown}\n{sizes}"


def _say_nothing(*_: object, sep: str = "") -> None:
    """What processes other than the first print."""


def _profile(step: "Step", clips: "ClipSource", out: Path, ranks: "Ranks") -> None:
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if step.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(PROFILED):
        step(clips.next_batch())
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED):
            step(clips.next_batch())
    if not ranks.first:
        return
    with written_whole(out / "trace.json") as part:
        profile.export_chrome_trace(str(part))
        written = part.read_bytes() if part.exists() else b""
        if not written.rstrip().endswith(b"}"):  # PyTorch passes over a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    print(f"trace of {PROFILED} steps: {out / 'trace.json'}")


if __name__ == "__main__":
    sys.exit(main())
