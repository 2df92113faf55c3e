"""Input pass: decoded frames to the tensor that the networks train on."""

import torch
from torch import Tensor


def normalise_frames(frames: Tensor) -> Tensor:
    """Map frames from 0..255 to [-1, 1] as x / 127.5 - 1.

    Args:
        frames: (N, T, H, W, 3) uint8, contiguous.

    Returns:
        (N, 3, T, H, W) fp32 in [-1, 1] up to rounding, stored channels-last
        (`torch.channels_last_3d`): the permutation moves no bytes.

    Raises:
        TypeError: when the frames are not uint8.
        ValueError: when they are not five-dimensional with three channels last.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}")
    if frames.dim() != 5 or frames.shape[-1] != 3:
        raise ValueError(f"frames must be (N, T, H, W, 3), got {tuple(frames.shape)}")
    # One pass: -1 + frames / 127.5, converted as it is read.
    floor = torch.full((), -1.0, device=frames.device)
    return torch.add(floor, frames.permute(0, 4, 1, 2, 3), alpha=1 / 127.5)
