"""Clips from trained networks: where codes come from, in which precision, how many at a time."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from vgan_fast.checkpoint import load_weights, open_weights
from vgan_fast.device import configure, multiplies_bf16
from vgan_fast.errors import UserError
from vgan_fast.graph import CudaGraph, Graph, Replayed
from vgan_fast.mixture import LatestCodes, Mixture
from vgan_fast.models import OneStreamGenerator
from vgan_fast.networks import Generator, build_generator
from vgan_fast.settings import Settings

BATCH = 64  # clips made at a time


class Sampler:
    """The generator of a trained run, in the run's precision where the device multiplies it.

    Args:
        run: folder of a run of `vgan_fast.train`, one of its checkpoints, or a generator in the
            layout of Hugging Face.
        device: where to compute; the process is configured for it (`vgan_fast.device.configure`).

    Attributes:
        at_once: clips made at a time.
        checkpoint: the folder that the weights are from.
        settings: of the run.
        generator: in evaluation mode.

    Raises:
        UserError: when there is no whole checkpoint, or it holds no generator.
    """

    at_once = BATCH

    def __init__(self, run: Path, device: torch.device):
        self.checkpoint, self.settings = open_weights(run)
        if self.settings.model == "stgconvnet":
            raise UserError(
                f"{self.checkpoint}: an energy model has no generator; use vgan_fast.generate"
            )
        configure(replace(self.settings, device=device.type))
        self._device = device
        self._graph = CudaGraph(device) if device.type == "cuda" else None
        with autocast_of(self.settings, self._device):
            self.generator = load_generator(self.checkpoint, self.settings, device)

    def codes(self, count: int, seed: int, to_seed: int | None = None) -> Tensor:
        """Codes to make clips of, (count, latent) fp32, or between two seeds' first ones.

        Of an autoencoder they are drawn from a mixture over its codes (`vgan_fast.mixture`), and
        those between two lie on a line; otherwise see `draw_latents`.

        Raises:
            UserError: when the run's generator goes on from frames, or scikit-learn is needed and
                absent.
        """
        if self.settings.model == "future":
            raise UserError(
                f"{self.checkpoint}: its generator goes on from frames; use vgan_fast.predict"
            )
        if self.settings.model != "autoencoder":
            return draw_latents(count, self.settings.latent, seed, to_seed)
        codes = LatestCodes(self.settings.latent)
        load_weights(self.checkpoint, {"codes": codes})
        mixture = Mixture(codes.latest())
        if to_seed is None:
            return mixture.draw(count, seed)
        return torch.lerp(
            mixture.draw(1, seed), mixture.draw(1, to_seed), torch.linspace(0, 1, count)[:, None]
        )

    def batches(self, codes: Tensor, streams: bool = True) -> Iterator[dict[str, Tensor]]:
        """Clips by stream (`sample_streams`), `BATCH` codes at a time; the next overwrite them."""
        made = sample_batches(self.generator, codes.to(self._device), self._graph, streams)
        while True:
            # Not around the yield: it would reach the caller's work.
            with autocast_of(self.settings, self._device):
                clips = next(made, None)
            if clips is None:
                return
            yield clips


def sample_batches(
    generator: Generator,
    latents: Tensor,
    graph: Graph | None,
    streams: bool = True,
) -> Iterator[dict[str, Tensor]]:
    """Streams (`sample_streams`) of `BATCH` latents at a time; the next overwrite them.

    Full batches are replayed from `graph` where there is one; the rest at the end is not padded.
    """
    sample = partial(sample_streams, generator, streams=streams)
    sample_full = Replayed(sample, graph) if graph else sample
    for batch in latents.split(BATCH) if len(latents) else ():
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


def autocast_of(settings: Settings, device: torch.device) -> torch.autocast:
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


@torch.no_grad()
def with_own_statistics(generator: Generator):
    """A copy of an averaged generator that has the running statistics of its own activations.

    Averaged weights have other activations than the weights that they average, so neither those'
    statistics nor their average fit: with them samples lose motion. Estimated from 512 latents,
    always the same ones.
    """
    own = copy.deepcopy(generator)
    latents = torch.randn(8, 64, own.shape.latent, generator=torch.Generator().manual_seed(0))
    update_bn(latents.to(next(own.parameters()).device), own)
    return own


@torch.no_grad()
def sample_streams(
    generator: Generator, latents: Tensor, streams: bool = True
) -> dict[str, Tensor]:
    """Clips made in evaluation mode, by stream, all fp32 (N, 3 or 1, T, H, W) in [-1, 1].

    "video" always; for two streams, where `streams` are wanted, also "foreground", "mask" (-1 for
    0, 1 for 1) and "background" (repeated over time).
    """
    training = generator.training
    generator.eval()
    if isinstance(generator, OneStreamGenerator):
        made = {"video": generator(latents).float()}
    elif not streams:
        made = {"video": generator(latents)[0].float()}
    else:
        of = generator.streams(latents)
        made = {
            "video": of.video,
            "foreground": of.foreground,
            "mask": 2 * of.mask - 1,
            "background": of.background[:, :, None].expand_as(of.video),
        }
    generator.train(training)
    return made
