"""A whole set kept in memory as square frames, on the training device or beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vgan_fast.errors import UserError

from .clip_set import ClipSet, Job
from .epochs import Sample
from .feed import Feed
from .frames import Frames

if TYPE_CHECKING:
    from nvidia.dali import Pipeline

Cache = Literal["auto", "gpu", "host", "none"]
CHUNK = 64  # frames of a file that are read at once
BATCH = 8  # chunks in a batch while the memory is filled
SHARE = 0.5  # of the free memory that `auto` takes at most


def choose_place(
    cache: Cache, clips: ClipSet, side: int, device: torch.device, ranks: int = 1
) -> str:
    """Return where the set is to stay: "gpu", "host" or "none".

    Args:
        cache: what the user asked for; "auto" takes the first place where the set fits into half
            of the memory that is free: the GPU, then the host.
        clips: the set.
        side: side of the square frames in pixels.
        device: where training runs.
        ranks: loaders that may share the host; each has a GPU of its own.

    Raises:
        UserError: the place asked for is not there, or too small.
    """
    need = sum(file.length for file in clips.files) * side * side * 3
    if cache == "gpu" and device.type != "cuda":
        raise UserError("--cache gpu needs --device cuda; use --cache host or none")
    free = {"host": free_memory() // ranks}
    if device.type == "cuda":
        free = {"gpu": torch.cuda.mem_get_info(device)[0], **free}
    if cache == "auto":
        return next((place for place, room in free.items() if need <= SHARE * room), "none")
    if cache != "none" and need > free[cache]:
        raise UserError(
            f"--cache {cache}: the set takes {need / 1e9:.1f} GB, {free[cache] / 1e9:.1f} GB are"
            " free; use --cache none"
        )
    return cache


def free_memory(system: Path = Path("/")) -> int:
    """Return the bytes that this process may still take: the machine's, or its containers'.

    Args:
        system: folder with the `proc` and `sys` of Linux.
    """
    fields = dict(line.split(":") for line in (system / "proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for line in (system / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = system / "sys/fs/cgroup" / controllers
            names = ("memory.max", "memory.current")
            if controllers:  # of the first version
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            inside = root / path.lstrip("/")
            for group in (inside, *inside.parents):
                if group.is_relative_to(root):
                    free = min(free, _left(group, *names))
    return max(0, free)


def _left(group: Path, limit: str, used: str) -> float:
    """Return the bytes that a group of processes may still take."""
    try:
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = int(kept["inactive_file"])  # the system lets go of these
        return int((group / limit).read_text()) - int((group / used).read_text()) + files
    except (OSError, KeyError, ValueError):  # no such group from in here, or "max": no limit
        return math.inf


class Part(NamedTuple):
    """Frames of a file that are read at once."""

    file: int
    first: int
    count: int


class Resident:
    """Every frame of a set as a square, scaled and cut once.

    Args:
        clips: the set; strips that prove broken are skipped.
        graph: `file_graph` to squares of `side` pixels, without what `Feed` knows.
        side: side of the squares in pixels.
        place: "gpu" or "host".
        workers: threads.
        device: where the graph runs, and training will.

    Attributes:
        squares: uint8 (F, side, side, 3), RGB: the frames of all files, one after the other.

    Raises:
        UserError: every file is broken, or a read is stuck.
    """

    def __init__(
        self,
        clips: ClipSet,
        graph: Callable[..., Pipeline],
        *,
        side: int,
        place: str,
        workers: int,
        device: torch.device,
    ):
        self._clips = clips
        self._first = np.cumsum([0, *(file.length for file in clips.files)])
        self.squares = torch.empty(
            (int(self._first[-1]), side, side, 3),
            dtype=torch.uint8,
            device=device if place == "gpu" else "cpu",
        )
        parts = [
            Part(number, first, min(step, file.length - first))
            for number, file in enumerate(clips.files)
            for step in [CHUNK if isinstance(file, Frames) else file.length]  # strips whole
            for first in range(0, file.length, step)
        ]
        batches = [parts[i : i + BATCH] for i in range(0, len(parts), BATCH)]
        feed = Feed(
            clips,
            lambda number: (
                [_job(clips, part) for part in batches[number]] if number < len(batches) else []
            ),
            lambda _: (),
            graph,
            batch_size=BATCH,
            workers=workers,
            device=device,
        )
        with closing(feed):
            for batch in tqdm(batches, "filling the cache", unit="batch", disable=None):
                _, shown = feed.next()
                for part, frames in zip(batch, shown, strict=True):
                    # A stand-in's frames take a broken file's place, where nobody will look.
                    start = int(self._first[part.file]) + part.first
                    self.squares[start : start + part.count] = torch.from_dlpack(frames)

    def rows(self, samples: list[Sample]) -> tuple[list[int], Tensor]:
        """Return the numbers of the files shown, and the rows of `squares`, int64 (N, T)."""
        numbers = [self._clips.stand_in(sample.file) for sample in samples]
        rows = [
            self._first[number] + self._clips.moments(sample, number)
            for sample, number in zip(samples, numbers, strict=True)
        ]
        return numbers, torch.from_numpy(np.stack(rows))


def _job(clips: ClipSet, part: Part) -> Job:
    moments = part.first + np.arange(part.count)
    return Job(part.file, lambda number: np.minimum(moments, clips.files[number].length - 1))
