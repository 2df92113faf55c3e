"""Recovering occluded pixels while the model is learnt from what is visible (paper, "Recovery")."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vgan_fast.energy_step import LEVELS, EnergyLearning, as_values
from vgan_fast.errors import UserError
from vgan_fast.graph import CudaGraph, Graph
from vgan_fast.settings import Settings


class RecoveryStep(EnergyLearning):
    """Learns from clips some of whose pixels are hidden, and recovers these on the way.

    At each step the occluded pixels go on by Langevin steps with the visible ones held, side by
    side with the chains, which are free; the weights then learn from the completed clips.

    Args:
        settings: with device, precision and graph resolved (`vgan_fast.device.resolved`).
        clips: uint8 (N, T, H, W, 3) on the step's device.
        occluded: bool (N, T, H, W), there, too.
        make_graph: what captures the step on a device.
    """

    def __init__(
        self,
        settings: Settings,
        clips: Tensor,
        occluded: Tensor,
        make_graph: Callable[[torch.device], Graph] = CudaGraph,
    ):
        super().__init__(settings, tuple(clips.shape[1:4]), make_graph)
        of = self.chains
        of.mean.fill_(clips[~occluded].float().mean())
        begun = as_values(clips, of.mean)
        of.register_buffer("completed", begun.masked_fill_(occluded[:, None], 0))
        free = occluded.new_zeros((settings.chains, *occluded.shape[1:]))
        self._fixed = torch.cat([~occluded, free])[:, None]

    def drawn(self) -> np.ndarray:
        """Go on with the weights of now; the completed clips, float32 (N, T, H, W, 3), 0 to 255."""
        completed, steps = self.chains.completed, self.settings.langevin_steps
        completed.copy_(self.draw(completed, steps, self._fixed[: len(completed)]).chains)
        pixels = (completed + self.chains.mean).clamp(0, LEVELS)
        return pixels.permute(0, 2, 3, 4, 1).cpu().numpy()

    def _train(self) -> dict[str, Tensor]:
        """See `Step.__call__` and `EnergyLearning._learn`."""
        completed, clips = self.chains.completed, self.chains.clips
        together = torch.cat([completed, clips])
        drawn = self.draw(together, self.settings.langevin_steps, self._fixed)
        completed.copy_(drawn.chains[: len(completed)])
        clips.copy_(drawn.chains[len(completed) :])
        return self._learn(completed, clips, drawn.accepted)


def recover(
    clips: np.ndarray,
    occluded: np.ndarray,
    settings: Settings,
    *,
    samples: int,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> np.ndarray:
    """Learn a model from the visible pixels of clips and draw the others.

    Takes `settings.steps` steps of learning; the draws that follow lie `settings.langevin_steps`
    Langevin steps apart.

    Args:
        clips: uint8 (N, T, H, W, 3); what occluded pixels hold does not matter.
        occluded: bool (N, T, H, W).
        settings: resolved (`vgan_fast.device.resolved`), of model stgconvnet.
        samples: number of draws.
        report: called with the number of each step and its losses.

    Returns:
        float32 (samples, N, T, H, W, 3) in [0, 255]: the occluded pixels as drawn, the visible ones
        as they were.

    Raises:
        UserError: when nothing is visible, or a loss is no longer finite.
    """
    if occluded.all():
        raise UserError("everything is occluded: leave some pixels visible to learn from")
    device = torch.device(settings.device)
    given = torch.from_numpy(clips).to(device), torch.from_numpy(occluded).to(device)
    step = RecoveryStep(settings, *given)
    for done in range(1, settings.steps + 1):
        values = {name: float(value) for name, value in step().items()}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise UserError(f"'{broken[0]}' is not finite at step {done}: {step.remedy}")
        if report is not None:
            report(done, values)
    drawn = np.empty((samples, *clips.shape), np.float32)
    for draw in drawn:
        draw[:] = step.drawn()
        draw[~occluded] = clips[~occluded]
    return drawn
