"""Steps that come to nothing because a number in them is not finite."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from vgan_fast.distributed import ALONE, Ranks

Outputs = dict[str, Tensor]


class Skipping:
    """Undoes a step whose losses, or whose results, are not all finite.

    The state is copied before each step and taken back after a bad one by selection on the device:
    nothing waits, and a CUDA graph can hold it. It costs memory for a second state (fp32 weights,
    moments and buffers: 330 MB for the networks of the paper, by their size) and three passes over
    it.

    Args:
        device: where the state is.
        ranks: the processes that share each batch: a step that is bad in one is undone in all.

    Attributes:
        total: steps skipped so far, int64 scalar.
        longest: the most of them one after the other, int64 scalar.
    """

    def __init__(self, device: torch.device, ranks: Ranks = ALONE):
        self._ranks = ranks
        self.total, self.longest, self._now = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in range(3)
        )

    def guarded(
        self, train: Callable[..., Outputs], state: Callable[[], Iterable[Tensor]]
    ) -> Callable[..., Outputs]:
        """`train`, a training step, so that a bad one leaves the state as it was.

        Args:
            train: changes the state in place and returns losses, scalars.
            state: the tensors to keep; ones that it gives only after a step, as optimisers make
                theirs, were zeros before.
        """

        def step(*batch: Tensor) -> Outputs:
            before = {id(kept): kept.detach().clone() for kept in state()}
            losses = train(*batch)
            with torch.no_grad():
                now = list(state())
                good = self._are_finite(losses, now)
                for kept in now:
                    old = before[id(kept)] if id(kept) in before else torch.zeros_like(kept)
                    torch.where(good.to(kept.device), kept, old, out=kept)
                self._count(good)
            return losses

        return step

    def _are_finite(self, losses: Outputs, state: list[Tensor]) -> Tensor:
        # The largest magnitude of all is not finite if any is not.
        values = [kept for kept in state if kept.is_floating_point()]
        largest = get_total_norm(values, math.inf)
        found = torch.stack([largest, *losses.values()])
        self._ranks.average([found])
        return found.isfinite().all()

    def _count(self, good: Tensor) -> None:
        self.total += ~good
        self._now += 1
        self._now *= ~good
        torch.maximum(self.longest, self._now, out=self.longest)
