"""One step of training STGConvNet: Langevin steps of its chains, then one of its weights."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vgan_fast.graph import CudaGraph, Graph
from vgan_fast.networks import build_energy_network, kernels_of
from vgan_fast.settings import Settings
from vgan_fast.step import Step, Watching
from vgan_fast.stgconvnet.langevin import Drawn, Langevin
from vgan_fast.stgconvnet.layers import Sizes

LEVELS = 255.0  # the largest pixel


class Chains(nn.Module):
    """What a sampler goes on from: kept in a checkpoint among the weights.

    Args:
        count: number of chains.
        sizes: frames, height and width.
        depth: layers in use.

    Attributes:
        clips: (count, 3, T, H, W) fp32, pixels 0-255 less `mean`; N(0, 1) at first.
        mean: of the first batch's pixels, fp32 scalar; 0 before it.
        moment: Langevin steps taken, int64 scalar.
        depth: layers in use, int64 scalar (`EnergyNetwork.depth`).
    """

    def __init__(self, count: int, sizes: Sizes, depth: int):
        super().__init__()
        self.register_buffer("clips", torch.randn(count, 3, *sizes))
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("moment", torch.tensor(0))
        self.register_buffer("depth", torch.tensor(depth))


class EnergyLearning(Step):
    """Learns f by maximum likelihood with persistent chains (paper, "Learning and sampling").

    The gradient of the log likelihood is the mean of df/dtheta over clips less its mean over the
    chains, which go on by `settings.langevin_steps` at each step. Every layer has a learning rate
    of its own. With `settings.growth` by layers, f is the sum of the first layer's responses at
    first, and each further layer comes on top after an equal share of the steps; those below it go
    on learning.

    Args:
        settings: with device, precision and graph resolved (`vgan_fast.device.resolved`).
        sizes: frames, height and width of a clip.
        make_graph: what captures the step on a device.
    """

    remedy = "train again with a lower --lr or --step-size"
    # A step is as long as many of other models, so waiting for its losses costs little, and what
    # breaks is named at its step.
    read_every = 1

    def __init__(self, settings: Settings, sizes: Sizes, make_graph: Callable[..., Graph]):
        device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        self.network = build_energy_network(settings, sizes).to(device)
        self.chains = Chains(settings.chains, sizes, self.network.depth).to(device)
        layers = {f"layer {i}": layer for i, layer in enumerate(self.network.convolutions, 1)}
        rates = [settings.lr * factor for factor in settings.factors_of_rates(len(layers))]
        super().__init__(settings, layers, dict(zip(layers, rates, strict=True)), make_graph)
        self._done = 0
        self._mean: float | None = None  # of the chains, once more: no step may wait for a device

    def __call__(self, *batch: Tensor) -> dict[str, Tensor]:
        """See `Step.__call__`."""
        self._known_mean()
        if self.network.depth != self._depth():
            self.network.depth = self._depth()
            self.chains.depth.fill_(self.network.depth)
            self._run = self._captured_later()
        self._done += 1
        return super().__call__(*batch)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """See `Step.networks`."""
        return {"network": self.network, "chains": self.chains}

    def state_dict(self) -> dict:
        """See `Step.state_dict`."""
        return {**super().state_dict(), "done": self._done}

    def load_state_dict(self, state: dict) -> None:
        """See `Step.load_state_dict`; the chains must be loaded before."""
        self._done, self.network.depth, self._mean = state["done"], int(self.chains.depth), None
        super().load_state_dict(state)

    def draw(self, chains: Tensor, steps: int, fixed: Tensor | None = None) -> Drawn:
        """Langevin steps with the weights of now; see `Langevin.__call__`."""
        sampler = sampler_of(self.settings, self._known_mean())
        return sampler(self.network.frozen(), chains, self.chains.moment, steps, fixed)

    def _learn(self, clips: Tensor, chains: Tensor, accepted: Tensor) -> dict[str, Tensor]:
        """One step of the weights.

        Returns:
            Means of f over clips and chains, of the energy |I|²/2s² - f for each value of theirs,
            and the share of accepted Langevin steps.
        """
        f = {"data": self.network(clips), "chains": self.network(chains)}
        loss = f["chains"].mean() - f["data"].mean()
        # Layers that are not in use get no gradient, and optimisers pass them over.
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
        losses = {f"f_{name}": scores.detach().mean() for name, scores in f.items()}
        for name, values in (("data", clips), ("chains", chains)):
            energy = -losses[f"f_{name}"] / values[0].numel()
            if self.settings.reference == "gaussian":
                energy = energy + values.square().mean() / (2 * self.settings.sigma**2)
            losses[f"energy_{name}"] = energy
        if self.settings.metropolis:
            losses["accepted"] = accepted
        return losses

    def _undone(self) -> Iterator[Tensor]:
        # Noise goes on: chains that it led astray would only take the same way again.
        return (kept for kept in super()._undone() if kept is not self.chains.moment)

    def _known_mean(self) -> float:
        if self._mean is None:
            self._mean = float(self.chains.mean)
        return self._mean

    def _depth(self) -> int:
        layers, given = len(self.network.layers), self.settings
        if given.growth == "together" or (given.growth == "auto" and given.experiment != "1"):
            return layers
        grown = min(layers, 1 + self._done * layers // given.steps)
        # A resumed run may have more steps to do, but takes no layer off.
        return max(grown, self.network.depth) if self._done else grown


class EnergyStep(Watching, EnergyLearning):
    """Trains STGConvNet on whole clips; see `EnergyLearning`.

    Args:
        settings: with device, precision and graph resolved (`vgan_fast.device.resolved`).
        make_graph: what captures the step on a device.
    """

    def __init__(self, settings: Settings, make_graph: Callable[[torch.device], Graph] = CudaGraph):
        super().__init__(settings, (settings.frames, settings.size, settings.size), make_graph)

    def __call__(self, *batch: Tensor) -> dict[str, Tensor]:
        """See `Step.__call__`."""
        if self._done == 0:
            self.chains.mean.fill_(batch[0].float().mean())
        return super().__call__(*batch)

    def sample(self, count: int) -> dict[str, Tensor]:
        """Clips of the first batch ("real") and of the chains, again where there are fewer."""
        of = torch.arange(count)
        real, chains = self.watched(count), self.chains.clips
        return {
            "real": self._clips(real[of % len(real)]),
            "video": shown(chains[of % len(chains)], self.chains.mean),
        }

    def _train(self, frames: Tensor) -> dict[str, Tensor]:
        """See `Step.__call__` and `_learn`."""
        chains = self.chains.clips
        drawn = self.draw(chains, self.settings.langevin_steps)
        chains.copy_(drawn.chains)
        return self._learn(as_values(frames, self.chains.mean), drawn.chains, drawn.accepted)


def sampler_of(settings: Settings, mean: float) -> Langevin:
    """What draws the chains of a run.

    Args:
        settings: resolved.
        mean: of the data's pixels.
    """
    flat = settings.reference == "uniform"
    return Langevin(
        step_size=settings.step_size,
        variance=None if flat else settings.sigma**2,
        temperature=settings.temperature,
        metropolis=settings.metropolis,
        bounds=(-mean, LEVELS - mean) if flat else None,
        seed=settings.seed,
        impl=kernels_of(settings) or "reference",
    )


def as_values(frames: Tensor, mean: Tensor) -> Tensor:
    """Frames uint8 (N, T, H, W, 3) as what f scores: (N, 3, T, H, W) fp32, less their mean."""
    return frames.permute(0, 4, 1, 2, 3).float().contiguous() - mean


def shown(clips: Tensor, mean: Tensor) -> Tensor:
    """The way back to clips in [-1, 1], cut there, as pictures take them."""
    return ((clips + mean) / (LEVELS / 2) - 1).clamp(-1, 1)
