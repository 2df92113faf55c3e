"""One step of training the autoencoder, the baseline of the paper's study."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan_fast.distributed import ALONE, Ranks
from vgan_fast.graph import CudaGraph, Graph
from vgan_fast.mixture import LatestCodes
from vgan_fast.networks import build_encoder, build_generator
from vgan_fast.sampling import sample_streams
from vgan_fast.settings import Settings
from vgan_fast.step import Step, Watching


class AutoencoderStep(Watching, Step):
    """Trains an encoder and the two-stream generator as its decoder (paper, "Baseline").

    The encoder has the discriminator's layers with an output for each entry of the latent code; the
    loss is the mean squared error of the clip. Codes of the latest clips are kept among the
    weights: `vgan_fast.mixture` fits what new clips are drawn from.

    Args:
        settings: with device, precision and graph resolved (`vgan_fast.device.resolved`).
        make_graph: what captures the step on a device.
        ranks: the processes that share each batch.
    """

    def __init__(
        self,
        settings: Settings,
        make_graph: Callable[[torch.device], Graph] = CudaGraph,
        ranks: Ranks = ALONE,
    ):
        device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        self.encoder = build_encoder(settings).to(device)
        self.generator = build_generator(settings).to(device)
        self.codes = LatestCodes(settings.latent).to(device)
        networks = {"encoder": self.encoder, "generator": self.generator}
        rates = dict.fromkeys(networks, settings.lr)
        super().__init__(settings, networks, rates, make_graph, ranks)

    def _train(self, frames: Tensor) -> dict[str, Tensor]:
        """See `Step.__call__`: `error`, the mean squared error, and `mask`, the mask's mean."""
        clips = self._clips(frames)
        with self._autocast():
            codes = self.encoder(clips)
            made, mask_mean = self.generator(codes)
        error = F.mse_loss(made.float(), clips.float())
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        self.scaler.scale(error).backward()
        for optimizer in self.optimizers.values():
            self._descend(optimizer)
        self.scaler.update()
        self.codes.add(self.ranks.gather(codes))
        return {"error": error.detach(), "mask": mask_mean.detach()}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """See `Step.networks`."""
        return {"encoder": self.encoder, "generator": self.generator, "codes": self.codes}

    @torch.no_grad()
    def sample(self, count: int) -> dict[str, Tensor]:
        """Clips of the first batch ("real") and their reconstructions with their streams."""
        clips = self._clips(self.watched(count))
        self.encoder.eval()
        with self._autocast():
            made = sample_streams(self.generator, self.encoder(clips))
        self.encoder.train()
        return {"real": clips, **made}
