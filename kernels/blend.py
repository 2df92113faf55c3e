"""Mask blend: foreground over a still background (paper equation 3)."""

import torch
from torch import Tensor


def mask_blend(head: Tensor, background: Tensor) -> tuple[Tensor, Tensor]:
    """Blend G = m * f + (1 - m) * b from logits; the background is repeated over time.

    Args:
        head: (N, 4, T, H, W) logits, any float dtype: channels 0-2 become the foreground
            f = tanh, channel 3 the mask m = sigmoid.
        background: (N, 3, H, W) logits of the background b = tanh.

    Returns:
        The video, (N, 3, T, H, W) fp32 in [-1, 1], and the mask's mean, scalar fp32 in [0, 1].

    Raises:
        ValueError: when the shapes do not belong together.
    """
    n, channels, _, h, w = head.shape
    if channels != 4 or background.shape != (n, 3, h, w):
        raise ValueError(
            f"head must be (N, 4, T, H, W) and background (N, 3, H, W), got {tuple(head.shape)} "
            f"and {tuple(background.shape)}"
        )
    # Planar fp32 first: slicing interleaved channels costs the element-wise passes their vectors.
    head = head.float().contiguous()
    foreground, mask = torch.tanh(head[:, :3]), torch.sigmoid(head[:, 3:])
    still = torch.tanh(background.float())[:, :, None]
    return still + mask * (foreground - still), mask.mean()
