"""The input pass in Triton: normalising, cutting into cells, and the cells' backward.

A program of the cells' kernels owns one row of cells, which four rows of pixels meet. Cells are cut
one pixel off the words of 16 bytes that rows are made of, so the tile is turned by one pixel in
registers between reading and writing. The last pixel comes round to the first cell's left, where
nothing belongs, and is passed from there to the last cell, or the other way. So global accesses
are of 16 bytes, where rows are multiples of that.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase

# Values a program: 16 a thread, so that the bytes are read 16 at a time.
FLAT, FLAT_WARPS = 2048, 4
# Pixels of each row for a warp: up to so many, one warp does all and turning needs no barrier.
WARP_PIXELS, MAX_WARPS = 128, 16


def normalise_frames(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch on contiguous frames."""
    dispatch.launches["normalise_frames_forward"] += 1
    frames = dispatch.aligned(frames)
    clip = torch.empty(frames.shape, dtype=dtype, device=frames.device)
    count = frames.numel()
    _normalise[(triton.cdiv(count, FLAT),)](
        frames,
        clip,
        count,
        BLOCK=FLAT,
        num_warps=FLAT_WARPS,
        num_stages=1,
        **dispatch.OPTIONS,
    )
    return clip.permute(0, 4, 1, 2, 3)


def frames_to_cells(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch on frames of any strides."""
    dispatch.launches["frames_to_cells_forward"] += 1
    cells = _empty_cells(frames, *frames.shape[:4], dtype)
    _launch_frames(frames, cells)
    return cells


def clip_to_cells(clip: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch on a clip of any strides."""
    dispatch.launches["clip_to_cells_forward"] += 1
    n, _, *sizes = clip.shape
    cells = _empty_cells(clip, n, *sizes, dtype)
    _launch_clip(clip, cells)
    return cells


def pair_to_cells(frames: Tensor, clip: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch on frames, and on a clip of the same sizes, both of any strides."""
    dispatch.launches["pair_to_cells_forward"] += 1
    n, _, *sizes = clip.shape
    cells = _empty_cells(clip, 2 * n, *sizes, dtype)
    _launch_frames(frames, cells[:n])
    _launch_clip(clip, cells[n:])
    return cells


def clip_to_cells_backward(dcells: Tensor, dtype: torch.dtype) -> Tensor:
    """Launch on the gradient of cells, stored channels-last."""
    dispatch.launches["clip_to_cells_backward"] += 1
    n = dcells.shape[0]
    t, h, w = (2 * size - 2 for size in dcells.shape[2:])
    dclip = torch.empty(n, 3, t, h, w, dtype=dtype, device=dcells.device)
    _from_cells[_rows(dcells)](
        dispatch.aligned(dcells),
        dclip,
        T=t,
        H=h,
        W=w,
        **_tile(w),
        num_stages=1,
        **dispatch.OPTIONS,
    )
    return dclip


def _empty_cells(like: Tensor, n: int, t: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    shape = n, t // 2 + 1, h // 2 + 1, w // 2 + 1, 32
    return torch.empty(shape, dtype=dtype, device=like.device).permute(0, 4, 1, 2, 3)


def _launch_frames(frames: Tensor, cells: Tensor) -> None:
    t, h, w = frames.shape[1:4]
    if w % 16:  # rows are read as whole words of 16 bytes
        frames = F.pad(frames, (0, 0, 0, -w % 16))
    frames = dispatch.aligned(frames.contiguous())
    room = frames.shape[3]
    _frames_to_cells[_rows(cells)](
        frames,
        cells,
        T=t,
        H=h,
        W=w,
        ROOM=room,
        **_tile(room),
        num_stages=1,
        **dispatch.OPTIONS,
    )


def _launch_clip(clip: Tensor, cells: Tensor) -> None:
    t, h, w = clip.shape[2:]
    _clip_to_cells[_rows(cells)](
        dispatch.aligned(clip.contiguous()),
        cells,
        T=t,
        H=h,
        W=w,
        **_tile(w),
        num_stages=1,
        **dispatch.OPTIONS,
    )


def _rows(cells: Tensor) -> tuple[int]:
    """One program for each row of cells."""
    n, _, t, h, _ = cells.shape
    return (n * t * h,)


def _tile(width: int) -> dict[str, int]:
    """Pairs of pixels along a row that a tile has room for, a power of two, and its warps."""
    pixels = triton.next_power_of_2(width)
    return {"PAIRS": pixels // 2, "num_warps": min(max(pixels // WARP_PIXELS, 1), MAX_WARPS)}


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
def _frames_to_cells(
    frames,  # (N, T, H, ROOM, 3) uint8, ROOM a multiple of 16 and at least W
    cells,  # (N, T/2+1, H/2+1, W/2+1, 2 * 2, 2, 4), written
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    ROOM: tl.constexpr,
    PAIRS: tl.constexpr,
):
    n, t, y, inside = _lines(T, H)
    words: tl.constexpr = ROOM * 3 // 4  # of 4 bytes, in a row
    line = ((n * T + t) * H + y) * words
    at = tl.arange(0, 2 * PAIRS)
    row = tl.load(
        frames.to(tl.pointer_type(tl.int32), bitcast=True) + line[:, None] + at[None, :],
        mask=inside[:, None] & (at < words)[None, :],
        other=0,
    )
    # Turned by one pixel. The 3 bytes of pixel x begin in word 3x / 4 and may end in the next.
    x = (at + 2 * PAIRS - 1) % (2 * PAIRS)
    word = x * 3 // 4  # and the next are in the tile, of which rows take 3/4 at most
    low = tl.gather(row, tl.broadcast_to(word[None, :], row.shape), 1)
    high = tl.gather(row, tl.broadcast_to((word + 1)[None, :], row.shape), 1)
    both = high.to(tl.uint64) << 32 | low.to(tl.uint32)
    pixel = (both >> (x * 24 % 32)[None, :]).to(tl.int32)
    # The fourth byte says where a pixel is, whose 0 means -1.
    pixel = tl.where(inside[:, None] & (x < W)[None, :], pixel | -(1 << 24), 0)

    pixel = tl.permute(tl.reshape(pixel, (4, PAIRS, 2)), (1, 0, 2))[:, :, :, None]
    c = tl.arange(0, 4)
    slots = tl.where((pixel < 0) & (c < 3), _scaled(pixel >> 8 * c & 0xFF), 0.0)
    _store_row(cells, slots, W, PAIRS)


@triton.jit
def _clip_to_cells(
    clip,  # (N, 3, T, H, W)
    cells,  # (N, T/2+1, H/2+1, W/2+1, 2 * 2, 2, 4), written
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    PAIRS: tl.constexpr,
):
    at, inside = _planes(T, H, W, PAIRS)
    values = tl.load(clip + at, mask=inside, other=0.0).to(cells.dtype.element_ty)
    even, odd = tl.split(tl.reshape(values, (4, 4, PAIRS, 2)))
    # Turned by one pixel: the one before the even one is its pair's in the cell.
    before = (tl.arange(0, PAIRS) + PAIRS - 1) % PAIRS
    left = tl.gather(odd, tl.broadcast_to(before[None, None, :], odd.shape), 2)
    _store_row(cells, tl.permute(tl.join(left, even), (2, 1, 3, 0)), W, PAIRS)


@triton.jit
def _from_cells(
    dcells,  # (N, T/2+1, H/2+1, W/2+1, 2 * 2, 2, 4)
    dclip,  # (N, 3, T, H, W), written
    T: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    PAIRS: tl.constexpr,
):
    row, at, size, first_left = _cell_row(dcells, W, PAIRS)
    slots = tl.load(row + at, mask=at < size)
    last = tl.load(row + at + (size - 32), mask=at < 32)
    slots = tl.where(first_left, last, slots)
    slots = tl.reshape(slots.to(dclip.dtype.element_ty), (PAIRS, 4, 2, 4))
    left, even = tl.split(tl.permute(slots, (3, 1, 0, 2)))
    behind = (tl.arange(0, PAIRS) + 1) % PAIRS
    odd = tl.gather(left, tl.broadcast_to(behind[None, None, :], left.shape), 2)
    at, inside = _planes(T, H, W, PAIRS)
    tl.store(dclip + at, tl.reshape(tl.join(even, odd), (4, 4, 2 * PAIRS)), mask=inside)


@triton.jit
def _lines(T: tl.constexpr, H: tl.constexpr):
    """Clip (int64), frame and row of the four lines of pixels that meet this program's cells.

    Also, which of them lie inside the clip.
    """
    row = tl.program_id(0)
    line = tl.arange(0, 4)
    y = row % (H // 2 + 1) * 2 - 1 + line % 2
    t = row // (H // 2 + 1) % (T // 2 + 1) * 2 - 1 + line // 2
    n = (row // ((H // 2 + 1) * (T // 2 + 1))).to(tl.int64)
    return n, t, y, (t >= 0) & (t < T) & (y >= 0) & (y < H)


@triton.jit
def _planes(T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, PAIRS: tl.constexpr):
    """Offsets in a clip as (channel, line, pixel), and which are there: no fourth channel is."""
    n, t, y, inside = _lines(T, H)
    c = tl.arange(0, 4)
    x = tl.arange(0, 2 * PAIRS)
    line = ((n * 3 * T + t) * H + y) * W
    at = (c * (T * H * W))[:, None, None] + line[None, :, None] + x[None, None, :]
    return at, (c < 3)[:, None, None] & inside[None, :, None] & (x < W)[None, None, :]


@triton.jit
def _cell_row(cells, W: tl.constexpr, PAIRS: tl.constexpr):
    """This program's cells: pointer, offsets of a tile, size, and the first cell's left pixels."""
    size: tl.constexpr = (W // 2 + 1) * 32
    at = tl.arange(0, PAIRS * 32)
    return cells + tl.program_id(0).to(tl.int64) * size, at, size, (at < 32) & (at % 8 < 4)


@triton.jit
def _store_row(cells, slots, W: tl.constexpr, PAIRS: tl.constexpr):
    """Write a row of cells, (PAIRS, 4 lines, 2 pixels, 4); those of the tile, and the last."""
    row, at, size, first_left = _cell_row(cells, W, PAIRS)
    slots = tl.reshape(slots, (PAIRS * 32,)).to(cells.dtype.element_ty)
    tl.store(row + at, tl.where(first_left, 0.0, slots), mask=at < size)
    if W == 2 * PAIRS:  # else the tile has room for it
        last = tl.where(first_left, slots, 0.0)
        tl.store(row + at + (size - 32), last, mask=at < 32)


@triton.jit
def _scaled(grey):
    return grey.to(tl.float32) * (1 / 127.5) - 1


def aot_cases() -> list[AotCase]:
    """Every kernel at the paper's sizes: 32 frames of 64x64, to and from bf16 and fp32.

    Any batch runs the same code. fp16 differs from bf16 in the name of the conversion alone.
    """
    sizes = {"T": 32, "H": 64, "W": 64}
    tile = _tile(64)
    warps = tile.pop("num_warps")

    def case(name, kernel, signature, constants=None, **options):
        constants = sizes | tile | (constants or {})
        return AotCase(name, kernel, signature, constants, warps, 1, "elementwise", **options)

    cases = []
    for dtype in ("bf16", "fp32"):
        value = f"*{dtype}"
        cases += [
            AotCase(
                f"normalise frames, {dtype}",
                _normalise,
                {"frames": "*u8", "clip": value, "count": "i32"},
                {"BLOCK": FLAT},
                FLAT_WARPS,
                1,
                "elementwise",
            ),
            case(
                f"frames to cells, {dtype}",
                _frames_to_cells,
                {"frames": "*u8", "cells": value},
                {"ROOM": 64},
            ),
        ]
    for source, result in (("bf16", "bf16"), ("fp32", "fp32"), ("fp32", "bf16")):
        # Of the last cell backward takes the left pixels alone: 8 bytes of bf16.
        cases += [
            case(
                f"clip to cells, {source} to {result}",
                _clip_to_cells,
                {"clip": f"*{source}", "cells": f"*{result}"},
            ),
            case(
                f"cells to clip, {result} to {source}",
                _from_cells,
                {"dcells": f"*{result}", "dclip": f"*{source}"},
                narrow={8: 1} if result == "bf16" else {},
            ),
        ]
    return cases
