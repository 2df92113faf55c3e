"""Training, generation, decoding and preparing over and over with faults: what grows?"""

import contextlib
import gc
import io
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from unittest import mock

import click
import torch

from benchmarks.family import Sample, descendants, sample
from benchmarks.killing import is_worker, write_videos
from vgan_fast import gan_step, generate, prepare, train
from vgan_fast.checkpoint import WEIGHTS, find_checkpoint

SIZES = "--preset short --frames 4 --size 16 --width 4 --latent 8 --batch-size 4 --device cpu"
WARM_UP = 3  # cycles until libraries have allocated what they keep
# How much more the last third of the samples may hold than the first, by their medians.
BOUNDS = {
    "resident_mb": 25.0,
    "descriptors": 0,
    "threads": 0,
    "processes": 0,
    "shared": 0,
    "temporary": 0,
}


@dataclass
class Soak:
    """What was done, and what was held after each cycle."""

    samples: list[Sample] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def growth(self) -> dict[str, tuple[float, float]]:
        """Medians of the first and of the last third of the samples, by what is held."""
        after = self.samples[WARM_UP:]
        third = max(1, len(after) // 3)
        found = {}
        for held in fields(Sample):
            values = [getattr(of, held.name) for of in after]
            found[held.name] = statistics.median(values[:third]), statistics.median(values[-third:])
        return found

    def grown(self) -> list[str]:
        """What has grown beyond its bound."""
        return [
            f"{name} grew from {first:g} to {last:g}"
            for name, (first, last) in self.growth().items()
            if last - first > BOUNDS[name]
        ]


def soak(minutes: float, seed: int, folder: Path, show: Callable[[Soak], None]) -> Soak:
    """Repeat a cycle of work and faults in this process for that long, and a few times at least.

    Args:
        minutes: how long.
        seed: of the faults.
        folder: an empty folder to work in, on which temporary files lie as well.
        show: called after each cycle.
    """
    draw, done, began = random.Random(seed), Soak(), time.monotonic()
    data = write_videos(folder / "videos")
    temporary = folder / "temporary"
    temporary.mkdir()
    with mock.patch.object(tempfile, "tempdir", str(temporary)):
        while time.monotonic() - began < 60 * minutes or len(done.samples) < WARM_UP + 3:
            out = folder / "cycle"
            _cycle(data, out, draw, done)
            shutil.rmtree(out)
            gc.collect()
            done.samples.append(sample(os.getpid(), temporary))
            done.seconds = time.monotonic() - began
            show(done)
    return done


def _cycle(data: Path, out: Path, draw: random.Random, done: Soak) -> None:
    """Everything once, each with its fault."""
    run, shards = out / "run", out / "set"
    new = [*SIZES.split(), "--data", data, "--checkpoint-every", 4, "--sample-every", 6]

    def expect(status: int, said: str, program: click.Command, *arguments: object) -> None:
        found, told = _told(program, *arguments)
        if found != status or said not in told:
            told = " ".join(told[-400:].split())
            done.wrong.append(f"status {found}, not {status} with '{said}': {told}")
            print(done.wrong[-1], file=sys.stderr, flush=True)

    # Decoders killed, a broken file, batches whose loss is not a number.
    with _killing(draw, done), _spoiling(draw, done):
        skip = ["--on-nan", "skip", "--steps", 12, "--out", run]
        expect(0, "skipped", train.main, *new, *skip)
    done.faults["broken file skipped"] += 1

    with _limited(draw.choice([1_000, 10_000]), done):
        expect(2, "the disk is full", train.main, "--resume", "--out", run, "--steps", 20)
    with _terminated(done):
        expect(143, "--resume", train.main, "--resume", "--out", run, "--steps", 100_000)

    file = find_checkpoint(run) / WEIGHTS
    content = file.read_bytes()
    cut = draw.randrange(len(content))
    file.write_bytes(content[:cut])
    expect(
        2, "is missing, truncated or corrupt; remove", generate.main, run, "--out", out / "x.gif"
    )
    done.faults["checkpoint truncated"] += 1
    file.write_bytes(content)
    expect(0, "4 clips", generate.main, run, "--out", out / "x.gif", "--count", 4)
    with _limited(draw.choice([1_000, 5_000]), done):
        expect(2, "the disk is full", generate.main, run, "--out", out / "y.gif", "--count", 4)

    sizes = "--frames 16 --min-frames 8 --size 64 --shard-clips 3"
    preparing = [data, "--out", shards, "--workers", 2, *sizes.split()]
    with _limited(20_000, done):
        expect(2, "the disk is full", prepare.main, *preparing)
    with _killing(draw, done):
        expect(0, "clips of", prepare.main, *preparing)
    expect(
        0, "done", train.main, *SIZES.split(), "--data", shards, "--steps", 4, "--out", out / "2"
    )
    hidden = [
        str(path) for path in out.rglob(".*") if path.name not in (".decoded", ".preparing.lock")
    ]
    if hidden:
        done.wrong.append(f"left behind: {hidden[:5]}")


def _told(program: click.Command, *arguments: object) -> tuple[int, str]:
    """Status of a program run in this process, and what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            program.main([str(argument) for argument in arguments])
        except SystemExit as end:
            return end.code or 0, said.getvalue()
    return 0, said.getvalue()


@contextlib.contextmanager
def _killing(draw: random.Random, done: Soak) -> Iterator[None]:
    """Kill up to three processes that decode, at random moments."""
    ended = threading.Event()

    def kill() -> None:
        killed = 0
        while killed < 3 and not ended.wait(draw.uniform(0.05, 0.4)):
            workers = [pid for pid in descendants(os.getpid()) if is_worker(pid)]
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(draw.choice(workers), signal.SIGKILL)
                    done.faults["decoder killed"] += 1
                    killed += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield
    finally:
        ended.set()
        killer.join()


@contextlib.contextmanager
def _spoiling(draw: random.Random, done: Soak) -> Iterator[None]:
    """Make a third of the discriminator's losses NaN, the second always."""
    real, calls = gan_step.discriminator_loss, []

    def spoilt(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2 or draw.random() < 1 / 3:
            done.faults["NaN skipped"] += 1
            return real(*arguments) * torch.nan
        return real(*arguments)

    with mock.patch.object(gan_step, "discriminator_loss", spoilt):
        yield


@contextlib.contextmanager
def _limited(size: int, done: Soak) -> Iterator[None]:
    """Let no file grow beyond that: the system refuses as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    done.faults["disk full"] += 1
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def _terminated(done: Soak) -> Iterator[None]:
    """Send this process SIGTERM soon, when it trains."""
    began, real = threading.Event(), gan_step.GANStep.__call__

    def called(*arguments: object) -> dict:
        began.set()
        return real(*arguments)

    def terminate() -> None:
        if began.wait(60):
            os.kill(os.getpid(), signal.SIGTERM)
            done.faults["SIGTERM"] += 1

    killer = threading.Thread(target=terminate)
    with mock.patch.object(gan_step.GANStep, "__call__", called):
        killer.start()
        yield
        killer.join()
