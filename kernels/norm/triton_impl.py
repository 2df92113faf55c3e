# Constants of a kernel are in capitals.
"""Kernels of batch norm + (leaky) ReLU over x as dense (groups, rows, channels), and launchers.

Training reads x twice and writes y once; backward reads dy and x twice and writes dx once.
Reductions leave one fp32 partial a program, laid out (groups, channels, partials) so that the merge
reads each channel's contiguously, and are merged in fp64 in the order of the rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase
from . import api

WARPS = 4
# 64 channels are a whole cache line even in bf16, and a thread's 16 bytes are 8 of them.
MAX_BLOCK_C = 64
# One layer of a tile gives each thread 8 neighbouring elements: 4 warps x 32 threads x 8.
LAYER = 1024
# Layers of a tile: loads that a thread has in flight, against the registers that they take.
STATISTICS_DEPTH = 4
BACKWARD_SUMS_DEPTH = 2  # two tensors are read
APPLY_DEPTH = 4
BACKWARD_APPLY_DEPTH = 2
# Tiles of a reduction's loop that are under way at a time, in shared memory.
STAGES = tl.constexpr(3)
# Programs of a reduction: what 132 multiprocessors (H200) hold at a time, 6 each. A constant, not
# asked of the device: the order of summation is part of the result.
MAX_PROGRAMS = 768
# Tile of few rows, which one program takes for each block of channels, reading them again from the
# cache: by arithmetic a few microseconds. Rows and channels by bytes of a value, 4 loads a thread.
WHOLE_BLOCK = {2: (256, 16), 4: (128, 16)}
BLOCK_P = 1024  # so many partials a channel can be merged: a power of two above MAX_PROGRAMS


@triton.jit
def _coefficients(
    mean_ptr,  # (G, C) fp32
    variance_ptr,  # (G, C) fp32
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    group,
    c,
    channels,
    eps,
):
    inside = c < channels
    mean = tl.load(mean_ptr + group * channels + c, mask=inside, other=0.0)
    variance = tl.load(variance_ptr + group * channels + c, mask=inside, other=1.0)
    rstd = tl.rsqrt(variance + eps)
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + c, mask=inside, other=0.0)
    return mean, rstd, weight * rstd, bias


@triton.jit
def _pre_activation(x, mean, scale, bias):
    # Forward and backward must agree on its sign to the bit. Subtracting first keeps the digits
    # that x * scale + shift loses when |mean| is large.
    return tl.fma(x - mean, scale, bias)


@triton.jit
def _through_norm(g, x, mean, rstd, scale, dweight, dbias, rows, FROM_BATCH: tl.constexpr):
    """Gradient of x from that of what is activated."""
    dx = scale * g
    if FROM_BATCH:
        # scale * (g - mean of g - normalised x * mean of g * normalised x), regrouped.
        per_row = scale * (-1.0 / rows)
        dx += (per_row * rstd * dweight) * (x - mean) + per_row * dbias
    return dx


@triton.jit(do_not_specialize=["rows", "steps"])
def _statistics_kernel(
    x_ptr,  # (G, rows, C), any float
    partial_ptr,  # (G, 3, C, partials) fp32: mean - x[0] as a sum of two; squares about the mean
    rows,
    channels,
    steps,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    group = tl.program_id(2).to(tl.int64)
    x_ptr += group * rows * channels
    partial_ptr += group * 3 * channels * parts
    # Rows `lane`, `lane + LANES`, ... belong to one thread: until the last merge nothing crosses.
    lane = tl.arange(0, LANES)
    row = tl.arange(0, DEPTH)[:, None] * LANES + lane[None, :]
    inner = row[:, :, None] * channels + c[None, None, :]
    inside_c = (c < channels)[None, None, :]
    start = part.to(tl.int64) * steps * (DEPTH * LANES)

    # First pass, over the first tile: each lane's mean, as a distance from some value of the
    # channel, since distances are of the size of the deviation however large the mean is.
    stored_pivot = tl.load(x_ptr + c, mask=c < channels, other=0.0)[None, :]
    left = tl.minimum(rows - start, DEPTH * LANES).to(tl.int32)
    mask = (row < left)[:, :, None] & inside_c
    head = tl.load(x_ptr + start * channels + inner, mask=mask, other=stored_pivot[None, :, :])
    pivot = stored_pivot.to(tl.float32)
    inverse = 1 / tl.maximum(tl.cdiv(left - lane, LANES), 1).to(tl.float32)
    shift = pivot + tl.sum(head.to(tl.float32) - pivot[None, :, :], 0) * inverse[:, None]

    # Second pass, over all: deviations from that mean. Correcting for their sum cancels little: as
    # the first tile's values are among them, their squares sum to at most about `steps` times what
    # they sum to about the true mean.
    total = tl.zeros((LANES, BLOCK_C), tl.float32)
    squares = tl.zeros((LANES, BLOCK_C), tl.float32)
    for step in tl.range(steps, num_stages=STAGES):
        first = start + step * (DEPTH * LANES)
        inside = (row < tl.minimum(rows - first, DEPTH * LANES).to(tl.int32))[:, :, None]
        x = tl.load(x_ptr + first * channels + inner, mask=inside & inside_c, other=0.0)
        deviation = tl.where(inside, x.to(tl.float32) - shift[None, :, :], 0.0)
        total += tl.sum(deviation, 0)
        squares += tl.sum(deviation * deviation, 0)

    # Chan, Golub and LeVeque: merge the lanes. What is missing from the rounded mean goes with it:
    # it matters where x[0] is far from the mean.
    left = tl.minimum(rows - start, steps * (DEPTH * LANES)).to(tl.int32)
    count = tl.maximum(tl.cdiv(left - lane, LANES), 0).to(tl.float32)[:, None]
    mean = total / tl.maximum(count, 1.0)
    m2 = squares - total * mean
    mean += shift - pivot
    rows_here = tl.sum(count, 0)
    merged = tl.sum(mean * count, 0) / rows_here
    delta = mean - merged[None, :]
    rest = tl.sum(delta * count, 0) / rows_here
    m2 = tl.sum(m2 + delta * delta * count, 0)
    tl.store(partial_ptr + c * parts + part, merged, mask=c < channels)
    tl.store(partial_ptr + (channels + c) * parts + part, rest, mask=c < channels)
    tl.store(partial_ptr + (2 * channels + c) * parts + part, m2, mask=c < channels)


@triton.jit(do_not_specialize=["parts", "rows", "span"])
def _merge_statistics_kernel(
    x_ptr,  # (G, rows, C), any float: only a group's first row is read
    partial_ptr,  # (G, 3, C, partials) fp32
    mean_ptr,  # (G, C) fp32
    variance_ptr,  # (G, C) fp32, biased
    channels,
    parts,
    rows,
    span,  # rows a partial; the last may have fewer
    BLOCK_P: tl.constexpr,
):
    c = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    x_ptr += group * rows * channels
    partial_ptr += group * 3 * channels * parts
    part = tl.arange(0, BLOCK_P)
    inside = part < parts
    mean = tl.load(partial_ptr + c * parts + part, mask=inside, other=0.0)
    rest = tl.load(partial_ptr + (channels + c) * parts + part, mask=inside, other=0.0)
    m2 = tl.load(partial_ptr + (2 * channels + c) * parts + part, mask=inside, other=0.0)
    mean = mean.to(tl.float64) + rest.to(tl.float64)
    left = tl.where(inside, rows - part.to(tl.int64) * span, 0)
    count = tl.minimum(left, span).to(tl.float64)
    merged = tl.sum(mean * count, 0) / rows
    delta = mean - merged
    m2 = tl.sum(m2.to(tl.float64) + delta * delta * count, 0)
    at = group * channels + c
    tl.store(mean_ptr + at, (tl.load(x_ptr + c).to(tl.float64) + merged).to(tl.float32))
    tl.store(variance_ptr + at, (m2 / rows).to(tl.float32))


@triton.jit
def _elementwise_tile(rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    columns = tl.cdiv(channels, BLOCK_C)
    # Backwards: what the pass before read last is still in the cache.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    group = tl.num_programs(1) - 1 - tl.program_id(1)
    c = (tile % columns) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    first = (tile // columns).to(tl.int64) * BLOCK_R
    row = tl.arange(0, BLOCK_R)[:, None]
    inside = row < tl.minimum(rows - first, BLOCK_R).to(tl.int32)
    start = (group * rows.to(tl.int64) + first) * channels
    return group, c, start, row * channels + c, inside & (c < channels)


@triton.jit(do_not_specialize=["rows"])
def _apply_kernel(
    x_ptr,  # (G, rows, C), any float
    y_ptr,  # (G, rows, C), x's dtype
    mean_ptr,  # (G, C) fp32
    variance_ptr,  # (G, C) fp32
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    rows,
    channels,
    eps,
    slope,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    group, c, start, inner, mask = _elementwise_tile(rows, channels, BLOCK_R, BLOCK_C)
    x = tl.load(x_ptr + start + inner, mask=mask).to(tl.float32)
    mean, _, scale, bias = _coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, group, c, channels, eps
    )
    z = _pre_activation(x, mean, scale, bias)
    y = tl.where(z > 0, z, z * slope)
    tl.store(y_ptr + start + inner, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "steps"])
def _backward_sums_kernel(
    dy_ptr,  # (G, rows, C), x's dtype
    x_ptr,  # (G, rows, C), any float
    mean_ptr,  # (G, C) fp32
    variance_ptr,  # (G, C) fp32
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    partial_ptr,  # (G, 2, C, partials) fp32: sums of g * (x - mean), and of g
    rows,
    channels,
    steps,
    eps,
    slope,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    group = tl.program_id(2)
    before = group * rows.to(tl.int64) * channels
    dy_ptr += before
    x_ptr += before
    partial_ptr += group.to(tl.int64) * 2 * channels * parts
    row = tl.arange(0, DEPTH)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    inner = row[:, :, None] * channels + c[None, None, :]
    mean, _, scale, bias = _coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, group, c[None, None, :], channels, eps
    )
    sum_gx = tl.zeros((LANES, BLOCK_C), tl.float32)
    sum_g = tl.zeros((LANES, BLOCK_C), tl.float32)
    for step in tl.range(steps, num_stages=STAGES):
        first = (part.to(tl.int64) * steps + step) * (DEPTH * LANES)
        inside = row < tl.minimum(rows - first, DEPTH * LANES).to(tl.int32)
        mask = inside[:, :, None] & (c < channels)[None, None, :]
        x = tl.load(x_ptr + first * channels + inner, mask=mask, other=0.0).to(tl.float32)
        # Zeros beyond the edge make every g there zero.
        dy = tl.load(dy_ptr + first * channels + inner, mask=mask, other=0.0).to(tl.float32)
        g = tl.where(_pre_activation(x, mean, scale, bias) > 0, dy, dy * slope)
        sum_gx += tl.sum(g * (x - mean), 0)
        sum_g += tl.sum(g, 0)
    tl.store(partial_ptr + c * parts + part, tl.sum(sum_gx, 0), mask=c < channels)
    tl.store(partial_ptr + (channels + c) * parts + part, tl.sum(sum_g, 0), mask=c < channels)


@triton.jit(do_not_specialize=["parts"])
def _merge_sums_kernel(
    partial_ptr,  # (G, 2, C, partials) fp32
    variance_ptr,  # (G, C) fp32
    dweight_ptr,  # (G, C) fp32
    dbias_ptr,  # (G, C) fp32
    channels,
    parts,
    eps,
    BLOCK_P: tl.constexpr,
):
    c = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    partial_ptr += group * 2 * channels * parts
    part = tl.arange(0, BLOCK_P)
    inside = part < parts
    gx = tl.load(partial_ptr + c * parts + part, mask=inside, other=0.0)
    g = tl.load(partial_ptr + (channels + c) * parts + part, mask=inside, other=0.0)
    at = group * channels + c
    rstd = tl.rsqrt(tl.load(variance_ptr + at) + eps)
    tl.store(dweight_ptr + at, (tl.sum(gx.to(tl.float64), 0) * rstd).to(tl.float32))
    tl.store(dbias_ptr + at, tl.sum(g.to(tl.float64), 0).to(tl.float32))


@triton.jit(do_not_specialize=["rows"])
def _input_gradient_kernel(
    dy_ptr,  # (G, rows, C), x's dtype: gradient of y, or with MASKED of z
    x_ptr,  # (G, rows, C), any float
    mean_ptr,  # (G, C) fp32
    variance_ptr,  # (G, C) fp32
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    dweight_ptr,  # (G, C) fp32
    dbias_ptr,  # (G, C) fp32
    dx_ptr,  # (G, rows, C), x's dtype
    rows,
    channels,
    eps,
    slope,
    FROM_BATCH: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    group, c, start, inner, mask = _elementwise_tile(rows, channels, BLOCK_R, BLOCK_C)
    x = tl.load(x_ptr + start + inner, mask=mask).to(tl.float32)
    g = tl.load(dy_ptr + start + inner, mask=mask).to(tl.float32)
    mean, rstd, scale, bias = _coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, group, c, channels, eps
    )
    if not MASKED:
        g = tl.where(_pre_activation(x, mean, scale, bias) > 0, g, g * slope)
    at = group * channels + c
    dweight = tl.load(dweight_ptr + at, mask=c < channels, other=0.0)
    dbias = tl.load(dbias_ptr + at, mask=c < channels, other=0.0)
    dx = _through_norm(g, x, mean, rstd, scale, dweight, dbias, rows, FROM_BATCH)
    tl.store(dx_ptr + start + inner, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _whole_tile(first, rows, channels, c, BLOCK_R: tl.constexpr):
    """Offsets in the group of a tile of rows from `first` on, and what of it there is."""
    row = first + tl.arange(0, BLOCK_R)[:, None]
    return row * channels + c, (row < rows) & (c < channels)


@triton.jit(do_not_specialize=["rows"])
def _whole_forward_kernel(
    x_ptr,  # (G, rows, C), any float
    y_ptr,  # (G, rows, C), x's dtype
    mean_ptr,  # (G, C) fp32
    variance_ptr,  # (G, C) fp32, biased
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    rows,
    channels,
    eps,
    slope,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    group = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    before = group * rows.to(tl.int64) * channels
    x_ptr += before
    y_ptr += before
    # Distances from some value of the channel are of the size of the deviation.
    pivot = tl.load(x_ptr + c, mask=c < channels, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, rows, BLOCK_R):
        at, inside = _whole_tile(first, rows, channels, c, BLOCK_R)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(inside, x - pivot, 0.0)
    shift = pivot + (tl.sum(total.to(tl.float64), 0) / rows).to(tl.float32)[None, :]

    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, rows, BLOCK_R):
        at, inside = _whole_tile(first, rows, channels, c, BLOCK_R)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        deviation = tl.where(inside, x - shift, 0.0)
        total += deviation
        squares += deviation * deviation
    rest = tl.sum(total.to(tl.float64), 0)[None, :] / rows  # of the rounded mean
    mean = (shift.to(tl.float64) + rest).to(tl.float32)
    variance = tl.sum(squares.to(tl.float64), 0)[None, :] / rows - rest * rest
    variance = tl.maximum(variance, 0.0).to(tl.float32)
    tl.store(mean_ptr + group * channels + c, mean, mask=c < channels)
    tl.store(variance_ptr + group * channels + c, variance, mask=c < channels)

    # As the backward will have them.
    scale = tl.load(weight_ptr + c, mask=c < channels, other=0.0) * tl.rsqrt(variance + eps)
    bias = tl.load(bias_ptr + c, mask=c < channels, other=0.0)
    for first in range(0, rows, BLOCK_R):
        at, inside = _whole_tile(first, rows, channels, c, BLOCK_R)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        z = _pre_activation(x, mean, scale, bias)
        y = tl.where(z > 0, z, z * slope)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _whole_backward_kernel(
    dy_ptr,  # (G, rows, C), x's dtype
    x_ptr,  # (G, rows, C), any float
    mean_ptr,  # (G, C) fp32
    variance_ptr,  # (G, C) fp32
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    dweight_ptr,  # (G, C) fp32
    dbias_ptr,  # (G, C) fp32
    dx_ptr,  # (G, rows, C), x's dtype
    rows,
    channels,
    eps,
    slope,
    FROM_BATCH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    group = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    before = group * rows.to(tl.int64) * channels
    dy_ptr += before
    x_ptr += before
    dx_ptr += before
    mean, rstd, scale, bias = _coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, group, c, channels, eps
    )
    sum_gx = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    sum_g = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, rows, BLOCK_R):
        at, inside = _whole_tile(first, rows, channels, c, BLOCK_R)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        # Zeros beyond the edge make every g there zero.
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.where(_pre_activation(x, mean, scale, bias) > 0, dy, dy * slope)
        sum_gx += g * (x - mean)
        sum_g += g
    dweight = tl.sum(sum_gx.to(tl.float64), 0)[None, :].to(tl.float32) * rstd
    dbias = tl.sum(sum_g.to(tl.float64), 0)[None, :].to(tl.float32)
    tl.store(dweight_ptr + group * channels + c, dweight, mask=c < channels)
    tl.store(dbias_ptr + group * channels + c, dbias, mask=c < channels)

    for first in range(0, rows, BLOCK_R):
        at, inside = _whole_tile(first, rows, channels, c, BLOCK_R)
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.where(_pre_activation(x, mean, scale, bias) > 0, dy, dy * slope)
        dx = _through_norm(g, x, mean, rstd, scale, dweight, dbias, rows, FROM_BATCH)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)


# Tuples have an entry for each norm: one launch for a whole network.
@triton.jit(do_not_specialize=["groups"])
def _track_kernel(
    running_means,  # each (C,) fp32
    running_vars,  # each (C,) fp32, unbiased
    counts,  # each () int64
    means,  # each (G, C) fp32
    variances,  # each (G, C) fp32, biased
    biases,  # each (C,) fp32
    channels,  # each C
    unbias,  # each rows / (rows - 1)
    groups,
    momentum,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    for norm in tl.static_range(len(channels)):
        inside = c < channels[norm]
        mean = tl.load(running_means[norm] + c, mask=inside)
        variance = tl.load(running_vars[norm] + c, mask=inside)
        bias = tl.load(biases[norm] + c, mask=inside)
        for group in range(groups):
            at = group * channels[norm] + c
            mean += momentum * (tl.load(means[norm] + at, mask=inside) + bias - mean)
            unbiased = tl.load(variances[norm] + at, mask=inside) * unbias[norm]
            variance += momentum * (unbiased - variance)
        tl.store(running_means[norm] + c, mean, mask=inside)
        tl.store(running_vars[norm] + c, variance, mask=inside)
        if tl.program_id(0) == 0:
            tl.store(counts[norm], tl.load(counts[norm]) + groups)


def _blocks(channels: int) -> tuple[int, int]:
    """Channels a program, and rows a layer of its tile."""
    block_c = min(triton.next_power_of_2(channels), MAX_BLOCK_C)
    return block_c, LAYER // block_c


def _reduction_grid(
    rows: int, channels: int, groups: int, depth: int
) -> tuple[tuple[int, int, int], int]:
    """Grid (blocks of channels, partials, groups), and steps of depth * lanes rows a program."""
    block_c, lanes = _blocks(channels)
    columns = triton.cdiv(channels, block_c)
    tiles = triton.cdiv(rows, depth * lanes)
    steps = triton.cdiv(tiles, max(1, MAX_PROGRAMS // (columns * groups)))
    return (columns, triton.cdiv(tiles, steps), groups), steps


def _elementwise_grid(rows: int, channels: int, groups: int, depth: int) -> tuple[int, int]:
    block_c, lanes = _blocks(channels)
    return triton.cdiv(channels, block_c) * triton.cdiv(rows, depth * lanes), groups


def _sizes(x: Tensor, groups: int) -> tuple[int, int]:
    """Rows of a group, and channels."""
    return x.numel() // (x.shape[1] * groups), x.shape[1]


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _fp32(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def batch_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each group, (groups, C) fp32."""
    dispatch.launches["batch_statistics"] += 1
    x = dispatch.aligned(x)
    rows, channels = _sizes(x, groups)
    block_c, lanes = _blocks(channels)
    grid, steps = _reduction_grid(rows, channels, groups, STATISTICS_DEPTH)
    parts = grid[1]
    partial = _fp32(x, groups, 3, channels, parts)
    _statistics_kernel[grid](
        x,
        partial,
        rows,
        channels,
        steps,
        DEPTH=STATISTICS_DEPTH,
        LANES=lanes,
        BLOCK_C=block_c,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    mean, variance = _fp32(x, groups, channels), _fp32(x, groups, channels)
    _merge_statistics_kernel[(channels, groups)](
        x,
        partial,
        mean,
        variance,
        channels,
        parts,
        rows,
        steps * STATISTICS_DEPTH * lanes,
        BLOCK_P=BLOCK_P,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    return mean, variance


def norm_act(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
) -> Tensor:
    """Normalise with given statistics and activate."""
    dispatch.launches["norm_act"] += 1
    x = dispatch.aligned(x)
    groups = len(mean)
    rows, channels = _sizes(x, groups)
    block_c, lanes = _blocks(channels)
    y = _like(x)
    _apply_kernel[_elementwise_grid(rows, channels, groups, APPLY_DEPTH)](
        x,
        y,
        mean,
        variance,
        weight,
        bias,
        rows,
        channels,
        eps,
        slope,
        BLOCK_R=APPLY_DEPTH * lanes,
        BLOCK_C=block_c,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    return y


def batch_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise each group with its own statistics and activate: y, mean and variance."""
    dispatch.launches["batch_norm_act"] += 1
    x = dispatch.aligned(x)
    rows, channels = _sizes(x, groups)
    if rows > api.FEW_ROWS:
        statistics = batch_statistics(x, groups)
        return norm_act(x, *statistics, weight, bias, eps, slope), *statistics
    y, mean, variance = _like(x), _fp32(x, groups, channels), _fp32(x, groups, channels)
    block_r, block_c = WHOLE_BLOCK[x.element_size()]
    _whole_forward_kernel[(triton.cdiv(channels, block_c), groups)](
        x,
        y,
        mean,
        variance,
        weight,
        bias,
        rows,
        channels,
        eps,
        slope,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    return y, mean, variance


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
    from_batch: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of x, and each group's shares of those of weight and bias, (2, groups, C) fp32."""
    dispatch.launches["norm_act_backward"] += 1
    dy, x = dispatch.aligned(dy), dispatch.aligned(x)
    groups = len(mean)
    rows, channels = _sizes(x, groups)
    given = dy, x, mean, variance, weight, bias
    if rows > api.FEW_ROWS:
        sums = parameter_gradients(*given, eps, slope)
        return input_gradient(*given, sums, eps, slope, from_batch, masked=False), sums
    dx, sums = _like(x), _fp32(x, 2, groups, channels)
    block_r, block_c = WHOLE_BLOCK[x.element_size()]
    _whole_backward_kernel[(triton.cdiv(channels, block_c), groups)](
        *given,
        *sums,
        dx,
        rows,
        channels,
        eps,
        slope,
        FROM_BATCH=from_batch,
        BLOCK_R=block_r,
        BLOCK_C=block_c,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    return dx, sums


def parameter_gradients(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
) -> Tensor:
    """Each group's shares of the gradients of weight and bias, (2, groups, C) fp32."""
    groups = len(mean)
    rows, channels = _sizes(x, groups)
    block_c, lanes = _blocks(channels)
    grid, steps = _reduction_grid(rows, channels, groups, BACKWARD_SUMS_DEPTH)
    parts = grid[1]
    partial = _fp32(x, groups, 2, channels, parts)
    _backward_sums_kernel[grid](
        dy,
        x,
        mean,
        variance,
        weight,
        bias,
        partial,
        rows,
        channels,
        steps,
        eps,
        slope,
        DEPTH=BACKWARD_SUMS_DEPTH,
        LANES=lanes,
        BLOCK_C=block_c,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    sums = _fp32(x, 2, groups, channels)
    _merge_sums_kernel[(channels, groups)](
        partial,
        variance,
        *sums,
        channels,
        parts,
        eps,
        BLOCK_P=BLOCK_P,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    return sums


def input_gradient(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor,
    eps: float,
    slope: float,
    from_batch: bool,
    masked: bool,
) -> Tensor:
    """Gradient of x; `dy` is that of y, or when `masked` that of what was activated."""
    dispatch.launches["norm_act_input_gradient"] += 1
    dy, x = dispatch.aligned(dy), dispatch.aligned(x)
    groups = len(mean)
    rows, channels = _sizes(x, groups)
    block_c, lanes = _blocks(channels)
    dx = _like(x)
    _input_gradient_kernel[_elementwise_grid(rows, channels, groups, BACKWARD_APPLY_DEPTH)](
        dy,
        x,
        mean,
        variance,
        weight,
        bias,
        *sums,
        dx,
        rows,
        channels,
        eps,
        slope,
        FROM_BATCH=from_batch,
        MASKED=masked,
        BLOCK_R=BACKWARD_APPLY_DEPTH * lanes,
        BLOCK_C=block_c,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    return dx


def track(
    running_means: list[Tensor],
    running_vars: list[Tensor],
    counts: list[Tensor],
    means: list[Tensor],
    variances: list[Tensor],
    biases: list[Tensor],
    rows: list[int],
    momentum: float,
) -> None:
    """Move running statistics and counts, in place, by each group of `rows` values a channel."""
    dispatch.launches["norm_act_track"] += 1
    channels = tuple(mean.shape[1] for mean in means)
    _track_kernel[(triton.cdiv(max(channels), 128),)](
        tuple(running_means),
        tuple(running_vars),
        tuple(counts),
        tuple(means),
        tuple(variances),
        tuple(biases),
        channels,
        tuple(n / (n - 1) for n in rows),
        len(means[0]),
        momentum,
        BLOCK_C=128,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )


def aot_cases() -> list[AotCase]:
    """Every kernel as the paper's layers run it in bf16 and fp32: 64 to 512 channels alike.

    So are batches of any size. fp16 differs from bf16 in the names of the conversions alone.
    """
    block_c, lanes = _blocks(64)
    assert {_blocks(channels) for channels in (128, 256, 512)} == {(block_c, lanes)}
    fp32 = "*fp32"
    coefficients = dict.fromkeys(("mean_ptr", "variance_ptr", "weight_ptr", "bias_ptr"), fp32)
    parameter_gradients = {"dweight_ptr": fp32, "dbias_ptr": fp32}
    sizes = {"rows": "i32", "channels": "i32"}
    scalars = {"eps": "fp32", "slope": "fp32"}

    def case(kernel, kind, signature, constexprs, name, narrow=None):
        odd = tuple({"rows", "steps", "parts", "span", "groups"} & signature.keys())
        return AotCase(name, kernel, signature, constexprs, WARPS, 3, kind, odd, narrow or {})

    def reduction(depth):
        return {"DEPTH": depth, "LANES": lanes, "BLOCK_C": block_c}

    def elementwise(depth):
        return {"BLOCK_R": depth * lanes, "BLOCK_C": block_c}

    merge = {"BLOCK_P": BLOCK_P}
    cases = [
        case(
            _merge_sums_kernel,
            "small",
            {"partial_ptr": fp32, "variance_ptr": fp32, **parameter_gradients}
            | {"channels": "i32", "parts": "i32", "eps": "fp32"},
            merge,
            "norm_act parameter gradients, merge",
        )
    ]
    for dtype, element_size in (("bf16", 2), ("fp32", 4)):
        x, dy, y, dx = ({name: f"*{dtype}"} for name in ("x_ptr", "dy_ptr", "y_ptr", "dx_ptr"))
        whole = dict(zip(("BLOCK_R", "BLOCK_C"), WHOLE_BLOCK[element_size], strict=True))
        cases += [
            case(
                _statistics_kernel,
                "elementwise",
                {**x, "partial_ptr": fp32, **sizes, "steps": "i32"},
                reduction(STATISTICS_DEPTH),
                f"batch statistics, {dtype}",
                narrow={4: 3},  # the partial results
            ),
            case(
                _merge_statistics_kernel,
                "small",
                {**x, "partial_ptr": fp32, "mean_ptr": fp32, "variance_ptr": fp32}
                | {**sizes, "parts": "i32", "span": "i32"},
                merge,
                f"batch statistics, merge, {dtype}",
            ),
            case(
                _apply_kernel,
                "elementwise",
                {**x, **y, **coefficients, **sizes, **scalars},
                elementwise(APPLY_DEPTH),
                f"norm_act, {dtype}",
            ),
            case(
                _backward_sums_kernel,
                "elementwise",
                {**dy, **x, **coefficients, "partial_ptr": fp32}
                | {**sizes, "steps": "i32", **scalars},
                reduction(BACKWARD_SUMS_DEPTH),
                f"norm_act parameter gradients, {dtype}",
                narrow={4: 2},  # the partial sums
            ),
        ]
        statistics = {"mean_ptr": fp32, "variance_ptr": fp32}
        parameters = {"weight_ptr": fp32, "bias_ptr": fp32}
        cases.append(
            case(
                _whole_forward_kernel,
                "elementwise",
                {**x, **y, **statistics, **parameters, **sizes, **scalars},
                whole,
                f"batch_norm_act, few rows, {dtype}",
                narrow={4: 2},  # the statistics
            )
        )
        cases += [
            case(
                _whole_backward_kernel,
                "elementwise",
                {**dy, **x, **dx, **coefficients, **parameter_gradients, **sizes, **scalars},
                {"FROM_BATCH": from_batch, **whole},
                f"norm_act backward, few rows, {statistics} statistics, {dtype}",
                narrow={4: 3},  # the parameters' gradients
            )
            for statistics, from_batch in (("batch", True), ("running", False))
        ]
        cases += [
            case(
                _input_gradient_kernel,
                "elementwise",
                {**dy, **x, **dx, **coefficients, **parameter_gradients, **sizes, **scalars},
                {"FROM_BATCH": from_batch, "MASKED": masked, **elementwise(BACKWARD_APPLY_DEPTH)},
                f"norm_act input gradient, {statistics} statistics, {dtype}",
            )
            for statistics, from_batch, masked in (
                ("batch", True, False),
                ("batch, masked", True, True),
                ("running", False, False),
            )
        ]
    # Eight norms: the generator's two streams.
    names = "running_means", "running_vars", "means", "variances", "biases"
    vectors = dict.fromkeys(names, (fp32,) * 8)
    cases.append(
        case(
            _track_kernel,
            "small",
            {**vectors, "counts": ("*i64",) * 8, "channels": ("i32",) * 8}
            | {"unbias": ("fp32",) * 8, "groups": "i32", "momentum": "fp32"},
            {"BLOCK_C": 128},
            "norm_act track",
        )
    )
    return cases
