"""What faults cost: nothing lost, nothing wrong, nothing left behind.

    python -m benchmarks.faults --kills 200 --out FILE.md

`--kills N` runs a small training and a small preparation as programs of their own, two thirds and
one third of N, sends each SIGKILL or SIGTERM at random moments of a seed (a quarter of the lives
see a decoding process killed as well), starts it again, and holds what comes out against a run that
nobody stopped: weights, optimisers, random state, losses by step, pictures, shards and manifest bit
for bit, on a CPU. After each kill every checkpoint and every shard must be whole, no process of the
program may be left, and SIGTERM must leave no temporary file; no program may hang or print a
traceback. The status is 1 where anything was wrong.
"""

import shlex
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.killing import Preparing, Tally, Training, kill
from benchmarks.machine import describe, versions
from vgan_fast.cli import Program
from vgan_fast.files import refuse_unwritable, written_whole

OF_KILLS = ("SIGKILL", "SIGTERM", "SIGKILL to a decoder")
COLUMNS = (*OF_KILLS, "resumed", "runs finished", "bit for bit the same")


@click.command(cls=Program)
@click.option("--kills", type=click.IntRange(2), help="signals to send in all")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Markdown file to write")
def main(kills: int | None, seed: int, out: Path | None) -> int:
    """Inject faults into small runs and count what was lost, wrong or left behind."""
    if out:
        refuse_unwritable(out)
    sections, wrong = [], []
    if kills:
        section, found = _kills(kills, seed)
        sections.append(section)
        wrong += found
    page = _page(sections)
    print(page)
    if out:
        with written_whole(out) as part:
            part.write_text(page, encoding="utf-8")
    return 1 if wrong else 0


def _kills(kills: int, seed: int) -> tuple[str, list[str]]:
    tallies, began = [], time.perf_counter()
    shares = {Training: kills - kills // 3, Preparing: kills // 3}
    for kind, share in shares.items():
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            tallies.append(kill(kind, share, seed, Path(folder), _show))
    minutes = (time.perf_counter() - began) / 60
    wrong = [f"{tally.program}: {line}" for tally in tallies for line in tally.wrong]
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


def _show(tally: Tally) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in tally.counts.items())
    print(f"{tally.program}: {counts}, wrong {len(tally.wrong)}", file=sys.stderr, flush=True)


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
