"""Every product of a training step: its size, its default tile, and what a model predicts.

    python -m benchmarks.step_table [--batch 64]

Counted from shapes (`vgan_fast.kernels.cost`) and from what the compiler made of each kernel for
sm_90 (`benchmarks/results/aot.json`); times are a model's. Nothing here is measured.

The model: the longest of four times, and 3 us a launch.
- arithmetic at 790 TFLOP/s, in whole tiles: the last round of tiles fills the GPU or not;
- bytes from memory at 4.0 TB/s, each tensor once;
- what tiles read of L2, tiles x terms x (rows + columns) x 2 bytes, at 8 TB/s (a guess);
- as the former with 0.55 of the bytes of gathered rows, if L1 keeps the rest (assumed).
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path

from vgan_fast.kernels.cost import TBYTES, TFLOPS, Call, training_step
from vgan_fast.shape import ClipShape

MULTIPROCESSORS, L2_TBYTES, CACHED, LAUNCH_US = 132, 8.0, 0.55, 3.0
AOT = Path(__file__).parent / "results" / "aot.json"
EPILOGUES = {
    "convolve_statistics": ("statistics", "none"),
    "convolve_norm_backward": ("norm_backward",),
    "convolve_masked": ("masked",),
    "convolve": ("shift", "none"),
}


def compiled(call: Call, rows: list[dict]) -> dict | None:
    """The line of the report on that product's kernel, by layer, direction, epilogue and tile."""
    product = call.product
    three = len(product.kernel) == 3
    layer = {
        (64, 32): "D1, head",
        (128, 64): "D2, G4" if three else "background 4",
        (256, 128): "D3, G3",
        (512, 256): "D4, G2" if three else "background 2",
    }.get((product.coarse, product.fine))
    if product.direction == "weight gradient":
        pictures = {(512, 256): 1, (256, 128): 2, (128, 64): 3}
        layer = layer if three else f"picture {pictures[product.coarse, product.fine]}"
        names = [f"{layer} weight gradient, {product.tile}"]
    else:
        operation = call.name.split()[0]
        names = [
            f"{layer} {product.direction} {epilogue}, {product.tile}"
            for epilogue in EPILOGUES.get(operation, ())
        ]
    return next((r for n in names for r in rows if r["kernel"] == f"{n}, bf16"), None)


def predicted(call: Call) -> tuple[float, float]:
    """Microseconds without and with cached rows."""
    product = call.product
    rows, columns = (int(size) for size in product.tile.split(",")[0].split("x")[:2])
    m, n = product.m, product.n
    if columns > n:  # results that are neighbours along w are columns of one row
        m, n = m // 2, 2 * n
    tiles = math.ceil(m / rows) * math.ceil(n / columns) * product.splits
    rounds = math.ceil(tiles / MULTIPROCESSORS)
    full = rounds * MULTIPROCESSORS / tiles
    padded = math.ceil(m / rows) * rows * math.ceil(n / columns) * columns
    arithmetic = full * 2 * padded * product.k / TFLOPS / 1e6
    memory = call.bytes / TBYTES / 1e6
    terms = tiles * product.k / product.splits * 2 / L2_TBYTES / 1e6
    launches = LAUNCH_US * call.launches
    return tuple(
        max(arithmetic, memory, terms * (share * rows + columns)) + launches
        for share in (1.0, CACHED)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    batch = parser.parse_args().batch
    calls = training_step(ClipShape(), batch)
    rows = [row for row in json.loads(AOT.read_text()) if row["target"] == "sm_90"]
    print("# The products of a training step: counted and predicted, not measured\n")
    print(f"`python -m benchmarks.step_table --batch {batch}`, the paper's networks in bf16; one")
    print("H200 at its default tiles. Registers and shared memory: sm_90, as compiled.\n")
    print(__doc__.split("\n\n")[3].replace("\n-", "\n\n-", 1) + "\n")
    print(
        "| part | call | M | N | K | tile, splits | registers | shared KiB | GFLOP | MB"
        " | floor us | predicted us | with cached rows |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    sums = [0.0, 0.0]
    for call in calls:
        if not (product := call.product) or not product.tile:
            continue
        found, times = compiled(call, rows), predicted(call)
        sums = [total + time for total, time in zip(sums, times, strict=True)]
        made = ("–", "–")
        if found:
            made = found["registers"], round(found["shared_bytes"] / 1024)
        print(
            f"| {call.part} | {call.name} | {product.m:,} | {product.n} | {product.k:,}"
            f" | {product.tile}, {product.splits} | {made[0]} | {made[1]}"
            f" | {call.flops / 1e9:.1f} | {call.bytes / 1e6:.0f}"
            f" | {call.floor(TFLOPS, TBYTES) * 1e6:.0f} | {times[0]:.0f} | {times[1]:.0f} |"
        )
    print("\n| everything else, by its bytes | calls | MB | floor us | launches |")
    print("|---|---|---|---|---|")
    rest = [call for call in calls if not (call.product and call.product.tile)]
    for name in Counter(call.name.split()[0] for call in rest):
        of = [call for call in rest if call.name.split()[0] == name]
        floor = sum(call.floor(TFLOPS, TBYTES) for call in of) * 1e6
        launches = sum(call.launches for call in of)
        moved = sum(call.bytes for call in of) / 1e6
        print(f"| {name} | {len(of)} | {moved:.0f} | {floor:.0f} | {launches} |")
    other = sum(call.floor(TFLOPS, TBYTES) * 1e6 + LAUNCH_US * call.launches for call in rest)
    flops = sum(call.flops for call in calls) / 1e12
    launches = sum(call.launches for call in calls)
    floor = sum(call.floor(TFLOPS, TBYTES) for call in calls) * 1e3
    print(f"\nSum of the step: {flops:.2f} TFLOP, {launches} launches, floor {floor:.2f} ms;")
    print(
        f"predicted {(sums[0] + other) / 1e3:.1f} ms, {(sums[1] + other) / 1e3:.1f} with cached"
        " rows, one kernel after the other."
    )


if __name__ == "__main__":
    main()
