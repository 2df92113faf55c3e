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


def pack_cells(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Pack the weight of a first layer, kernel 4 and stride 2, for a clip that lies in cells.

    Args:
        weight: (A, 3 or 4, 4, 4, 4), any layout and floating dtype.
        dtype: of the cells (`vgan_fast.kernels.frames`).

    Returns:
        (A, 32, 2, 2, 2), packed: the weight of a convolution of cells with stride 1 and no padding;
        zero for a channel 3 that the weight has not.
    """
    a, channels = weight.shape[:2]
    make = torch.empty if channels == 4 else torch.zeros
    rows = make((2, 2, 2, 2, 2, 2, 4, a), dtype=dtype, device=weight.device)
    rows[..., :channels, :] = _by_cell(weight).permute(2, 4, 6, 3, 5, 7, 1, 0)
    return rows.flatten(3, 6).permute(4, 3, 0, 1, 2)


def unpack_cells(gradient: Tensor, channels: int) -> Tensor:
    """Gradient (A, channels, 4, 4, 4), packed, of a weight from that of its `pack_cells`."""
    by_pixel = gradient.unflatten(1, (2, 2, 2, 4))[:, :, :, :, :channels]
    # Cell, then pixel in it, of each axis in turn; the channels last.
    rows = by_pixel.permute(5, 1, 6, 2, 7, 3, 4, 0).reshape(4, 4, 4, channels, -1)
    return rows.permute(4, 3, 0, 1, 2)


def _by_cell(weight: Tensor) -> Tensor:
    # Tap k of an axis reads cell k // 2 of the two, pixel k % 2 in it.
    return weight.unflatten(4, (2, 2)).unflatten(3, (2, 2)).unflatten(2, (2, 2))


def cast(weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Each weight in `dtype`, its memory in the order that it has: one launch for all."""
    if all(weight.dtype == dtype for weight in weights):
        return weights
    copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    torch._foreach_copy_(copies, weights)
    return copies
