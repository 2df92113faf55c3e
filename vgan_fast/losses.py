"""Adversarial losses on the discriminator's logits, fp32 whatever the logits' dtype."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vgan_fast.kernels.dispatch import Impl
from vgan_fast.kernels.loss import logistic_losses

Loss = Literal["cross-entropy", "hinge"]


def classify(logits: Tensor, real: Sequence[bool], impl: Impl = "reference") -> Tensor:
    """Mean cross entropy of calling each part of a batch real (or generated); paper equation 1.

    Args:
        logits: (N, 1), log odds of real; or (N, 2), the original's softmax over generated, real.
        real: labels of equal parts of the batch, one after the other.
        impl: which implementation of the loss of one logit; see `vgan_fast.kernels.dispatch`.

    Returns:
        A loss for each part, fp32 >= 0, finite for any finite logits.
    """
    if logits.shape[1] == 1:
        return logistic_losses(logits, real, impl=impl)
    parts = logits.float().log_softmax(1).chunk(len(real))
    return -torch.stack([part[:, int(r)].mean() for part, r in zip(parts, real, strict=True)])


def discriminator_loss(loss: Loss, logits: Tensor, impl: Impl = "reference") -> Tensor:
    """The real and the fake term of the discriminator's loss, (2,); its objective is their sum.

    Args:
        loss: "cross-entropy", or "hinge" with one logit: mean max(0, 1 - real) and
            mean max(0, 1 + fake).
        logits: (2N, K), those of N real clips and then of N generated ones.
        impl: see `classify`.
    """
    if loss == "hinge":
        real, fake = logits.float().chunk(2)
        return torch.stack([F.relu(1 - real).mean(), F.relu(1 + fake).mean()])
    return classify(logits, [True, False], impl)


def generator_loss(loss: Loss, logits: Tensor, impl: Impl = "reference") -> Tensor:
    """The generator's adversarial term: non-saturating cross entropy, or -mean(fake) for hinge.

    Args:
        loss: as of the discriminator's.
        logits: (N, K) of generated clips.
        impl: see `classify`.

    Returns:
        Scalar fp32.
    """
    if loss == "hinge":
        return -logits.float().mean()
    return classify(logits, [True], impl).squeeze(0)
