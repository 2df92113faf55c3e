"""One step of training a classifier of clips on the discriminator's body."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan_fast.checkpoint import load_weights
from vgan_fast.errors import UserError
from vgan_fast.graph import CudaGraph, Graph
from vgan_fast.models import Discriminator
from vgan_fast.networks import build_discriminator
from vgan_fast.settings import Settings
from vgan_fast.step import Step

DROPOUT = 0.5  # the paper's, before the last layer


class ClassifierStep(Step):
    """Trains the discriminator's body with a new last layer to tell classes (paper section 4.3).

    The body is `pretrained`'s, or freshly initialised; dropout and a convolution as large as what
    it takes, to one number a class, follow it. Cross-entropy is fp32.

    Args:
        settings: with device, precision and graph resolved (`vgan_fast.device.resolved`).
        classes: number of classes.
        pretrained: a discriminator of the settings' shape whose body to start from; it is copied.
        make_graph: what captures the step on a device.
    """

    def __init__(
        self,
        settings: Settings,
        classes: int,
        pretrained: Discriminator | None = None,
        make_graph: Callable[[torch.device], Graph] = CudaGraph,
    ):
        torch.manual_seed(settings.seed)  # of new weights, and of dropout from here on
        self.classifier = build_discriminator(settings, classes, DROPOUT).to(settings.device)
        if pretrained is not None:
            self.classifier.layers[:-1].load_state_dict(pretrained.layers[:-1].state_dict())
        super().__init__(
            settings, {"classifier": self.classifier}, {"classifier": settings.lr}, make_graph
        )

    def _train(self, frames: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """See `Step.__call__`; labels are int64 (N,) on the device.

        Returns:
            `loss`, the cross-entropy, and `right`, the share of the batch that was told right with
            dropout at work.
        """
        with self._autocast():
            logits = self.classifier(self._clips(frames)).float()
        loss = F.cross_entropy(logits, labels)
        self._update("classifier", [loss], [self._one])
        self.scaler.update()
        right = (logits.argmax(1) == labels).float().mean()
        return {"loss": loss.detach(), "right": right}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """See `Step.networks`."""
        return {"classifier": self.classifier}

    @torch.no_grad()
    def probabilities(self, clips: Iterator[Tensor]) -> Tensor:
        """Probabilities of the classes in evaluation mode: fp32 (N, classes), on the CPU.

        Args:
            clips: batches of frames, (n, T, H, W, 3) uint8 on the step's device.
        """
        self.classifier.eval()
        with self._autocast():
            logits = [self.classifier(self._clips(frames)).float().cpu() for frames in clips]
        self.classifier.train()
        return torch.cat(logits).softmax(1)


def load_discriminator(checkpoint: Path, settings: Settings) -> Discriminator:
    """The discriminator of a run, in evaluation mode.

    Args:
        checkpoint: its folder.
        settings: of the run, resolved; the network goes to their device.

    Raises:
        UserError: when the checkpoint holds none.
    """
    if settings.model == "autoencoder":
        raise UserError(
            f"{checkpoint}: a run of --model autoencoder has no discriminator; name another run"
        )
    discriminator = build_discriminator(settings)
    load_weights(checkpoint, {"discriminator": discriminator})
    return discriminator.to(settings.device).eval()
