"""The answer key of the input pass in plain PyTorch, and the backward written out."""

import torch
import torch.nn.functional as F
from torch import Tensor


def normalise_frames(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map uint8 (N, T, H, W, 3) to (N, 3, T, H, W) as x / 127.5 - 1, stored channels-last.

    Computes in fp32, or in float64 where that is the dtype asked for.
    """
    # One pass: -1 + frames / 127.5, converted as it is read.
    wide = torch.promote_types(dtype, torch.float32)
    floor = torch.full((), -1.0, dtype=wide, device=frames.device)
    return torch.add(floor, frames.permute(0, 4, 1, 2, 3), alpha=1 / 127.5).to(dtype)


def frames_to_cells(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Cells of the normalised frames."""
    return clip_to_cells(normalise_frames(frames, dtype), dtype)


def pair_to_cells(frames: Tensor, clip: Tensor, dtype: torch.dtype) -> Tensor:
    """Cells of the normalised frames, and behind them those of the clip."""
    return torch.cat([frames_to_cells(frames, dtype), clip_to_cells(clip, dtype)])


def clip_to_cells(clip: Tensor, dtype: torch.dtype) -> Tensor:
    """Gather (N, 3, T, H, W) into (N, 32, T/2+1, H/2+1, W/2+1), stored channels-last."""
    n, _, t, h, w = clip.shape
    padded = F.pad(clip.to(dtype), (1, 1, 1, 1, 1, 1, 0, 1))
    grid = padded.view(n, 4, t // 2 + 1, 2, h // 2 + 1, 2, w // 2 + 1, 2)
    cells = grid.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4)
    return cells.contiguous(memory_format=torch.channels_last_3d)


def clip_to_cells_backward(dcells: Tensor, dtype: torch.dtype) -> Tensor:
    """Gather the gradient of the cells into that of the clip, planar."""
    n, _, t, h, w = dcells.shape
    grid = dcells.unflatten(1, (2, 2, 2, 4)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    padded = grid.reshape(n, 4, 2 * t, 2 * h, 2 * w)
    return padded[:, :3, 1:-1, 1:-1, 1:-1].to(dtype).contiguous()
