"""The report's pictures."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.rows import Report, Row
from benchmarks.time_to_quality import FILE as TIME_TO_QUALITY
from vgan_fast.files import written_whole

OURS, THEIRS, LAW = "#c0392b", "#34618f", "#999999"
COLOURS = {"fp32": "#34618f", "tf32": "#3a8f6b", "bf16": "#c0392b", "fp16": "#8e44ad"}
DPI = 110


def draw(report: Report, out: Path) -> dict[str, str]:
    """Write every picture that the report has data for; their file names by section."""
    pictures = {
        "training step": bars(report, "training step"),
        "generation": bars(report, "generation"),
        "roofline": roofline(report),
        "growth": growth(report),
        "loader": loaders(report),
        "data wait": data_wait(report),
        "time to quality": time_to_quality(out / TIME_TO_QUALITY),
    }
    found = {}
    for name, figure in pictures.items():
        if figure is not None:
            found[name] = f"{name.replace(' ', '_')}.png"
            with written_whole(out / found[name]) as part:
                figure.savefig(part, format="png", dpi=DPI, bbox_inches="tight")
            plt.close(figure)
    return found


def _colour(row: Row) -> str:
    return OURS if row.contender.startswith("ours") else THEIRS


def bars(report: Report, kind: str) -> Figure | None:
    """Clips a second of every rival, with the 20th and 80th percentile."""
    cases = report.cases(kind)
    if not cases:
        return None
    figure, axes = plt.subplots(
        1,
        len(cases),
        figsize=(6.5 * len(cases), 0.9 + 0.42 * len(next(iter(cases.values())))),
        squeeze=False,
    )
    for axis, (case, rows) in zip(axes[0], cases.items(), strict=True):
        of = list(rows.values())[::-1]
        rates = np.array([row.rate for row in of])
        spread = [
            rates - [row.clips / row.high for row in of],
            np.array([row.clips / row.low for row in of]) - rates,
        ]
        axis.barh([row.contender for row in of], rates, xerr=spread, color=list(map(_colour, of)))
        for place, row in enumerate(of):
            times = row.over(next(iter(rows.values())))
            axis.text(row.clips / row.low, place, f"  {row.rate:,.3g}  ({times:.2f}×)", va="center")
        axis.set_xlim(0, 1.35 * max(row.clips / row.low for row in of))
        axis.set_xlabel(f"clips/s ({kind})")
        axis.set_title(case)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def roofline(report: Report) -> Figure | None:
    """Layers, kernels and step under this run's ceilings: FLOP/s against FLOPs a byte."""
    rows = [row for kind in ("layer", "training step", "generation") for row in report.of(kind)]
    rows = [row for row in rows if row.flops and row.bytes]
    peaks = {name: rate for name, rate in report.ceilings.items() if name != "copy"}
    if not rows or "copy" not in report.ceilings:
        return None
    figure, axis = plt.subplots(figsize=(9, 5.5))
    intensities = np.array([row.flops / row.bytes for row in rows])
    reach = np.geomspace(intensities.min() / 3, intensities.max() * 3, 200)
    for precision, peak in peaks.items():
        ceiling = np.minimum(peak, reach * report.ceilings["copy"]) / 1e12
        axis.plot(reach, ceiling, color=COLOURS[precision], label=f"ceiling, {precision}")
    marks = {"layer": "o", "training step": "*", "generation": "^"}
    for kind, mark in marks.items():
        for precision in peaks:
            of = [row for row in rows if (row.kind, row.precision) == (kind, precision)]
            axis.scatter(
                [row.flops / row.bytes for row in of],
                [row.flops / row.median / 1e12 for row in of],
                marker=mark,
                s=160 if mark == "*" else 28,
                color=COLOURS[precision],
                edgecolor="white",
                linewidth=0.6,
                label=f"{kind}, {precision}" if of else None,
            )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("FLOPs needed for each byte needed")
    axis.set_ylabel("TFLOP/s")
    axis.set_title(f"Roofline of this run: {report.device}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def _law(axis: Axes, x: list[int], first: float, power: float, label: str) -> None:
    axis.plot(x, [first * (value / x[0]) ** power for value in x], "--", color=LAW, label=label)


def growth(report: Report) -> Figure | None:
    """Log-log plots of time and memory against each size, the expected law beside."""
    cases = report.cases("growth")
    if not cases:
        return None
    powers = {"batch": 1, "frames": 1, "size": 2, "width": 2}
    figure, axes = plt.subplots(2, len(cases), figsize=(3.5 * len(cases), 6.4), squeeze=False)
    for column, (name, rows) in enumerate(cases.items()):
        points = list(rows.values())
        x = [int(row.contender) for row in points]
        time, memory = axes[0][column], axes[1][column]
        for axis in (time, memory):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(x, [str(value) for value in x])
            axis.set_xlabel(name)
            axis.grid(alpha=0.3)
        if name == "workers":
            time.plot(x, [row.rate for row in points], "o-", color=OURS)
            time.set_ylabel("clips/s, strips without a cache")
            _law(time, x, points[0].rate, 1, "linear")
            memory.set_visible(False)
        else:
            law = "linear" if powers[name] == 1 else "square"
            time.plot(x, [1e3 * row.median for row in points], "o-", color=OURS)
            time.set_ylabel("ms a training step")
            _law(time, x, 1e3 * points[0].median, powers[name], law)
            held = [row.peak_bytes / 1e6 for row in points]
            memory.plot(x, held, "o-", color=THEIRS)
            memory.set_ylabel("MB held during a step")
            # Activations hold as many values as channels: linear in the width.
            power = 1 if name == "width" else powers[name]
            _law(memory, x, held[0], power, "linear" if power == 1 else "square")
            memory.legend(fontsize=8)
        time.legend(fontsize=8)
    base = [next(iter(rows.values())).details["base"] for rows in cases.values()]
    figure.suptitle(f"Our training step, one size varied at a time, from {base[0]}")
    figure.tight_layout()
    return figure


def loaders(report: Report) -> Figure | None:
    """Clips a second of every loader by source."""
    cases = report.cases("loader")
    if not cases:
        return None
    rows = [(case, row) for case, of in cases.items() for row in of.values()][::-1]
    figure, axis = plt.subplots(figsize=(9, 0.8 + 0.26 * len(rows)))
    axis.barh(
        [f"{case}: {row.contender}" for case, row in rows],
        [row.rate for _, row in rows],
        color=[_colour(row) for _, row in rows],
    )
    for place, (_, row) in enumerate(rows):
        axis.text(row.rate, place, f"  {row.rate:,.0f}", va="center", fontsize=8)
    axis.set_xscale("log")
    axis.set_xlim(10, 4 * max(row.rate for _, row in rows))
    axis.set_xlabel("clips/s")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def data_wait(report: Report) -> Figure | None:
    """Share of time waited by consumers of several speeds."""
    cases = report.cases("data wait")
    if not cases:
        return None
    names = list(dict.fromkeys(row.contender for row in report.of("data wait")))
    figure, axis = plt.subplots(figsize=(7, 3.6))
    shares = np.array(
        [[of[name].waiting if name in of else np.nan for of in cases.values()] for name in names]
    )
    width = 0.8 / len(names)
    for number, (name, share) in enumerate(zip(names, shares, strict=True)):
        places = np.arange(len(cases)) + number * width
        axis.bar(places, 100 * share, width, label=name)
    axis.set_xticks(
        np.arange(len(cases)) + 0.4 - width / 2,
        [f"{next(iter(of.values())).details['speed']:g}×" for of in cases.values()],
    )
    axis.set_xlabel("speed of the consumer, times that of the training step")
    axis.set_ylabel("waiting, % of the time")
    axis.set_ylim(0, 100)
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def time_to_quality(file: Path) -> Figure | None:
    """Fréchet distance against seconds of training."""
    if not file.exists():
        return None
    figure, axis = plt.subplots(figsize=(7.5, 4))
    for run in json.loads(file.read_text(encoding="utf-8")):
        ours = run["settings"]["backend"] != "reference"
        _, seconds, distances = zip(*run["curve"], strict=True)
        label = f"{'default path' if ours else 'reference'}, seed {run['settings']['seed']}"
        axis.plot(
            seconds,
            distances,
            ".-",
            color=OURS if ours else THEIRS,
            label=label,
            alpha=1 - 0.25 * run["settings"]["seed"],
        )
        axis.axhline(run["wanted"], color=LAW, linewidth=0.8, linestyle="--")
    axis.set_yscale("log")
    axis.set_xlabel("seconds of training")
    axis.set_ylabel("Fréchet distance to held-out clips")
    axis.set_title("dashed: a twentieth of the untrained generator's distance", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure
