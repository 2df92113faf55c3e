"""Clips from a trained energy model: its chains, taken further."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vgan_fast.checkpoint import find_checkpoint, load_weights
from vgan_fast.device import configure, multiplies_bf16
from vgan_fast.energy_step import Chains, sampler_of, shown
from vgan_fast.graph import CudaGraph, Replayed
from vgan_fast.networks import build_energy_network
from vgan_fast.settings import Settings


class ChainSampler:
    """The network and the chains of a run of --model stgconvnet.

    Args:
        run: folder of a run of `vgan_fast.train`, or one of its checkpoints.
        device: where to compute; the process is configured for it (`vgan_fast.device.configure`).

    Attributes:
        at_once: clips made at a time, one of each chain.
        checkpoint: the folder that weights and chains are from.
        settings: of the run, for the device.

    Raises:
        UserError: when there is no whole checkpoint, or it is of another model.
    """

    def __init__(self, run: Path, device: torch.device):
        self.checkpoint = find_checkpoint(run)
        stored = Settings.load(self.checkpoint / "settings.json")
        backend = "auto" if stored.backend == "fused" else stored.backend
        bf16 = stored.precision == "bf16" and multiplies_bf16(device)
        precision = "bf16" if bf16 else "fp32"
        self.settings = replace(
            stored, backend=backend, device=device.type, precision=precision, graph=False
        )
        configure(self.settings)
        sizes = stored.frames, stored.size, stored.size
        network = build_energy_network(self.settings, sizes)
        self._chains = Chains(stored.chains, sizes, network.depth)
        load_weights(self.checkpoint, {"network": network, "chains": self._chains})
        network.depth = int(self._chains.depth)
        self._chains.to(device)
        self._scored = network.to(device).frozen()
        self.at_once = stored.chains

    def batches(
        self, count: int, seed: int, steps: int, numbers: range | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Clips, as many as there are chains at a time: "video", (N, 3, T, H, W) in [-1, 1].

        Each of them is a chain after `steps` Langevin steps from where training left it, with noise
        of its own; clips from one chain grow apart with the steps.

        Args:
            count: of all clips.
            seed: of the noise.
            steps: of each chain.
            numbers: of the batches that are wanted, all where absent.
        """
        sampler = replace(
            sampler_of(self.settings, float(self._chains.mean)),
            seed=(self.settings.seed + 1 + seed) % 2**62,
        )
        moment = torch.zeros_like(self._chains.moment)
        # As in training so many steps are a graph, where there are graphs.
        at_once = min(steps, self.settings.langevin_steps)

        def some(clips: Tensor, number: int = at_once) -> dict[str, Tensor]:
            return {"clips": sampler(self._scored, clips, moment, number).chains}

        replayed = some
        if moment.device.type == "cuda":
            replayed = Replayed(some, CudaGraph(moment.device))
        for number in range(-(-count // self.at_once)) if numbers is None else numbers:
            moment.fill_(number * steps)
            clips = self._chains.clips
            for _ in range(steps // at_once):
                clips = replayed(clips)["clips"]
            if steps % at_once:
                clips = some(clips, steps % at_once)["clips"]
            yield {"video": shown(clips[: count - number * self.at_once], self._chains.mean)}
