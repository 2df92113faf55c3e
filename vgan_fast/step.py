"""What the training steps of all tasks share: optimisers, random state, precision, the graph."""

import abc
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from vgan_fast.distributed import ALONE, Ranks
from vgan_fast.graph import CudaGraph, Graph, Replayed
from vgan_fast.kernels.frames.reference import normalise_frames
from vgan_fast.settings import Settings
from vgan_fast.skipping import Skipping
from vgan_fast.synchronised import synchronise_norms

WATCHED = 16  # clips kept for pictures
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Step(abc.ABC):
    """Owns networks, optimisers and random state, and trains on one batch a call.

    Shapes are the same at every call and nothing waits for the device, but the gradient scaler of
    fp16 before a plain optimiser. With `settings.graph` the whole step is one replayed graph
    (`vgan_fast.graph.Replayed`): networks, gradients and optimiser state then stay where they are.
    But for the reference backend optimisers are fused.

    Args:
        settings: with device, precision and graph resolved (`vgan_fast.device.resolved`).
        networks: those to train, by name, on the device.
        rates: the learning rate of each.
        make_graph: what captures the step on a device.
        ranks: the processes that share each batch; networks begin as those of process 0.

    Attributes:
        remedy: what to do where losses or weights are no longer finite.
        read_every: steps between reading losses, which waits for the device.
        skipping: with `settings.on_nan` "skip", what undoes steps that are not finite; else None.
    """

    remedy = "train again with a lower --lr"
    read_every = 10

    def __init__(
        self,
        settings: Settings,
        networks: dict[str, nn.Module],
        rates: dict[str, float],
        make_graph: Callable[[torch.device], Graph] = CudaGraph,
        ranks: Ranks = ALONE,
    ):
        self.ranks = ranks
        if settings.batch_norm == "synchronised" and ranks is not ALONE:
            for network in networks.values():
                synchronise_norms(network, ranks)
        self.settings, self.device = settings, torch.device(settings.device)
        self.plain = settings.backend == "reference"
        self.optimizers = {
            name: self._optimizer(network, rates[name]) for name, network in networks.items()
        }
        # One for all, as PyTorch advises: an overflow in any lowers the scale of all.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "fp16")
        self.skipping = Skipping(self.device, ranks) if settings.on_nan == "skip" else None
        self._one = torch.ones((), device=self.device)
        self.random = torch.Generator(self.device).manual_seed(settings.seed)
        self._make_graph = make_graph
        self._run = self._captured_later()

    def __call__(self, *batch: Tensor) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            batch: this process's share of what the task trains on, on the step's device; first of
                all frames (N, T, H, W, 3) uint8.

        Returns:
            Scalars fp32 on the device, of this share; overwritten by the next call.
        """
        return self._run(*batch)

    @property
    @abc.abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The networks whose weights a checkpoint keeps."""

    @abc.abstractmethod
    def _train(self, *batch: Tensor) -> dict[str, Tensor]:
        """One step; see `__call__`."""

    def state_dict(self) -> dict:
        """Everything that the next step depends on but the weights: tensors and plain values."""
        state = {
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "random": self.random.get_state(),
            "scaler": self.scaler.state_dict(),
        }
        if self.skipping:
            state["skipped"] = int(self.skipping.total)
        return state

    def load_state_dict(self, state: dict) -> None:
        """Take back what `state_dict` gave."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            for parameter, moments in optimizer.state.items():
                for key, value in moments.items():
                    if value.shape == parameter.shape:
                        # Fused optimisers pair values by their place in memory, and runs of other
                        # versions or devices store theirs in another order.
                        moments[key] = torch.empty_like(parameter).copy_(value)
        self.random.set_state(state["random"])
        self.scaler.load_state_dict(state.get("scaler", {}))  # Older runs have none and need none.
        if self.skipping:
            self.skipping.total.fill_(state.get("skipped", 0))
        # The optimisers now hold other tensors than those that a graph would write to.
        self._run = self._captured_later()

    @property
    def replays(self) -> bool:
        """Whether the next call replays a graph."""
        return isinstance(self._run, Replayed) and self._run.captured

    def _captured_later(self) -> Callable[..., dict[str, Tensor]]:
        train = self.skipping.guarded(self._train, self._undone) if self.skipping else self._train
        if not self.settings.graph:
            return train
        return Replayed(train, self._make_graph(self.device), [self.random])

    def _undone(self) -> Iterator[Tensor]:
        """What a skipped step leaves as it was; random numbers go on, and so does a loss scale."""
        for network in self.networks.values():
            yield from network.parameters()
            yield from network.buffers()
        for optimizer in self.optimizers.values():
            for of_parameter in optimizer.state.values():
                yield from (kept for kept in of_parameter.values() if isinstance(kept, Tensor))

    def _clips(self, frames: Tensor) -> Tensor:
        """Frames uint8 (N, T, H, W, 3) as clips (N, 3, T, H, W) in [-1, 1]."""
        clips = normalise_frames(frames)
        return clips.contiguous() if self.plain else clips

    def _update(self, name: str, terms: list[Tensor], weights: list[Tensor]) -> None:
        """A step down the gradient of the sum of weight * term, which itself nobody needs."""
        optimizer = self.optimizers[name]
        # Frees the gradients: those that a capture makes are the graph's, in memory of its own.
        optimizer.zero_grad()
        torch.autograd.backward(terms, [self.scaler.scale(weight) for weight in weights])
        self._descend(optimizer)

    def _descend(self, optimizer: torch.optim.Optimizer) -> None:
        """A step down the mean of all processes' gradients."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.ranks.average([p.grad for p in parameters if p.grad is not None])
        self.scaler.step(optimizer)

    def _autocast(self):
        dtype = _AUTOCAST.get(self.settings.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        if self.settings.optimizer == "sgd":
            return torch.optim.SGD(network.parameters(), lr, momentum=0.9, fused=not self.plain)
        # Fused means capturable in all but name: its step count is on the device either way, and a
        # run may be resumed with a graph that began without one.
        return torch.optim.Adam(
            network.parameters(),
            lr,
            betas=(0.5, 0.999),
            fused=not self.plain,
            capturable=not self.plain,
        )


class Watching:
    """Goes before a `Step` whose pictures go on from real clips: keeps some of the first batch."""

    _watched: Tensor | None = None  # frames uint8 (few, T, H, W, 3)

    def __call__(self, *batch: Tensor) -> dict[str, Tensor]:
        """See `Step.__call__`."""
        if self._watched is None:
            self._watched = self.ranks.gather(batch[0][:WATCHED])[:WATCHED].clone()
        return super().__call__(*batch)

    def state_dict(self) -> dict:
        """See `Step.state_dict`."""
        return {**super().state_dict(), "watched": self._watched}

    def load_state_dict(self, state: dict) -> None:
        """See `Step.load_state_dict`."""
        watched = state["watched"]  # None where no step was done
        self._watched = watched if watched is None else watched.to(self.device)
        super().load_state_dict(state)

    def watched(self, count: int) -> Tensor:
        """The same clips at every call, up to `WATCHED`: frames uint8 (count, T, H, W, 3).

        Raises:
            RuntimeError: before the first batch.
        """
        if self._watched is None:
            raise RuntimeError("pictures show clips of the first batch: train on one first")
        return self._watched[:count]
