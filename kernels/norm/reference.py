"""Answer key of batch norm + (leaky) ReLU, in plain PyTorch; accumulates in fp32 or wider."""

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _per_channel(x: Tensor, *vectors: Tensor) -> list[Tensor]:
    return [v.view(-1, *[1] * (x.dim() - 2)) for v in vectors]


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise with the batch's statistics: y, mean and biased variance."""
    variance, mean = torch.var_mean(_wide(x), _all_but_channels(x), correction=0)
    return apply(x, mean, variance, weight, bias, eps, slope), mean, variance


def apply(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
) -> Tensor:
    """Normalise with given statistics and activate."""
    scale = weight * torch.rsqrt(variance + eps)
    mean, scale, bias = _per_channel(x, mean, scale, bias)
    return F.leaky_relu((_wide(x) - mean) * scale + bias, slope).to(x.dtype)


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `training` when the statistics came from x."""
    mean, rstd, w, b = _per_channel(x, mean, torch.rsqrt(variance + eps), weight, bias)
    normed = (_wide(x) - mean) * rstd
    g = _wide(dy) * torch.where(normed * w + b > 0, 1.0, slope)
    dbias = g.sum(_all_but_channels(x))
    dweight = (g * normed).sum(_all_but_channels(x))
    dx = g
    if training:
        mean_g, mean_gx = _per_channel(x, *(s * (len(s) / x.numel()) for s in (dbias, dweight)))
        dx = g - mean_g - normed * mean_gx
    return (w * rstd * dx).to(x.dtype), dweight, dbias


def track(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    variance: Tensor,
    rows: int,
    momentum: float,
) -> None:
    """Move the running statistics, in place, towards a batch of `rows` values a channel."""
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * (rows / (rows - 1)), momentum)
