"""What faults cost: nothing lost, nothing wrong, nothing left behind.

    python -m benchmarks.faults --kills 200 --fuzz 10000 --out FILE.md

`--kills N` runs a small training and a small preparation in processes of their own (forked from one
that has PyTorch loaded, `zygote.py`), two thirds and one third of N, sends each SIGKILL or SIGTERM
at random moments of a seed (a quarter of the lives see a decoding process killed as well), starts
it again, and holds what comes out against a run that nobody stopped: weights, optimisers, random
state, losses by step, pictures, shards and manifest bit for bit, on a CPU. After each kill every
checkpoint and every shard must be whole, no process of the program may be left, and SIGTERM must
leave no temporary file; no program may hang or print a traceback. Counted apart is what Python
itself prints in a process whose parent is killed while it is born ("cut off at birth"): no code of
ours runs there yet.

`--soak MINUTES` repeats training, generation, decoding and preparing in this process with faults:
decoding processes killed, a broken file, losses that are NaN and skipped, disks that are full by a
limit on the size of files, SIGTERM, truncated checkpoints. After each cycle it counts memory,
descriptors, threads, processes, names in /dev/shm (of its own, where the system allows it) and
temporary files: medians of the last third may not exceed those of the first by more than the table
says.

`--fuzz N` feeds every parser of foreign bytes N damaged inputs (`benchmarks.fuzzing`).

The status is 1 where anything was wrong.
"""

import shlex
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.family import SHARED, names, own_shared_memory
from benchmarks.fuzzing import fuzz, table
from benchmarks.killing import Preparing, Tally, Training, kill
from benchmarks.machine import describe, versions
from benchmarks.parsers import PARSERS
from benchmarks.soaking import BOUNDS, WARM_UP, Soak, soak
from vgan_fast.cli import Program
from vgan_fast.files import refuse_unwritable, written_whole

OF_KILLS = ("SIGKILL", "SIGTERM", "SIGKILL to a decoder")
COLUMNS = (*OF_KILLS, "resumed", "runs finished", "bit for bit the same", "cut off at birth")


@click.command(cls=Program)
@click.option("--kills", type=click.IntRange(2), help="signals to send in all")
@click.option("--soak", "minutes", type=click.FloatRange(0, min_open=True), help="minutes")
@click.option("--fuzz", "inputs", type=click.IntRange(1), help="damaged inputs for each parser")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Markdown file to write")
def main(
    kills: int | None, minutes: float | None, inputs: int | None, seed: int, out: Path | None
) -> int:
    """Inject faults into small runs and count what was lost, wrong or left behind."""
    if out:
        refuse_unwritable(out)
    alone = own_shared_memory()
    sections, wrong = [], []
    # Fuzzing first: it forks, which threads of what the soak runs would not survive.
    for value, work in ((inputs, _fuzzed), (kills, _kills), (minutes, _soaked)):
        if value:
            section, found = work(value, seed, alone)
            sections.append(section)
            wrong += found
    page = _page(sections)
    print(page)
    if out:
        with written_whole(out) as part:
            part.write_text(page, encoding="utf-8")
    return 1 if wrong else 0


def _kills(kills: int, seed: int, alone: bool) -> tuple[str, list[str]]:
    tallies, began = [], time.perf_counter()
    shares = {Training: kills - kills // 3, Preparing: kills // 3}
    for kind, share in shares.items():
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            tallies.append(kill(kind, share, seed, Path(folder), _show))
    minutes = (time.perf_counter() - began) / 60
    wrong = [f"{tally.program}: {line}" for tally in tallies for line in tally.wrong]
    if alone and (left := names(SHARED)):
        wrong.append(f"left in {SHARED}: {sorted(left)[:5]}")
    head = ["program", "kill points", *COLUMNS, "wrong"]
    lines = [
        f"## {sum(tally.kills for tally in tallies)} random kill points",
        "",
        f"Seed {seed}, {minutes:.0f} minutes.",
        "",
        f"| {' | '.join(head)} |",
        "|---" + "|---:" * (len(head) - 1) + "|",
    ]
    for tally in tallies:
        row = [tally.program, tally.kills, *(tally.counts[name] for name in COLUMNS)]
        lines.append(f"| {' | '.join(map(str, row))} | {len(tally.wrong)} |")
    lines += ["", *(f"- {line}" for line in wrong)]
    return "\n".join(lines), wrong


def _soaked(minutes: float, seed: int, alone: bool) -> tuple[str, list[str]]:
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        done = soak(minutes, seed, Path(folder), _show_soak)
    wrong = done.wrong + done.grown()
    faults = ", ".join(f"{name} {count}" for name, count in done.faults.items())
    lines = [
        f"## {done.seconds / 60:.0f} minutes of work and faults",
        "",
        f"Seed {seed}, {len(done.samples)} cycles in one process, the first {WARM_UP} left out. "
        f"Faults: {faults}. /dev/shm is {'its own' if alone else 'the machine’s'}.",
        "",
        "| held after a cycle | first third | last third | may grow by |",
        "|---|---:|---:|---:|",
    ]
    for name, (first, last) in done.growth().items():
        lines.append(f"| {name} | {first:.6g} | {last:.6g} | {BOUNDS[name]:g} |")
    lines += ["", f"Wrong: {len(wrong)}.", "", *(f"- {line}" for line in wrong)]
    return "\n".join(lines), wrong


def _fuzzed(inputs: int, seed: int, alone: bool) -> tuple[str, list[str]]:
    tallies = [fuzz(parser, seed * inputs, inputs) for parser in PARSERS]
    wrong = [f"{tally.parser}: {why}" for tally in tallies for _, why in tally.wrong]
    head = f"## {inputs} damaged inputs for each of {len(tallies)} parsers"
    return f"{head}\n\nSeed {seed}.\n\n{table(tallies)}", wrong


def _show_soak(done: Soak) -> None:
    print(
        f"{done.seconds:.0f} s: {done.samples[-1]}, wrong {len(done.wrong)}",
        file=sys.stderr,
        flush=True,
    )


def _show(tally: Tally, fresh: list[str]) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in tally.counts.items())
    print(f"{tally.program}: {counts}, wrong {len(tally.wrong)}", file=sys.stderr)
    for line in fresh:
        print(f"wrong: {line}", file=sys.stderr)
    sys.stderr.flush()


def _page(sections: list[str]) -> str:
    head = [
        "# Faults",
        "",
        f"`python -m benchmarks.faults {shlex.join(sys.argv[1:])}`  ",
        f"{describe()}  ",
        f"{versions()}",
        "",
    ]
    return "\n".join([*head, *sections]).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
