"""The answer key of the convolutions in plain PyTorch.

A layer links `coarse`, (N, A, *sizes), and `fine`, (N, B, *sizes), by a weight (A, B, *kernel), in
two or three dimensions. Kernel 4 is the networks' stride 2 with padding 1: a fine axis is twice as
long as the coarse one. Kernel 2 has stride 1 and no padding, for a fine side in cells of 2x2x2
pixels (`vgan_fast.kernels.frames`): one longer. `down` goes from fine to coarse as
`torch.nn.Conv3d` does, `up` from coarse to fine as `torch.nn.ConvTranspose3d`; each is the other's
input gradient.

Computes in the dtype of the operands up to the product and then in fp32, or in float64 where the
operands are float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .weights import pack

_CONVOLUTIONS = {
    4: (F.conv2d, F.conv_transpose2d),
    5: (F.conv3d, F.conv_transpose3d),
}


def convolve(
    x: Tensor,
    weight: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    slope: float = 1.0,
    *,
    up: bool,
) -> Tensor:
    """act(convolution * scale + shift) of each channel, act(z) = z, or slope * z below 0."""
    product = _wide(_product(x, weight, up))
    if scale is not None:
        product = product * _per_channel(x, scale)
    if shift is not None:
        product = product + _per_channel(x, shift)
    return _stored(torch.where(product > 0, product, slope * product), x)


def convolve_statistics(
    x: Tensor, weight: Tensor, groups: int, *, up: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y = convolution, and mean and biased variance (groups, C) of y as stored.

    The batch falls into `groups` equal parts, one after the other.
    """
    y = convolve(x, weight, up=up)
    variance, mean = torch.var_mean(_by_group(_wide(y), groups), (1, 3), correction=0)
    return y, mean, variance


def convolve_masked(
    dy: Tensor, weight: Tensor, activated: Tensor, slope: float, *, up: bool
) -> Tensor:
    """Gradient through a (leaky) ReLU of which `activated` is the output, after a convolution."""
    gradient = _wide(_product(dy, weight, up))
    return _stored(torch.where(activated > 0, gradient, slope * gradient), dy)


def convolve_norm_backward(
    dy: Tensor,
    weight: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    slope: float,
    *,
    up: bool,
) -> tuple[Tensor, Tensor]:
    """Convolve a gradient and take it through the activation before that convolution's twin.

    With n = (x - mean) / sqrt(variance + eps), z = gamma * n + beta and act(z) the (leaky) ReLU:
    g = convolution(dy) * act'(z), stored, and the sums over each group of g * n and of g, in fp32:
    (2, groups, C), the groups' shares of the gradients of gamma and beta.

    Args:
        dy: what is convolved.
        x: (N, C, *sizes), the values that were normalised: where the result belongs.
        mean, variance: (groups, C).
    """
    groups = len(mean)
    gradient = _by_group(_wide(_product(dy, weight, up)), groups)
    rstd = torch.rsqrt(variance + eps)
    normed = (_by_group(_wide(x), groups) - mean[:, None, :, None]) * rstd[:, None, :, None]
    z = normed * gamma[:, None] + beta[:, None]
    g = torch.where(z > 0, gradient, slope * gradient)
    stored = _stored(g.reshape(x.shape), dy)
    return stored, torch.stack([(g * normed).sum((1, 3)), g.sum((1, 3))])


def weight_gradient(fine: Tensor, coarse: Tensor, kernel: int) -> Tensor:
    """(A, B, *kernel), packed, fp32 or wider: at each tap the sum of fine * coarse."""
    weight = fine.new_empty(coarse.shape[1], fine.shape[1], *[kernel] * (fine.dim() - 2))
    stride, padding = _steps(kernel)
    (_, gradient, _) = torch.ops.aten.convolution_backward(
        coarse,
        fine,
        weight,
        bias_sizes=None,
        stride=[stride],
        padding=[padding],
        dilation=[1],
        transposed=False,
        output_padding=[0],
        groups=1,
        output_mask=[False, True, False],
    )
    return pack(gradient, torch.promote_types(gradient.dtype, torch.float32))


def _steps(kernel: int) -> tuple[int, int]:
    """Stride and padding."""
    return (2, 1) if kernel == 4 else (1, 0)


def _product(x: Tensor, weight: Tensor, up: bool) -> Tensor:
    stride, padding = _steps(weight.shape[2])
    return _CONVOLUTIONS[x.dim()][up](x, weight.to(x.dtype), None, stride, padding)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _stored(x: Tensor, like: Tensor) -> Tensor:
    layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.to(like.dtype).contiguous(memory_format=layout)


def _per_channel(x: Tensor, vector: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (x.dim() - 2))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(groups, N / groups, C, positions)."""
    return x.reshape(groups, x.shape[0] // groups, x.shape[1], -1)
