"""Adversarial losses on the discriminator's logits, fp32 whatever the logits' dtype."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Literal["cross-entropy", "hinge"]


def classify(logits: Tensor, real: bool) -> Tensor:
    """Mean cross entropy of calling every clip real (or generated); paper equation 1.

    Args:
        logits: (N, 1), log odds of real; or (N, 2), the original's softmax over generated, real.
        real: the label of the whole batch.

    Returns:
        Scalar fp32 >= 0, finite for any finite logits.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        return F.softplus(-logits if real else logits).mean()
    labels = torch.full((len(logits),), int(real), device=logits.device)
    return F.cross_entropy(logits, labels)


def discriminator_loss(loss: Loss, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The real and the fake term of the discriminator's loss; its objective is their sum.

    Args:
        loss: "cross-entropy", or "hinge" with one logit: mean max(0, 1 - real) and
            mean max(0, 1 + fake).
        real, fake: logits (N, K) of real and of generated clips.
    """
    if loss == "hinge":
        return F.relu(1 - real.float()).mean(), F.relu(1 + fake.float()).mean()
    return classify(real, True), classify(fake, False)


def generator_loss(loss: Loss, fake: Tensor) -> Tensor:
    """The generator's adversarial term: non-saturating cross entropy, or -mean(fake) for hinge."""
    return -fake.float().mean() if loss == "hinge" else classify(fake, True)
