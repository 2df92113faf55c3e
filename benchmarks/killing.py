"""Training and preparing killed at random moments: what is lost, wrong or left behind."""

import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.family import descendants, gone_within, of_session
from benchmarks.zygote import Forked, Zygote, first_line, zygote
from vgan_fast.checkpoint import STATE, WEIGHTS, find_checkpoint, list_checkpoints
from vgan_fast.errors import UserError

VIDEOS, FRAMES, SIZE = 6, 40, (96, 128)  # of the small set that both programs read
STEPS = 160
PATIENCE = 120.0  # seconds that any process may take before it counts as hung
ORPHANS = 10.0  # seconds within which a killed program's own processes must end
# Seconds from a program's first line of output (or its start, for one kill in five) to the kill.
SPANS = {"train": (0.0, 2.0), "prepare": (0.0, 2.5)}
EARLY, LONGEST_EARLY = 0.2, 1.0
CHILDREN_WITHIN = 2.0  # seconds
# What Python prints in a process that is born as its parent is killed: its own code, not ours.
_CUT_OFF = re.compile(
    r'Traceback \(most recent call last\):\n  File "<string>", line 1, in <module>\n'
    r"(?:  .*\n)*?  File .*spawn\.py.*\n(?:  .*\n)*"
    r"(?:EOFError: Ran out of input|BrokenPipeError: .*)\n?"
)
CHILDREN = 0.25  # of the kills: those that hit a decoding process where there is one


@dataclass
class Tally:
    """What came of the kills of one program."""

    program: str
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # whatever should not be

    @property
    def kills(self) -> int:
        """Signals sent to a process at work."""
        return sum(n for name, n in self.counts.items() if name.startswith("SIG"))


class Subject(ABC):
    """A program that is killed and started again."""

    program: str

    def __init__(self, data: Path, whole: Path):
        self.data, self.whole = data, whole
        self.kept: object = None

    @abstractmethod
    def command(self, out: Path) -> list[str]:
        """What starts it, or goes on with it."""

    @abstractmethod
    def halfway(self, out: Path) -> list[str]:
        """What is wrong with what a killed program left."""

    @abstractmethod
    def content(self, out: Path) -> dict[str, object]:
        """Everything that must not depend on kills, by name."""

    def stray(self, out: Path) -> list[str]:
        """Hidden names that a finished program has left, but for its locks."""
        kept = {".decoded", ".preparing.lock"}
        return [str(p) for p in out.rglob(".*") if p.name not in kept]


class Training(Subject):
    """A small GAN on videos, with a checkpoint at every other step and many pictures."""

    program = "train"

    def command(self, out: Path) -> list[str]:
        """See `Subject`."""
        if list_checkpoints(out):
            return _program("train", "--resume", "--out", out)
        sizes = "--preset short --frames 4 --size 16 --width 4 --latent 8 --batch-size 4"
        often = f"--steps {STEPS} --checkpoint-every 2 --sample-every 7 --keep 2 --device cpu"
        return _program("train", "--data", self.data, "--out", out, *sizes.split(), *often.split())

    def halfway(self, out: Path) -> list[str]:
        """See `Subject`: every checkpoint is whole."""
        wrong = []
        for path in list_checkpoints(out):
            try:
                find_checkpoint(path)
            except UserError as error:
                wrong.append(str(error))
        return wrong

    def content(self, out: Path) -> dict[str, object]:
        """See `Subject`: weights, optimisers, random state, losses by step, pictures."""
        newest = find_checkpoint(out)
        weights = safetensors.torch.load_file(newest / WEIGHTS)
        state = torch.load(newest / STATE, weights_only=True)
        found = {"step": newest.name, **{f"weights {k}": v.numpy() for k, v in weights.items()}}
        leaves, _ = torch.utils._pytree.tree_flatten(state)
        found |= {
            f"state {i}": leaf.numpy() if isinstance(leaf, torch.Tensor) else leaf
            for i, leaf in enumerate(leaves)
        }
        events = EventAccumulator(str(out), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("loss/"):
                found[tag] = np.array([(e.step, e.value) for e in events.Scalars(tag)])
        found |= {p.name: p.read_bytes() for p in (out / "pictures").iterdir()}
        return found


class Preparing(Subject):
    """The same videos made into shards."""

    program = "prepare"

    def command(self, out: Path) -> list[str]:
        """See `Subject`."""
        sizes = "--frames 16 --min-frames 8 --size 64 --shard-clips 3 --workers 2 --no-report"
        return _program("prepare", self.data, "--out", out, *sizes.split())

    def halfway(self, out: Path) -> list[str]:
        """See `Subject`: what has its final name is what the whole set has there."""
        expected = self.kept or {}
        found = {
            str(p.relative_to(out)): p.read_bytes()
            for p in out.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(out).parts)
        }
        return [
            f"{name}: is half a file"
            for name, content in found.items()
            if name != "preparation.json" and content != expected.get(name)
        ]

    def content(self, out: Path) -> dict[str, object]:
        """See `Subject`: every file."""
        return {
            str(p.relative_to(out)): p.read_bytes()
            for p in out.rglob("*")
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(out).parts)
        }


def write_videos(folder: Path, seed: int = 0) -> Path:
    """Small videos of noise that moves, and one file that no decoder reads."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    height, width = SIZE
    for number in range(VIDEOS):
        world = cv2.GaussianBlur(
            draw.integers(0, 256, (height * 2, width * 2, 3), np.uint8), (0, 0), 2
        )
        world = cv2.normalize(world, None, 0, 255, cv2.NORM_MINMAX)
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.bit_rate = 2_000_000
            for moment in range(FRAMES):
                y, x = moment // 2, moment
                frame = np.ascontiguousarray(world[y : y + height, x : x + width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def kill(
    kind: type[Subject],
    kills: int,
    seed: int,
    folder: Path,
    show: Callable[[Tally, list[str]], None],
) -> Tally:
    """Run a program again and again, and send it or its children that many signals.

    Args:
        kind: the program.
        kills: number of signals.
        seed: of their kinds and moments.
        folder: an empty folder to work in.
        show: called after each life, with what was newly wrong.
    """
    draw, tally = random.Random(seed), Tally(kind.program)
    data = write_videos(folder / "videos")
    subject = kind(data, folder / "whole")
    with zygote(_environment(folder)) as programs:
        _run_whole(subject, programs)
        subject.kept = subject.content(subject.whole)
        number = 0
        while tally.kills < kills:
            out = folder / f"run-{number}"
            number += 1
            finished = False
            while not finished:
                more, known = tally.kills < kills, len(tally.wrong)
                finished = _life(subject, out, programs, draw, tally, more)
                show(tally, tally.wrong[known:])
            tally.counts["runs finished"] += 1
            _compare(subject, out, tally)
            shutil.rmtree(out)
    return tally


def _program(name: str, *arguments: object) -> list[str]:
    return [name, *map(str, arguments)]


def _environment(folder: Path) -> dict[str, str]:
    # PyTorch makes a folder for compiled code as it is imported, meant to stay.
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    return {**os.environ, **compiled, "OMP_NUM_THREADS": "1"}


def _run_whole(subject: Subject, programs: Zygote) -> None:
    folder = subject.whole.parent
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        said, told = Path(scratch, "said"), Path(scratch, "told")
        program = programs.start(subject.command(subject.whole), Path(scratch), said, told)
        if program.wait(10 * PATIENCE) != 0:
            raise RuntimeError(f"{subject.program}: {program.status}, {told.read_text()}")


def _life(
    subject: Subject, out: Path, programs: Zygote, draw: random.Random, tally: Tally, more: bool
) -> bool:
    """From one start to the next; whether the program came to its end."""
    with (
        tempfile.TemporaryDirectory(dir=out.parent) as scratch,
        tempfile.TemporaryDirectory(dir=out.parent) as outputs,
    ):
        said, told = Path(outputs, "said"), Path(outputs, "told")
        said.touch()
        program = programs.start(subject.command(out), Path(scratch), said, told)
        sent = _strike(program, said, subject, draw, tally) if more else None
        if program.wait(PATIENCE) is None:
            tally.wrong.append(f"hung after {sent}: {subject.command(out)}")
            os.kill(program.pid, signal.SIGKILL)
            program.wait(PATIENCE)
        if not gone_within(program.pid, ORPHANS):
            orphans = of_session(program.pid)
            tally.wrong.append(f"{len(orphans)} processes outlived their program after {sent}")
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
        errors = told.read_text() if told.exists() else ""
        if sent == signal.SIGTERM and (left := os.listdir(scratch)):
            tally.wrong.append(f"left {left} among temporary files after SIGTERM")
    if sent == signal.SIGKILL and _CUT_OFF.search(errors):
        tally.counts["cut off at birth"] += 1
        errors = _CUT_OFF.sub("", errors)
    if "Traceback" in errors:
        tally.wrong.append(f"a traceback after {sent}: {errors[-3000:]}")
    # A kill that came when all was done leaves nothing to resume.
    if program.status == 0 or "has all its" in errors:
        return True
    expected = {
        signal.SIGKILL: {-signal.SIGKILL},
        signal.SIGTERM: {128 + signal.SIGTERM, 130, -signal.SIGTERM},
    }
    if program.status not in expected.get(sent, ()):
        tally.wrong.append(f"status {program.status} after {sent}: {errors[-500:]}")
    tally.counts["resumed"] += 1
    tally.wrong += subject.halfway(out)
    return False


def _strike(
    program: Forked, said: Path, subject: Subject, draw: random.Random, tally: Tally
) -> signal.Signals | None:
    """Wait for a random moment and send a signal; which one the program itself got."""
    if draw.random() < EARLY:
        program.wait(draw.uniform(0, LONGEST_EARLY))
    else:
        if draw.random() < CHILDREN:
            _strike_child(program, draw, tally)
        first_line(said, program, PATIENCE)
        program.wait(draw.uniform(*SPANS[subject.program]))
    if program.status is not None:
        return None
    number = draw.choice([signal.SIGKILL, signal.SIGTERM])
    os.kill(program.pid, number)
    tally.counts[number.name] += 1
    return number


def _strike_child(program: Forked, draw: random.Random, tally: Tally) -> None:
    """Kill a process that decodes or prepares, if one shows within some seconds."""
    deadline = time.monotonic() + CHILDREN_WITHIN
    while time.monotonic() < deadline and program.wait(0.01) is None:
        workers = [pid for pid in descendants(program.pid) if is_worker(pid)]
        if workers:
            time.sleep(draw.uniform(0, 0.5))
            try:
                os.kill(draw.choice(workers), signal.SIGKILL)
            except ProcessLookupError:
                return
            tally.counts["SIGKILL to a decoder"] += 1
            return


def is_worker(pid: int) -> bool:
    """Whether a process is one that multiprocessing has spawned."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _compare(subject: Subject, out: Path, tally: Tally) -> None:
    """Hold a finished run against the one that was never stopped."""
    found, expected = subject.content(out), subject.kept
    different = [
        name
        for name in sorted(found.keys() | expected.keys())
        if name not in found or name not in expected or not _same(found[name], expected[name])
    ]
    if different:
        tally.wrong.append(f"not as the run that never stopped: {json.dumps(different[:5])}")
    else:
        tally.counts["bit for bit the same"] += 1
    if stray := subject.stray(out):
        tally.wrong.append(f"left behind: {stray[:5]}")


def _same(first: object, second: object) -> bool:
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and np.array_equal(first, second)
    return first == second
