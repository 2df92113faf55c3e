"""The answer key of the mask blend: plain PyTorch, differentiable, and its backward written out.

Computes in fp32, or in float64 where the inputs are float64.
"""

import torch
from torch import Tensor


def mask_blend(
    head: Tensor, background: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Blend G = m * f + (1 - m) * b from logits; the background is repeated over time.

    Args:
        head: (N, 4, T, H, W) logits, any float dtype and layout: channels 0-2 become the
            foreground f = tanh, channel 3 the mask m = sigmoid.
        background: (N, 3, H, W) logits of the background b = tanh.
        dtype: of the video.

    Returns:
        The video, (N, 3, T, H, W) in [-1, 1], planar, and the mask's mean, scalar in [0, 1] in
        the dtype of the computation.

    Raises:
        ValueError: the shapes do not belong together.
    """
    n, channels, _, h, w = head.shape
    if channels != 4 or background.shape != (n, 3, h, w):
        raise ValueError(
            f"head must be (N, 4, T, H, W) and background (N, 3, H, W), got {tuple(head.shape)} "
            f"and {tuple(background.shape)}"
        )
    foreground, mask, still = _activated(head, background)
    return _blended(foreground, mask, still, dtype)


def mask_blend_backward(
    dvideo: Tensor, dmean: Tensor, head: Tensor, background: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of `mask_blend`.

    Args:
        dvideo: (N, 3, T, H, W) gradient of the video.
        dmean: scalar gradient of the mask's mean.
        head, background: as given to the forward.

    Returns:
        Gradients of head (stored channels-last) and background, each in its dtype.
    """
    foreground, mask, still = _activated(head, background)
    dforeground, dmask, dstill = _gradients(dvideo, dmean, foreground, mask, still)
    dhead = torch.cat([dforeground * (1 - foreground**2), dmask * mask * (1 - mask)], 1)
    dbackground = dstill * (1 - still**2)
    return (
        dhead.to(head.dtype).contiguous(memory_format=torch.channels_last_3d),
        dbackground.to(background.dtype),
    )


def blend(foreground: Tensor, mask: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Blend G = m * f + (1 - m) * b from activated streams.

    Args:
        foreground: (N, 3, T, H, W).
        mask: (N, 1, T, H, W).
        background: (N, 3, H, W), repeated over time.

    Returns:
        The video in the foreground's shape and dtype, planar, and the mask's mean, scalar.
    """
    return _blended(*map(_wide, (foreground, mask, background)), foreground.dtype)


def blend_backward(
    dvideo: Tensor, dmean: Tensor, foreground: Tensor, mask: Tensor, background: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `blend` with respect to foreground, mask and background, in their dtypes."""
    streams = foreground, mask, background
    gradients = _gradients(dvideo, dmean, *map(_wide, streams))
    return tuple(
        gradient.to(stream.dtype) for gradient, stream in zip(gradients, streams, strict=True)
    )


def _wide(x: Tensor) -> Tensor:
    """At least fp32, planar: slicing interleaved channels costs the passes their vectors."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _activated(head: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    head = _wide(head)
    return torch.tanh(head[:, :3]), torch.sigmoid(head[:, 3:]), torch.tanh(_wide(background))


def _blended(foreground: Tensor, mask: Tensor, still: Tensor, dtype: torch.dtype):
    still = still[:, :, None]
    return (still + mask * (foreground - still)).to(dtype), mask.mean()


def _gradients(dvideo: Tensor, dmean: Tensor, foreground: Tensor, mask: Tensor, still: Tensor):
    """Gradients of foreground, mask and background from those of video and mean."""
    dvideo = _wide(dvideo)
    dmask = (dvideo * (foreground - still[:, :, None])).sum(1, keepdim=True)
    dmask = dmask + dmean / mask.numel()
    return mask * dvideo, dmask, ((1 - mask) * dvideo).sum(2)
