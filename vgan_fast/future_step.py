"""One step of training a generator that goes on from given frames."""

from collections.abc import Callable

import torch
from torch import Tensor

from vgan_fast.gan_step import GANStep
from vgan_fast.graph import CudaGraph, Graph
from vgan_fast.sampling import sample_streams
from vgan_fast.settings import Settings


class FutureStep(GANStep):
    """Trains a `FutureGenerator` ("Future Generation"), one batch a call.

    The generator sees the first `settings.condition` frames of each real clip. Beside the
    adversarial term its loss has the distance of its own first frames from them: mean absolute
    difference, as in the original's code and the paper's prose, or mean squared, as in its
    equation.

    Args:
        settings: as of `GANStep`.
        make_graph: as of `GANStep`.
    """

    def __init__(self, settings: Settings, make_graph: Callable[[torch.device], Graph] = CudaGraph):
        device = torch.device(settings.device)
        self._reconstruction_weight = torch.tensor(settings.reconstruction_weight, device=device)
        self._watched: Tensor | None = None  # frames of the clips that pictures go on from
        super().__init__(settings, make_graph)

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:
        """See `GANStep`; further there is `reconstruction`, the distance of the first frames."""
        if self._watched is None:
            self._watched = frames.clone()
        return super().__call__(frames)

    def state_dict(self) -> dict:
        """See `Step.state_dict`."""
        return {**super().state_dict(), "watched": self._watched}

    def load_state_dict(self, state: dict) -> None:
        """See `Step.load_state_dict`."""
        watched = state["watched"]  # None where no step was done
        self._watched = watched if watched is None else watched.to(self.device)
        super().load_state_dict(state)

    def sample(self, count: int) -> dict[str, Tensor]:
        """Clips of the first batch ("real"), and what the generator makes of their beginnings."""
        if self._watched is None:
            raise RuntimeError("pictures show clips of the first batch: train on one first")
        frames = self._watched[:count]
        with self._autocast():
            made = sample_streams(self.generator, self._codes(frames))
        return {"real": self._clips(frames), **made}

    def _codes(self, frames: Tensor) -> Tensor:
        return self._clips(frames[:, : self.settings.condition])

    def _further_terms(
        self, codes: Tensor, fake: Tensor, mask_mean: Tensor | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        error = fake[:, :, : self.settings.condition].float() - codes
        distance = error.abs() if self.settings.reconstruction == "l1" else error.square()
        reconstruction = {"reconstruction": (distance.mean(), self._reconstruction_weight)}
        return super()._further_terms(codes, fake, mask_mean) | reconstruction
