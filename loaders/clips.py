"""Batches of clips from any source: the loader that training reads from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from torch import Tensor

from vgan_fast.errors import UserError

from .augment import Augmentation
from .batches import Batches, Gathered, Stacked, Streamed, Varied
from .cache import decode_videos
from .clip_set import ClipSet, FrameSet, Job, Start, StripSet
from .epochs import Epochs, Sample, Spread
from .feed import Feed
from .frames import Frames
from .resident import Cache, Resident, choose_place
from .search import Found, Source, find_sources, natural_key
from .shards import open_npy, open_tar
from .stalls import attended
from .strips import Strip, measure_strips

if TYPE_CHECKING:
    from nvidia.dali import Pipeline


def open_clips(
    data: Path,
    *,
    frames: int,
    size: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    decoded: Path,
    min_frames: int = 1,
    fps: float | None = None,
    stride: int = 1,
    start: Start = "random",
    spread: int | None = None,
    augmentation: Augmentation | None = None,
    cache: Cache = "auto",
    position: int = 0,
    workers: int | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> ClipLoader:
    """Open whatever `data` names as endless batches of clips.

    That is a folder (searched recursively), a list, or one file, of videos, folders of frame
    images and `.npy` arrays of clips, or of strips and WebDataset shards of strips; see
    `search.find_sources` and `shards`. Videos and frame images are decoded once, here, into
    `decoded`; a later opening finds them there. Decoding starts processes, so a script must call
    this under `if __name__ == "__main__":`.

    Args:
        data: what the user names.
        frames: T, frames in a clip; a shorter file repeats its last frame.
        size: side of the clips in pixels: the short side is scaled to it and the centre cut out.
        batch_size: N, clips in a batch of this rank.
        seed: not negative; the batches depend on it and on the files, not on `workers` nor, on the
            same device, on `cache`.
        device: a CPU or an NVIDIA GPU; clips are scaled and augmented, and strips decoded, where
            they go.
        decoded: folder for decoded frames, created where absent. A frame takes 12·size² bytes,
            times the aspect ratio: its short side is stored at up to 2·size pixels, or more where
            `augmentation.crop` is under a quarter.
        min_frames: files with fewer frames are skipped.
        fps: frames a second that videos are resampled to by their time stamps; None takes every
            frame as it comes.
        stride: frames of the file from one frame of a clip to the next.
        start: "random", anywhere in the file, or "fixed", one clip after the other from its
            beginning.
        spread: in place of random clips this many of each file, evenly from its beginning to its
            end, in the files' order; the epoch's last batch is filled up from the first files.
        augmentation: what varies from clip to clip; None is nothing.
        cache: "gpu" or "host" keeps every frame in that memory as a square of the size needed;
            "auto" does, GPU first, where that takes at most half of what is free; "none" reads
            files all the time.
        position: number of batches to begin after; the rest equals an uninterrupted loader's.
        workers: decoding processes, and threads that read and that DALI uses; None means one for
            each CPU that this process may use.
        rank: which of `ranks` loaders of the same data this is; in each epoch every clip goes to
            one of them at most, and to one exactly where full batches use up the epoch.
        ranks: number of loaders that share the data.

    Raises:
        UserError: a setting is out of range, `data` holds nothing usable, `decoded` cannot be
            written, the device is absent, the cache does not fit, or DALI is not installed.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    augmentation = augmentation or Augmentation()
    for name, value, least in (
        ("--frames", frames, 1),
        ("--size", size, 1),
        ("--batch-size", batch_size, 1),
        ("--seed", seed, 0),
        ("--min-frames", min_frames, 1),
        ("--stride", stride, 1),
        ("spread", 1 if spread is None else spread, 1),
        ("--workers", workers, 1),
        ("position", position, 0),
    ):
        if value < least:
            raise UserError(f"{name} is {value}; it must be {least} or more")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {device}; clips are made on cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device is {device}, but torch finds no GPU here; use --device cpu")
    if device.type == "cuda":
        current = torch.cuda.current_device()
        if device.index not in (None, current):  # DALI takes the stream of the current one
            raise UserError(
                f"--device is {device}, not the current one; call torch.cuda.set_device"
            )
        device = torch.device("cuda", current)
    for name, value, choices in (("--start", start, Start), ("--cache", cache, Cache)):
        if value not in get_args(choices):
            raise UserError(f"{name} {value}: must be one of {', '.join(get_args(choices))}")
    if not 0 <= rank < ranks:
        raise UserError(
            f"rank is {rank} of {ranks}; it must be 0 or more and less than their number"
        )
    graphs = _load_graphs()  # DALI missing is better said before an hour of decoding than after

    found = find_sources(data, decoded)
    side = augmentation.side(size)
    timeless = next((source for source in found.sources if source.kind != "video"), None)
    if fps is not None and timeless:
        raise UserError(
            f"--fps {fps:g}: {timeless.path} has no time stamps; leave the option out and use"
            " --stride"
        )
    files, skipped = _open(
        found.sources,
        lambda sources: decode_videos(
            sources,
            decoded,
            short_side=max(2 * size, side),
            fps=fps,
            workers=workers,
            device=str(device),
        ),
    )
    usable = [file for file in files if file.length >= min_frames]
    skipped |= {
        file.source: f"{file.length} frames: under --min-frames {min_frames}"
        for file in files
        if file.length < min_frames
    }
    if not usable:
        longest = max((file.length for file in files), default=0)
        raise UserError(_nothing_usable(data, skipped, longest))

    cut = {"frames": frames, "stride": stride, "start": start, "skipped": skipped}
    if found.sources[0].kind in ("strip", "tar"):
        clips = StripSet(usable, encoded=device.type == "cuda", **cut)
    else:
        clips = FrameSet(usable, **cut)
    if spread is None:
        epochs = Epochs(clips.windows, batch_size, seed, rank, ranks)
    else:
        epochs = Spread(len(usable), spread, batch_size)
    place = choose_place(cache, clips, side, device, ranks)
    batches = _prepare(
        clips,
        lambda number: epochs.batch(position + number),
        graphs,
        place=place,
        size=size,
        augmentation=augmentation,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    classes = _classes(usable, found.classes)
    return ClipLoader(
        clips,
        batches,
        classes=classes,
        device=device,
        position=position,
        batches_in_epoch=epochs.batches,
        summary=_summary(data, found, clips, frames, stride, classes),
    )


class ClipLoader:
    """Endless batches of clips; made by open_clips.

    With B full batches in an epoch, batch number b is batch b mod B of epoch b div B: a pure
    function of the seed, the files and b.

    Attributes:
        summary: one line: what was found, and how many were padded, skipped and ignored.
        files: the usable files, each with its `source`, `length` and `label`.
        skipped: each broken or too short file, and why. What shows only when a file is read joins
            later, with a warning in the log.
        classes: names of the classes by label; empty where the data have none.
        position: number of batches handed out so far, those passed over at opening included.
        shown: the file of each clip of the last batch handed out.
        batches_in_epoch: B.
        fingerprint: changes when the usable files or their lengths do: batch number `position` is
            the same clips only under the same fingerprint.
    """

    def __init__(
        self,
        clips: ClipSet,
        batches: Batches,
        *,
        classes: list[str],
        device: torch.device,
        position: int,
        batches_in_epoch: int,
        summary: str,
    ):
        self.summary = summary
        self.files: Sequence[Frames | Strip] = clips.files
        self.skipped = clips.skipped
        self.classes = classes
        self._labels = {name: label for label, name in enumerate(classes)}
        self.position = position
        self.shown: list[Frames | Strip] = []
        self.batches_in_epoch = batches_in_epoch
        self.fingerprint = clips.fingerprint
        self._batches = batches
        self._device = device

    def next_batch(self) -> Tensor:
        """Return the next batch: uint8 (N, T, size, size, 3), RGB, contiguous, on the device.

        The tensor owns its memory.

        Raises:
            UserError: every file has turned out to be broken, or a read is stuck.
        """
        numbers, clips = self._batches.next()
        self.shown = [self.files[number] for number in numbers]
        self.position += 1
        return clips

    def next_batch_with_labels(self) -> tuple[Tensor, Tensor]:
        """Return the next batch and its labels, int64 (N,), on the device.

        A label is a place in `classes`; another set's classes may stand in other places.

        Raises:
            UserError: as `next_batch`, or the data have no classes.
        """
        if not self.classes:
            raise UserError(
                "the data have no classes: give a folder with one folder for each class, or a list"
                " with a number at the end of each line"
            )
        clips = self.next_batch()
        labels = torch.tensor([self._labels[file.label] for file in self.shown])
        if self._device.type == "cuda":  # from pageable memory the copy would wait for the GPU
            labels = labels.pin_memory()
        return clips, labels.to(self._device, non_blocking=True)

    def close(self) -> None:
        """Stop the threads that prepare batches; the loader gives no more."""
        self._batches.close()

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(
    sources: list[Source],
    decode: Callable[[list[Source]], tuple[list[Frames], dict[Path, str]]],
) -> tuple[list[Frames] | list[Strip], dict[Path, str]]:
    """Open every source; return the files, kind after kind, and each broken one with the reason."""
    opened: list[Frames] | list[Strip] = []
    skipped: dict[Path, str] = {}

    def add(files: list[Frames] | list[Strip], broken: dict[Path, str]) -> None:
        opened.extend(files)
        skipped.update(broken)

    if to_decode := [source for source in sources if source.kind in ("video", "images")]:
        add(*decode(to_decode))

    def others() -> None:
        add(*measure_strips(source for source in sources if source.kind == "strip"))
        for source in sources:
            if source.kind == "npy":
                add(*open_npy(source))
            elif source.kind == "tar":
                add(*open_tar(source))

    attended(others)
    return opened, skipped


def _prepare(
    clips: ClipSet,
    batch: Callable[[int], list[Sample]],
    graphs: tuple[Callable[..., Pipeline], Callable[..., Pipeline]],
    *,
    place: str,
    size: int,
    augmentation: Augmentation,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Batches:
    """Return the road that batches take; `batch` gives the samples of batch 0, 1, 2, …"""
    file_graph, square_graph = graphs
    where = {
        "device": "gpu" if device.type == "cuda" else "cpu",
        "device_id": device.index if device.type == "cuda" else None,
    }
    side = augmentation.side(size)
    sides = clips.sides()
    file_graph = partial(
        file_graph,
        antialias=max(map(min, sides)) > 2 * side,
        **where,
    )

    def jobs(number: int) -> list[Job]:
        return [clips.job(sample) for sample in batch(number)]

    def vary(number: int) -> list[list[np.ndarray]]:
        parameters = [augmentation.parameters(sample.draws) for sample in batch(number)]
        return [[drawn[name] for drawn in parameters] for name in augmentation.varied]

    if place != "none":
        resident = Resident(
            clips,
            partial(file_graph, size=side, augmentation=Augmentation()),
            side=side,
            place=place,
            workers=workers,
            device=device,
        )
        squares = Gathered(resident, batch, device)
    elif isinstance(clips, FrameSet) and sides == {(side, side)}:
        squares = Stacked(clips, jobs, workers=workers, device=device)
    else:
        feed = Feed(
            clips,
            jobs,
            vary,
            partial(file_graph, size=size, augmentation=augmentation),
            batch_size=batch_size,
            workers=workers,
            device=device,
        )
        return Streamed(feed)
    if not augmentation.varied:
        return squares
    return Varied(
        squares,
        vary,
        partial(square_graph, size=size, augmentation=augmentation, **where),
        batch_size=batch_size,
        workers=workers,
        device=device,
    )


def _load_graphs() -> tuple[Callable[..., Pipeline], Callable[..., Pipeline]]:
    """Import DALI only where clips are read: everything else works without it."""
    try:
        from .graph import file_graph, square_graph
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise UserError(
            "reading clips needs NVIDIA DALI, which is not installed: pip install"
            " nvidia-dali-cuda130"
        ) from error
    return file_graph, square_graph


def _classes(files: Sequence[Frames | Strip], known: list[str]) -> list[str]:
    """Return the classes in the order of their labels; none unless every file has one."""
    labels = {file.label for file in files}
    if None in labels:
        return []
    if labels <= set(known):
        return known
    return sorted(labels, key=natural_key) if len(labels) > 1 else []


def _summary(
    data: Path, found: Found, clips: ClipSet, frames: int, stride: int, classes: list[str]
) -> str:
    """Say in one line what was found."""
    padded = sum(file.length <= (frames - 1) * stride for file in clips.files)
    ignored = ", ".join(
        f"{count} {suffix or 'without suffix'}" for suffix, count in found.ignored.items()
    )
    parts = [
        f"{len(clips.files)} usable",
        f"{sum(file.length for file in clips.files)} frames",
        f"{sum(clips.windows)} clips of {frames}" + (f" at stride {stride}" if stride > 1 else ""),
        f"{padded} shorter and padded",
        f"{len(clips.skipped)} skipped",
    ]
    if classes:
        parts.append(f"{len(classes)} classes")
    if ignored:
        parts.append(f"ignored {ignored}")
    return f"{data}: {found.described}: {', '.join(parts)}"


def _nothing_usable(data: Path, skipped: dict[Path, str], longest: int) -> str:
    reasons = "; ".join(f"{file}: {reason}" for file, reason in list(skipped.items())[:3])
    remedy = f"lower --min-frames (the longest has {longest} frames)" if longest else "give others"
    return f"{data}: none of its {len(skipped)} files can be used: {remedy}; the first: {reasons}"
