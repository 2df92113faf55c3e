"""The products of a training step: counted from shapes, compiled for sm_90, times predicted.

    python -m benchmarks.step_table [--batch 64] > benchmarks/results/step_table.md

Needs no GPU. Calls are those of `vgan_fast.kernels.cost`, at the paper's sizes; tiles are what the
default picks for an H200; registers and shared memory are what the compiler says.
"""

import argparse
import dataclasses
from collections import defaultdict
from math import ceil

import triton

from benchmarks.machine import describe
from vgan_fast.kernels.aot import AotCase, Compiled, compile_case, complaints
from vgan_fast.kernels.conv import gather, weight_gradient
from vgan_fast.kernels.cost import BF16, TBYTES, TFLOPS, Call, Product, training_step
from vgan_fast.kernels.head import triton_impl as head
from vgan_fast.shape import ClipShape

ARCH = "sm_90"
PROCESSORS = 132
REGISTERS, SHARED_MEMORY, RESERVED = 1 << 16, 228 << 10, 1 << 10  # of one; a block's own
L2_TBYTES = 8.0
CACHED = 0.55  # share of the gathered operand's bytes that L1 leaves to L2
LAUNCH = 3e-6
ASSUMPTIONS = f"""\
A product's time is the longest of three, and {LAUNCH * 1e6:.0f} us for its launch: what the
busiest of {PROCESSORS} multiprocessors computes, in whole tiles, at its share of {TFLOPS:.0f}
TFLOP/s; the bytes that tiles read of L2, blocks x terms x (rows + columns) x 2, at {L2_TBYTES:.0f}
TB/s (a guess), or with L1 keeping all but {CACHED} of the rows' (a guess, "cached"); and its bytes
of memory at {TBYTES:.0f} TB/s. Where registers and shared memory of a multiprocessor leave room for
one block at a time, nothing hides its epilogue, whose bytes come on top of the other two. All else,
the library's products included, takes its floor and {LAUNCH * 1e6:.0f} us."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A product of ours as compiled, and its predicted seconds."""

    call: Call
    compiled: Compiled
    resident: int
    plain: float
    cached: float


def case(call: Call) -> AotCase:
    """What a product compiles."""
    product, layer = call.product, call.product.layer
    if product.direction == "head":
        found = head.aot_cases()[0]
        assert found.constexprs["BLOCK_M"] == product.tile[0]
        return found
    of = layer.fine, layer.coarse, layer.sizes, layer.kernel
    if product.direction == "weight gradient":
        (name,) = (name for name, known in weight_gradient.LAYERS.items() if known == of)
        return weight_gradient.aot_case(name, product.config)
    volume = len(layer.sizes) == 3
    sizes = (1,) * (not volume) + layer.sizes
    up = product.direction == "up"
    shape = gather._Layer(up, layer.kernel, volume, sizes, layer.coarse, layer.fine)
    return gather._aot_case(call.name, shape, product.config, product.epilogue, "16 bits")


def compiled_once(call: Call, known: dict[str, Compiled]) -> Compiled:
    """A case as compiled, which other calls of the step may share.

    Raises:
        SystemExit: what is picked by default would be refused.
    """
    made = case(call)
    key = f"{made.function} {made.constexprs} {made.signature} {made.num_warps} {made.num_stages}"
    if key not in known:
        known[key] = compile_case(made, ARCH)
        if found := complaints(made, ARCH, known[key]):
            raise SystemExit(f"error: {call.part}, {call.name}: {'; '.join(found)}")
    return known[key]


def resident(product: Product, compiled: Compiled) -> int:
    """Blocks that a multiprocessor holds at a time, 2 at most."""
    threads = 32 * product.config.num_warps
    by_registers = REGISTERS // (threads * 8 * ceil(compiled.registers / 8))
    by_shared = SHARED_MEMORY // (compiled.shared_bytes + RESERVED)
    return min(2, by_registers, by_shared)


def predicted(call: Call, blocks_at_a_time: int, share: float) -> float:
    """Seconds, with so much of the gathered rows read of L2."""
    product = call.product
    rows, columns, depth = product.tile
    terms = depth * ceil(product.k / product.splits / depth)
    whole = ceil(product.blocks / PROCESSORS) * PROCESSORS
    computes = whole * 2 * rows * columns * terms / (TFLOPS * 1e12)
    reads = product.blocks * terms * (share * rows + columns) * BF16 / (L2_TBYTES * 1e12)
    memory = call.bytes / (TBYTES * 1e12)
    if blocks_at_a_time > 1:
        return LAUNCH + max(computes, reads, memory)
    operands = _operands(call) / (TBYTES * 1e12)
    return LAUNCH + max(computes, reads, operands) + memory - operands


def _operands(call: Call) -> int:
    """Bytes of both operands of a product of ours."""
    product, layer = call.product, call.product.layer
    clips = call.flops // layer.flops
    coarse, fine = (clips * layer.rows(up) * layer.channels(up) for up in (False, True))
    if product.direction == "weight gradient":
        return (coarse + fine) * BF16
    given = fine if product.direction == "down" else coarse
    return (given + layer.weights) * BF16


def product_rows(calls: list[Call]) -> list[Row]:
    """Our products, in the order of the step."""
    known: dict[str, Compiled] = {}
    rows = []
    for call in calls:
        if call.product and call.by == "triton":
            made = compiled_once(call, known)
            blocks = resident(call.product, made)
            times = (predicted(call, blocks, share) for share in (1.0, CACHED))
            rows.append(Row(call, made, blocks, *times))
    return rows


def simple(call: Call) -> float:
    """Predicted seconds of what is no product of ours."""
    return LAUNCH + call.floor(TFLOPS, TBYTES)


def lines(calls: list[Call], rows: list[Row]) -> list[str]:
    """The tables in Markdown."""
    made = [
        "| part | layer, direction | M | N | K | tile | warps, stages | splits | blocks"
        " | registers | shared, KB | at a time | GFLOP | MB | floor, us | predicted, us"
        " | cached, us |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        call, product = row.call, row.call.product
        made.append(
            f"| {call.part} | {call.name} | {product.m} | {product.n} | {product.k}"
            f" | {'x'.join(map(str, product.tile))}"
            f" | {product.config.num_warps}, {product.config.num_stages} | {product.splits}"
            f" | {product.blocks} | {row.compiled.registers}"
            f" | {row.compiled.shared_bytes / 1024:.0f} | {row.resident} | {_cost(call)}"
            f" | {row.plain * 1e6:.0f} | {row.cached * 1e6:.0f} |"
        )
    others = [call for call in calls if call not in {row.call for row in rows}]
    kinds = defaultdict(list)
    for call in others:
        kinds[call.by, call.kernel].append(call)
    made += [
        "",
        "| the rest, by kind | whose | launches | GFLOP | MB | floor, us | predicted, us |",
        "|---|---|---|---|---|---|---|",
    ]
    for (by, kernel), of in sorted(kinds.items(), key=lambda kind: -sum(map(simple, kind[1]))):
        made.append(
            f"| {kernel} | {by} | {len(of)} | {_cost(*of)} | {sum(map(simple, of)) * 1e6:.0f} |"
        )
    groups = {
        "our products": [row.call for row in rows],
        "the library's products": [call for call in others if call.product],
        "our other kernels": [c for c in others if c.by == "triton"],
        "PyTorch's other calls": [c for c in others if c.by == "torch"],
    }
    made += [
        "",
        "| sums | launches | GFLOP | MB | floor, us | predicted, us | cached, us |",
        "|---|---|---|---|---|---|---|",
    ]
    times = {
        name: (sum(r.plain for r in rows), sum(r.cached for r in rows))
        if name == "our products"
        else (sum(map(simple, of)),) * 2
        for name, of in groups.items()
    }
    groups["**the step**"] = calls
    times["**the step**"] = tuple(map(sum, zip(*times.values(), strict=True)))
    for name, of in groups.items():
        plain, cached = times[name]
        made.append(
            f"| {name} | {len(of)} | {_cost(*of)} | {plain * 1e6:.0f} | {cached * 1e6:.0f} |"
        )
    return made


def _cost(*calls: Call) -> str:
    flops, moved = sum(call.flops for call in calls), sum(call.bytes for call in calls)
    floor = sum(call.floor(TFLOPS, TBYTES) for call in calls)
    return f"{flops / 1e9:.1f} | {moved / 1e6:.1f} | {floor * 1e6:.1f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="clips of a step  [64]")
    batch = parser.parse_args().batch
    calls = training_step(ClipShape(), batch)
    print(f"""\
# The training step, product by product: counted and predicted, not measured

`python -m benchmarks.step_table`{f" `--batch {batch}`" if batch != 64 else ""}  
{describe()}, Triton {triton.__version__}; no GPU

One step of the two-stream networks at the paper's sizes, batch {batch}, bf16, `--backend fused`:
tiles are the default on an H200, registers and shared memory the compiler's for {ARCH}. FLOPs,
bytes and floors ({TFLOPS:.0f} TFLOP/s, {TBYTES:.0f} TB/s) are counted from shapes; M, N and K are
of the product as it runs, what pads it included, FLOPs without. **No time here was measured.**

{ASSUMPTIONS}
""")
    print("\n".join(lines(calls, product_rows(calls))))


if __name__ == "__main__":
    main()
