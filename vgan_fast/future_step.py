"""One step of training a generator that goes on from given frames."""

from collections.abc import Callable

import torch
from torch import Tensor

from vgan_fast.distributed import ALONE, Ranks
from vgan_fast.gan_step import GANStep
from vgan_fast.graph import CudaGraph, Graph
from vgan_fast.sampling import sample_streams
from vgan_fast.settings import Settings
from vgan_fast.step import Watching


class FutureStep(Watching, GANStep):
    """Trains a `FutureGenerator` ("Future Generation"), one batch a call.

    The generator sees the first `settings.condition` frames of each real clip. Beside the
    adversarial term its loss has `reconstruction`, the distance of its own first frames from them:
    mean absolute difference, as in the original's code and the paper's prose, or mean squared, as
    in its equation.

    Args:
        settings: as of `GANStep`.
        make_graph, ranks: as of `GANStep`.
    """

    def __init__(
        self,
        settings: Settings,
        make_graph: Callable[[torch.device], Graph] = CudaGraph,
        ranks: Ranks = ALONE,
    ):
        device = torch.device(settings.device)
        self._reconstruction_weight = torch.tensor(settings.reconstruction_weight, device=device)
        super().__init__(settings, make_graph, ranks)

    def sample(self, count: int) -> dict[str, Tensor]:
        """Clips of the first batch ("real"), and what the generator makes of their beginnings."""
        frames = self.watched(count)
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
