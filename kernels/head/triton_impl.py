"""The head in Triton: forward and backward as products over cells and positions.

An axis of `size` inputs has `size` + 1 cells. Cell q holds the outputs 2q - 1 + p, p = 0 or 1; the
first and the last cell have one of them outside. Input i reaches output o through kernel element
k = o + 1 - 2i, so both outputs of cell q read the same two inputs q - s, s = 0 or 1, through
k = 2s + p, and each of the four elements belongs to one pair (s, p). In three dimensions a cell is
8 pixels x 4 channels = 32 values: a dense product with 8 taps x Cin numbers, with no zero weight. A
grid axis over the parities p would read the input up to 64 times instead.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase
from ..blend.triton_impl import mask_blend_backward

# Splits of the weight and bias gradients: two blocks on each of an H200's 132 multiprocessors. The
# same everywhere, so that results do not depend on the GPU.
SPLITS = 264
BIAS_BLOCK = 2048  # values a step of the bias gradient: 16 bytes a thread in 16 bits


@dataclass(frozen=True)
class _Config:
    """Tile of one product: `rows` cells or positions by `columns` channels of x."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int


# By bytes of an element. At 2 bytes tensor cores: two blocks or more to a Hopper processor, so that
# one's epilogue hides behind another's product, and all fit the 99 KB of sm_86 and sm_120. At 4
# bytes exact products run on the plain units, whose code is unrolled over the tile: small ones.
FORWARD = {2: _Config(128, 64, 8, 3), 4: _Config(64, 32, 4, 2)}
INPUT_GRADIENT = {2: _Config(128, 64, 8, 3), 4: _Config(64, 32, 8, 2)}
WEIGHT_GRADIENT = {2: _Config(32, 64, 8, 4), 4: _Config(16, 32, 8, 2)}


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
    )
    mean = mask_sum.sum(dtype=torch.float64) / (n * 8 * depth * height * width)
    return video, mean.float(), logits


def head_blend_backward(
    dvideo: Tensor, dmean: Tensor, x: Tensor, weight: Tensor, logits: Tensor, background: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward: x, logits stored channels-last, weight anyhow, the rest contiguous."""
    dispatch.launches["head_blend_backward"] += 1
    dlogits, dbackground = mask_blend_backward(dvideo, dmean, logits, background)
    x = dispatch.aligned(x)
    dx = _launch_input_gradient(dlogits, x, weight)
    dweight = _launch_weight_gradient(dlogits, x)
    dbias = _launch_bias_gradient(dlogits)
    # (kd, kh, kw, channel, cin) -> the parameter's order.
    dweight = _flat(dweight.view(4, 4, 4, 4, -1).permute(4, 3, 0, 1, 2), weight.dtype)
    return dx, dweight, dbias.to(weight.dtype), dbackground


def _launch_input_gradient(dlogits: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    n, cin, depth, height, width = x.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    config = INPUT_GRADIENT[x.element_size()]
    positions = _indexable(n * depth * height * width)
    columns = _fitting(config.columns, cin)
    _input_gradient[(triton.cdiv(positions, config.rows), triton.cdiv(cin, columns))](
        dlogits,
        _flat(weight.permute(2, 3, 4, 1, 0), x.dtype),
        dx,
        positions,
        cin,
        depth,
        height,
        width,
        BLOCK_M=config.rows,
        BLOCK_N=columns,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return dx


def _launch_weight_gradient(dlogits: Tensor, x: Tensor) -> Tensor:
    """(256, cin) in float64."""
    n, cin, depth, height, width = x.shape
    config = WEIGHT_GRADIENT[x.element_size()]
    positions = _indexable(n * depth * height * width)
    splits, steps = _split(positions, config.rows)
    columns = _fitting(config.columns, cin)
    partial = torch.empty((splits, 256, cin), dtype=torch.float32, device=x.device)
    _weight_gradient[(splits, triton.cdiv(cin, columns))](
        dlogits,
        x,
        partial,
        positions,
        steps,
        cin,
        depth,
        height,
        width,
        BLOCK_N=columns,
        BLOCK_K=config.rows,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return partial.sum(0, dtype=torch.float64)


def _launch_bias_gradient(dlogits: Tensor) -> Tensor:
    """(4,) in float64."""
    splits, steps = _split(dlogits.numel(), BIAS_BLOCK)
    partial = torch.empty((splits, 4), dtype=torch.float64, device=dlogits.device)
    _bias_gradient[(splits,)](
        dlogits, partial, dlogits.numel() // 32, steps, BLOCK=BIAS_BLOCK, num_warps=8
    )
    return partial.sum(0)


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


def _split(items: int, block: int) -> tuple[int, int]:
    """Splits and the steps of each, so that `SPLITS` or fewer cover all items."""
    steps = triton.cdiv(triton.cdiv(items, block), SPLITS)
    return triton.cdiv(items, block * steps), steps


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


@triton.jit
def _reached(
    grad_ptr,
    row,
    positions,
    first,
    COLUMNS: tl.constexpr,
    depth: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
):
    """Gradients of the outputs that inputs `row` reach: (rows, COLUMNS) columns of `TAPS`.

    Columns are (kd, kh, kw, channel) from kd = `first` on; outputs outside the clip are 0.
    """
    n, d, h, w = _unravel(row, depth, height, width)
    column = tl.arange(0, COLUMNS)
    t = (2 * d - 1)[:, None] + (first + column // 64)[None, :]
    y = (2 * h - 1)[:, None] + (column // 16 % 4)[None, :]
    z = (2 * w - 1)[:, None] + (column // 4 % 4)[None, :]
    inside = (t >= 0) & (t < 2 * depth) & (y >= 0) & (y < 2 * height) & (z >= 0) & (z < 2 * width)
    origin = ((n.to(tl.int64) * (2 * depth) + 2 * d - 1) * (2 * height) + 2 * h - 1) * (2 * width)
    origin = (origin + 2 * w - 1) * 4
    # kw and the channel are neighbours in memory.
    shift = ((first + column // 64) * (2 * height) + column // 16 % 4) * (8 * width) + column % 16
    return tl.load(
        grad_ptr + origin[:, None] + shift[None, :],
        mask=inside & (row < positions)[:, None],
        other=0,
    )


@triton.jit(do_not_specialize=["positions"])
def _input_gradient(
    grad_ptr,  # (N, 2 depth, 2 height, 2 width, 4)
    weight_ptr,  # (256, cin): kernel element outermost, output channel next
    grad_x_ptr,  # (N, depth, height, width, cin)
    positions,  # N * depth * height * width
    cin: tl.constexpr,
    depth: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for kd in range(4):
        a = _reached(grad_ptr, row, positions, kd, 64, depth, height, width)
        b = tl.load(
            weight_ptr + (kd * 64 + tl.arange(0, 64))[:, None] * cin + channel[None, :],
            mask=(channel < cin)[None, :],
            other=0,
        )
        product = tl.dot(a, b, product, input_precision="ieee")
    tl.store(
        grad_x_ptr + row.to(tl.int64)[:, None] * cin + channel[None, :],
        product,
        mask=(row < positions)[:, None] & (channel < cin)[None, :],
    )


@triton.jit(do_not_specialize=["positions", "steps"])
def _weight_gradient(
    grad_ptr,  # (N, 2 depth, 2 height, 2 width, 4)
    x_ptr,  # (N, depth, height, width, cin)
    partial_ptr,  # (splits, 256, cin) fp32
    positions,  # N * depth * height * width
    steps,  # of BLOCK_K positions, of each split
    cin: tl.constexpr,
    depth: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    split = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    product = tl.zeros((256, BLOCK_N), tl.float32)
    for step in range(steps):
        row = (split * steps + step) * BLOCK_K + tl.arange(0, BLOCK_K)
        a = _reached(grad_ptr, row, positions, 0, 256, depth, height, width)
        b = tl.load(
            x_ptr + row.to(tl.int64)[:, None] * cin + channel[None, :],
            mask=(row < positions)[:, None] & (channel < cin)[None, :],
            other=0,
        )
        product = tl.dot(tl.trans(a), b, product, input_precision="ieee")
    at = (split * 256 + tl.arange(0, 256)).to(tl.int64)
    tl.store(
        partial_ptr + at[:, None] * cin + channel[None, :],
        product,
        mask=(channel < cin)[None, :],
    )


@triton.jit(do_not_specialize=["positions", "steps"])
def _bias_gradient(
    grad_ptr,  # (pixels, 4)
    partial_ptr,  # (splits, 4) fp64
    positions,  # pixels / 8
    steps,  # of BLOCK values, of each split
    BLOCK: tl.constexpr,
):
    split = tl.program_id(0).to(tl.int64)
    values = positions.to(tl.int64) * 32
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        at = (split * steps + step) * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(grad_ptr + at, mask=at < values, other=0).to(tl.float32)
    channel = tl.arange(0, 4)
    total = tl.sum(tl.reshape(total, (BLOCK // 4, 4)).to(tl.float64), 0)
    tl.store(partial_ptr + split * 4 + channel, total)


def aot_cases() -> list[AotCase]:
    """Every kernel at the paper's sizes: Cin 64, 32 frames of 64x64, bf16."""
    sizes = {"cin": 64, "depth": 16, "height": 32, "width": 32}
    forward, input_gradient, weight_gradient = (
        table[2] for table in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT)
    )
    cases = [
        AotCase(
            f"head forward, {video} video",
            _forward,
            {"x_ptr": "*bf16", "weight_ptr": "*bf16", "bias_ptr": "*fp32", "still_ptr": "*fp32"}
            | {"logits_ptr": "*bf16", "video_ptr": f"*{video}", "mask_sum_ptr": "*fp32"}
            | {"cells": "i32"},
            sizes | {"BLOCK_M": forward.rows, "BLOCK_K": forward.columns},
            forward.num_warps,
            forward.num_stages,
            "matmul",
            odd=("cells",),
        )
        for video in ("bf16", "fp32")
    ]
    return [
        *cases,
        AotCase(
            "head input gradient",
            _input_gradient,
            {"grad_ptr": "*bf16", "weight_ptr": "*bf16", "grad_x_ptr": "*bf16", "positions": "i32"},
            sizes | {"BLOCK_M": input_gradient.rows, "BLOCK_N": input_gradient.columns},
            input_gradient.num_warps,
            input_gradient.num_stages,
            "matmul",
            odd=("positions",),
        ),
        AotCase(
            "head weight gradient",
            _weight_gradient,
            {"grad_ptr": "*bf16", "x_ptr": "*bf16", "partial_ptr": "*fp32"}
            | {"positions": "i32", "steps": "i32"},
            sizes | {"BLOCK_N": weight_gradient.columns, "BLOCK_K": weight_gradient.rows},
            weight_gradient.num_warps,
            weight_gradient.num_stages,
            "matmul",
            odd=("positions", "steps"),
        ),
        AotCase(
            "head bias gradient",
            _bias_gradient,
            {"grad_ptr": "*bf16", "partial_ptr": "*fp64", "positions": "i32", "steps": "i32"},
            {"BLOCK": BIAS_BLOCK},
            8,
            3,
            "elementwise",
            odd=("positions", "steps"),
        ),
    ]
