"""`python -m vgan_fast.train`: train a video GAN, one command, CPU or GPU."""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path

import click
import torch

from vgan_fast.checkpoint import find_checkpoint, list_checkpoints, load_state, load_weights
from vgan_fast.cli import Program, options_of
from vgan_fast.errors import UserError
from vgan_fast.files import explained
from vgan_fast.gan_step import GANStep
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.settings import PRESETS, Settings, default_preset, resolve_device
from vgan_fast.trainer import ClipSource, train

# Settings that a resumed run may change: how long, where and how often, not what.
CHANGEABLE = {"steps", "device", "data", "sample_every", "checkpoint_every", "keep"}
PROFILED = 5  # steps in the trace of --profile, after as many of warm-up


@click.command(cls=Program)
@options_of(Settings)
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
@click.option("--dry-run", is_flag=True, help="print the settings, sizes and data; write nothing")
def main(
    preset: str | None, out: Path | None, resume: bool, profile: bool, dry_run: bool, **given
) -> int:
    """Train a two-stream video GAN on a folder of clips, or with no argument on synthetic ones."""
    given = {name: value for name, value in given.items() if value is not None}
    if resume:
        if preset:
            raise UserError("--preset: a resumed run keeps its settings; leave the option out")
        out = out or _newest_run()
        checkpoint = find_checkpoint(out)
        settings = _resumed(Settings.load(checkpoint / "settings.json"), given)
    else:
        preset = preset or default_preset(resolve_device(given.get("device", "auto")))
        settings = Settings(**_fitting({**PRESETS[preset], **given}, given))
        out = out or _free_run(settings)
        checkpoint = None
        if list_checkpoints(out):
            raise UserError(f"{out}: already holds a run; add --resume or choose another --out")
    device = resolve_device(settings.device)
    _configure(settings, device)
    step = GANStep(settings, device)

    if dry_run:
        print(_description(settings, step, device))
        return 0

    finished, position = 0, 0
    if checkpoint:
        state = load_state(checkpoint)
        load_weights(checkpoint, step.networks)
        step.load_state_dict(state["task"])
        finished, position = state["step"], state["position"]
        if finished >= settings.steps:
            raise UserError(
                f"{out}: has all its {finished} steps; give --steps with a larger total"
            )
    with contextlib.closing(open_data(settings, device, out, position)) as clips:
        with explained(out):
            out.mkdir(parents=True, exist_ok=True)
        print(_description(settings, step, device), clips.summary, f"writing to {out}", sep="\n")
        for file, reason in clips.skipped.items():
            print(f"skipped {file}: {reason}")
        if profile:
            _profile(step, clips, out)
            return 0
        stopped = train(step, clips, settings, out, finished)
    if stopped:
        print(f"stopped and saved; continue with: python -m vgan_fast.train --resume --out {out}")
        return 128 + stopped
    print(f"done: samples in {out / 'pictures'}")
    print(f"more: python -m vgan_fast.generate {out} --out samples.gif --streams")
    return 0


def open_data(settings: Settings, device: torch.device, run: Path, position: int) -> ClipSource:
    """The loader of `settings.data`, after `position` batches.

    Raises:
        UserError: when the data cannot be used.
    """
    common = {
        "frames": settings.frames,
        "size": settings.size,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "device": device,
        "position": position,
    }
    if settings.data == "synthetic":
        return SyntheticClips(**common)
    from vgan_fast.loaders.clips import open_clips  # DALI: slow to import, not on every system

    return open_clips(
        Path(settings.data), cache=run / "frames", min_frames=settings.min_frames, **common
    )


def _fitting(values: dict, given: dict) -> dict:
    """Drop the defaults that the given options leave no place for."""
    if values.get("model") == "one-stream":
        values = {"mask_penalty": 0.0, "mask_bias": 0.0, **given}
    return values


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


def _newest_run() -> Path:
    runs = [p for p in Path("runs").glob("*") if list_checkpoints(p)]
    if not runs:
        raise UserError("--resume: no run in ./runs holds a checkpoint; name one with --out")
    return max(runs, key=lambda p: list_checkpoints(p)[-1].stat().st_mtime)


def _configure(settings: Settings, device: torch.device) -> None:
    if settings.deterministic:
        # cuBLAS reads this when it starts; PyTorch refuses to be deterministic without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    elif device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    if settings.backend != "reference":
        torch.set_float32_matmul_precision("high")


def _description(settings: Settings, step: GANStep, device: torch.device) -> str:
    sizes = ", ".join(
        f"{name} {sum(p.numel() for p in network.parameters()):,} parameters"
        for name, network in step.networks.items()
    )
    shown = " ".join(f"{k}={v}" for k, v in dataclasses.asdict(settings).items())
    precision = "bf16" if step.bf16 else "fp32"
    return f"{shown}\n{sizes}; training on {device.type} in {precision}"


def _profile(step: GANStep, clips: ClipSource, out: Path) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if step.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(PROFILED):
        step(clips.next_batch())
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED):
            step(clips.next_batch())
    profile.export_chrome_trace(str(out / "trace.json"))
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    print(f"trace of {PROFILED} steps: {out / 'trace.json'}")


if __name__ == "__main__":
    sys.exit(main())
