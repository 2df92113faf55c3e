"""Feed every parser of foreign bytes damaged inputs and count what becomes of them.

    python -m benchmarks.fuzzing --inputs 10000 --out benchmarks/results/fuzzing.md

An input is accepted, or refused in one line; whatever else happens is wrong: another exception,
the death of the process, more than --seconds or more than --memory. Input K of a parser is always
the same: `--parser NAME --first K --inputs 1` repeats it, with the traceback. Each parser runs in
a process of its own, and in a new one after an input that it does not survive.
"""

import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import NamedTuple

import click

from benchmarks.machine import describe
from benchmarks.mutations import Files
from benchmarks.parsers import PARSERS, Parser
from vgan_fast.cli import Program
from vgan_fast.files import written_whole
from vgan_fast.loaders.cache import limit_memory
from vgan_fast.loaders.processes import ProcessDiedError

SECONDS, MEMORY = 10.0, 512  # that one input may take, and MiB
BATCH = 200  # inputs at once, of a parser that takes many
LISTED = 20  # wrong ones that are told of
_LIBRARIES = (
    *("av", "flask", "imageio", "numpy", "opencv-python-headless", "pillow", "safetensors"),
    *("simplejpeg", "waitress"),
)


class Told(NamedTuple):
    """What a process says of some inputs."""

    inputs: int
    accepted: int
    refused: int
    wrong: str  # why they are, or nothing
    seconds: float
    growth: int  # bytes that its memory has grown by since the first input


@dataclass
class Tally:
    """What became of the inputs of a parser.

    Attributes:
        parser: its name.
        accepted, refused: inputs.
        wrong: the first number and the reason of all others.
        slowest: seconds for one input, or for one batch of a parser that takes many.
        growth: bytes by which memory grew, at most.
        seconds: for all of them.
    """

    parser: str
    accepted: int = 0
    refused: int = 0
    wrong: list[tuple[int, str]] = field(default_factory=list)
    slowest: float = 0.0
    growth: int = 0
    seconds: float = 0.0


def fuzz(
    parser: Parser, first: int, count: int, *, seconds: float = SECONDS, memory: int = MEMORY << 20
) -> Tally:
    """Feed one parser the inputs from `first` on, in processes of its own.

    Args:
        parser: what is fed.
        first: number of the first input, from 0.
        count: inputs.
        seconds: that one input may take.
        memory: bytes by which one input may make the process grow.
    """
    tally, end, began = Tally(parser.name), first + count, time.perf_counter()
    # Forked: what parsers need takes seconds to import, anew after each death otherwise.
    context = multiprocessing.get_context("fork")
    while first < end:
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_feed, args=(parser, first, end, memory, there))
        process.start()
        there.close()
        for told in _heard(here, process, seconds):
            tally.accepted += told.accepted
            tally.refused += told.refused
            if told.wrong:
                tally.wrong.append((first, told.wrong))
            elif told.growth > memory:
                tally.wrong.append((first, f"{told.growth >> 20} MiB of memory"))
            tally.slowest = max(tally.slowest, told.seconds)
            tally.growth = max(tally.growth, told.growth)
            first += told.inputs
            if told.growth > memory:  # the next one shall not be blamed for it
                break
        process.kill()
        process.join()
    tally.seconds = time.perf_counter() - began
    return tally


def _heard(here: Connection, process, seconds: float) -> Iterator[Told]:
    """What a process says, and at its death or when it hangs what there is to say of it."""
    batch = 0
    try:
        batch = here.recv()
        while here.poll(seconds * batch):
            yield here.recv()
        yield Told(batch, 0, 0, f"hung: over {seconds * batch:g} s", seconds * batch, 0)
    except EOFError:
        process.join()
        if not batch:  # not one seed was parsed, and no other process will fare better
            raise RuntimeError("a parser's seeds cannot be parsed; the reason is above") from None
        if process.exitcode:
            died = ProcessDiedError(process.exitcode)
            yield Told(1, 0, 0, f"the process died ({died})", 0, 0)


def _feed(parser: Parser, first: int, end: int, memory: int, there: Connection) -> None:
    """Parse the inputs `first` to `end`, and tell of them."""
    logging.disable()
    os.environ |= {
        "OPENCV_LOG_LEVEL": "SILENT",
        "PYTHONWARNINGS": "ignore",
    }
    warnings.simplefilter("ignore")  # of Pillow's, of every second damaged TIFF
    batch = 1 if parser.parse_many is None else min(BATCH, end - first)
    with tempfile.TemporaryDirectory() as scratch:  # what is imported late is no growth
        parser.outcomes(parser.made[:1] * batch, Path(scratch))
    limit_memory(_data_bytes() + 2 * memory)
    before = _peak()
    there.send(batch)
    for number in range(first, end, batch):
        inputs = [drawn(parser, k) for k in range(number, min(end, number + batch))]
        began, accepted, wrong = time.perf_counter(), 0, ""
        with tempfile.TemporaryDirectory() as scratch:
            try:
                accepted = sum(parser.outcomes(inputs, Path(scratch)))
            except Exception as error:
                reason = [type(error).__name__, *str(error).splitlines()][:2]
                wrong = ": ".join(reason)[:200]
                if end - first == 1:
                    traceback.print_exc()
        refused = 0 if wrong else len(inputs) - accepted
        took = time.perf_counter() - began
        there.send(Told(len(inputs), accepted, refused, wrong, took, _peak() - before))


def drawn(parser: Parser, number: int) -> Files:
    """Input `number` of a parser."""
    return parser.input(Random(f"{parser.name}: {number}"))


def _peak() -> int:
    """Bytes of memory that this process has held at most, and its largest child."""
    both = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return 1024 * max(resource.getrusage(of).ru_maxrss for of in both)


def _data_bytes() -> int:
    """Bytes of this process that count towards `limit_memory`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))


def table(tallies: list[Tally]) -> str:
    """The counts in Markdown."""
    lines = [
        "| parser | accepted | refused | wrong | slowest ms | memory MiB | s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {t.parser} | {t.accepted} | {t.refused} | {len(t.wrong)} | {1e3 * t.slowest:.0f} |"
        f" {t.growth / 2**20:.0f} | {t.seconds:.0f} |"
        for t in tallies
    ]
    for tally in tallies:
        lines += [f"\n{tally.parser}, input {k}: {why}" for k, why in tally.wrong[:LISTED]]
    return "\n".join(lines) + "\n"


@click.command(cls=Program)
@click.option("--inputs", type=click.IntRange(1), default=200, help="for each parser")
@click.option("--first", type=click.IntRange(0), default=0, help="number of the first input")
@click.option("--parser", "chosen", multiple=True, help="only this one; may be repeated")
@click.option("--seconds", type=click.FloatRange(0.1), default=SECONDS, help="for one input")
@click.option("--memory", type=click.IntRange(1), default=MEMORY, help="MiB for one input")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Markdown file")
def main(
    inputs: int, first: int, chosen: tuple[str, ...], seconds: float, memory: int, out: Path | None
) -> int:
    """Count what parsers make of damaged inputs; status 1 where anything is wrong."""
    known = {parser.name: parser for parser in PARSERS}
    if unknown := set(chosen) - known.keys():
        raise click.UsageError(f"--parser {min(unknown)}: must be one of {', '.join(known)}")
    tallies = []
    for name in chosen or known:
        tallies.append(fuzz(known[name], first, inputs, seconds=seconds, memory=memory << 20))
        print(table(tallies[-1:]).split("\n", 2)[2], end="", flush=True)
    if out:
        libraries = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
        command = f"python -m benchmarks.fuzzing --inputs {inputs}"
        text = f"# Fuzzing\n\n`{command}`\n\n{describe()}\n\n{libraries}\n\n{table(tallies)}"
        with written_whole(out) as part:
            part.write_text(text, encoding="utf-8")
    return int(any(tally.wrong for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
