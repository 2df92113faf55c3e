"""The convolutions by PyTorch's library, and in kernels of the norm what rides in ours.

Same arguments and results as the launchers'; candidates of `vgan_fast.kernels.choice`.
"""

import torch
from torch import Tensor

from .. import dispatch, norm
from ..norm.api import channels_last
from .weights import pack

_norm_act = dispatch.launcher(norm.__name__, "norm_act")
_batch_statistics = dispatch.launcher(norm.__name__, "batch_statistics")
parameter_gradients = dispatch.launcher(norm.__name__, "parameter_gradients")


def convolve(
    x: Tensor,
    weight: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    slope: float = 1.0,
    *,
    up: bool,
) -> Tensor:
    """act(convolution * scale + shift): two passes, the second a norm of mean 0 and variance 1."""
    y = _product(x, weight, up)
    if shift is None and scale is None and slope == 1:
        return y
    zero, one = (torch.full(y.shape[1:2], value, device=y.device) for value in (0.0, 1.0))
    scale, shift = one if scale is None else scale, zero if shift is None else shift
    return _norm_act(y, zero[None], one[None], scale, shift, 0.0, slope)


def convolve_statistics(
    x: Tensor, weight: Tensor, groups: int, *, up: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y = convolution, and the statistics of its groups: three passes."""
    y = _product(x, weight, up)
    return y, *_batch_statistics(y, groups)


def convolve_masked(
    dy: Tensor, weight: Tensor, activated: Tensor, slope: float, *, up: bool
) -> Tensor:
    """Convolution, then the gradient of a (leaky) ReLU by the sign of its output."""
    return _masked(_product(dy, weight, up), activated, slope)


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
    """Convolution, the norm again for its sign, the activation's gradient, the sums."""
    gradient = _product(dy, weight, up)
    given = x, mean, variance, gamma, beta, eps
    g = _masked(gradient, _norm_act(*given, 1.0), slope)
    return g, parameter_gradients(gradient, *given, slope)


def weight_gradient(fine: Tensor, coarse: Tensor, kernel: int) -> Tensor:
    """(A, B, *kernel) packed, fp32; the library rounds it to the operands' dtype before."""
    shape = coarse.shape[1], fine.shape[1], *[kernel] * (fine.dim() - 2)
    weight = torch.empty(
        shape, dtype=fine.dtype, device=fine.device, memory_format=channels_last(fine)
    )
    steps = _steps(kernel, fine.dim() - 2)
    mask = [False, True, False]
    (_, gradient, _) = torch.ops.aten.convolution_backward(
        coarse, fine, weight, None, *steps[:3], False, *steps[3:], mask
    )
    return pack(gradient, torch.float32)


def _product(x: Tensor, weight: Tensor, up: bool) -> Tensor:
    layout = channels_last(x)
    stride, padding, dilation, output_padding, groups = _steps(weight.shape[2], x.dim() - 2)
    weight = weight.contiguous(memory_format=layout)  # which cuDNN would do by itself
    with torch.autocast(x.device.type, enabled=False):  # products are of x as it is
        y = torch.convolution(
            x, weight, None, stride, padding, dilation, up, output_padding, groups
        )
    return y.contiguous(memory_format=layout)


def _steps(kernel: int, axes: int) -> tuple[list[int], list[int], list[int], list[int], int]:
    """Stride, padding, dilation, output padding and groups."""
    stride, padding = (2, 1) if kernel == 4 else (1, 0)
    return [stride] * axes, [padding] * axes, [1] * axes, [0] * axes, 1


def _masked(gradient: Tensor, decides: Tensor, slope: float) -> Tensor:
    """gradient, times slope where `decides` is not above 0: one pass."""
    return torch.ops.aten.leaky_relu_backward(gradient, decides, slope, False)
