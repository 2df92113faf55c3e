"""The weight gradient of a convolution between a coarse and a fine grid, in Triton.

A matrix product: its rows are (tap, fine channel), its columns coarse channels, and it sums over
the positions of the coarse grid. The taps along the width are neighbours in the fine tensor, as
their channels are, so that a row of taps is one run of memory. Both operands are read as they lie,
positions outermost, and tensor cores take them transposed from shared memory.

Positions are taken in boxes of the coarse grid: where a box starts is a scalar, and where its
positions lie from there is the same for all boxes. Boxes are dealt out to splits, whose partial
sums a second kernel adds up in a fixed order. No atomics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase

# Accumulators of all splits together: half the registers of an H200's 132 multiprocessors. It gives
# each of them work and holds the partial sums to 17.3 MB. The same everywhere, so that the order of
# summation does not depend on the GPU.
BLOCKS, ACCUMULATORS = 264, 1 << 14
# With fewer positions a split, partial sums would cost more than they gain.
SPLIT_POSITIONS = 1024
# Tile of the sum over splits, (splits, weights), where they are few and where they are many: there
# are then fewer weights than a GPU has threads. 32 bytes a thread of 256.
FEW_SPLITS, MANY_SPLITS, SUM_WARPS = (2, 1024), (32, 64), 8


@dataclass(frozen=True)
class Config:
    """Tile of the product: `rows` by `columns`, summed over `positions` at a time."""

    rows: int
    columns: int
    positions: int
    num_warps: int
    num_stages: int

    def shared_bytes(self, element_size: int) -> int:
        """Of all stages of both operands."""
        return self.num_stages * self.positions * (self.rows + self.columns) * element_size


# For 16 bits, best first.
_WIDE = (
    # At 128x128 Hopper is bound by what it reads of L2: larger tiles read less of it again.
    Config(256, 128, 64, 8, 3),
    Config(128, 256, 64, 8, 3),
    # Within the 99 KB of sm_86 and sm_120.
    Config(256, 128, 32, 8, 4),
    Config(128, 128, 64, 8, 3),
    # Several blocks to a processor: one's stores hide behind another's product.
    Config(128, 128, 32, 4, 3),
    Config(128, 128, 64, 4, 3),
)
# Up to 64 coarse channels: the networks' ends, whose operands come from memory.
_NARROW = (
    # Two blocks to a processor of Hopper, so that one loads while the other waits.
    Config(256, 64, 32, 8, 4),
    Config(256, 64, 64, 8, 3),
    Config(128, 64, 64, 4, 3),
    Config(128, 64, 32, 4, 4),
)
# Exact products of 32 bits run on the plain units, whose code is unrolled over the tile.
_EXACT = (Config(64, 32, 16, 4, 2),)
_TF32 = (Config(64, 64, 32, 4, 3),)


def weight_gradient(
    fine: Tensor, coarse: Tensor, kernel: int, *, config: Config | None = None
) -> Tensor:
    """Launch: (A, B, *kernel) fp32, stored in the order (*kernel, B, A).

    Args:
        fine: (N, B, *sizes), stored channels-last; sizes are twice the coarse ones for kernel 4
            and one more for kernel 2.
        coarse: (N, A, *sizes), stored channels-last, in the dtype of `fine`.
        kernel: 4 (stride 2, padding 1; 2D or 3D) or 2 (stride 1, no padding; 3D).
        config: one of `configs`; by default the first.
    """
    dispatch.launches["weight_gradient"] += 1
    batch, columns, *sizes = coarse.shape
    rows = fine.shape[1]
    assert fine.dtype == coarse.dtype, f"{fine.dtype} and {coarse.dtype}"
    assert fine.shape == (batch, rows, *_fine(sizes, kernel)), f"{fine.shape}, {coarse.shape}"
    config = config or configs(fine, coarse, kernel)[0]
    fine, coarse = _wide(fine), _wide(coarse)
    taps = [kernel] * len(sizes)
    constants, boxes = _constants(
        batch, tuple(sizes), kernel, (rows, fine.shape[1]), (columns, coarse.shape[1]), config
    )
    splits, steps = _split(boxes, batch * prod(sizes), prod(taps) * rows * columns)

    out = torch.empty((*taps, rows, columns), dtype=torch.float32, device=fine.device)
    partial = out
    if splits > 1:
        partial = torch.empty((splits, out.numel()), dtype=torch.float32, device=fine.device)
    blocks = triton.cdiv(prod(taps) * fine.shape[1], config.rows)
    _product[(blocks * triton.cdiv(columns, config.columns), splits)](
        fine,
        coarse,
        partial,
        batch,
        boxes,
        steps,
        **constants,
        PRECISION=_precision(fine.dtype),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **dispatch.OPTIONS,
    )
    if splits > 1:
        block_s, block = FEW_SPLITS if splits <= MANY_SPLITS[0] else MANY_SPLITS
        _sum[(triton.cdiv(out.numel(), block),)](
            partial,
            out,
            splits,
            out.numel(),
            BLOCK_S=block_s,
            BLOCK=block,
            num_warps=SUM_WARPS,
            **dispatch.OPTIONS,
        )
    return out.permute(-1, -2, *range(len(sizes)))


def configs(fine: Tensor, coarse: Tensor, kernel: int) -> tuple[Config, ...]:
    """What fits the shared memory of the tensors' device, the default first."""
    if fine.element_size() == 4:
        return _EXACT if _precision(fine.dtype) == "ieee" else _TF32
    rows = kernel ** (fine.dim() - 2) * fine.shape[1]
    return _table(rows, coarse.shape[1], dispatch.shared_memory(fine.device))


def _table(rows: int, columns: int, shared_memory: int) -> tuple[Config, ...]:
    """Configurations for 16 bits, no larger than the product; what had to shrink comes last."""
    rows, columns = triton.next_power_of_2(rows), max(16, triton.next_power_of_2(columns))
    table = _NARROW if columns <= _NARROW[0].columns else _WIDE
    found = {}
    for config in sorted(table, key=lambda config: config.rows > rows or config.columns > columns):
        config = replace(config, rows=min(config.rows, rows), columns=min(config.columns, columns))
        if config.shared_bytes(2) <= shared_memory:
            found[config] = None
    return tuple(found)


def _precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"


def _wide(x: Tensor) -> Tensor:
    """With channels that fill 16 bytes and start on them: a copy where they do not."""
    n, channels, *sizes = x.shape
    missing = -channels % (16 // x.element_size())
    if not missing:
        form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        assert x.is_contiguous(memory_format=form), f"not channels-last: {x.stride()}"
        return dispatch.aligned(x)
    wide = x.new_zeros(n, *sizes, channels + missing).movedim(-1, 1)
    wide[:, :channels] = x
    return wide


def _split(boxes: int, positions: int, weights: int) -> tuple[int, int]:
    """Splits, and the boxes of each but perhaps the last; from shapes only."""
    splits = min(
        max(1, BLOCKS // triton.cdiv(weights, ACCUMULATORS)),
        triton.cdiv(positions, SPLIT_POSITIONS),
    )
    steps = triton.cdiv(boxes, splits)
    return triton.cdiv(boxes, steps), steps


@cache
def _constants(
    batch: int,
    sizes: tuple[int, ...],
    kernel: int,
    rows: tuple[int, int],
    columns: tuple[int, int],
    config: Config,
) -> tuple[dict[str, int], int]:
    """The product's constants, and how many boxes there are.

    Args:
        batch: N.
        sizes: of the coarse grid.
        kernel: 4 or 2.
        rows, columns: channels of the fine and of the coarse tensor, and with padding.
        config: the tile.
    """
    depth, height, width = (1, *sizes)[-3:]
    fine = (1, *_fine(sizes, kernel))[-3:]
    sample = max(prod(fine) * rows[1], depth * height * width * columns[1])
    # Within a box values are counted in 32 bits; taps reach beyond it by less than a sample.
    assert sample < 2**30, f"{sample} values a sample"
    box, boxes = _box(batch, (depth, height, width), config.positions, (2**31 - 1) // sample - 1)
    assert boxes < 2**31, f"{boxes} boxes"
    constants = {
        "DEPTH": depth,
        "HEIGHT": height,
        "WIDTH": width,
        "FINE_DEPTH": fine[0],
        "FINE_HEIGHT": fine[1],
        "FINE_WIDTH": fine[2],
        "KERNEL": kernel,
        "ROWS": rows[0],
        "FINE": rows[1],
        "COLUMNS": columns[0],
        "COARSE": columns[1],
        "BOX_N": box[0],
        "BOX_D": box[1],
        "BOX_H": box[2],
        "BOX_W": box[3],
        "BLOCK_M": config.rows,
        "BLOCK_N": config.columns,
    }
    return constants, boxes


def _fine(sizes: Sequence[int], kernel: int) -> list[int]:
    """Sizes of the fine grid."""
    return [2 * size if kernel == 4 else size + 1 for size in sizes]


def _box(
    batch: int, sizes: tuple[int, int, int], positions: int, samples: int
) -> tuple[tuple[int, int, int, int], int]:
    """Box of `positions` (n, d, h, w), powers of two, and how many of them cover all positions.

    The fewest, and of those the widest: where sizes are powers of two, any batch gives the same.
    A box takes at most `samples` of the batch.
    """
    extents = [[1 << i for i in range(triton.next_power_of_2(size).bit_length())] for size in sizes]
    found = []
    for d, h, w in product(*extents):
        n = positions // (d * h * w)
        if n and (n == 1 or n <= samples):
            boxes = prod(map(triton.cdiv, (batch, *sizes), (n, d, h, w)))
            found.append((boxes, -w, -h, -d, (n, d, h, w)))
    return min(found)[-1], min(found)[0]


@triton.jit
def _inside(at, size: tl.constexpr):
    # One comparison for both ends: below 0 is far above any size.
    return at.to(tl.uint32) < size


@triton.jit(do_not_specialize=["batch", "boxes", "steps"])
def _product(
    fine_ptr,  # (batch, FINE_DEPTH, FINE_HEIGHT, FINE_WIDTH, FINE)
    coarse_ptr,  # (batch, DEPTH, HEIGHT, WIDTH, COARSE)
    out_ptr,  # (splits, taps, ROWS, COLUMNS) fp32, written
    batch,
    boxes,
    steps,  # boxes of a split
    DEPTH: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    FINE_DEPTH: tl.constexpr,  # 1 in two dimensions, whose kernel is flat
    FINE_HEIGHT: tl.constexpr,
    FINE_WIDTH: tl.constexpr,
    KERNEL: tl.constexpr,  # 4 with stride 2 and padding 1, or 2 with neither
    ROWS: tl.constexpr,  # channels, and FINE with padding to 16 bytes
    FINE: tl.constexpr,
    COLUMNS: tl.constexpr,  # channels, and COARSE with padding to 16 bytes
    COARSE: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_D: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    FLAT: tl.constexpr = FINE_DEPTH == 1
    STRIDE: tl.constexpr = KERNEL // 2
    PADDING: tl.constexpr = STRIDE - 1
    PADDING_D: tl.constexpr = 0 if FLAT else PADDING
    RUN: tl.constexpr = KERNEL * FINE  # a row of taps
    TAPS: tl.constexpr = KERNEL * KERNEL * (1 if FLAT else KERNEL)
    BOXES_D: tl.constexpr = (DEPTH + BOX_D - 1) // BOX_D
    BOXES_H: tl.constexpr = (HEIGHT + BOX_H - 1) // BOX_H
    BOXES_W: tl.constexpr = (WIDTH + BOX_W - 1) // BOX_W
    BLOCK_K: tl.constexpr = BOX_N * BOX_D * BOX_H * BOX_W

    # Neighbouring programs share the fine operand's tile, then all that their split reads.
    blocks: tl.constexpr = (COARSE + BLOCK_N - 1) // BLOCK_N
    first_row = tl.program_id(0) // blocks * BLOCK_M
    column = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    split = tl.program_id(1)

    # Taps: scalars where a tile lies within one, which spares the masks a dimension.
    row = (first_row + tl.arange(0, BLOCK_M))[:, None]
    at = first_row if RUN % BLOCK_M == 0 else row
    kd, kh = at // (RUN * KERNEL), at // RUN % KERNEL
    kw = (first_row if FINE % BLOCK_M == 0 else row) // FINE % KERNEL
    tap = (kd * FINE_HEIGHT + kh) * (FINE_WIDTH * FINE) + row % RUN

    position = tl.arange(0, BLOCK_K)
    w = position % BOX_W
    h = position // BOX_W % BOX_H
    d = position // (BOX_W * BOX_H) % BOX_D
    n = position // (BOX_W * BOX_H * BOX_D)
    from_fine = ((n * FINE_DEPTH + STRIDE * d) * FINE_HEIGHT + STRIDE * h) * FINE_WIDTH
    from_fine = tap + ((from_fine + STRIDE * w) * FINE)[None, :]
    from_coarse = (((n * DEPTH + d) * HEIGHT + h) * WIDTH + w) * COARSE
    from_coarse = from_coarse[:, None] + column

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for box in range(split * steps, tl.minimum(split * steps + steps, boxes)):
        w0 = box % BOXES_W * BOX_W
        h0 = box // BOXES_W % BOXES_H * BOX_H
        d0 = box // (BOXES_W * BOXES_H) % BOXES_D * BOX_D
        n0 = box // (BOXES_W * BOXES_H * BOXES_D) * BOX_N
        inside = tl.full((BLOCK_K,), True, tl.int1)
        if BOX_N > 1:
            inside &= n0 + n < batch
        if DEPTH % BOX_D:
            inside &= d0 + d < DEPTH
        if HEIGHT % BOX_H:
            inside &= h0 + h < HEIGHT
        if WIDTH % BOX_W:
            inside &= w0 + w < WIDTH
        n0 = n0.to(tl.int64)
        coarse = tl.load(
            coarse_ptr + (((n0 * DEPTH + d0) * HEIGHT + h0) * WIDTH + w0) * COARSE + from_coarse,
            mask=inside[:, None] & (column < COARSE) if COARSE % BLOCK_N else inside[:, None],
            other=0,
        )
        inside = inside[None, :]
        if TAPS * FINE % BLOCK_M:
            inside &= row < TAPS * FINE
        d0, h0, w0 = STRIDE * d0 - PADDING_D, STRIDE * h0 - PADDING, STRIDE * w0 - PADDING
        if PADDING:
            inside &= _inside((h0 + STRIDE * h)[None, :] + kh, FINE_HEIGHT)
            inside &= _inside((w0 + STRIDE * w)[None, :] + kw, FINE_WIDTH)
            if not FLAT:
                inside &= _inside((d0 + STRIDE * d)[None, :] + kd, FINE_DEPTH)
        # Neighbouring positions share taps: worth a place in L1.
        fine = tl.load(
            fine_ptr
            + (((n0 * FINE_DEPTH + d0) * FINE_HEIGHT + h0) * FINE_WIDTH + w0) * FINE
            + from_fine,
            mask=inside,
            other=0,
            cache_modifier=".ca",
        )
        total = tl.dot(fine, coarse, total, input_precision=PRECISION)

    stored = row if ROWS == FINE else row // FINE * ROWS + row % FINE
    tl.store(
        out_ptr + (split * (TAPS * ROWS) + stored).to(tl.int64) * COLUMNS + column,
        total,
        mask=(row < TAPS * FINE) & (row % FINE < ROWS) & (column < COLUMNS),
    )


@triton.jit(do_not_specialize=["splits"])
def _sum(
    partial_ptr,  # (splits, weights) fp32
    out_ptr,  # (weights,) fp32, written
    splits,
    weights,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    weight = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    total = tl.zeros((BLOCK_S, BLOCK), tl.float64)
    for first in range(0, splits, BLOCK_S):
        split = (first + tl.arange(0, BLOCK_S))[:, None]
        total += tl.load(
            partial_ptr + split.to(tl.int64) * weights + weight,
            mask=(split < splits) & (weight < weights),
            other=0,
        )
    total = tl.sum(total, 0, keep_dims=True).to(tl.float32)
    tl.store(out_ptr + weight, total, mask=weight < weights)


# Fine and coarse channels, coarse sizes and kernel of the networks' layers; the fine channels of
# the picture's last, which are 3, are padded.
LAYERS = {
    "D2, G4": (64, 128, (8, 16, 16), 4),
    "D3, G3": (128, 256, (4, 8, 8), 4),
    "D4, G2": (256, 512, (2, 4, 4), 4),
    "D1, head": (32, 64, (16, 32, 32), 2),
    "picture 1": (256, 512, (4, 4), 4),
    "picture 2": (128, 256, (8, 8), 4),
    "picture 3": (64, 128, (16, 16), 4),
    "picture 4": (8, 64, (32, 32), 4),
}


def layer_configs(layer: str, shared_memory: int) -> tuple[Config, ...]:
    """Configurations of one of `LAYERS` in 16 bits, the default first."""
    fine, coarse, sizes, kernel = LAYERS[layer]
    return _table(kernel ** len(sizes) * fine, coarse, shared_memory)


def aot_case(layer: str, config: Config, dtype: str = "bf16", precision: str = "ieee") -> AotCase:
    """One of `LAYERS`, any batch."""
    fine, coarse, sizes, kernel = LAYERS[layer]
    constants, _ = _constants(64, sizes, kernel, (fine, fine), (coarse, coarse), config)
    exact = dtype == "fp32" and precision == "ieee"
    tile = f"{config.rows}x{config.columns}x{config.positions}, {config.num_warps} warps"
    return AotCase(
        f"{layer} weight gradient, {tile}, {dtype if dtype == 'bf16' else precision}",
        _product,
        {"fine_ptr": f"*{dtype}", "coarse_ptr": f"*{dtype}", "out_ptr": "*fp32"}
        | {"batch": "i32", "boxes": "i32", "steps": "i32"},
        constants | {"PRECISION": precision},
        config.num_warps,
        config.num_stages,
        "small" if exact else "matmul",
        odd=("batch", "boxes", "steps"),
        shared_bytes=config.shared_bytes(2 if dtype == "bf16" else 4),
    )


def aot_cases() -> list[AotCase]:
    """Every layer with all that is worth timing, in fp32 two of them; the sums over splits."""
    products = [
        aot_case(layer, config) for layer in LAYERS for config in layer_configs(layer, 227 << 10)
    ]
    for layer in ("D2, G4", "picture 4"):
        products += [aot_case(layer, config, "fp32") for config in _EXACT]
        products += [aot_case(layer, config, "fp32", "tf32") for config in _TF32]
    sums = [
        AotCase(
            f"convolution, sum over {splits} splits",
            _sum,
            {"partial_ptr": "*fp32", "out_ptr": "*fp32", "splits": "i32", "weights": "i32"},
            {"BLOCK_S": block_s, "BLOCK": block},
            SUM_WARPS,
            3,
            "elementwise",
            odd=("splits",),
            narrow={4: 1} if splits == "many" else {},  # a program's 64 sums
        )
        for splits, (block_s, block) in (("few", FEW_SPLITS), ("many", MANY_SPLITS))
    ]
    return products + sums
