"""The answer key of the logistic losses in plain PyTorch, and their backward written out."""

import torch
import torch.nn.functional as F
from torch import Tensor


def logistic_losses(logits: Tensor, real: list[bool]) -> Tensor:
    """For each part of the batch the mean of softplus(-z) if it is real, of softplus(z) if not.

    In fp32, or in float64 of float64.
    """
    parts = logits.to(torch.promote_types(logits.dtype, torch.float32)).view(len(real), -1)
    return torch.stack(
        [F.softplus(-z if r else z).mean() for z, r in zip(parts, real, strict=True)]
    )


def logistic_losses_backward(dlosses: Tensor, logits: Tensor, real: list[bool]) -> Tensor:
    """Gradient of the logits, in their dtype."""
    parts = logits.to(dlosses.dtype).view(len(real), -1)
    # sigmoid(z) - 1 as -sigmoid(-z): the difference would lose the digits of a sure z.
    slopes = [
        -torch.sigmoid(-z) if r else torch.sigmoid(z) for z, r in zip(parts, real, strict=True)
    ]
    gradient = torch.stack(slopes) * dlosses[:, None] / parts.shape[1]
    return gradient.view_as(logits).to(logits.dtype)
