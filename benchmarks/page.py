"""The report as a Markdown page."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from math import log
from pathlib import Path

from benchmarks.presets import PRESETS
from benchmarks.rows import Report, Row
from benchmarks.time_to_quality import FILE

LISTED = 8  # layers whose gap is named
MEANINGLESS = """\
**A run at tiny sizes: it shows that everything runs, and no number means anything.**
"""
METHOD = """\
- Rivals do the same work in one process and take turns, call by call, so that their ratios hold
  when the machine's speed drifts; a ratio is the median over these turns. Loaders, growth and
  training from files run one contender after the other.
- Times are {clock}, after warm-up, each call until the device is done: medians, with the 20th and
  80th percentile over the calls. Before each call of a kernel or layer 256 MB are written, so that
  its inputs do not lie in the cache; steps take turns over eight batches.
- A contender is checked before it is timed, and has no number if it is wrong: steps by losses and
  gradients of the first step against the fp32 reference; videos, layers and kernels by their
  results; loaders by the clips that they give.
- TFLOP/s and GB/s divide counted work by the time: FLOPs of the convolutions, and the bytes of the
  passes of our own step in 16 bits (`vgan_fast.kernels.cost`), each tensor read or written once a
  pass, the optimiser and casts of weights included. For fp32 and TF32 these bytes are doubled, also
  those few that are fp32 or uint8 in any case. What a contender moves beyond counts against it.
- *Of its ceiling*: the time that these FLOPs and bytes would take at this run's own ceilings, pass
  by pass whichever is longer, over the time measured. A precision's ceiling is the rate of the
  large product, or of the fastest layer where one is faster.
- Launches are {launches}; memory is {memory}.
"""
GROWTH = """\
Exponents between neighbouring points: 1 is linear in that size, 0 is no growth. Pixels grow with
the square of the size, and with them FLOPs and memory. Every layer's channels grow with the width,
so FLOPs grow with its square and activations linearly.
"""
LOADERS = """\
Clips of {frames}x{size}x{size} from random places, batches of {batch}: {videos} videos of
{video_frames} frames of {video_side}x{video_side}, or {clips} strips of 128x128 frames. A
DataLoader has a process for each CPU. Ours decodes videos once, before the first batch, and by
default keeps a set that fits in memory (`--cache auto`). *Times the first*: clips/s over those of
the source's first row.
"""
DATA_WAIT = """\
**Data wait.** A consumer that sleeps as long as the default training step takes for a batch, or for
a part of that, and then asks for the next; the share of its time that it waits. It leaves the
processors to the loaders, which a step on a CPU does not.
"""
END_TO_END = """\
JPEG strips to trained steps. *Today's loop* is the fp32 reference over a DataLoader of strips
decoded by Pillow, with a worker for each CPU, and reads a loss after every step. Ours is the
default path.
"""
TIME_TO_QUALITY = """\
Seconds of training until samples are within a twentieth of the untrained generator's Fréchet
distance to held-out synthetic clips, on the project's fixed random extractor; judging, every
{every} steps, is not on the clock. {frames} frames of {size}x{size}, width {width}, batch
{batch_size}, the mask settings of the `short` preset.
"""


def lines_of_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table."""
    columns = list(columns)
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(row: Row) -> str:
    """Milliseconds: median, and 20th to 80th percentile."""
    low, high = (number(1e3 * value) for value in (row.low, row.high))
    return f"{number(1e3 * row.median)} ({low} to {high})"


def of_contenders(rows: dict[str, Row], launches: str) -> Iterator[str]:
    """The table of a contest whose work is counted."""
    first = next(iter(rows.values()))
    columns = [
        "rival",
        "ms (20 to 80 %)",
        "clips/s",
        f"times as fast as {first.contender}",
        "TFLOP/s",
        "GB/s",
        "of its ceiling",
        launches,
        "memory, MB",
    ]

    def cells(row: Row) -> list[str]:
        return [
            f"**{row.contender}**" if row.contender.startswith("ours") else row.contender,
            spread(row),
            number(row.rate),
            f"{row.over(first):.2f}",
            f"{row.flops / row.median / 1e12:.3g}",
            number(row.bytes / row.median / 1e9),
            f"{row.share:.0%}",
            f"{row.launches:,}",
            number(row.peak_bytes / 1e6),
        ]

    yield from lines_of_table(columns, map(cells, rows.values()))


def method(report: Report) -> Iterator[str]:
    """How it was measured, and what the columns mean."""
    gpu = report.on_gpu
    launches = (
        "kernels and copies of the device"
        if gpu
        else "PyTorch operators that call no other (a CPU launches nothing)"
    )
    memory = (
        "what the contender allocated when it was built and the most that a call took besides; of "
        "a graph, whose memory is taken while it is captured, the most since it was built, trials "
        "of cuDNN's algorithms included"
        if gpu
        else "the most that one call allocates beyond weights and optimiser state, by PyTorch's "
        "allocator"
    )
    clock = "CUDA events around each call" if gpu else "the wall clock around each call"
    yield "## How it was measured"
    yield ""
    yield METHOD.format(clock=clock, launches=launches, memory=memory)


def ceilings(report: Report) -> Iterator[str]:
    """The section on ceilings."""
    yield "## Ceilings of this device"
    yield ""
    found = report.ceilings
    yield from lines_of_table(
        ["", "measured", "of", "ceiling"],
        (
            [
                row.contender,
                f"{number(1e-9 * row.bytes / row.median)} GB/s"
                if row.bytes
                else f"{number(row.flops / row.median / 1e9)} GFLOP/s",
                f"a copy of {row.bytes / 2e6:,.0f} MB, reads and writes"
                if row.bytes
                else f"a square matrix product of {row.flops / 1e9:,.0f} GFLOP",
                f"{number(found[row.contender] / 1e9)} {'GB/s' if row.bytes else 'GFLOP/s'}",
            ]
            for row in report.of("ceiling")
        ),
    )


def operations(rows: dict[str, Row]) -> Iterator[str]:
    """Where the time of the first and of the last contender's call goes."""
    picked = [rows[name] for name in ("reference fp32", "ours") if name in rows]
    for row in picked:
        total = sum(seconds for *_, seconds in row.details["operations"])
        yield f"Profile of one step, {row.contender} (profiled, so slower than above):"
        yield ""
        yield from lines_of_table(
            ["operation", "calls", "ms of its own", "of those listed"],
            (
                [f"`{name}`", f"{calls:,}", number(1e3 * seconds), f"{seconds / total:.0%}"]
                for name, calls, seconds in row.details["operations"]
            ),
        )


def layers(report: Report) -> Iterator[str]:
    """Every layer and direction, and the largest gaps."""
    cases = report.cases("layer")
    if not cases:
        return
    names = list(dict.fromkeys(row.contender for row in report.of("layer")))
    yield "## Layers"
    yield ""
    yield "Milliseconds, GFLOP/s and share of the ceiling of each convolution; one batch."
    yield ""
    columns = ["layer, direction", "GFLOP", "MB in 16 bits"]
    for name in names:
        columns += [f"{name}: ms (20 to 80 %)", "GFLOP/s", "of its ceiling"]

    def cells(case: str, rows: dict[str, Row]) -> Iterator[str]:
        first = next(iter(rows.values()))
        scale = 2 if first.precision in ("fp32", "tf32") else 1
        yield from (case, number(first.flops / 1e9), number(first.bytes / scale / 1e6))
        for name in names:
            if name in rows:
                row = rows[name]
                yield from (spread(row), number(row.flops / row.median / 1e9), f"{row.share:.0%}")
            else:
                yield from ("", "", "")

    yield from lines_of_table(columns, (cells(case, rows) for case, rows in cases.items()))
    best = names[-1]
    if not {"copy", *(row.precision for row in report.of("layer"))} <= report.ceilings.keys():
        return
    gaps = sorted(
        (rows[best] for rows in cases.values() if best in rows),
        key=lambda row: row.floor - row.median,
    )
    lost = sum(row.median - row.floor for row in gaps)
    yield f"The largest gaps to the ceiling, {best}; all together lose {number(1e3 * lost)} ms:"
    yield ""
    copied, peak = report.ceilings["copy"], report.ceilings
    yield from lines_of_table(
        ["layer, direction", "ms", "floor, ms", "lost, ms", "of what all lose", "bound by"],
        (
            [
                row.case,
                number(1e3 * row.median),
                number(1e3 * row.floor),
                number(1e3 * (row.median - row.floor)),
                f"{(row.median - row.floor) / lost:.0%}",
                "arithmetic" if row.flops / peak[row.precision] > row.bytes / copied else "memory",
            ]
            for row in gaps[:LISTED]
        ),
    )


def kernels(report: Report) -> Iterator[str]:
    """The ops that are no convolutions."""
    cases = report.cases("kernel")
    names = list(dict.fromkeys(row.contender for row in report.of("kernel")))
    yield "## Kernels"
    yield ""
    if "kernel" not in names:
        yield "Our kernels need a GPU; their plain twins are what runs here."
        yield ""
    columns = ["op, direction", "MB"]
    for name in names:
        columns += [f"{name}: ms (20 to 80 %)", "GB/s", "of its ceiling"]

    def cells(case: str, rows: dict[str, Row]) -> Iterator[str]:
        yield from (case, number(next(iter(rows.values())).bytes / 1e6))
        for name in names:
            if name in rows:
                row = rows[name]
                yield from (spread(row), number(row.bytes / row.median / 1e9), f"{row.share:.0%}")
            else:
                yield from ("", "", "")

    yield from lines_of_table(columns, (cells(case, rows) for case, rows in cases.items()))


def growth(report: Report) -> Iterator[str]:
    """How time and memory grow."""
    yield "## Growth"
    yield ""
    yield GROWTH
    for axis, rows in report.cases("growth").items():
        points = list(rows.values())
        yield f"**{axis}** ({points[0].details['base']}):"
        yield ""
        time = [
            "",
            *(
                _exponent(*pair, seconds_a_clip if axis == "workers" else seconds)
                for pair in pairwise(points)
            ),
        ]
        memory = ["", *(_exponent(*pair, held) for pair in pairwise(points))]
        per_clip = axis == "workers"
        yield from lines_of_table(
            [
                axis,
                "clips/s" if per_clip else "ms (20 to 80 %)",
                "exponent of time per clip" if per_clip else "exponent of time",
                *([] if per_clip else ["memory, MB", "exponent of memory"]),
            ],
            (
                [
                    row.contender,
                    number(row.rate) if per_clip else spread(row),
                    of_time,
                    *([] if per_clip else [number(row.peak_bytes / 1e6), of_memory]),
                ]
                for row, of_time, of_memory in zip(points, time, memory, strict=True)
            ),
        )


def seconds(row: Row) -> float:
    """Of a call."""
    return row.median


def seconds_a_clip(row: Row) -> float:
    """Of a call that gives clips."""
    return row.median / row.clips


def held(row: Row) -> float:
    """Bytes."""
    return row.peak_bytes


def _exponent(before: Row, row: Row, of: Callable[[Row], float]) -> str:
    if min(of(before), of(row)) <= 0:
        return ""
    ratio = int(row.contender) / int(before.contender)
    return f"{log(of(row) / of(before)) / log(ratio):.2f}"


def loaders(report: Report) -> Iterator[str]:
    """Loaders alone, with a consumer, and under training."""
    cases = report.cases("loader")
    if cases:
        preset = PRESETS[report.preset]
        files = (preset.tiny() if report.dry_run else preset).files
        yield "## Loaders"
        yield ""
        yield LOADERS.format(**dataclasses.asdict(files))
        rows = []
        for case, of in cases.items():
            first = next(iter(of.values()))
            for row in of.values():
                rows.append(
                    [
                        case,
                        row.contender,
                        number(row.rate),
                        f"{number(row.clips / row.high)} to {number(row.clips / row.low)}",
                        f"{number(row.over(first))}",
                        f"{row.details['opening_seconds']:.1f} s",
                    ]
                )
        head = ["source", "loader", "clips/s", "20 to 80 %", "times the source's first"]
        yield from lines_of_table([*head, "first batch after"], rows)
    cases = report.cases("data wait")
    if cases:
        yield DATA_WAIT
        names = list(dict.fromkeys(row.contender for row in report.of("data wait")))
        yield from lines_of_table(
            ["consumer", *names],
            (
                [
                    case,
                    *(f"{of[name].waiting:.1%}" if name in of else "" for name in names),
                ]
                for case, of in cases.items()
            ),
        )
    cases = report.cases("end to end")
    if cases:
        yield "## Training from files"
        yield ""
        yield END_TO_END
        for case, rows in cases.items():
            first = next(iter(rows.values()))
            yield f"{case}:"
            yield ""
            yield from lines_of_table(
                ["loop", "clips/s", "20 to 80 %", f"times {first.contender}", "waiting for data"],
                (
                    [
                        row.contender,
                        number(row.rate),
                        f"{number(row.clips / row.high)} to {number(row.clips / row.low)}",
                        f"{row.over(first):.2f}",
                        f"{row.waiting:.1%}",
                    ]
                    for row in rows.values()
                ),
            )


def time_to_quality(file: Path) -> Iterator[str]:
    """Seconds to the Fréchet threshold, if they were measured."""
    if not file.exists():
        return
    runs = json.loads(file.read_text(encoding="utf-8"))
    settings = runs[0]["settings"]
    yield "## Time to quality"
    yield ""
    steps = [step for step, *_ in runs[0]["curve"][:1]]
    yield TIME_TO_QUALITY.format(every=steps[0], **settings)
    for machine in dict.fromkeys(f"{run['machine']}; {run['threads']} thread(s)" for run in runs):
        yield f"- {machine}"
    yield ""
    rows = []
    for run in sorted(runs, key=lambda run: (run["settings"]["seed"], run["settings"]["backend"])):
        step, seconds, distance = run["curve"][-1]
        rows.append(
            [
                str(run["settings"]["seed"]),
                f"{run['settings']['backend']}, {run['settings']['precision']}",
                f"{seconds:.0f}" if run["good"] else f"not within {seconds:.0f}",
                str(step),
                f"{1e3 * seconds / step:.0f}",
                f"{distance:.4f} (wanted {run['wanted']:.4f})",
            ]
        )
    yield from lines_of_table(
        ["seed", "path", "seconds", "steps", "ms a step", "Fréchet distance"], rows
    )
    by_seed: dict[int, dict[str, float]] = {}
    for run in runs:
        if run["good"]:
            by_seed.setdefault(run["settings"]["seed"], {})[run["settings"]["backend"]] = run[
                "curve"
            ][-1][1]
    ratios = [of["reference"] / of["auto"] for of in by_seed.values() if len(of) == 2]
    if ratios:
        yield (
            "The default path gets there "
            + ", ".join(f"{ratio:.2f}" for ratio in ratios)
            + " times as fast as the reference, seed by seed."
        )
        yield ""


def page(report: Report, out: Path, pictures: dict[str, str], notes: str) -> str:
    """The whole page.

    Args:
        report: what was measured.
        out: its folder.
        pictures: names of the plots that lie there, by section.
        notes: written by hand, Markdown.
    """
    gpu = report.on_gpu
    launches = "launches" if gpu else "operators"

    def picture(name: str) -> Iterator[str]:
        if name in pictures:
            yield f"![{name}]({pictures[name]})"
            yield ""

    def lines() -> Iterator[str]:
        yield f"# Benchmarks: {report.device}, {report.date}"
        yield ""
        if report.dry_run or report.preset == "smoke":
            yield MEANINGLESS
        yield f"`{report.command}`, {report.minutes:.0f} minutes  "
        yield f"{report.machine}; {report.versions}"
        yield ""
        if not gpu:
            yield "No GPU was used. **Not yet measured on a GPU** by this page."
            yield ""
        if notes:
            yield notes.strip()
            yield ""
        yield from method(report)
        yield from ceilings(report)
        yield "## Rivals"
        yield ""
        yield from lines_of_table(
            ["rival", "what it is", "products in"],
            (
                [row.contender, row.details["about"], row.precision]
                for rows in list(report.cases("training step").values())[:1]
                for row in rows.values()
            ),
        )
        for kind, title in (("training step", "Training step"), ("generation", "Generation")):
            yield f"## {title}"
            yield ""
            yield from picture(kind)
            for case, rows in report.cases(kind).items():
                yield f"{case}:"
                yield ""
                yield from of_contenders(rows, launches)
        if report.of("langevin"):
            yield "## Langevin steps of STGConvNet"
            yield ""
            yield "A clip is one step of one chain. The port is the public code's loop in PyTorch."
            yield ""
        for case, rows in report.cases("langevin").items():
            yield f"{case}:"
            yield ""
            yield from of_contenders(rows, launches)
        for case, rows in list(report.cases("training step").items())[:1]:
            yield f"### Where the time of a step goes ({case})"
            yield ""
            yield from operations(rows)
        yield "## Roofline"
        yield ""
        yield from picture("roofline")
        yield from layers(report)
        yield from kernels(report)
        yield from picture("growth")
        yield from growth(report)
        yield from picture("loader")
        yield from loaders(report)
        yield from picture("data wait")
        yield from picture("time to quality")
        yield from time_to_quality(out / FILE)
        if report.failed:
            yield "## Not measured"
            yield ""
            yield from lines_of_table(["contender", "why"], report.failed.items())

    return "\n".join(lines()).rstrip() + "\n"
