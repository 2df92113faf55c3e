"""Answer key of batch norm + (leaky) ReLU, in plain PyTorch; accumulates in fp32 or wider."""

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each of `groups` equal parts of the batch, (groups, C)."""
    variance, mean = torch.var_mean(_by_group(_wide(x), groups), (1, 3), correction=0)
    return mean, variance


def norm_act(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
) -> Tensor:
    """Normalise each group with its statistics, (groups, C), and activate."""
    scale = weight * torch.rsqrt(variance + eps)
    z = (_by_group(_wide(x), len(mean)) - _per_group(mean)) * _per_group(scale) + bias[:, None]
    return _like(x, F.leaky_relu(z, slope))


def batch_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each group with its own statistics and activate: y, mean and variance."""
    statistics = batch_statistics(x, groups)
    return norm_act(x, *statistics, weight, bias, eps, slope), *statistics


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
    from_batch: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and each group's shares of those of weight and bias, (2, groups, C).

    Args:
        from_batch: whether the statistics were those of x, so that it counts through them too.
    """
    normed, g = _normed(x, mean, variance, eps), _by_group(_wide(dy), len(mean))
    g = _masked(g, normed, weight, bias, slope)
    sums = torch.stack([(g * normed).sum((1, 3)), g.sum((1, 3))])
    given = dy, x, mean, variance, weight, bias
    return input_gradient(*given, sums, eps, slope, from_batch, False), sums


def input_gradient(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor,
    eps: float,
    slope: float,
    from_batch: bool,
    masked: bool,
) -> Tensor:
    """Gradient of x.

    Args:
        dy: gradient of y, or where `masked` of what was activated.
        sums: of `backward`.
        from_batch: as of `backward`.
    """
    normed, g = _normed(x, mean, variance, eps), _by_group(_wide(dy), len(mean))
    if not masked:
        g = _masked(g, normed, weight, bias, slope)
    if from_batch:
        rows = x.numel() // mean.numel()
        dweight, dbias = sums
        g = g - _per_group(dbias) / rows - normed * (_per_group(dweight) / rows)
    return _like(x, _per_group(weight * torch.rsqrt(variance + eps)) * g)


def track(
    running_means: list[Tensor],
    running_vars: list[Tensor],
    counts: list[Tensor],
    means: list[Tensor],
    variances: list[Tensor],
    biases: list[Tensor],
    rows: list[int],
    momentum: float,
) -> None:
    """Move running statistics and counts, in place, by each group of `rows` values a channel."""
    of = zip(running_means, running_vars, counts, means, variances, biases, rows, strict=True)
    for running_mean, running_var, count, mean, variance, bias, n in of:
        for group_mean, group_variance in zip(mean, variance, strict=True):
            running_mean.lerp_(group_mean + bias, momentum)
            running_var.lerp_(group_variance * (n / (n - 1)), momentum)
        count.add_(len(mean))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(groups, N / groups, C, positions)."""
    return x.reshape(groups, x.shape[0] // groups, x.shape[1], -1)


def _per_group(vectors: Tensor) -> Tensor:
    return vectors[:, None, :, None]


def _normed(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    rstd = torch.rsqrt(variance + eps)
    return (_by_group(_wide(x), len(mean)) - _per_group(mean)) * _per_group(rstd)


def _masked(g: Tensor, normed: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    return g * torch.where(normed * weight[:, None] + bias[:, None] > 0, 1.0, slope)


def _like(x: Tensor, wide: Tensor) -> Tensor:
    layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return wide.reshape(x.shape).to(x.dtype).contiguous(memory_format=layout)
