"""`python -m benchmarks.report`: run the benchmarks, and write what they say for people to read."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import click

from vgan_fast.cli import Program
from vgan_fast.errors import UserError
from vgan_fast.files import written_whole

try:
    import pytest_benchmark  # noqa: F401

    from benchmarks import plots
except ImportError as error:
    sys.exit(f"error: {error.name} is missing; pip install -e '.[bench]'")
from benchmarks.headline import between_markers, fill_readme
from benchmarks.machine import describe, device_name, versions
from benchmarks.page import page
from benchmarks.presets import PRESETS
from benchmarks.rows import FILE, Report, committed

HERE = Path(__file__).parent
RESULTS, README = HERE / "results", HERE.parent / "README.md"
CHANGED = 0.10  # a median further from the last one is flagged
NOTES = "notes.md"  # beside the page, written by hand and kept


def measure(preset: str, dry_run: bool, traces: Path | None) -> Report:
    """Run pytest-benchmark in a process of its own and read what it found.

    Raises:
        UserError: it measured nothing.
    """
    options = [f"--preset={preset}", *["--dry-run"] * dry_run]
    command = " ".join(["python -m benchmarks.report --preset", preset, *["--dry-run"] * dry_run])
    if traces:
        options.append(f"--traces={traces}")
    # Whether our kernels are interpreted, on a CPU, is the dry run's to say.
    environment = {**os.environ, "TRITON_INTERPRET": str(int(dry_run))}
    with tempfile.TemporaryDirectory() as scratch:
        found, outcome = Path(scratch, "benchmarks.json"), Path(scratch, "outcome.xml")
        begin = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", str(HERE), "--benchmark-only", "-q"),
                *("--benchmark-quiet", "--no-header", "--tb=line", "-W", "ignore"),
                *(f"--benchmark-json={found}", f"--junitxml={outcome}", *options),
            ],
            cwd=HERE.parent,
            env=environment,
        )
        seconds = time.perf_counter() - begin
        if not found.exists() or not found.read_text(encoding="utf-8").strip():
            raise UserError("no benchmark was measured: see above")
        benchmarks = json.loads(found.read_text(encoding="utf-8"))["benchmarks"]
        failed = {
            f"{case.get('classname', '').rsplit('.')[-1]}: {case.get('name')}": failure.get(
                "message", ""
            )
            for case in ElementTree.parse(outcome).getroot().iter("testcase")
            for failure in [*case.findall("failure"), *case.findall("error")]
        }
    return Report.collected(
        benchmarks,
        preset=preset,
        dry_run=dry_run,
        command=command,
        machine=describe(),
        versions=versions(),
        device=device_of(preset, dry_run),
        date=str(date.today()),
        minutes=seconds / 60,
        failed=failed,
    )


def device_of(preset: str, dry_run: bool) -> str:
    """Name of what a preset runs on."""
    return device_name(cpu=dry_run or PRESETS[preset].device == "cpu")


def compared(report: Report, before: Report) -> list[str]:
    """Lines: each benchmark's median against that of an earlier report, changes flagged."""
    known = {row.key: row for row in before.rows}
    lines = [f"against {before.date}, {before.machine}"]
    flagged = 0
    for row in report.rows:
        if row.key not in known:
            lines.append(f"         new  {', '.join(row.key)}")
            continue
        ratio = row.per_clip / known[row.key].per_clip
        changed = abs(ratio - 1) > CHANGED
        flagged += changed
        mark = ("slower" if ratio > 1 else "faster") if changed else ""
        lines.append(f"{ratio:6.2f} {mark:6} {', '.join(row.key)}")
    gone = known.keys() - {row.key for row in report.rows}
    lines += [f"        gone  {', '.join(key)}" for key in sorted(gone)]
    lines.append(
        f"{flagged} of {len(report.rows)} medians differ by more than {CHANGED:.0%}; "
        f"{len(gone)} are gone, {sum(row.key not in known for row in report.rows)} are new"
    )
    return lines


def draw(report: Report, out: Path) -> None:
    """Page and plots of a report that lies in the folder."""
    pictures = plots.draw(report, out)
    notes = out / NOTES
    text = page(report, out, pictures, notes.read_text(encoding="utf-8") if notes.exists() else "")
    with written_whole(out / "README.md") as part:
        part.write_text(text, encoding="utf-8")


@click.command(cls=Program, epilog=" ".join(f"{k}: {v.minutes}." for k, v in PRESETS.items()))
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="sizes and effort; how long each takes stands below",
)
@click.option("--dry-run", is_flag=True, help="the same code at tiny sizes on a CPU")
@click.option("--compare", is_flag=True, help="print ratios to this device's newest results")
@click.option("--profile", is_flag=True, help="keep a Chrome trace of each rival's step in OUT")
@click.option(
    "--redraw",
    type=click.Path(path_type=Path, file_okay=False),
    help="measure nothing; write the page and plots of this folder of results once more",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="folder of the results  [default: benchmarks/results/DEVICE-DATE]",
)
def main(
    preset: str | None,
    dry_run: bool,
    compare: bool,
    profile: bool,
    redraw: Path | None,
    out: Path | None,
) -> int:
    """Measure every claim side by side and write JSON, a page, plots and README's table.

    README's table is filled from the committed results, unless --out or --dry-run is given.
    """
    if redraw:
        if not (redraw / FILE).exists():
            raise UserError(f"--redraw {redraw}: holds no {FILE}; name a folder of results")
        draw(Report.load(redraw / FILE), redraw)
        return 0
    if preset is None:
        raise UserError(f"--preset: name one of {', '.join(PRESETS)}")
    if PRESETS[preset].device == "cuda" and not dry_run:
        import torch

        if not torch.cuda.is_available():
            raise UserError("--preset gpu: PyTorch sees no GPU; try it out with --dry-run")
    to_keep = out is None and preset != "smoke" and not dry_run
    if out is None:
        if not to_keep:
            raise UserError("--out: name a folder for results that mean nothing")
        device = re.sub("[^a-z0-9]+", "-", device_of(preset, dry_run).lower()).strip("-")
        out = RESULTS / f"{device}-{date.today()}"
    # Read before minutes are spent, so that what cannot be read costs nothing.
    same = (device_of(preset, dry_run), preset)
    earlier = [old for _, old in committed(RESULTS) if (old.device, old.preset) == same]
    if to_keep:
        between_markers(README)
    report = measure(preset, dry_run, out / "traces" if profile else None)
    with written_whole(out / FILE) as part:
        part.write_text(report.to_json(), encoding="utf-8")
    draw(report, out)
    if to_keep:
        fill_readme(README, RESULTS)
    if compare:
        print(*(compared(report, earlier[-1]) if earlier else ["no earlier results"]), sep="\n")
    for name, reason in report.failed.items():
        print(f"not measured: {name}: {reason}")
    print(f"{len(report.rows)} benchmarks in {report.minutes:.1f} minutes: {out / 'README.md'}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
