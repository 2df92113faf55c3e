"""`python -m vgan_fast.predict`: what happens next in an image."""

import os
import sys
from pathlib import Path

import click

from vgan_fast.cli import Program, RunPath
from vgan_fast.clip_output import WHOLE, Names, is_whole, output_options
from vgan_fast.errors import UserError

# PyTorch is imported where it is used: processes that decode videos run this file's top once more.

UNITS = 8  # rows in a picture of hidden units


@click.command(cls=Program)
@click.option(
    "--checkpoint",
    type=RunPath(),
    required=True,
    help="a run of vgan_fast.train --model future, one of its checkpoints, or a .t7 file of the "
    "original's conditional generator",
)
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="an image, a video (whose first frames count) or a folder of them; may be repeated",
)
@output_options("futures.gif", of="input")
@click.option("--streams", is_flag=True, help="show foreground, mask and background as well")
@click.option(
    "--match-colours",
    is_flag=True,
    help="give each clip the colour histogram of its input: the paper's remedy for shifted colours",
)
@click.option(
    "--units",
    type=click.Path(path_type=Path, dir_okay=False),
    help="also draw the images that hidden units of the encoder fire on most, as a .png",
)
@click.option(
    "--units-layer",
    type=click.IntRange(1),
    default=None,
    help="convolution of the encoder whose units are shown, from 1  [default: the last]",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
def main(
    checkpoint, images, out, each, streams, match_colours, units, units_layer, fps, device
) -> int:
    """Predict the clips that begin with the given images; beside each stands its input.

    Takes seconds: on a CPU about as many as there are dozens of images.
    """
    import numpy as np
    import torch

    from vgan_fast.device import find_device
    from vgan_fast.files import refuse_unwritable
    from vgan_fast.kernels.frames.reference import normalise_frames
    from vgan_fast.loaders.beginnings import read_beginnings
    from vgan_fast.pictures import (
        animated_grid,
        as_frames,
        beside,
        film_strip,
        in_front,
        with_colours_of,
        write_picture,
    )
    from vgan_fast.sampling import Sampler
    from vgan_fast.units import favourites

    whole = is_whole(out)
    if units is not None and units.suffix != ".png":
        raise UserError(f"--units {units}: must end in .png")
    if units is not None and units.resolve() == out.resolve():
        raise UserError(f"--units {units}: is --out as well; name another file")
    if units is None and units_layer is not None:
        raise UserError("--units-layer is for --units")
    sampler = Sampler(checkpoint, find_device(device))
    settings = sampler.settings
    if settings.model != "future":
        raise UserError(
            f"--checkpoint {checkpoint}: is a run of --model {settings.model}, which makes clips "
            "of no image; use vgan_fast.generate, or train with --model future"
        )
    inputs, broken = read_beginnings(
        images,
        frames=settings.condition,
        size=settings.size,
        workers=len(os.sched_getaffinity(0)),
    )
    for file, reason in broken.items():
        print(f"skipped {file}: {reason}", file=sys.stderr)
    if whole and len(inputs) > WHOLE:
        raise UserError(f"{len(inputs)} inputs: one picture holds {WHOLE}; name a folder in --out")
    conditions = normalise_frames(torch.from_numpy(np.stack([i.frames for i in inputs])))
    if units is not None:
        refuse_unwritable(units, remedy="choose another --units")
        refuse_unwritable(out)
        drawn = favourites(sampler.generator, conditions, layer=units_layer, rows=UNITS)

    animated = (out.suffix or f".{each}") != ".png"
    picture_of = animated_grid if animated else film_strip
    made, named, first = [], Names(), 0
    for clips in sampler.batches(conditions, streams):
        given = np.stack([of.frames for of in inputs[first : first + len(clips["video"])]])
        shown = {name: as_frames(clip) for name, clip in clips.items()}
        if match_colours:
            pairs = zip(shown["video"], given, strict=True)
            shown["video"] = np.stack([with_colours_of(*pair) for pair in pairs])
        rows = beside(given, shown) if animated else in_front(given, shown)
        if whole:
            made += rows
        else:
            for beginning, row in zip(inputs[first:], rows, strict=False):
                write_picture(out / named.of(beginning.source, each), picture_of(row), fps)
        first += len(given)
    if whole:
        write_picture(out, picture_of(np.concatenate(made)), fps)
    if units is not None:
        write_picture(units, drawn, remedy="choose another --units")
    skipped = f", {len(broken)} skipped" if broken else ""
    print(f"{len(inputs)} predictions from {sampler.checkpoint}: {out}{skipped}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
