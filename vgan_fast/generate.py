"""`python -m vgan_fast.generate`: clips from a trained generator."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from vgan_fast.checkpoint import find_checkpoint, load_weights
from vgan_fast.cli import Program
from vgan_fast.device import configure, find_device, multiplies_bf16
from vgan_fast.errors import UserError
from vgan_fast.gan_step import build_generator, sample_streams, with_own_statistics
from vgan_fast.graph import CudaGraph, Graph, Replayed
from vgan_fast.models import OneStreamGenerator, TwoStreamGenerator
from vgan_fast.pictures import (
    FPS,
    animated_grid,
    as_frames,
    film_strip,
    write_picture,
)
from vgan_fast.settings import Settings

BATCH = 64  # clips made at a time
WHOLE = 1024  # most clips in one picture, which is held in memory


@click.command(cls=Program)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("samples.gif"),
    show_default=True,
    help="one .gif or .mp4 animation or .png film strip of all clips; with another name a folder "
    "with a file for each clip",
)
@click.option(
    "--each",
    type=click.Choice(["mp4", "gif", "png"]),
    default="mp4",
    show_default=True,
    help="format of the files in a folder",
)
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
    help="seed of the latents; the first clips of a seed do not depend on --count",
)
@click.option(
    "--to-seed",
    type=click.IntRange(0, 2**62),
    default=None,
    help="interpolate: clips along the arc from the first latent of --seed to that of this",
)
@click.option(
    "--streams", is_flag=True, help="show foreground, mask and background beside each clip"
)
@click.option(
    "--fps",
    type=click.IntRange(1, 50),
    default=FPS,
    show_default=True,
    help="frames per second of animations",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
def main(run, out, each, count, seed, to_seed, streams, fps, device) -> int:
    """Make clips with the generator in RUN: a run of vgan_fast.train or one of its checkpoints."""
    whole = out.suffix != ""
    if whole and out.suffix not in (".gif", ".mp4", ".png"):
        raise UserError(f"--out {out}: must end in .gif, .mp4 or .png, or be a folder's name")
    if whole and count > WHOLE:
        raise UserError(f"--count {count}: one picture holds up to {WHOLE}; name a folder in --out")
    if not whole and out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder, or a .gif, .mp4 or .png file")
    checkpoint = find_checkpoint(run)
    settings = Settings.load(checkpoint / "settings.json")
    if streams and settings.model != "two-stream":
        raise UserError(f"--streams: the generator in {run} has one stream only")
    device = find_device(device)
    configure(replace(settings, device=device.type))
    latents = draw_latents(count, settings.latent, seed, to_seed).to(device)
    graph = CudaGraph(device) if device.type == "cuda" else None

    made, first = [], 0
    with _autocast(settings, device):
        generator = load_generator(checkpoint, settings, device)
        for clips in sample_batches(generator, latents, graph, streams):
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
    print(f"{count} clips of {settings.frames} frames from {checkpoint}: {out}")
    return 0


def sample_batches(
    generator: OneStreamGenerator | TwoStreamGenerator,
    latents: Tensor,
    graph: Graph | None,
    streams: bool = True,
) -> Iterator[dict[str, Tensor]]:
    """Streams (`sample_streams`) of `BATCH` latents at a time; the next overwrite them.

    Full batches are replayed from `graph` where there is one; the rest at the end is not padded.
    """
    sample = partial(sample_streams, generator, streams=streams)
    sample_full = Replayed(sample, graph) if graph else sample
    for batch in latents.split(BATCH):
        yield sample_full(batch) if len(batch) == BATCH else sample(batch)


def load_generator(checkpoint: Path, settings: Settings, device: torch.device):
    """The generator to sample from: the checkpoint's moving average where it has one.

    Its layers are those that suit the device, whichever it was trained on.

    Raises:
        UserError: when the checkpoint holds no such generator.
    """
    backend = "auto" if settings.backend == "fused" else settings.backend
    generator = build_generator(replace(settings, backend=backend, device=device.type))
    load_weights(checkpoint, {"averaged" if settings.average else "generator": generator})
    generator.to(device)
    return with_own_statistics(generator) if settings.average else generator


def _autocast(settings: Settings, device: torch.device) -> torch.autocast:
    """The precision of a run in bf16, where the device multiplies it; fp32 otherwise."""
    bf16 = settings.precision == "bf16" and multiplies_bf16(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def draw_latents(count: int, size: int, seed: int, to_seed: int | None = None) -> Tensor:
    """Latents (count, size) fp32 from N(0, 1), or along the arc between two seeds' first ones.

    The arc keeps the length typical of Gaussian codes, which a straight line would shorten.
    """

    def drawn(seed: int, rows: int) -> Tensor:
        # Row by row: how one large draw begins depends on where it ends.
        generator = torch.Generator().manual_seed(seed)
        return torch.stack([torch.randn(size, generator=generator) for _ in range(rows)])

    if to_seed is None:
        return drawn(seed, count)
    start, end = drawn(seed, 1), drawn(to_seed, 1)
    angle = torch.acos(torch.cosine_similarity(start, end).clamp(-1, 1))
    if angle < 1e-4:
        return start.repeat(count, 1)
    way = torch.linspace(0, 1, count)[:, None]
    return (torch.sin((1 - way) * angle) * start + torch.sin(way * angle) * end) / torch.sin(angle)


if __name__ == "__main__":
    sys.exit(main())
