"""The input pass in Triton: normalising, cutting into cells, and the cells' backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase

# Values a program: 16 a thread, so that the bytes are read 16 at a time.
FLAT, FLAT_WARPS = 2048, 4
# Slots a program, where a slot is what a cell takes of one row: 2 pixels of 4 values, the 16 bytes
# (in 16 bits) that a thread writes at once.
SLOTS, SLOT_WARPS = 512, 4
# Pixels a program of the backward: 8 a thread, so that a plane's 16 bits are written 16 bytes at
# a time.
PIXELS, PIXEL_WARPS = 1024, 4


def normalise_frames(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch on contiguous frames."""
    dispatch.launches["normalise_frames_forward"] += 1
    if frames.data_ptr() % 16:  # accesses would be narrow
        frames = frames.clone()
    clip = torch.empty(frames.shape, dtype=dtype, device=frames.device)
    count = frames.numel()
    _normalise[(triton.cdiv(count, FLAT),)](
        frames, clip, count, BLOCK=FLAT, num_warps=FLAT_WARPS, num_stages=1
    )
    return clip.permute(0, 4, 1, 2, 3)


def frames_to_cells(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch on frames of any strides."""
    dispatch.launches["frames_to_cells_forward"] += 1
    return _launch_to_cells(frames.permute(0, 4, 1, 2, 3), dtype, normalise=True)


def clip_to_cells(clip: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch on a clip of any strides."""
    dispatch.launches["clip_to_cells_forward"] += 1
    return _launch_to_cells(clip, dtype, normalise=False)


def clip_to_cells_backward(dcells: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch on the gradient of cells, stored channels-last."""
    dispatch.launches["clip_to_cells_backward"] += 1
    if dcells.data_ptr() % 16:  # accesses would be narrow
        dcells = dcells.clone()
    n = dcells.shape[0]
    t, h, w = (2 * size - 2 for size in dcells.shape[2:])
    dclip = torch.empty(n, 3, t, h, w, dtype=dtype, device=dcells.device)
    _from_cells[(n * triton.cdiv(t * h * w, PIXELS),)](
        dcells, dclip, T=t, H=h, W=w, BLOCK=PIXELS, num_warps=PIXEL_WARPS, num_stages=1
    )
    return dclip


def _launch_to_cells(clip: Tensor, dtype: torch.dtype, normalise: bool) -> Tensor:
    n, _, t, h, w = clip.shape
    shape = n, t // 2 + 1, h // 2 + 1, w // 2 + 1, 32
    cells = torch.empty(shape, dtype=dtype, device=clip.device)
    slots = 4 * cells[0, ..., 0].numel()
    _to_cells[(n * triton.cdiv(slots, SLOTS),)](
        clip,
        cells,
        *clip.stride(),
        T=t,
        H=h,
        W=w,
        NORMALISE=normalise,
        BLOCK=SLOTS,
        num_warps=SLOT_WARPS,
        num_stages=1,
    )
    return cells.permute(0, 4, 1, 2, 3)


# The count keeps its specialisation: unless it is known to be a multiple of 16, accesses are
# narrow.
@triton.jit
def _normalise(
    frames,  # (count,) uint8
    clip,  # (count,), written
    count,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    inside = at < count - first
    grey = tl.load(frames + first + at, mask=inside)
    tl.store(clip + first + at, _scaled(grey).to(clip.dtype.element_ty), mask=inside)


# Sizes are constants, as a run has one or two of them: what is divided by them costs little.
@triton.jit
def _to_cells(
    clip,  # (N, 3, T, H, W) of the strides that follow
    cells,  # (N, T/2+1, H/2+1, W/2+1, 2 * 2, 2, 4), written
    stride_n,
    stride_c,
    stride_t,
    stride_h,
    stride_w,
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    slots: tl.constexpr = (T // 2 + 1) * (H // 2 + 1) * (W // 2 + 1) * 4
    blocks: tl.constexpr = (slots + BLOCK - 1) // BLOCK
    n = (tl.program_id(0) // blocks).to(tl.int64)
    first = tl.program_id(0) % blocks * BLOCK
    slot = first + tl.arange(0, BLOCK)
    cell = slot // 4
    right = 2 * (cell % (W // 2 + 1))  # the left pixel's x is one less
    y = 2 * (cell // (W // 2 + 1) % (H // 2 + 1)) - 1 + slot % 2
    t = 2 * (cell // ((W // 2 + 1) * (H // 2 + 1))) - 1 + slot // 2 % 2

    row = clip + n * stride_n + t.to(tl.int64) * stride_t + y.to(tl.int64) * stride_h
    row += right.to(tl.int64) * stride_w
    in_row = (t >= 0) & (t < T) & (y >= 0) & (y < H)
    has_left, has_right = in_row & (right > 0), in_row & (right < W)
    c0 = _load_pair(row, stride_w, has_left, has_right, NORMALISE)
    row += stride_c
    c1 = _load_pair(row, stride_w, has_left, has_right, NORMALISE)
    row += stride_c
    c2 = _load_pair(row, stride_w, has_left, has_right, NORMALISE)
    values = tl.join(tl.join(c0, c2), tl.join(c1, tl.zeros_like(c1)))  # (BLOCK, 2, 2, 2)

    at = 8 * first + tl.arange(0, 8 * BLOCK)
    values = tl.reshape(values, (8 * BLOCK,)).to(cells.dtype.element_ty)
    tl.store(cells + n * (8 * slots) + at, values, mask=at < 8 * slots)


@triton.jit
def _from_cells(
    dcells,  # (N, T/2+1, H/2+1, W/2+1, 2 * 2 * 2, 4)
    dclip,  # (N, 3, T, H, W), written
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixels: tl.constexpr = T * H * W
    blocks: tl.constexpr = (pixels + BLOCK - 1) // BLOCK
    n = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    # Coordinates with the border's pixel: halves are cells, remainders places in them.
    x, y, t = pixel % W + 1, pixel // W % H + 1, pixel // (W * H) + 1
    cell = (t // 2 * (H // 2 + 1) + y // 2) * (W // 2 + 1) + x // 2
    place = (t % 2 * 2 + y % 2) * 2 + x % 2

    dcells += n * ((T // 2 + 1) * (H // 2 + 1) * (W // 2 + 1) * 32)
    at = (cell * 32 + place * 4)[:, None] + tl.arange(0, 4)[None, :]
    quads = tl.load(dcells + at, mask=inside[:, None])
    even, odd = tl.split(tl.reshape(quads, (BLOCK, 2, 2)))
    c0, c2 = tl.split(even)
    c1, _ = tl.split(odd)
    dclip += n * (3 * pixels) + pixel
    tl.store(dclip, c0.to(dclip.dtype.element_ty), mask=inside)
    tl.store(dclip + pixels, c1.to(dclip.dtype.element_ty), mask=inside)
    tl.store(dclip + 2 * pixels, c2.to(dclip.dtype.element_ty), mask=inside)


@triton.jit
def _load_pair(right, stride_w, has_left, has_right, NORMALISE: tl.constexpr):
    """Two neighbouring pixels as (BLOCK, 2) fp32, zero outside the clip."""
    a = tl.load(right - stride_w, mask=has_left, other=0)
    b = tl.load(right, mask=has_right, other=0)
    if NORMALISE:
        a, b = tl.where(has_left, _scaled(a), 0.0), tl.where(has_right, _scaled(b), 0.0)
    return tl.join(a.to(tl.float32), b.to(tl.float32))


@triton.jit
def _scaled(grey):
    return grey.to(tl.float32) * (1 / 127.5) - 1


def aot_cases() -> list[AotCase]:
    """Every kernel at the paper's sizes: batch 64, 32 frames of 64x64, to and from bf16."""
    sizes = {"T": 32, "H": 64, "W": 64}
    planar = {"stride_n": "i32", "stride_c": "i32", "stride_t": "i32", "stride_h": "i32"}
    clips = {
        # Strides of 1 become constants at the launch.
        "planar bf16": ("*bf16", planar, {"stride_w": 1}, ()),
        "planar fp32": ("*fp32", planar, {"stride_w": 1}, ()),
        "channels-last bf16": (
            "*bf16",
            {"stride_n": "i32", "stride_t": "i32", "stride_h": "i32", "stride_w": "i32"},
            {"stride_c": 1},
            ("stride_w",),
        ),
        "uint8 frames": (
            "*u8",
            {"stride_n": "i32", "stride_t": "i32", "stride_h": "i32", "stride_w": "i32"},
            {"stride_c": 1},
            ("stride_w",),
        ),
    }
    cases = [
        AotCase(
            "normalise frames",
            _normalise,
            {"frames": "*u8", "clip": "*bf16", "count": "i32"},
            {"BLOCK": FLAT},
            FLAT_WARPS,
            1,
            "elementwise",
        ),
        AotCase(
            "cells to clip",
            _from_cells,
            {"dcells": "*bf16", "dclip": "*bf16"},
            sizes | {"BLOCK": PIXELS},
            PIXEL_WARPS,
            1,
            "elementwise",
        ),
    ]
    for name, (kind, strides, ones, odd) in clips.items():
        cases.append(
            AotCase(
                f"cells of {name}",
                _to_cells,
                {"clip": kind, "cells": "*bf16"} | strides,
                ones | sizes | {"NORMALISE": kind == "*u8", "BLOCK": SLOTS},
                SLOT_WARPS,
                1,
                "elementwise",
                odd=odd,
            )
        )
    return cases
