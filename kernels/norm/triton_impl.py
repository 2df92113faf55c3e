# Constants of a kernel are in capitals.
"""Kernels of batch norm + (leaky) ReLU over x as a dense (rows, channels) matrix, and launchers.

Training reads x twice and writes y once; backward reads dy and x twice and writes dx once.
Reductions leave one fp32 partial a program, laid out (channels, partials) so that the merge reads
each channel's contiguously, and are merged in fp64 in the order of the rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase

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
BLOCK_P = 1024  # so many partials a channel can be merged: a power of two above MAX_PROGRAMS


@triton.jit
def _coefficients(
    mean_ptr,  # (C,) fp32
    variance_ptr,  # (C,) fp32
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    c,
    channels,
    eps,
):
    inside = c < channels
    mean = tl.load(mean_ptr + c, mask=inside, other=0.0)
    rstd = tl.rsqrt(tl.load(variance_ptr + c, mask=inside, other=1.0) + eps)
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + c, mask=inside, other=0.0)
    return mean, rstd, weight * rstd, bias


@triton.jit
def _pre_activation(x, mean, scale, bias):
    # Forward and backward must agree on its sign to the bit. Subtracting first keeps the digits
    # that x * scale + shift loses when |mean| is large.
    return tl.fma(x - mean, scale, bias)


@triton.jit(do_not_specialize=["rows", "steps"])
def _statistics_kernel(
    x_ptr,  # (rows, C), any float
    partial_ptr,  # (3, C, partials) fp32: mean - x[0] as a sum of two; squares about the mean
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
    x_ptr,  # (rows, C), any float: only the first row is read
    partial_ptr,  # (3, C, partials) fp32
    mean_ptr,  # (C,) fp32
    variance_ptr,  # (C,) fp32, biased
    channels,
    parts,
    rows,
    span,  # rows a partial; the last may have fewer
    BLOCK_P: tl.constexpr,
):
    c = tl.program_id(0)
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
    tl.store(mean_ptr + c, (tl.load(x_ptr + c).to(tl.float64) + merged).to(tl.float32))
    tl.store(variance_ptr + c, (m2 / rows).to(tl.float32))


@triton.jit
def _elementwise_tile(rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    columns = tl.cdiv(channels, BLOCK_C)
    # Backwards: what the pass before read last is still in the cache.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    c = (tile % columns) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    first = (tile // columns).to(tl.int64) * BLOCK_R
    row = tl.arange(0, BLOCK_R)[:, None]
    inside = row < tl.minimum(rows - first, BLOCK_R).to(tl.int32)
    return c, first * channels, row * channels + c, inside & (c < channels)


@triton.jit(do_not_specialize=["rows"])
def _apply_kernel(
    x_ptr,  # (rows, C), any float
    y_ptr,  # (rows, C), x's dtype
    mean_ptr,  # (C,) fp32
    variance_ptr,  # (C,) fp32
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    rows,
    channels,
    eps,
    slope,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c, start, inner, mask = _elementwise_tile(rows, channels, BLOCK_R, BLOCK_C)
    x = tl.load(x_ptr + start + inner, mask=mask).to(tl.float32)
    mean, _, scale, bias = _coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, eps
    )
    z = _pre_activation(x, mean, scale, bias)
    y = tl.where(z > 0, z, z * slope)
    tl.store(y_ptr + start + inner, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "steps"])
def _backward_sums_kernel(
    dy_ptr,  # (rows, C), x's dtype
    x_ptr,  # (rows, C), any float
    mean_ptr,  # (C,) fp32
    variance_ptr,  # (C,) fp32
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    partial_ptr,  # (2, C, partials) fp32: sums of g * (x - mean), and of g
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
    row = tl.arange(0, DEPTH)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    inner = row[:, :, None] * channels + c[None, None, :]
    mean, _, scale, bias = _coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c[None, None, :], channels, eps
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
    partial_ptr,  # (2, C, partials) fp32
    variance_ptr,  # (C,) fp32
    dweight_ptr,  # (C,) fp32
    dbias_ptr,  # (C,) fp32
    channels,
    parts,
    eps,
    BLOCK_P: tl.constexpr,
):
    c = tl.program_id(0)
    part = tl.arange(0, BLOCK_P)
    inside = part < parts
    gx = tl.load(partial_ptr + c * parts + part, mask=inside, other=0.0)
    g = tl.load(partial_ptr + (channels + c) * parts + part, mask=inside, other=0.0)
    rstd = tl.rsqrt(tl.load(variance_ptr + c) + eps)
    tl.store(dweight_ptr + c, (tl.sum(gx.to(tl.float64), 0) * rstd).to(tl.float32))
    tl.store(dbias_ptr + c, tl.sum(g.to(tl.float64), 0).to(tl.float32))


@triton.jit(do_not_specialize=["rows"])
def _backward_apply_kernel(
    dy_ptr,  # (rows, C), x's dtype
    x_ptr,  # (rows, C), any float
    mean_ptr,  # (C,) fp32
    variance_ptr,  # (C,) fp32
    weight_ptr,  # (C,) fp32
    bias_ptr,  # (C,) fp32
    dweight_ptr,  # (C,) fp32
    dbias_ptr,  # (C,) fp32
    dx_ptr,  # (rows, C), x's dtype
    rows,
    channels,
    eps,
    slope,
    TRAINING: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    c, start, inner, mask = _elementwise_tile(rows, channels, BLOCK_R, BLOCK_C)
    x = tl.load(x_ptr + start + inner, mask=mask).to(tl.float32)
    dy = tl.load(dy_ptr + start + inner, mask=mask).to(tl.float32)
    mean, rstd, scale, bias = _coefficients(
        mean_ptr, variance_ptr, weight_ptr, bias_ptr, c, channels, eps
    )
    g = tl.where(_pre_activation(x, mean, scale, bias) > 0, dy, dy * slope)
    dx = scale * g
    if TRAINING:
        # scale * (g - mean of g - normalised x * mean of g * normalised x), regrouped.
        dweight = tl.load(dweight_ptr + c, mask=c < channels, other=0.0)
        dbias = tl.load(dbias_ptr + c, mask=c < channels, other=0.0)
        per_row = scale * (-1.0 / rows)
        dx += (per_row * rstd * dweight) * (x - mean) + per_row * dbias
    tl.store(dx_ptr + start + inner, dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _track_kernel(
    running_mean_ptr,  # (C,) fp32
    running_var_ptr,  # (C,) fp32, unbiased
    mean_ptr,  # (C,) fp32
    variance_ptr,  # (C,) fp32, biased
    channels,
    unbias,
    momentum,
    BLOCK_C: tl.constexpr,
):
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < channels
    mean = tl.load(running_mean_ptr + c, mask=inside)
    variance = tl.load(running_var_ptr + c, mask=inside)
    mean += momentum * (tl.load(mean_ptr + c, mask=inside) - mean)
    variance += momentum * (tl.load(variance_ptr + c, mask=inside) * unbias - variance)
    tl.store(running_mean_ptr + c, mean, mask=inside)
    tl.store(running_var_ptr + c, variance, mask=inside)


def _blocks(channels: int) -> tuple[int, int]:
    """Channels a program, and rows a layer of its tile."""
    block_c = min(triton.next_power_of_2(channels), MAX_BLOCK_C)
    return block_c, LAYER // block_c


def _reduction_grid(rows: int, channels: int, depth: int) -> tuple[tuple[int, int], int]:
    """Grid (blocks of channels, partials a channel), and steps of depth * lanes rows a program."""
    block_c, lanes = _blocks(channels)
    columns = triton.cdiv(channels, block_c)
    tiles = triton.cdiv(rows, depth * lanes)
    steps = triton.cdiv(tiles, max(1, MAX_PROGRAMS // columns))
    return (columns, triton.cdiv(tiles, steps)), steps


def _elementwise_grid(rows: int, channels: int, depth: int) -> tuple[int]:
    block_c, lanes = _blocks(channels)
    return (triton.cdiv(channels, block_c) * triton.cdiv(rows, depth * lanes),)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _fp32(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise with the batch's statistics: y, mean and biased variance."""
    dispatch.launches["norm_act_forward"] += 1
    x = dispatch.aligned(x)
    mean, variance = _statistics(x)
    return _apply(x, mean, variance, weight, bias, eps, slope), mean, variance


def apply(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
) -> Tensor:
    """Normalise with given statistics and activate."""
    dispatch.launches["norm_act_apply"] += 1
    return _apply(dispatch.aligned(x), mean, variance, weight, bias, eps, slope)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    channels = x.shape[1]
    rows = x.numel() // channels
    block_c, lanes = _blocks(channels)
    grid, steps = _reduction_grid(rows, channels, STATISTICS_DEPTH)
    parts = grid[1]
    partial = _fp32(x, 3, channels, parts)
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
    )
    mean, variance = _fp32(x, channels), _fp32(x, channels)
    _merge_statistics_kernel[(channels,)](
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
    )
    return mean, variance


def _apply(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
) -> Tensor:
    channels = x.shape[1]
    rows = x.numel() // channels
    block_c, lanes = _blocks(channels)
    y = _like(x)
    _apply_kernel[_elementwise_grid(rows, channels, APPLY_DEPTH)](
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
    )
    return y


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; `training` when the statistics came from x."""
    dispatch.launches["norm_act_backward"] += 1
    dy, x = dispatch.aligned(dy), dispatch.aligned(x)
    channels = x.shape[1]
    rows = x.numel() // channels
    block_c, lanes = _blocks(channels)
    coefficients = mean, variance, weight, bias

    grid, steps = _reduction_grid(rows, channels, BACKWARD_SUMS_DEPTH)
    parts = grid[1]
    partial = _fp32(x, 2, channels, parts)
    _backward_sums_kernel[grid](
        dy,
        x,
        *coefficients,
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
    )
    dweight, dbias = _fp32(x, channels), _fp32(x, channels)
    _merge_sums_kernel[(channels,)](
        partial,
        variance,
        dweight,
        dbias,
        channels,
        parts,
        eps,
        BLOCK_P=BLOCK_P,
        num_warps=WARPS,
    )

    dx = _like(x)
    _backward_apply_kernel[_elementwise_grid(rows, channels, BACKWARD_APPLY_DEPTH)](
        dy,
        x,
        *coefficients,
        dweight,
        dbias,
        dx,
        rows,
        channels,
        eps,
        slope,
        TRAINING=training,
        BLOCK_R=BACKWARD_APPLY_DEPTH * lanes,
        BLOCK_C=block_c,
        num_warps=WARPS,
    )
    return dx, dweight, dbias


def track(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    variance: Tensor,
    rows: int,
    momentum: float,
) -> None:
    """Move the running statistics, in place, towards a batch of `rows` values a channel."""
    dispatch.launches["norm_act_track"] += 1
    channels = len(mean)
    _track_kernel[(triton.cdiv(channels, 128),)](
        running_mean,
        running_var,
        mean,
        variance,
        channels,
        rows / (rows - 1),
        momentum,
        BLOCK_C=128,
        num_warps=WARPS,
    )


def aot_cases() -> list[AotCase]:
    """Every kernel as the paper's layers run it in bf16: 64 to 512 channels, any batch, alike."""
    block_c, lanes = _blocks(64)
    assert {_blocks(channels) for channels in (128, 256, 512)} == {(block_c, lanes)}
    fp32 = "*fp32"
    coefficients = dict.fromkeys(("mean_ptr", "variance_ptr", "weight_ptr", "bias_ptr"), fp32)
    parameter_gradients = {"dweight_ptr": fp32, "dbias_ptr": fp32}
    sizes = {"rows": "i32", "channels": "i32"}
    scalars = {"eps": "fp32", "slope": "fp32"}

    def case(kernel, kind, signature, constexprs, name):
        odd = tuple({"rows", "steps", "parts", "span"} & signature.keys())
        return AotCase(name, kernel, signature, constexprs, WARPS, 3, kind, odd)

    def reduction(depth):
        return {"DEPTH": depth, "LANES": lanes, "BLOCK_C": block_c}

    def elementwise(depth):
        return {"BLOCK_R": depth * lanes, "BLOCK_C": block_c}

    merge = {"BLOCK_P": BLOCK_P}
    cases = [
        case(
            _statistics_kernel,
            "elementwise",
            {"x_ptr": "*bf16", "partial_ptr": fp32, **sizes, "steps": "i32"},
            reduction(STATISTICS_DEPTH),
            "norm_act statistics",
        ),
        case(
            _merge_statistics_kernel,
            "small",
            {"x_ptr": "*bf16", "partial_ptr": fp32, "mean_ptr": fp32, "variance_ptr": fp32}
            | {**sizes, "parts": "i32", "span": "i32"},
            merge,
            "norm_act merge statistics",
        ),
        case(
            _apply_kernel,
            "elementwise",
            {"x_ptr": "*bf16", "y_ptr": "*bf16", **coefficients, **sizes, **scalars},
            elementwise(APPLY_DEPTH),
            "norm_act apply",
        ),
        case(
            _backward_sums_kernel,
            "elementwise",
            {"dy_ptr": "*bf16", "x_ptr": "*bf16", **coefficients, "partial_ptr": fp32}
            | {**sizes, "steps": "i32", **scalars},
            reduction(BACKWARD_SUMS_DEPTH),
            "norm_act backward sums",
        ),
        case(
            _merge_sums_kernel,
            "small",
            {"partial_ptr": fp32, "variance_ptr": fp32, **parameter_gradients}
            | {"channels": "i32", "parts": "i32", "eps": "fp32"},
            merge,
            "norm_act merge sums",
        ),
    ]
    for training in (True, False):
        cases.append(
            case(
                _backward_apply_kernel,
                "elementwise",
                {"dy_ptr": "*bf16", "x_ptr": "*bf16", "dx_ptr": "*bf16", **coefficients}
                | {**parameter_gradients, **sizes, **scalars},
                {"TRAINING": training, **elementwise(BACKWARD_APPLY_DEPTH)},
                f"norm_act backward apply, {'training' if training else 'evaluation'}",
            )
        )
    running = dict.fromkeys(("running_mean_ptr", "running_var_ptr"), fp32)
    cases.append(
        case(
            _track_kernel,
            "small",
            {**running, "mean_ptr": fp32, "variance_ptr": fp32}
            | {"channels": "i32", "unbias": "fp32", "momentum": "fp32"},
            {"BLOCK_C": 128},
            "norm_act track",
        )
    )
    return cases
