"""`python -m vgan_fast.generate`: clips from a trained model."""

import sys

import click
import numpy as np

from vgan_fast.checkpoint import find_checkpoint
from vgan_fast.cli import Program, RunPath
from vgan_fast.clip_output import WHOLE, is_whole, output_options
from vgan_fast.device import find_device
from vgan_fast.energy_sampling import ChainSampler
from vgan_fast.errors import UserError
from vgan_fast.pictures import (
    animated_grid,
    as_frames,
    film_strip,
    write_picture,
)
from vgan_fast.sampling import Sampler
from vgan_fast.settings import Settings

STEPS = 200  # of an energy model's chains


@click.command(cls=Program)
@click.argument("run", type=RunPath())
@output_options("samples.gif", of="clip")
@click.option(
    "--count",
    type=click.IntRange(1, 1_000_000),
    default=16,
    show_default=True,
    help="number of clips",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**62),
    default=0,
    show_default=True,
    help="seed of the codes; the first clips of a seed do not depend on --count",
)
@click.option(
    "--to-seed",
    type=click.IntRange(0, 2**62),
    default=None,
    help="interpolate: clips along the arc (of an autoencoder, the line) from the first code of "
    "--seed to that of this",
)
@click.option(
    "--streams", is_flag=True, help="show foreground, mask and background beside each clip"
)
@click.option(
    "--langevin-steps",
    type=click.IntRange(1),
    default=None,
    help=f"of an energy model: steps of its chains from where training left them  [{STEPS}]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
def main(run, out, each, count, seed, to_seed, streams, langevin_steps, fps, device) -> int:
    """Make clips with the generator or the energy model in RUN.

    RUN is a run of vgan_fast.train, one of its checkpoints, or a .t7 file of the original.
    """
    whole = is_whole(out)
    if whole and count > WHOLE:
        raise UserError(f"--count {count}: one picture holds up to {WHOLE}; name a folder in --out")
    place = find_device(device)
    if Settings.load(find_checkpoint(run) / "settings.json").model == "stgconvnet":
        if streams or to_seed is not None:
            option = "--streams" if streams else "--to-seed"
            raise UserError(f"{option}: the model in {run} has no generator, but chains")
        sampler = ChainSampler(run, place)
        batches = sampler.batches(count, seed, langevin_steps or STEPS)
    else:
        if langevin_steps is not None:
            raise UserError(f"--langevin-steps: the model in {run} is no energy model")
        sampler = Sampler(run, place)
        if streams and sampler.settings.model == "one-stream":
            raise UserError(f"--streams: the generator in {run} has one stream only")
        batches = sampler.batches(sampler.codes(count, seed, to_seed), streams)

    made, first = [], 0
    for clips in batches:
        # Streams of a clip lie side by side: one wide clip.
        frames = np.concatenate([as_frames(clip) for clip in clips.values()], axis=3)
        if whole:
            made.append(frames)
        else:
            for i, clip in enumerate(frames, start=first):
                picture = film_strip(clip[None]) if each == "png" else animated_grid(clip[None])
                write_picture(out / f"clip-{i:06d}.{each}", picture, fps)
            first += len(frames)
    if whole:
        frames = np.concatenate(made)
        write_picture(
            out, film_strip(frames) if out.suffix == ".png" else animated_grid(frames), fps
        )
    print(f"{count} clips of {sampler.settings.frames} frames from {sampler.checkpoint}: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
