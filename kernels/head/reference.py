"""The answer key of the head: plain PyTorch, differentiable, and its backward written out.

Computes in the dtype of x up to the logits and then as the mask blend does: in fp32, or in float64
where x is float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blend.reference import mask_blend, mask_blend_backward
from ..conv.weights import pack


def head_blend(
    x: Tensor, weight: Tensor, bias: Tensor, background: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Video in `dtype`, mean of the mask, and the logits, stored channels-last.

    Args:
        x: (N, Cin, T / 2, H / 2, W / 2).
        weight, bias: (Cin, 4, 4, 4, 4) and (4,), rounded to the dtype of x before their use.
        background: (N, 3, H, W) logits.
        dtype: of the video.
    """
    logits = F.conv_transpose3d(x, weight.to(x.dtype), bias.to(x.dtype), stride=2, padding=1)
    logits = logits.contiguous(memory_format=torch.channels_last_3d)
    return *mask_blend(logits, background, dtype), logits


def head_blend_backward(
    dvideo: Tensor, dmean: Tensor, x: Tensor, weight: Tensor, logits: Tensor, background: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (channels-last), weight, bias (both in the weight's dtype) and background."""
    dlogits, dbackground = mask_blend_backward(dvideo, dmean, logits, background)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        dlogits,
        x,
        weight.to(x.dtype),
        bias_sizes=[4],
        stride=[2],
        padding=[1],
        dilation=[1],
        transposed=True,
        output_padding=[0],
        groups=1,
        output_mask=[True, True, True],
    )
    return (
        dx.contiguous(memory_format=torch.channels_last_3d),
        pack(dweight, weight.dtype),
        dbias.to(weight.dtype),
        dbackground,
    )
