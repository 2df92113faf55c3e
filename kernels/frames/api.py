"""The input pass's public functions: validation, registration, dispatch.

Cells are the layout for the discriminator's first layer, Conv3d(3, C, 4, stride=2, padding=1):
the clip with a border of one pixel, cut into blocks of 2x2x2. On them that layer is
Conv3d(32, C, 2), whose 32 channels feed tensor cores. Cell (t, y, x) holds the pixels
(2t-1..2t, 2y-1..2y, 2x-1..2x); value ((dz * 2 + dy) * 2 + dx) * 4 + c is channel c of pixel
(2t-1+dz, 2y-1+dy, 2x-1+dx). Channel 3 and pixels outside the clip are zero, and gradients
through them are dropped.
"""

import torch
from torch import Tensor

from .. import dispatch
from ..dispatch import Impl
from . import reference


def normalise_frames(
    frames: Tensor, *, dtype: torch.dtype = torch.float32, impl: Impl = "auto"
) -> Tensor:
    """Map frames from 0..255 to [-1, 1] as x / 127.5 - 1, in fp32 arithmetic; no gradient.

    Args:
        frames: (N, T, H, W, 3) uint8; copied first where not contiguous.
        dtype: of the clip: fp32, fp16 or bf16.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        (N, 3, T, H, W) in [-1, 1] up to rounding, stored channels-last
        (`torch.channels_last_3d`): the permutation moves no bytes.

    Raises:
        TypeError: the frames are not uint8, or `dtype` is none of the three.
        ValueError: the frames are not five-dimensional with three channels last, the batch is
            empty, or `impl` is unknown.
        RuntimeError: `impl="triton"` where kernels do not run.
    """
    _check_frames(frames)
    _check_dtype("the clip's dtype", dtype)
    dispatch.check_impl(impl)
    return _normalise_frames(frames.contiguous(), dtype, impl)


def frames_to_cells(
    frames: Tensor, *, dtype: torch.dtype = torch.float32, impl: Impl = "auto"
) -> Tensor:
    """Normalise frames and cut them into cells: both passes in one; no gradient.

    At batch 64 and 32x64x64 it reads 25 MB and writes 76 MB of bf16 cells, 16 bytes at a time.

    Args:
        frames: (N, T, H, W, 3) uint8; T, H and W even. Copied first where not contiguous, or W is
            no multiple of 16.
        dtype: of the cells: fp32, fp16 or bf16.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        (N, 32, T/2+1, H/2+1, W/2+1), stored channels-last: `clip_to_cells` of
        `normalise_frames`.

    Raises:
        TypeError: the frames are not uint8, or `dtype` is none of the three.
        ValueError: the frames are not five-dimensional with three channels last, the batch is
            empty, a size is odd, or `impl` is unknown.
        RuntimeError: `impl="triton"` where kernels do not run.
    """
    _check_frames(frames)
    _check_even("frames", frames, frames.shape[1:4])
    _check_dtype("the cells' dtype", dtype)
    dispatch.check_impl(impl)
    return _frames_to_cells(frames, dtype, impl)


def clip_to_cells(clip: Tensor, *, dtype: torch.dtype | None = None, impl: Impl = "auto") -> Tensor:
    """Cut a clip into cells, converting on the way. Differentiable once, in one pass.

    At batch 64, 32x64x64 and bf16 it reads 50 MB and writes 76 MB, and backward the other way.
    Both move 16 bytes at a time where rows of W values are multiples of that, fewer elsewhere.

    Args:
        clip: (N, 3, T, H, W), fp32, fp16 or bf16; T, H and W even. Copied first where not
            contiguous (planar).
        dtype: of the cells: fp32, fp16 or bf16; the clip's where None.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        (N, 32, T/2+1, H/2+1, W/2+1), stored channels-last. The clip's gradient has its dtype and
        is contiguous (planar).

    Raises:
        TypeError: a dtype is none of the three.
        ValueError: the clip is not five-dimensional with three channels, the batch is empty, a
            size is odd, or `impl` is unknown.
        RuntimeError: `impl="triton"` where kernels do not run.
    """
    if clip.dim() != 5 or clip.shape[1] != 3 or 0 in clip.shape:
        raise ValueError(f"clip must be (N, 3, T, H, W) and not empty, got {tuple(clip.shape)}")
    _check_even("clip", clip, clip.shape[2:])
    _check_dtype("the clip", clip.dtype)
    dtype = clip.dtype if dtype is None else dtype
    _check_dtype("the cells' dtype", dtype)
    dispatch.check_impl(impl)
    return _clip_to_cells(clip, dtype, impl)


def pair_to_cells(
    frames: Tensor, clip: Tensor, *, dtype: torch.dtype | None = None, impl: Impl = "auto"
) -> Tensor:
    """`frames_to_cells` of frames and behind them `clip_to_cells` of a clip; no gradient.

    Real and generated clips as one batch, written where they belong.

    Args:
        frames: (N, T, H, W, 3) uint8, as for `frames_to_cells`.
        clip: (N, 3, T, H, W), fp32, fp16 or bf16, as for `clip_to_cells`.
        dtype: of the cells: fp32, fp16 or bf16; the clip's where None.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        (2N, 32, T/2+1, H/2+1, W/2+1), stored channels-last.

    Raises:
        TypeError, ValueError, RuntimeError: as the two; ValueError where their shapes differ.
    """
    _check_frames(frames)
    _check_even("frames", frames, frames.shape[1:4])
    n, *sizes, _ = frames.shape
    dispatch.check_tensor("clip", clip, (n, 3, *sizes), frames.device)
    dtype = clip.dtype if dtype is None else dtype
    _check_dtype("the cells' dtype", dtype)
    dispatch.check_impl(impl)
    return _pair_to_cells(frames, clip.detach(), dtype, impl)


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}")
    if frames.dim() != 5 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be (N, T, H, W, 3) and not empty, got {tuple(frames.shape)}")


def _check_even(name: str, x: Tensor, sizes: torch.Size) -> None:
    if any(size % 2 for size in sizes):
        raise ValueError(f"T, H and W must be even for cells, got {name} {tuple(x.shape)}")


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in dispatch.DTYPES:
        raise TypeError(f"{name} must be fp32, fp16 or bf16, got {dtype}")


@torch.library.custom_op("vgan_fast::normalise_frames", mutates_args=())
def _normalise_frames(frames: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    launcher, twin = dispatch.launcher(__package__, "normalise_frames"), reference.normalise_frames
    return dispatch.run("normalise_frames_forward", impl, launcher, twin, frames, dtype)


@_normalise_frames.register_fake
def _(frames: Tensor, dtype: torch.dtype, impl: str):
    return torch.empty_like(frames, dtype=dtype).permute(0, 4, 1, 2, 3)


@torch.library.custom_op("vgan_fast::frames_to_cells", mutates_args=())
def _frames_to_cells(frames: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    launcher, twin = dispatch.launcher(__package__, "frames_to_cells"), reference.frames_to_cells
    return dispatch.run("frames_to_cells_forward", impl, launcher, twin, frames, dtype)


@_frames_to_cells.register_fake
def _(frames: Tensor, dtype: torch.dtype, impl: str):
    return _empty_cells(frames, *frames.shape[:4], dtype)


@torch.library.custom_op("vgan_fast::pair_to_cells", mutates_args=())
def _pair_to_cells(frames: Tensor, clip: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    launcher, twin = dispatch.launcher(__package__, "pair_to_cells"), reference.pair_to_cells
    return dispatch.run("pair_to_cells_forward", impl, launcher, twin, frames, clip, dtype)


@_pair_to_cells.register_fake
def _(frames: Tensor, clip: Tensor, dtype: torch.dtype, impl: str):
    n, *sizes, _ = frames.shape
    return _empty_cells(frames, 2 * n, *sizes, dtype)


@torch.library.custom_op("vgan_fast::clip_to_cells", mutates_args=())
def _clip_to_cells(clip: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    launcher, twin = dispatch.launcher(__package__, "clip_to_cells"), reference.clip_to_cells
    return dispatch.run("clip_to_cells_forward", impl, launcher, twin, clip, dtype)


@_clip_to_cells.register_fake
def _(clip: Tensor, dtype: torch.dtype, impl: str):
    n, _, *sizes = clip.shape
    return _empty_cells(clip, n, *sizes, dtype)


def _empty_cells(like: Tensor, n: int, t: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    cells = like.new_empty(n, t // 2 + 1, h // 2 + 1, w // 2 + 1, 32, dtype=dtype)
    return cells.permute(0, 4, 1, 2, 3)


@torch.library.custom_op("vgan_fast::clip_to_cells_backward", mutates_args=())
def _clip_to_cells_backward(dcells: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    launcher, twin = (
        dispatch.launcher(__package__, "clip_to_cells_backward"),
        reference.clip_to_cells_backward,
    )
    return dispatch.run("clip_to_cells_backward", impl, launcher, twin, dcells, dtype)


@_clip_to_cells_backward.register_fake
def _(dcells: Tensor, dtype: torch.dtype, impl: str):
    n, _, t, h, w = dcells.shape
    return dcells.new_empty(n, 3, 2 * t - 2, 2 * h - 2, 2 * w - 2, dtype=dtype)


def _save(ctx, inputs, output) -> None:
    clip, _, ctx.impl = inputs
    ctx.dtype = clip.dtype


def _backward(ctx, dcells: Tensor):
    dcells = dcells.contiguous(memory_format=torch.channels_last_3d)
    return _clip_to_cells_backward(dcells, ctx.dtype, ctx.impl), None, None


_clip_to_cells.register_autograd(_backward, setup_context=_save)
