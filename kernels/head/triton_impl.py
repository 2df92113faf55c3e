"""The head in Triton: one kernel forward, the convolutions' kernels over cells backward.

An axis of `size` inputs has `size` + 1 cells. Cell q holds the outputs 2q - 1 + p, p = 0 or 1; the
first and the last cell have one of them outside. Input i reaches output o through kernel element
k = o + 1 - 2i, so both outputs of cell q read the same two inputs q - s, s = 0 or 1, through
k = 2s + p, and each of the four elements belongs to one pair (s, p). In three dimensions a cell is
8 pixels x 4 channels = 32 values: a dense product with 8 taps x Cin numbers, with no zero weight. A
grid axis over the parities p would read the input up to 64 times instead. Backward, the gradients
of the logits are written as cells, which makes the rest a layer with kernel 2 (`..conv.reference`).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase
from ..blend.triton_impl import mask_blend_backward_in_cells, mean_of
from ..conv.gather import convolve
from ..conv.weight_gradient import weight_gradient
from ..conv.weights import pack_cells, unpack_cells


@dataclass(frozen=True)
class _Config:
    """Tile of the product: `rows` cells, summed over `columns` channels of x at a time."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


# By bytes of an element. At 2 bytes tensor cores: two blocks or more to a Hopper processor, so that
# one's epilogue hides behind another's product, and all fit the 99 KB of sm_86 and sm_120. At 4
# bytes exact products run on the plain units, whose code is unrolled over the tile: small ones.
FORWARD = {2: _Config(128, 64, 8, 3), 4: _Config(64, 32, 4, 2)}


def head_blend(
    x: Tensor, weight: Tensor, bias: Tensor, background: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward: x stored channels-last, weight anyhow, the rest contiguous."""
    dispatch.launches["head_blend_forward"] += 1
    n, cin, depth, height, width = x.shape
    outputs = 2 * depth, 2 * height, 2 * width
    logits = torch.empty(
        (n, 4, *outputs), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d
    )
    video = torch.empty((n, 3, *outputs), dtype=dtype, device=x.device)
    # Once for all frames: activating it at each pixel would cost as much as the foreground.
    still = torch.tanh(background.float())
    config = FORWARD[x.element_size()]
    cells = _indexable(n * (depth + 1) * (height + 1) * (width + 1))
    blocks = triton.cdiv(cells, config.rows)
    mask_sum = torch.empty(blocks, dtype=torch.float32, device=x.device)
    _forward[(blocks,)](
        dispatch.aligned(x),
        _cell_weight(weight, x.dtype),
        bias.float(),
        still,
        logits,
        video,
        mask_sum,
        cells,
        cin,
        depth,
        height,
        width,
        BLOCK_M=config.rows,
        BLOCK_K=_fitting(config.columns, cin),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **dispatch.OPTIONS,
    )
    mean = mean_of(mask_sum, n * 8 * depth * height * width)
    return video, mean, logits


def head_blend_backward(
    dvideo: Tensor, dmean: Tensor, x: Tensor, weight: Tensor, logits: Tensor, background: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward: x, logits stored channels-last, weight anyhow, the rest contiguous."""
    dispatch.launches["head_blend_backward"] += 1
    gradients = mask_blend_backward_in_cells(dvideo, dmean, logits, background)
    dcells, dbias, dbackground = gradients
    # Seen from the logits, the head is a first layer: a convolution with stride 2 and padding 1.
    dx = convolve(dcells, pack_cells(weight, x.dtype), up=False)
    dweight = unpack_cells(weight_gradient(dcells, x, 2), 4).to(weight.dtype)
    return dx, dweight, dbias.to(weight.dtype), dbackground


def _cell_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """(cin, 4, 4, 4, 4) -> (8 taps (sd, sh, sw) * cin, 8 pixels (pd, ph, pw) * 4 channels).

    Kernel element k = 2 s + p is (s, p) of a view of each axis: every element is used once.
    """
    pairs = weight.view(-1, 4, 2, 2, 2, 2, 2, 2)
    return _flat(pairs.permute(2, 4, 6, 0, 3, 5, 7, 1), dtype)


def _flat(permuted: Tensor, dtype: torch.dtype) -> Tensor:
    """In memory in the order of its axes; converted in the same pass."""
    return permuted.to(dtype, memory_format=torch.contiguous_format).contiguous()


def _fitting(columns: int, cin: int) -> int:
    """Columns of a tile: no more than cin needs, and 16 at least, which a product takes."""
    return min(columns, max(16, triton.next_power_of_2(cin)))


def _indexable(rows: int) -> int:
    # Rows are counted in 32 bits, up to the end of the last tile; offsets in 64.
    assert rows < 2**31 - 2**24, f"{rows} rows"
    return rows


@triton.jit
def _unravel(index, depth: tl.constexpr, height: tl.constexpr, width: tl.constexpr):
    """Index over (N, depth, height, width) -> its four coordinates."""
    rest = index // width
    return (
        rest // height // depth,
        rest // height % depth,
        rest % height,
        index % width,
    )


@triton.jit(do_not_specialize=["cells"])
def _forward(
    x_ptr,  # (N, depth, height, width, cin)
    weight_ptr,  # (8 * cin, 32): tap outermost, see _cell_weight
    bias_ptr,  # (4,) fp32
    still_ptr,  # (N, 3, 2 height, 2 width) fp32: the background, activated
    logits_ptr,  # (N, 2 depth, 2 height, 2 width, 4)
    video_ptr,  # (N, 3, 2 depth, 2 height, 2 width)
    mask_sum_ptr,  # (blocks,) fp32
    cells,  # N * (depth + 1) * (height + 1) * (width + 1)
    cin: tl.constexpr,
    depth: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    n, qd, qh, qw = _unravel(row, depth + 1, height + 1, width + 1)
    origin = (((n.to(tl.int64) * depth + qd) * height + qh) * width + qw) * cin
    value = tl.arange(0, 32)
    product = tl.zeros((BLOCK_M, 32), tl.float32)
    blocks: tl.constexpr = (cin + BLOCK_K - 1) // BLOCK_K
    for step in range(8 * blocks):
        tap = step // blocks
        channel = step % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
        sd, sh, sw = tap // 4, tap // 2 % 2, tap % 2
        d, h, w = qd - sd, qh - sh, qw - sw
        inside = (d >= 0) & (d < depth) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        inside &= row < cells
        shift = ((sd * height + sh) * width + sw) * cin
        # Neighbouring cells read the same inputs by other taps: worth a place in L1.
        a = tl.load(
            x_ptr + (origin - shift)[:, None] + channel[None, :],
            mask=inside[:, None] & (channel < cin)[None, :],
            other=0,
            cache_modifier=".ca",
        )
        b = tl.load(
            weight_ptr + (tap * cin + channel)[:, None] * 32 + value[None, :],
            mask=(channel < cin)[:, None],
            other=0,
        )
        product = tl.dot(a, b, product, input_precision="ieee")
    product += tl.load(bias_ptr + value % 4)[None, :]

    # (cell, depth and height parity, width parity, channel) -> (parities, pixels along width,
    # channel): neighbouring threads store neighbouring pixels.
    pairs = tl.permute(tl.reshape(product, (BLOCK_M, 4, 2, 4)), (1, 0, 2, 3))
    logits = tl.reshape(pairs, (4, 2 * BLOCK_M, 4))
    along = tl.arange(0, 2 * BLOCK_M)
    row = first + along // 2
    n, qd, qh, qw = _unravel(row, depth + 1, height + 1, width + 1)
    parity = tl.arange(0, 4)[:, None]
    t, h = (2 * qd - 1)[None, :] + parity // 2, (2 * qh - 1)[None, :] + parity % 2
    w = (2 * qw - 1 + along % 2)[None, :]
    n = n.to(tl.int64)[None, :]
    inside = (t >= 0) & (t < 2 * depth) & (h >= 0) & (h < 2 * height) & (w >= 0) & (w < 2 * width)
    inside &= (row < cells)[None, :]
    plane: tl.constexpr = 4 * height * width
    clip: tl.constexpr = 2 * depth * plane
    at = h * (2 * width) + w
    pixel = n * clip + t * plane + at
    channel = tl.arange(0, 4)[None, None, :]
    tl.store(logits_ptr + pixel[:, :, None] * 4 + channel, logits, mask=inside[:, :, None])

    # Channels 0, 2 and 1, 3; then each by itself.
    even, odd = tl.split(tl.reshape(logits, (4, 2 * BLOCK_M, 2, 2)))
    red, blue = tl.split(even)
    green, mask_logit = tl.split(odd)
    mask = tl.sigmoid(mask_logit)
    video = video_ptr + n * (3 * clip) + t * plane + at
    still = still_ptr + n * (3 * plane) + at
    _blend(red, mask, still, video, inside)
    _blend(green, mask, still + plane, video + clip, inside)
    _blend(blue, mask, still + 2 * plane, video + 2 * clip, inside)
    tl.store(mask_sum_ptr + tl.program_id(0), tl.sum(tl.where(inside, mask, 0)))


@triton.jit
def _blend(logit, mask, still, video, inside):
    foreground = 2 * tl.sigmoid(2 * logit) - 1
    background = tl.load(still, mask=inside, other=0)
    tl.store(video, background + mask * (foreground - background), mask=inside)


def aot_cases() -> list[AotCase]:
    """The forward at the paper's sizes: Cin 64, 32 frames of 64x64, in bf16 and fp32.

    fp16 differs from bf16 in the names of the conversions and the product's operands alone.
    """
    return [
        AotCase(
            f"head forward, {dtype} to {video} video",
            _forward,
            dict.fromkeys(("x_ptr", "weight_ptr", "logits_ptr"), f"*{dtype}")
            | dict.fromkeys(("bias_ptr", "still_ptr", "mask_sum_ptr"), "*fp32")
            | {"video_ptr": f"*{video}", "cells": "i32"},
            {"cin": 64, "depth": 16, "height": 32, "width": 32}
            | {"BLOCK_M": config.rows, "BLOCK_K": config.columns},
            config.num_warps,
            config.num_stages,
            kind,
            odd=("cells",),
        )
        for dtype, video, config, kind in (
            ("bf16", "bf16", FORWARD[2], "matmul"),
            ("bf16", "fp32", FORWARD[2], "matmul"),
            ("fp32", "fp32", FORWARD[4], "small"),  # exact: no tensor cores
        )
    ]
