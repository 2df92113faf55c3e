"""Batch norm by the statistics of all processes' batches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vgan_fast.distributed import Ranks


class SynchronisedNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose training statistics are those of the rows of all processes.

    PyTorch's own (`SyncBatchNorm`) runs on GPUs only. Means and variances are taken in fp32 or
    wider and merged in fp64; every process has as many rows. Evaluation is as of the norm that it
    stands for. Differentiable once.

    Args:
        norm: what it stands for, whose parameters and buffers it takes over.
        ranks: the processes.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, ranks: Ranks):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, (N, C, ...), any float; in its dtype."""
        if not self.training:
            return super().forward(x)
        over = [0, *range(2, x.dim())]
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, over, correction=0)
        mean, variance = merged(mean, variance, self.ranks)
        if self.track_running_stats:
            rows = x.numel() // x.shape[1] * self.ranks.count
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (rows / (rows - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        return _Normalise.apply(x, mean, variance, self.weight, self.bias, self.eps, self.ranks)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""


def synchronise_norms(network: nn.Module, ranks: Ranks) -> None:
    """Put a `SynchronisedNorm` in the place of every batch norm of a network."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(module, name, SynchronisedNorm(child, ranks))


def merged(mean: Tensor, variance: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all processes from each one's own, over as many rows."""
    wide = mean.double()
    # One message. In fp64 the squares of the means cancel without harm.
    moments = torch.stack([wide, variance + wide.square()])
    ranks.average([moments])
    centre, square = moments
    return centre.to(mean.dtype), (square - centre.square()).clamp(min=0).to(mean.dtype)


class _Normalise(torch.autograd.Function):
    """Batch norm with the statistics of all processes, which the gradient passes through."""

    @staticmethod
    def forward(ctx, x, mean, variance, weight, bias, eps: float, ranks: Ranks) -> Tensor:
        """y = (x - mean) / sqrt(variance + eps) * weight + bias."""
        ctx.save_for_backward(x, mean, variance, weight)
        ctx.eps, ctx.ranks = eps, ranks
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        """Gradients of x, weight and bias; those of the last two are this process's share."""
        x, mean, variance, weight = ctx.saved_tensors
        # With fixed statistics; what passes through them is subtracted below.
        dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        rows = x.numel() // x.shape[1]
        sums = torch.stack([dweight, dbias])
        ctx.ranks.average([sums])
        aligned, centred = sums / rows
        rstd = torch.rsqrt(variance + ctx.eps)
        slope = -weight * rstd * rstd * aligned
        shift = -weight * rstd * centred - slope * mean
        shape = [-1, *[1] * (x.dim() - 2)]
        dx = (dx + x * slope.view(shape) + shift.view(shape)).to(x.dtype)
        return dx, None, None, dweight, dbias, None, None
