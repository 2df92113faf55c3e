"""How well a future generator goes on from held-out synthetic clips.

    python -m vgan_fast.train --preset short --model future --out runs/future ...
    python -m benchmarks.future_quality runs/future --unconditional runs/two-stream

Prints a table, and writes it and a film strip to --results. First-frame errors are mean absolute
differences from the given frames, of pixels in [-1, 1].
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe
from vgan_fast.device import find_device
from vgan_fast.errors import UserError
from vgan_fast.evaluation.metrics import flicker, motion_energy
from vgan_fast.kernels.frames.reference import normalise_frames
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.networks import build_generator
from vgan_fast.pictures import as_frames, film_strip, write_picture
from vgan_fast.sampling import Sampler, sample_streams
from vgan_fast.settings import Settings

CLIPS = 512
BATCH = 64
SEED = 1000  # of the held-out clips
SHOWN = 6  # clips in the film strip


def real_clips(settings: Settings) -> Tensor:
    """Held-out clips (512, 3, T, H, W) in [-1, 1]."""
    source = SyntheticClips(
        frames=settings.frames, size=settings.size, batch_size=CLIPS, seed=SEED, split="held-out"
    )
    return normalise_frames(source.next_batch()).contiguous()


def made(sampler: Sampler, codes: Tensor) -> Tensor:
    """The clips that a run makes of codes, (N, 3, T, H, W) on the CPU."""
    clips = [streams["video"].cpu().clone() for streams in sampler.batches(codes, False)]
    return torch.cat(clips)


def untrained(settings: Settings, codes: Tensor) -> Tensor:
    """What the weights that the run began with make of the same frames."""
    torch.manual_seed(settings.seed)
    generator = build_generator(settings)
    # Fresh running statistics are no statistics: some batches fill them, as the first steps do.
    for batch in codes[: 8 * BATCH].split(BATCH):
        generator(batch)
    return torch.cat([sample_streams(generator, batch)["video"] for batch in codes.split(BATCH)])


def rows_of(run: Path, unconditional: Path | None) -> Iterator[tuple[str, Tensor]]:
    """Named clips that stand against the real ones, the real ones first."""
    sampler = Sampler(run, find_device("cpu"))
    settings = sampler.settings
    if settings.model != "future":
        raise UserError(f"{run}: is a run of --model {settings.model}; give one of future")
    real = real_clips(settings)
    codes = real[:, :, : settings.condition]
    yield "real", real
    yield "prediction", made(sampler, codes)
    yield "untrained", untrained(settings, codes)
    if unconditional is not None:
        other = Sampler(unconditional, find_device("cpu"))
        yield "sample of the unconditional run", made(other, other.codes(len(real), SEED))
    yield "another real clip", real.roll(1, 0)
    yield "its given frame, frozen", codes[:, :, -1:].expand_as(real)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--unconditional", type=Path)
    parser.add_argument("--results", type=Path, default=Path("runs/future_quality"))
    arguments = parser.parse_args()

    clips = dict(rows_of(arguments.run, arguments.unconditional))
    settings = Sampler(arguments.run, find_device("cpu")).settings
    real = clips.pop("real")
    given = real[:, :, : settings.condition]
    head = ["", "first frame", "all frames", "motion / real", "flicker"]
    lines = [
        "# Future prediction on synthetic clips",
        "",
        f"`python -m benchmarks.future_quality {' '.join(sys.argv[1:])}`  ",
        f"{CLIPS} held-out clips, {settings.frames} frames of {settings.size}x{settings.size}, "
        f"{settings.condition} given; {settings.steps} steps of training. {describe()}.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    for name, of in clips.items():
        first = (of[:, :, : settings.condition] - given).abs().mean()
        whole = (of - real).abs().mean()
        motion = motion_energy(of) / motion_energy(real)
        lines.append(f"| {name} | {first:.3f} | {whole:.3f} | {motion:.2f} | {flicker(of):.3f} |")
    lines += [
        "",
        "Mean absolute differences from the real clip, pixels in [-1, 1]; motion is the mean "
        f"squared difference of consecutive frames; flicker is {flicker(real):.3f} of real clips: "
        "`vgan_fast.evaluation.metrics`.",
        "",
    ]
    pairs = torch.stack([real[:SHOWN], clips["prediction"][:SHOWN]], dim=1).flatten(0, 1)
    strip = film_strip(as_frames(pairs))
    write_picture(arguments.results / "future.png", strip)
    (arguments.results / "future.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
