"""Both directions of a layer as one gathering matrix product, and launchers.

Rows are positions of the result, K is taps times input channels, columns are output channels. Row q
of an axis reads inputs origin + t, t the tap counted along the input:

- `down`, kernel 4: result q takes inputs 2q - 1 + t through kernel element t = 0..3.
- `down`, kernel 2: inputs q + t through element t = 0, 1.
- `up`, kernel 4: input i reaches result o through element o + 1 - 2i. An axis of `size` inputs has
  `size` + 1 cells of two results, 2q - 1 + p, p = 0 or 1, which both take inputs q - 1 + t, t = 0,
  1, through element 2 (1 - t) + p. Along w the two may be merged: 2B columns, neighbours in the
  packed weight as in the result. On the other axes, and along w where not merged, p is a coordinate
  of the grid and rows are the cells that have that result.
- `up`, kernel 2: result q takes inputs q - 1 + t through element 1 - t.

Two dimensions are three with a depth of 1 and one tap along it. Everything but the batch is a
constant of the compilation: a layer's sizes never change while it trains, and constants turn
the arithmetic of taps, channels and positions into shifts and multiplications.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase
from ..norm.triton_impl import _coefficients, _pre_activation
from .weights import is_packed, pack

Epilogue = Literal["plain", "statistics", "masked", "norm_backward"]
Precision = Literal["16 bits", "tf32", "ieee"]
BLOCK_P = 1024  # partials a step of a merge: 8 a thread


@dataclass(frozen=True)
class Config:
    """How a product is cut up.

    Attributes:
        rows, columns, depth: of a tile; columns and depth no more than the layer needs.
        merged: `up` with kernel 4: both results of a cell along w in the columns.
        parts: that the accumulator is cut into along its columns before the epilogue, 1, 2 or 4:
            the epilogue's registers are those of one part.
        num_warps, num_stages: as of Triton.
    """

    rows: int
    columns: int
    depth: int
    merged: bool
    parts: int
    num_warps: int
    num_stages: int

    @property
    def accumulators(self) -> int:
        """Registers of a thread that hold a tile's sums."""
        return self.rows * self.columns // (32 * self.num_warps)

    def shared_bytes(self, element_size: int) -> int:
        """Of all stages of both operands."""
        return self.num_stages * self.depth * (self.rows + self.columns) * element_size


@dataclass(frozen=True)
class _Layer:
    """What of a call is known when it is compiled."""

    up: bool
    kernel: int
    volume: bool  # three dimensions
    sizes: tuple[int, int, int]  # of the coarse side
    coarse_channels: int
    fine_channels: int

    @cached_property
    def fine_sizes(self) -> tuple[int, ...]:
        if not self.volume:
            return 1, *(self._fine(size) for size in self.sizes[1:])
        return tuple(map(self._fine, self.sizes))

    def _fine(self, size: int) -> int:
        return 2 * size if self.kernel == 4 else size + 1

    @property
    def channels(self) -> int:
        """Of the result."""
        return self.fine_channels if self.up else self.coarse_channels

    def parities(self, merged: bool) -> int:
        """Products on the grid."""
        if not self.up or self.kernel == 2:
            return 1
        return (4 if self.volume else 2) * (1 if merged else 2)

    def rows(self, merged: bool) -> int:
        """Of one parity, for one sample."""
        if not self.up:
            sizes = self.sizes
        elif self.kernel == 2:
            sizes = self.fine_sizes
        else:
            sizes = *self.sizes[:2], self.sizes[2] + merged
        return sizes[0] * sizes[1] * sizes[2]


@triton.jit
def _origin(q, p, UP: tl.constexpr, KERNEL: tl.constexpr, MERGED: tl.constexpr):
    """First input of position q of an axis, and its result; p is the parity on the grid."""
    if not UP:
        origin = 2 * q - 1 if KERNEL == 4 else q
        result = q
    elif KERNEL == 2:
        origin = q - 1
        result = q
    else:
        cell = q if MERGED else q + 1 - p
        origin = cell - 1
        result = 2 * cell - 1 + p
    return origin, result


@triton.jit
def _halves(tile):
    """Left and right columns: no thread's values move."""
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(tile, (rows, 2, columns)), (0, 2, 1)))


@triton.jit
def _finish(
    product,  # fp32 columns from `first` on
    first,
    y_ptr,  # (N, *sizes, COUT)
    shift_ptr,  # (COUT,) fp32, or none
    scale_ptr,  # (COUT,) fp32, or none
    other_ptr,  # laid out as y: what decides the activation's slope, or none
    mean_ptr,  # (groups, COUT) fp32, or none
    variance_ptr,  # (groups, COUT) fp32, or none
    gamma_ptr,  # (COUT,) fp32, or none
    beta_ptr,  # (COUT,) fp32, or none
    partial_ptr,  # (2, COUT, parts): total and squares about the mean, or sums; or none
    eps,
    slope,
    valid,  # rows that exist
    position,  # of each row's result: index of a pixel
    along,  # the result's index along w
    group,
    part,  # index of this tile's partials
    parts,
    counts,  # results of this tile in a column, of parity 0 and 1 where merged
    COUT: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    merged: tl.constexpr = COLUMNS > COUT
    column = first + tl.arange(0, product.shape[1])
    inside = valid[:, None] & (column < COLUMNS)[None, :]
    channel = column
    if merged:
        channel = column % COUT
        inside &= (along[:, None] + (column // COUT)[None, :]).to(tl.uint32) < WIDTH
        part += column // COUT
    # A merged column's pixel is the next one: its values follow in memory.
    at = (position * COUT)[:, None] + column[None, :]
    here = column < COLUMNS

    if scale_ptr is not None:
        product *= tl.load(scale_ptr + channel, mask=here, other=0.0)[None, :]
    if shift_ptr is not None:
        product += tl.load(shift_ptr + channel, mask=here, other=0.0)[None, :]
    if EPILOGUE == "plain":
        product = tl.where(product > 0, product, slope * product)
    if EPILOGUE == "masked":
        activated = tl.load(other_ptr + at, mask=inside, other=0.0)
        product = tl.where(activated > 0, product, slope * product)
    if EPILOGUE == "norm_backward":
        x = tl.load(other_ptr + at, mask=inside, other=0.0).to(tl.float32)
        mean, _, scale, bias = _coefficients(
            mean_ptr,
            variance_ptr,
            gamma_ptr,
            beta_ptr,
            group,
            channel[None, :],
            COUT,
            eps,
        )
        z = _pre_activation(x, mean, scale, bias)
        product = tl.where(z > 0, product, slope * product)
        # A row that does not exist multiplied zeros; the border's missing half of a cell did not.
        summed = tl.where(inside, product, 0.0) if merged else product
        into = partial_ptr + channel * parts + part
        tl.store(into, tl.sum(summed * (x - mean), 0), mask=here)
        tl.store(into + COUT * parts, tl.sum(summed, 0), mask=here)
    stored = product.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + at, stored, mask=inside)
    if EPILOGUE == "statistics":
        count = tl.where(column < COUT, counts[0], counts[1]) if merged else counts[0]
        # Where the mean is large every value has about the same exponent, and partials that are
        # wider than the values hold their sum exactly: fp32 for 16 bits, fp64 for fp32.
        value = tl.where(inside, stored.to(tl.float32), 0.0)
        total = tl.sum(value.to(partial_ptr.dtype.element_ty), 0)
        mean = (total / tl.maximum(count, 1).to(total.dtype)).to(tl.float32)
        deviation = tl.where(inside, value - mean[None, :], 0.0)
        into = partial_ptr + channel * parts + part
        tl.store(into, total, mask=here)
        tl.store(into + COUT * parts, tl.sum(deviation * deviation, 0), mask=here)


@triton.jit(do_not_specialize=["rows", "tiles"])
def _gather_gemm(
    x_ptr,  # (N, *sizes, CIN)
    weight_ptr,  # (*kernel, B, A)
    y_ptr,  # (N, *sizes, COUT)
    shift_ptr,  # (COUT,) fp32, or none
    scale_ptr,  # (COUT,) fp32, or none
    other_ptr,  # laid out as y: the output of an activation, or what was normalised; or none
    mean_ptr,  # (groups, COUT) fp32, or none
    variance_ptr,  # (groups, COUT) fp32, or none
    gamma_ptr,  # (COUT,) fp32, or none
    beta_ptr,  # (COUT,) fp32, or none
    partial_ptr,  # (2, COUT, parts), see _finish; or none
    count_ptr,  # (parts,) int32: results of a tile in a column; or none
    rows,  # of a group, of one parity
    tiles,  # that cover them
    eps,
    slope,
    UP: tl.constexpr,
    KERNEL: tl.constexpr,
    VOLUME: tl.constexpr,
    DEPTH: tl.constexpr,  # sizes of the coarse side
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    MERGED: tl.constexpr,
    FOLD: tl.constexpr,  # taps along w in one block of K
    EPILOGUE: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    CIN: tl.constexpr = A if UP else B
    COUT: tl.constexpr = B if UP else A
    COLUMNS: tl.constexpr = 2 * COUT if MERGED else COUT
    TAPS: tl.constexpr = 2 if UP else KERNEL
    DEPTH_TAPS: tl.constexpr = TAPS if VOLUME else 1
    GRID: tl.constexpr = UP and KERNEL == 4  # parities are on the grid
    W_PARITIES: tl.constexpr = 2 if GRID and not MERGED else 1
    H_PARITIES: tl.constexpr = 2 if GRID else 1
    D_PARITIES: tl.constexpr = 2 if GRID and VOLUME else 1
    PARITIES: tl.constexpr = W_PARITIES * H_PARITIES * D_PARITIES
    FINE_D: tl.constexpr = 1 if not VOLUME else (2 * DEPTH if KERNEL == 4 else DEPTH + 1)
    FINE_H: tl.constexpr = 2 * HEIGHT if KERNEL == 4 else HEIGHT + 1
    FINE_W: tl.constexpr = 2 * WIDTH if KERNEL == 4 else WIDTH + 1
    IN_D: tl.constexpr = DEPTH if UP else FINE_D
    IN_H: tl.constexpr = HEIGHT if UP else FINE_H
    IN_W: tl.constexpr = WIDTH if UP else FINE_W
    OUT_D: tl.constexpr = FINE_D if UP else DEPTH
    OUT_H: tl.constexpr = FINE_H if UP else HEIGHT
    OUT_W: tl.constexpr = FINE_W if UP else WIDTH
    # Rows of one sample and parity.
    ROW_D: tl.constexpr = DEPTH if GRID else OUT_D
    ROW_H: tl.constexpr = HEIGHT if GRID else OUT_H
    ROW_W: tl.constexpr = (WIDTH + 1 if MERGED else WIDTH) if GRID else OUT_W
    CELLS: tl.constexpr = ROW_D * ROW_H * ROW_W

    # Columns, then parities, are neighbours in time: they read the same inputs.
    column_tiles: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    product_index = tl.program_id(0) // column_tiles
    first = tl.program_id(0) % column_tiles * BLOCK_N
    tile = product_index // PARITIES
    parity = product_index % PARITIES
    pw = parity % W_PARITIES
    ph = parity // W_PARITIES % H_PARITIES
    pd = parity // W_PARITIES // H_PARITIES
    # A tile belongs to one group.
    group = tile // tiles
    row = tile % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = row < rows
    n = group.to(tl.int64) * (rows // CELLS) + row // CELLS
    qd, qh, qw = row // (ROW_W * ROW_H) % ROW_D, row // ROW_W % ROW_H, row % ROW_W
    h, y_h = _origin(qh, ph, UP, KERNEL, False)
    w, y_w = _origin(qw, pw, UP, KERNEL, MERGED)
    d, y_d = qd, qd
    if VOLUME:
        d, y_d = _origin(qd, pd, UP, KERNEL, False)
    pixel = ((n * IN_D + d) * IN_H + h) * IN_W + w
    a_rows = x_ptr + pixel * CIN
    # Out of range at every tap. A comparison of unsigned numbers tells both sides of a range.
    d = tl.where(valid, d, -KERNEL)
    # Kernel element of the first tap, and from one tap to the next.
    start = 0
    STEP: tl.constexpr = -(KERNEL // 2) if UP else 1
    if UP and KERNEL == 2:
        start = 7 if VOLUME else 3
    if UP and KERNEL == 4:
        start = ((2 + pd) * 4 + 2 + ph) * 4 + 2 + pw if VOLUME else (2 + ph) * 4 + 2 + pw

    k = tl.arange(0, BLOCK_K)
    column = first + tl.arange(0, BLOCK_N)
    # At a tap the weight is B rows of A; a merged column runs on into the next tap.
    b_block = k[:, None] + column[None, :] * A if UP else k[:, None] * A + column[None, :]
    b_block += weight_ptr
    channel_blocks: tl.constexpr = (CIN * FOLD + BLOCK_K - 1) // BLOCK_K
    w_steps: tl.constexpr = TAPS // FOLD
    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # Taps along w innermost: neighbouring rows read the same pixels by other taps, from L1.
    for step in range(DEPTH_TAPS * TAPS * channel_blocks * w_steps):
        tw = step % w_steps * FOLD
        first_channel = step // w_steps % channel_blocks * BLOCK_K
        th = step // (w_steps * channel_blocks) % TAPS
        td = step // (w_steps * channel_blocks * TAPS)
        inside = (d + td).to(tl.uint32) < IN_D
        if UP or KERNEL == 4:  # else there is no padding
            inside &= (h + th).to(tl.uint32) < IN_H
            if FOLD == 1:
                inside &= (w + tw).to(tl.uint32) < IN_W
        inside = inside[:, None]
        if FOLD > 1 and KERNEL == 4:
            inside &= ((w + tw)[:, None] + (k // CIN)[None, :]).to(tl.uint32) < IN_W
        if CIN * FOLD % BLOCK_K:
            inside &= (first_channel + k < CIN * FOLD)[None, :]
        tap = (td * IN_H + th) * IN_W + tw
        a = tl.load(
            a_rows[:, None] + (tap * CIN + first_channel + k)[None, :],
            mask=inside,
            other=0.0,
            cache_modifier=".ca",
        )
        element = (start + STEP * ((td * KERNEL + th) * KERNEL + tw)) * (A * B)
        b_tile = b_block + (element + (first_channel if UP else first_channel * A))
        if CIN * FOLD % BLOCK_K and COLUMNS % BLOCK_N:
            exists = (first_channel + k < CIN * FOLD)[:, None] & (column < COLUMNS)[None, :]
            b = tl.load(b_tile, mask=exists, other=0.0)
        elif CIN * FOLD % BLOCK_K:
            b = tl.load(b_tile, mask=(first_channel + k < CIN * FOLD)[:, None], other=0.0)
        elif COLUMNS % BLOCK_N:
            b = tl.load(b_tile, mask=(column < COLUMNS)[None, :], other=0.0)
        else:
            b = tl.load(b_tile)
        product = tl.dot(a, b, product, input_precision=PRECISION)

    position = ((n * OUT_D + y_d) * OUT_H + y_h) * OUT_W + y_w
    sides: tl.constexpr = 2 if MERGED else 1
    part = product_index * sides
    parts = tl.num_programs(0) // column_tiles * sides
    counts = (0, 0)
    if EPILOGUE == "statistics":
        earlier = tl.sum((valid & (y_w.to(tl.uint32) < OUT_W)).to(tl.int32))
        later = earlier
        tl.store(count_ptr + part, earlier, mask=first == 0)
        if MERGED:
            later = tl.sum((valid & ((y_w + 1).to(tl.uint32) < OUT_W)).to(tl.int32))
            tl.store(count_ptr + part + 1, later, mask=first == 0)
        counts = (earlier, later)
    rest = (
        y_ptr,
        shift_ptr,
        scale_ptr,
        other_ptr,
        mean_ptr,
        variance_ptr,
        gamma_ptr,
        beta_ptr,
        partial_ptr,
        eps,
        slope,
        valid,
        position,
        y_w,
        group,
        part,
        parts,
        counts,
    )
    width: tl.constexpr = BLOCK_N // PARTS
    if PARTS == 1:
        _finish(product, first, *rest, COUT, COLUMNS, OUT_W, EPILOGUE)
    else:
        left, right = _halves(product)
        if PARTS == 2:
            _finish(left, first, *rest, COUT, COLUMNS, OUT_W, EPILOGUE)
            _finish(right, first + width, *rest, COUT, COLUMNS, OUT_W, EPILOGUE)
        else:
            one, two = _halves(left)
            _finish(one, first, *rest, COUT, COLUMNS, OUT_W, EPILOGUE)
            _finish(two, first + width, *rest, COUT, COLUMNS, OUT_W, EPILOGUE)
            three, four = _halves(right)
            _finish(three, first + 2 * width, *rest, COUT, COLUMNS, OUT_W, EPILOGUE)
            _finish(four, first + 3 * width, *rest, COUT, COLUMNS, OUT_W, EPILOGUE)


@triton.jit(do_not_specialize=["parts"])
def _merge_statistics(
    partial_ptr,  # (2, C, groups * parts): total, and squares about the tile's mean
    count_ptr,  # (groups * parts,) int32
    mean_ptr,  # (groups, C) fp32
    variance_ptr,  # (groups, C) fp32, biased
    channels,
    parts,  # of a group
    BLOCK: tl.constexpr,
):
    c, group = tl.program_id(0), tl.program_id(1)
    first = group * parts
    row = c.to(tl.int64) * parts * tl.num_programs(1) + first
    plane = channels.to(tl.int64) * parts * tl.num_programs(1)
    # Totals as distances from the first tile's mean: squaring them cancels nothing. That tile has
    # some: of a column's first two positions the border takes one.
    pivot = tl.load(partial_ptr + row).to(tl.float64) / tl.load(count_ptr + first)
    counts = tl.zeros((BLOCK,), tl.int32)
    totals = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        inside = part < parts
        count = tl.load(count_ptr + first + part, mask=inside, other=0)
        total = tl.load(partial_ptr + row + part, mask=inside, other=0.0).to(tl.float64)
        square = tl.load(partial_ptr + plane + row + part, mask=inside, other=0.0)
        distance = total - pivot * count
        counts += count
        totals += distance
        squares += square.to(tl.float64) + distance * distance / tl.maximum(count, 1)
    # In fp64: a group may have more values than 32 bits count.
    count = tl.sum(counts.to(tl.float64), 0)
    mean = tl.sum(totals, 0) / count
    variance = tl.sum(squares, 0) / count - mean * mean
    tl.store(mean_ptr + group * channels + c, (pivot + mean).to(tl.float32))
    tl.store(variance_ptr + group * channels + c, variance.to(tl.float32))


@triton.jit(do_not_specialize=["parts"])
def _merge_sums(
    partial_ptr,  # (2, C, groups * parts) fp32: sums of g * (x - mean), and of g
    variance_ptr,  # (groups, C) fp32
    normed_ptr,  # (groups, C) fp32: sum of g * n
    sum_ptr,  # (groups, C) fp32: sum of g
    channels,
    parts,  # of a group
    eps,
    BLOCK: tl.constexpr,
):
    c, group = tl.program_id(0), tl.program_id(1)
    row = (c.to(tl.int64) * tl.num_programs(1) + group) * parts
    plane = channels.to(tl.int64) * parts * tl.num_programs(1)
    normed = tl.zeros((BLOCK,), tl.float64)
    plain = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, parts, BLOCK):
        part = start + tl.arange(0, BLOCK)
        inside = part < parts
        normed += tl.load(partial_ptr + row + part, mask=inside, other=0.0).to(tl.float64)
        plain += tl.load(partial_ptr + plane + row + part, mask=inside, other=0.0).to(tl.float64)
    at = group * channels + c
    rstd = tl.rsqrt(tl.load(variance_ptr + at) + eps)
    tl.store(normed_ptr + at, (tl.sum(normed, 0) * rstd).to(tl.float32))
    tl.store(sum_ptr + at, tl.sum(plain, 0).to(tl.float32))


def convolve(
    x: Tensor,
    weight: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    slope: float = 1.0,
    *,
    up: bool,
    config: Config | None = None,
) -> Tensor:
    """Launch act(convolution * scale + shift): x channels-last, weight packed in its dtype."""
    dispatch.launches["convolve"] += 1
    call = _Call(x, weight, up, "plain", config)
    return call.narrow(call.launch(shift=shift, scale=scale, slope=slope))


def convolve_statistics(
    x: Tensor,
    weight: Tensor,
    groups: int,
    *,
    up: bool,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch y = convolution, then the merge of its statistics."""
    dispatch.launches["convolve_statistics"] += 1
    call = _Call(x, weight, up, "statistics", config, groups)
    wide = torch.float64 if x.dtype == torch.float32 else torch.float32
    partial = call.empty(2, call.channels, groups * call.parts, dtype=wide)
    count = call.empty(groups * call.parts, dtype=torch.int32)
    y = call.launch(partial=partial, count=count)
    mean, variance = call.empty(groups, call.channels), call.empty(groups, call.channels)
    _merge_statistics[(call.channels, groups)](
        partial,
        count,
        mean,
        variance,
        call.channels,
        call.parts,
        BLOCK=BLOCK_P,
        **dispatch.OPTIONS,
    )
    return call.narrow(y), call.narrow(mean), call.narrow(variance)


def convolve_masked(
    dy: Tensor,
    weight: Tensor,
    activated: Tensor,
    slope: float,
    *,
    up: bool,
    config: Config | None = None,
) -> Tensor:
    """Launch the gradient through a (leaky) ReLU; `activated` channels-last."""
    dispatch.launches["convolve_masked"] += 1
    call = _Call(dy, weight, up, "masked", config)
    return call.narrow(call.launch(other=activated, slope=slope))


def convolve_norm_backward(
    dy: Tensor,
    weight: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    slope: float,
    *,
    up: bool,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch g and its sums, then the merge of these; x channels-last."""
    dispatch.launches["convolve_norm_backward"] += 1
    groups = len(mean)
    call = _Call(dy, weight, up, "norm_backward", config, groups)
    partial = call.empty(2, call.channels, groups * call.parts)
    norm = [call.widen(vector) for vector in (mean, variance, gamma, beta)]
    g = call.launch(other=x, norm=norm, partial=partial, eps=eps, slope=slope)
    sums = call.empty(2, groups, call.channels)
    _merge_sums[(call.channels, groups)](
        partial,
        norm[1],
        *sums,
        call.channels,
        call.parts,
        eps,
        BLOCK=BLOCK_P,
        **dispatch.OPTIONS,
    )
    return call.narrow(g), sums[..., : call.narrow_channels].contiguous()


def configs(x: Tensor, weight: Tensor, *, up: bool) -> list[Config]:
    """Configurations that are worth timing for a call, with any epilogue; the default first."""
    x, weight = _padded(x, weight, up)
    layer = _layer_of(x, weight, up)
    return _candidates(layer, len(x), _precision(x), dispatch.shared_memory(x.device))


class _Call:
    """One launch of the product: arguments checked, odd channels padded, the tiling settled.

    Rows of 16 bytes need channels that are multiples of 8 in 16 bits: others are copied with
    channels of zeros, and what belongs to those is cut off the result by another copy.
    """

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        up: bool,
        epilogue: Epilogue,
        config: Config | None,
        groups: int = 1,
    ) -> None:
        assert weight.dtype == x.dtype, f"weight {weight.dtype}, x {x.dtype}"
        assert is_packed(weight), f"not packed: {tuple(weight.shape)}, {weight.stride()}"
        assert x.is_contiguous(memory_format=_format(x)), f"not channels-last: {x.stride()}"
        assert len(x) % groups == 0, f"batch {len(x)} in {groups} groups"
        assert not (config and config.merged) or (up and weight.shape[2] == 4), f"{config}"
        self.narrow_channels = weight.shape[1 if up else 0]
        x, weight = _padded(x, weight, up)
        self.x, self.weight = dispatch.aligned(x), dispatch.aligned(weight)
        assert weight.numel() < 2**31, f"{weight.numel()} weights"
        self.layer = _layer_of(x, weight, up)
        self.epilogue = epilogue
        self.channels = self.layer.channels
        self.precision = _precision(x)
        shared = dispatch.shared_memory(x.device)
        self.config = config or _candidates(self.layer, len(x), self.precision, shared)[0]
        self.groups = groups
        self.rows = len(x) // groups * self.layer.rows(self.config.merged)
        self.tiles = triton.cdiv(self.rows, self.config.rows)
        self.parities = self.layer.parities(self.config.merged)
        # Partials of a group and channel.
        self.parts = self.tiles * self.parities * (2 if self.config.merged else 1)
        # Counted in 32 bits up to the end of the last tile; offsets of pixels in 64.
        assert self.rows < 2**31 - 2**24, f"{self.rows} rows"

    def launch(
        self,
        *,
        shift: Tensor | None = None,
        scale: Tensor | None = None,
        other: Tensor | None = None,
        norm: list[Tensor] | None = None,
        partial: Tensor | None = None,
        count: Tensor | None = None,
        eps: float = 0.0,
        slope: float = 1.0,
    ) -> Tensor:
        """The product with its epilogue, (N, channels, *sizes)."""
        # Partials are counted in 32 bits where they are written.
        assert partial is None or partial.numel() < 2**31, f"{partial.numel()} partials"
        y = self._result()
        constants = _constants(self.layer, self.config, self.epilogue, self.precision)
        columns = self.channels * (2 if self.config.merged else 1)
        column_tiles = triton.cdiv(columns, constants["BLOCK_N"])
        _gather_gemm[(self.groups * self.tiles * self.parities * column_tiles,)](
            self.x,
            self.weight,
            y,
            self.widen(shift),
            self.widen(scale),
            self._like(other, y),
            *(norm or [None] * 4),
            partial,
            count,
            self.rows,
            self.tiles,
            eps,
            slope,
            **constants,
            num_warps=self.config.num_warps,
            num_stages=self.config.num_stages,
            **dispatch.OPTIONS,
        )
        return y

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def widen(self, x: Tensor | None) -> Tensor | None:
        """A vector, or one a group, with as many channels as the product has."""
        if x is None:
            return None
        assert x.shape[-1] == self.narrow_channels, f"{tuple(x.shape)}, {self.narrow_channels}"
        if self.channels != self.narrow_channels:  # padding by nothing copies
            x = F.pad(x, (0, self.channels - self.narrow_channels))
        return dispatch.aligned(x.contiguous())

    def narrow(self, x: Tensor) -> Tensor:
        """Without the channels that were added."""
        if self.channels == self.narrow_channels:
            return x
        x = x[:, : self.narrow_channels]
        return x.contiguous(memory_format=_format(x))

    def _result(self) -> Tensor:
        sizes = self.layer.fine_sizes if self.layer.up else self.layer.sizes
        shape = len(self.x), self.channels, *sizes[5 - self.x.dim() :]
        return torch.empty(
            shape, dtype=self.x.dtype, device=self.x.device, memory_format=_format(self.x)
        )

    def _like(self, other: Tensor | None, y: Tensor) -> Tensor | None:
        if other is None:
            return None
        assert other.is_contiguous(memory_format=_format(other)), f"{other.stride()}"
        shape = len(y), self.narrow_channels, *y.shape[2:]
        assert other.shape == shape, f"{tuple(other.shape)} is not {shape}"
        return dispatch.aligned(_with_channels(other, self.channels))


def _padded(x: Tensor, weight: Tensor, up: bool) -> tuple[Tensor, Tensor]:
    """Both with channels that fill 16 bytes."""
    channels = weight.shape[0 if up else 1]
    assert x.shape[1] == channels, f"x has {x.shape[1]} channels, the weight {channels}"
    multiple = 16 // x.element_size()
    missing = [-channels % multiple for channels in weight.shape[:2]]
    if any(missing):
        spatial = (0, 0) * (weight.dim() - 2)
        weight = pack(F.pad(weight, (*spatial, 0, missing[1], 0, missing[0])), weight.dtype)
    assert not any(size % multiple for size in weight.shape[:2]), f"{tuple(weight.shape)}"
    return _with_channels(x, weight.shape[0 if up else 1]), weight


def _with_channels(x: Tensor, channels: int) -> Tensor:
    if x.shape[1] == channels:
        return x
    x = F.pad(x, (*(0, 0) * (x.dim() - 2), 0, channels - x.shape[1]))
    return x.contiguous(memory_format=_format(x))


def _format(x: Tensor) -> torch.memory_format:
    return {
        2: torch.contiguous_format,
        4: torch.channels_last,
        5: torch.channels_last_3d,
    }[x.dim()]


def _layer_of(x: Tensor, weight: Tensor, up: bool) -> _Layer:
    kernel = weight.shape[2]
    assert kernel in (2, 4) and set(weight.shape[2:]) == {kernel}, f"kernel {weight.shape[2:]}"
    assert x.dim() == weight.dim(), f"x {tuple(x.shape)}, weight {tuple(weight.shape)}"
    sizes = x.shape[2:]
    if not up and kernel == 4:
        assert not any(size % 2 for size in sizes), f"odd size of the fine side: {tuple(sizes)}"
        sizes = [size // 2 for size in sizes]
    elif not up:
        sizes = [size - 1 for size in sizes]
    volume = x.dim() == 5
    return _Layer(up, kernel, volume, (1,) * (not volume) + tuple(sizes), *weight.shape[:2])


def _precision(x: Tensor) -> Precision:
    if x.dtype != torch.float32:
        return "16 bits"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def _tiles(*tiles: tuple[int, int, int, int]) -> list[Config]:
    """For 16 bits; an epilogue that takes more than 32 to 64 columns at a time spills somewhere."""
    return [
        Config(rows, columns, 64, False, min(4, columns // 32), warps, stages)
        for rows, columns, warps, stages in tiles
    ]


# (rows, columns, warps, stages), the default first. Hopper is bound by what its multiprocessors
# read of L2, and a tile of 256 x 128 reads 3/4 of what two of 128 x 128 do. But those fit twice on
# a multiprocessor, where one's epilogue hides behind the other's product, and once within the 99 KB
# of sm_86 and sm_120. Narrower ones are for few columns, or to give every multiprocessor a tile.
# On an H100 128 x 128 by four warps was the fastest at most layers, and 128 x 256 at most that have
# so many channels. Like 256 x 128 they take 128 registers a thread for the sums, and spill where
# operands come from registers, too.
_LONG = _tiles(
    (256, 128, 8, 4),
    (128, 128, 8, 3),
    (128, 64, 8, 3),
    (128, 256, 8, 3),
    (128, 128, 4, 3),
    (64, 128, 4, 4),
)
_SHORT = _tiles(
    (128, 128, 8, 3), (256, 128, 8, 4), (128, 64, 8, 3), (128, 128, 4, 3), (128, 256, 8, 3)
)
_NARROW = _tiles((128, 64, 8, 3), (256, 64, 8, 3), (128, 64, 4, 3))
# A picture's: the background head's gradient spills on sm_80 with 8 warps to 128 rows.
_FLAT = _tiles((128, 64, 4, 3), (256, 64, 8, 3), (64, 64, 4, 3))
_NARROWEST = _tiles((128, 32, 8, 4), (128, 32, 4, 3))
_LONG_SUM = 4096  # terms: so many hide the epilogue of a tile that is alone on its multiprocessor
_HOPPER = 200 << 10  # bytes of shared memory: the tensor cores of so much read operands there
_FILLED = 96  # tiles at least: fewer leave more than a quarter of an H200's 132 idle
# Exact products of fp32 run on the plain units, whose code is unrolled over the tile: small ones.
# Twice the depth, or twice the columns, spills somewhere.
_EXACT = [Config(64, 32, 16, False, 1, 4, 2)]
_TF32 = [Config(64, 32, 32, False, 1, 4, 3)]


def _candidates(layer: _Layer, batch: int, precision: Precision, shared: int) -> list[Config]:
    """The default, then what else may be faster."""
    merged = layer.up and layer.kernel == 4 and layer.channels <= 64
    columns = layer.channels * (2 if merged else 1)
    rows = batch * layer.rows(merged) * layer.parities(merged)
    taps = (2 if layer.up else layer.kernel) ** (3 if layer.volume else 2)
    terms = taps * (layer.coarse_channels if layer.up else layer.fine_channels)
    if precision == "ieee":
        found = _EXACT
    elif precision == "tf32":
        found = _TF32
    elif columns <= 32:
        found = _NARROWEST
    elif columns <= 64:
        found = _NARROW if layer.volume else _FLAT
    else:
        found = _LONG if terms >= _LONG_SUM else _SHORT

    def filling(config: Config) -> int:
        """Tiles, so far as the device is short of them."""
        return min(triton.cdiv(rows, config.rows) * triton.cdiv(columns, config.columns), _FILLED)

    element_size = 2 if precision == "16 bits" else 4
    fitting = [
        replace(config, merged=merged)
        for config in found
        if config.columns <= max(columns, found[0].columns)
        and config.shared_bytes(element_size) <= shared
        and (config.accumulators <= 64 or shared >= _HOPPER)
    ]
    return sorted(fitting, key=filling, reverse=True)


def _constants(layer: _Layer, config: Config, epilogue: Epilogue, precision: Precision) -> dict:
    """What is constant in one compilation, by name."""
    inputs = layer.coarse_channels if layer.up else layer.fine_channels
    columns = layer.channels * (2 if config.merged else 1)
    depth = min(config.depth, max(16, triton.next_power_of_2(inputs)))
    # Taps along w that are neighbours in memory share a block that one of them leaves half empty.
    fold = 1
    while not layer.up and 2 * fold * inputs <= config.depth and 2 * fold <= layer.kernel:
        fold *= 2
    if fold > 1:
        depth = max(16, triton.next_power_of_2(fold * inputs))
        assert depth <= config.depth, f"{depth} numbers a step where {config.depth} fit"
    return {
        "UP": layer.up,
        "KERNEL": layer.kernel,
        "VOLUME": layer.volume,
        "DEPTH": layer.sizes[0],
        "HEIGHT": layer.sizes[1],
        "WIDTH": layer.sizes[2],
        "A": layer.coarse_channels,
        "B": layer.fine_channels,
        "MERGED": config.merged,
        "FOLD": fold,
        "EPILOGUE": epilogue,
        "PARTS": config.parts,
        "PRECISION": "tf32" if precision == "tf32" else "ieee",
        "BLOCK_M": config.rows,
        "BLOCK_N": min(config.columns, max(16, triton.next_power_of_2(columns))),
        "BLOCK_K": depth,
    }


_DOWN = [("down", "statistics", 128), ("down", "norm_backward", 64)]
_UP = [("up", "statistics", 64), ("up", "scale", 64)]
# The paper's layers: coarse sizes, A, B, kernel, and calls: direction, epilogue, clips. Equal calls
# of generator and discriminator are one. Of the background, those whose tile is another.
_PAPER = {
    "D1, head": (
        *((16, 32, 32), 64, 32, 2),
        [("down", "shift", 128), ("down", "none", 64), ("up", "none", 64)],
    ),
    "D2, G4": ((8, 16, 16), 128, 64, 4, [*_DOWN, *_UP, ("up", "masked", 128)]),
    "D3, G3": ((4, 8, 8), 256, 128, 4, [*_DOWN, *_UP, ("up", "norm_backward", 128)]),
    "D4, G2": (
        *((2, 4, 4), 512, 256, 4),
        [*_DOWN, ("down", "none", 128), *_UP, ("up", "norm_backward", 128)],
    ),
    "background 2": ((4, 4), 512, 256, 4, [_DOWN[1], _UP[0], ("up", "none", 64)]),
    "background 4": ((16, 16), 128, 64, 4, [_DOWN[1], _UP[0]]),
    "logits of the head": ((16, 32, 32), 64, 8, 4, [("up", "shift", 64)]),
}
_PAPER_FP32 = ("D2, G4", "D3, G3")  # one whose results along w are merged, one where not


def aot_cases() -> list[AotCase]:
    """The paper's layers with all that is worth timing, defaults first; in fp32 two of them."""
    cases = []
    for name, (sizes, a, b, kernel, calls) in _PAPER.items():
        for direction, epilogue, batch in calls:
            volume = len(sizes) == 3
            layer = _Layer(direction == "up", kernel, volume, (1,) * (not volume) + sizes, a, b)
            cases += [
                _aot_case(f"{name} {direction}", layer, config, epilogue, precision)
                for precision in (get_args(Precision) if name in _PAPER_FP32 else ["16 bits"])
                for config in _candidates(layer, batch, precision, 227 << 10)
            ]
    partial = {"partial_ptr": "*fp32", "channels": "i32", "parts": "i32"}
    pairs = dict.fromkeys(("normed_ptr", "sum_ptr"), "*fp32")
    moments = {"count_ptr": "*i32"} | dict.fromkeys(("mean_ptr", "variance_ptr"), "*fp32")
    merges = [
        AotCase(
            f"convolution, merge {name}",
            kernel,
            partial | signature,
            {"BLOCK": BLOCK_P},
            4,
            3,
            "small",
            odd=("parts",),
        )
        for name, kernel, signature in (
            ("statistics", _merge_statistics, moments),
            ("sums", _merge_sums, {"variance_ptr": "*fp32", "eps": "fp32"} | pairs),
        )
    ]
    return cases + merges


def _aot_case(
    name: str, layer: _Layer, config: Config, epilogue: str, precision: Precision
) -> AotCase:
    vectors = {
        "none": [],
        "shift": ["shift_ptr"],
        "scale": ["shift_ptr", "scale_ptr"],
        "statistics": ["partial_ptr"],
        "masked": [],
        "norm_backward": ["mean_ptr", "variance_ptr", "gamma_ptr", "beta_ptr", "partial_ptr"],
    }[epilogue]
    kind = "*bf16" if precision == "16 bits" else "*fp32"
    pointers = dict.fromkeys(vectors, "*fp32")
    pointers |= dict.fromkeys(("x_ptr", "weight_ptr", "y_ptr"), kind)
    if epilogue in ("masked", "norm_backward"):
        pointers["other_ptr"] = kind
    if epilogue == "statistics":
        pointers["count_ptr"] = "*i32"
        pointers["partial_ptr"] = "*fp32" if precision == "16 bits" else "*fp64"
    constants = _constants(
        layer, config, "plain" if epilogue in ("none", "shift", "scale") else epilogue, precision
    )
    names = [name for name in _gather_gemm.arg_names if name.endswith("_ptr")]
    absent = [name for name in names if name not in pointers]
    tile = f"{config.rows}x{constants['BLOCK_N']}x{constants['BLOCK_K']}, {config.num_warps} warps"
    return AotCase(
        f"{name} {epilogue}, {tile}, {'bf16' if precision == '16 bits' else precision}",
        _gather_gemm,
        pointers | {"rows": "i32", "tiles": "i32", "eps": "fp32", "slope": "fp32"},
        constants | {name: None for name in absent},
        config.num_warps,
        config.num_stages,
        "small" if precision == "ieee" else "matmul",
        odd=("rows", "tiles"),
        shared_bytes=config.shared_bytes(2 if precision == "16 bits" else 4),
    )
