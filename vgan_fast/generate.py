"""`python -m vgan_fast.generate`: clips from a trained model."""

import sys
from functools import partial
from pathlib import Path

import click
import numpy as np
from click.core import ParameterSource

from vgan_fast.checkpoint import open_weights
from vgan_fast.cli import RunPath, SharedProgram
from vgan_fast.clip_output import PICTURES, WHOLE, is_whole, output_options
from vgan_fast.device import find_device
from vgan_fast.distributed import Ranks, joined
from vgan_fast.energy_sampling import ChainSampler
from vgan_fast.errors import UserError
from vgan_fast.files import written_whole
from vgan_fast.pictures import (
    animated_grid,
    as_frames,
    film_strip,
    write_picture,
)
from vgan_fast.sampling import Sampler

STEPS = 200  # of an energy model's chains


@click.command(cls=SharedProgram)
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
@click.option(
    "--export",
    type=click.Choice(["hub", "onnx", "pt2"]),
    help="make no clips but a folder with RUN's networks for other programs: in the layout of "
    "Hugging Face, which this project's programs take in place of a run, as ONNX, or for "
    "torch.export.load",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.pass_context
def main(
    context, run, out, each, count, seed, to_seed, streams, langevin_steps, fps, export, device
) -> int:
    """Make clips with the generator or the energy model in RUN.

    RUN is a run of vgan_fast.train, one of its checkpoints, a .t7 file of videogan, or a generator
    in the layout of Hugging Face. Under torchrun each process makes its part of the same clips: one
    picture is written by the first, a folder's files by the one that made them.
    """
    with joined() as ranks:
        if export is not None and ranks.first:
            given = [p.opts[0] for p in context.command.params if _is_given(context, p.name)]
            return _export(run, out, export, set(given) - {"run", "--out", "--export"})
        if export is not None:
            return 0
        return _generate(
            ranks, run, out, each, count, seed, to_seed, streams, langevin_steps, fps, device
        )


def _generate(
    ranks: Ranks, run, out, each, count, seed, to_seed, streams, langevin_steps, fps, device
) -> int:
    whole = is_whole(out)
    if whole and count > WHOLE:
        raise UserError(f"--count {count}: one picture holds up to {WHOLE}; name a folder in --out")
    place = find_device(device)
    ranks.use_device(place.type)
    if open_weights(run)[1].model == "stgconvnet":
        if streams or to_seed is not None:
            option = "--streams" if streams else "--to-seed"
            raise UserError(f"{option}: the model in {run} has no generator, but chains")
        sampler = ChainSampler(run, place)
        own = ranks.part(-(-count // sampler.at_once))
        batches = sampler.batches(count, seed, langevin_steps or STEPS, own)
    else:
        if langevin_steps is not None:
            raise UserError(f"--langevin-steps: the model in {run} is no energy model")
        sampler = Sampler(run, place)
        if streams and sampler.settings.model == "one-stream":
            raise UserError(f"--streams: the generator in {run} has one stream only")
        own = ranks.part(-(-count // sampler.at_once))
        codes = sampler.codes(count, seed, to_seed)
        codes = codes[own.start * sampler.at_once : own.stop * sampler.at_once]
        batches = sampler.batches(codes, streams)

    made, first = [], own.start * sampler.at_once
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
    made = ranks.together(made)  # Also where each has written its own: all of them are there then.
    if not ranks.first:
        return 0
    if whole:
        frames = np.concatenate(made)
        write_picture(
            out, film_strip(frames) if out.suffix == ".png" else animated_grid(frames), fps
        )
    print(f"{count} clips of {sampler.settings.frames} frames from {sampler.checkpoint}: {out}")
    return 0


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _export(run: Path, out: Path, form: str, others: set[str]) -> int:
    if others:
        raise UserError(f"--export: makes no clips; leave out {', '.join(sorted(others))}")
    if out.suffix in PICTURES or out.exists():
        raise UserError(f"--out {out}: --export makes a folder; give a name that is not there yet")
    if form == "hub":
        from vgan_fast.interchange.hub import publish as write
    else:
        from vgan_fast.interchange.export import export_networks

        write = partial(export_networks, form=form)
    with written_whole(out, folder=True) as folder:
        made = write(run, folder)
    print(f"{', '.join(path.name for path in made)} of {run}: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
