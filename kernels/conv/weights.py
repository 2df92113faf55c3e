"""The order in memory that the convolution kernels want their weights in."""

import torch
from torch import Tensor


def pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a weight and lay it out for both directions of a layer, in one pass.

    Args:
        weight: (A, B, *kernel), any layout and floating dtype.
        dtype: of the activations that it will multiply.

    Returns:
        The same logical shape in `dtype`; its memory order is (*kernel, B, A). At a tap, `down`
        sees a dense (B, A) matrix with its columns side by side, `up` the same one transposed, and
        in `up` the outputs of two taps that are neighbours along w are 2B neighbouring rows.
    """
    kernel = range(2, weight.dim())
    rows = weight.permute(*kernel, 1, 0)
    rows = rows.to(dtype, memory_format=torch.contiguous_format).contiguous()
    return rows.permute(-1, -2, *(axis - 2 for axis in kernel))


def is_packed(weight: Tensor) -> bool:
    """Whether the memory order is that of `pack`."""
    return weight.permute(*range(2, weight.dim()), 1, 0).is_contiguous()


def cast(weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each weight in `dtype`, its memory in the order that it has: one launch for all."""
    if all(weight.dtype == dtype for weight in weights):
        return weights
    copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    torch._foreach_copy_(copies, weights)
    return copies
