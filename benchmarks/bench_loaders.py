"""Clips a second from files, by source and codec, against the loaders that people write.

Each contender delivers batches of clips from random places, on a CPU with nothing else to do; the
first batch is compared with the source's clips. Afterwards a consumer that sleeps for as long as a
training step would take, and for shorter, says what share of its time it waits. Last, clips a
second against the loader's own workers.
"""

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from functools import cache, cached_property, partial
from math import ceil
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks import media
from benchmarks.measure import Contender, Contest, Device, Prepared, WrongResultError
from benchmarks.presets import Files, Preset
from vgan_fast.device import configure, resolved
from vgan_fast.gan_step import GANStep
from vgan_fast.settings import Settings

BLOCKS, PACED = 5, 3  # rounds of a loader alone, and with a consumer
TOLERANCE = 4.0  # grey levels: codecs lose two or three, and scalers differ
Batches = Callable[[Path, contextlib.ExitStack], Callable[[], torch.Tensor]]


def ours(files: Files, device: Device, cache: str, workers: int | None = None) -> Batches:
    """This project's loader of a folder."""

    def open_folder(data: Path, stack: contextlib.ExitStack):
        # Here, as a machine with a GPU may lack what it needs: only ours is left out then.
        from vgan_fast.loaders.clips import open_clips

        decoded = Path(stack.enter_context(tempfile.TemporaryDirectory()), "decoded")
        loader = open_clips(
            data,
            frames=files.frames,
            size=files.size,
            batch_size=files.batch,
            seed=0,
            device=device.device,
            decoded=decoded,
            cache=cache,
            workers=workers,
        )
        stack.callback(loader.close)
        return loader.next_batch

    return open_folder


def theirs(read: Callable, starts: int, files: Files, device: Device) -> Batches:
    """A DataLoader with a process for each CPU."""

    def open_folder(data: Path, stack: contextlib.ExitStack):
        cv2.setNumThreads(1)  # as a DataLoader's processes have it
        paths = sorted(data.iterdir())
        windows = media.Windows(paths, starts, read, files)
        batches = media.batches_of(windows, files.batch, pinned=device.gpu)
        stack.callback(batches.close)
        return lambda: next(batches).to(device.device, non_blocking=True)

    return open_folder


def sources(files: Files, device: Device) -> dict[str, tuple[Callable[[Path], Path], dict]]:
    """How each source is written, and its loaders."""
    cached = {
        "ours, --cache none": ours(files, device, "none"),
        "ours, --cache host": ours(files, device, "host"),
    }
    if device.gpu:
        cached["ours, --cache gpu"] = ours(files, device, "gpu")
    clips_of_video = files.video_frames - files.frames + 1
    found = {}
    for codec in files.codecs:
        found[f"videos, {codec}"] = (
            partial(media.write_videos, files=files, codec=codec),
            {
                "OpenCV + DataLoader": theirs(media.by_opencv, clips_of_video, files, device),
                "PyAV + DataLoader": theirs(media.by_pyav, clips_of_video, files, device),
                **cached,
            },
        )
    found["strips"] = (
        partial(media.write_strips, files=files),
        {
            "OpenCV + DataLoader": theirs(media.strip_by_opencv, 1, files, device),
            "Pillow + DataLoader": theirs(media.strip_by_pillow, 1, files, device),
            **cached,
        },
    )
    found["shards"] = partial(media.write_shards, files=files), cached
    found["array"] = (
        partial(media.write_array, files=files),
        {"NumPy + DataLoader": theirs(media.array_by_numpy, files.clips, files, device), **cached},
    )
    return found


class Source:
    """A folder of clips that is written at its first use, and removed at the end of the process."""

    def __init__(self, write: Callable[[Path], Path], of_videos: bool, files: Files):
        self._write, self._of_videos, self._files = write, of_videos, files

    @cached_property
    def data(self) -> Path:
        """Where it is."""
        self._scratch = tempfile.TemporaryDirectory()
        return self._write(Path(self._scratch.name, "source"))

    @cached_property
    def right(self) -> np.ndarray:
        """Thumbnails of all its clips."""
        if self._of_videos:
            return media.thumbnails_of_videos(self.data, self._files)
        return media.thumbnails_of_strips(self._files)


def delivery(
    name: str,
    batches: Batches,
    source: Source,
    files: Files,
    consumer: Callable[[], float] = lambda: 0.0,
) -> Contender:
    """Blocks of batches, each after a sleep of as many seconds as `consumer` says."""

    def build(stack: contextlib.ExitStack) -> Prepared:
        data, right, pause = source.data, source.right, consumer()
        begin = time.perf_counter()
        next_batch = batches(data, stack)
        first = next_batch()
        opening = time.perf_counter() - begin
        for clip in media.thumbnails(first.cpu()):
            if (error := media.unlike(clip, right)) > TOLERANCE:
                raise WrongResultError(f"a clip is none of the source's: {error:.1f} levels off")
        # As many as fill a block; what was read ahead, two batches a worker, tells little.
        ahead = 2 * len(os.sched_getaffinity(0)) + 1
        begin = time.perf_counter()
        for _ in range(ahead):
            next_batch()
        pace = max((time.perf_counter() - begin) / ahead, pause, 1e-5)
        count = max(2, ceil(files.seconds / BLOCKS / pace))
        info = {"clips": count * files.batch, "opening_seconds": opening, "waiting": 0.0}
        spent = {"waiting": 0.0, "all": 0.0}

        def work() -> None:
            begin = time.perf_counter()
            for _ in range(count):
                time.sleep(pause)
                asked = time.perf_counter()
                next_batch()
                spent["waiting"] += time.perf_counter() - asked
            spent["all"] += time.perf_counter() - begin
            info["waiting"] = spent["waiting"] / spent["all"]

        return Prepared(work, info)

    return Contender(name, build)


def step_seconds(preset: Preset, device: Device, batch: int) -> float:
    """What the default training step of the first networks takes for so many clips."""
    networks = preset.trained[0]
    shape = networks.shape
    settings = Settings(
        frames=shape.frames,
        size=shape.size,
        width=shape.width,
        batch_size=networks.batch,
        device=device.device.type,
    )
    settings = resolved(settings)
    configure(settings)
    step = GANStep(settings)
    frames = torch.randint(
        0, 256, (networks.batch, shape.frames, shape.size, shape.size, 3), dtype=torch.uint8
    ).to(device.device)
    for _ in range(preset.warm_up + 1):
        step(frames)
    seconds = min(device.seconds(lambda: step(frames)) for _ in range(3))
    return seconds * batch / networks.batch


def contests(preset: Preset, device: Device) -> list[Contest]:
    """Every source with its loaders, then strips with consumers of several speeds."""
    effort = {"warm_up": 0, "in_turns": False, "inspected": False}
    found = []
    for name, (write, loaders) in sources(preset.files, device).items():
        source = Source(write, name.startswith("videos"), preset.files)
        contenders = [delivery(*loader, source, preset.files) for loader in loaders.items()]
        found.append(Contest("loader", name, contenders, BLOCKS, **effort))
    # Batches as small as the step's.
    files = dataclasses.replace(preset.files, batch=preset.trained[0].batch)
    write, loaders = sources(files, device)["strips"]
    source = Source(write, False, files)
    step = cache(partial(step_seconds, preset, device, files.batch))
    for speed in preset.speeds:
        contenders = [
            delivery(*loader, source, files, lambda speed=speed: step() / speed)
            for loader in loaders.items()
        ]
        case = f"strips, consumer at {speed} x the training step's rate"
        found.append(Contest("data wait", case, contenders, PACED, info={"speed": speed}, **effort))
    write, _ = sources(preset.files, device)["strips"]
    source = Source(write, False, preset.files)
    contenders = [
        delivery(str(number), ours(preset.files, device, "none", number), source, preset.files)
        for number in preset.workers
    ]
    base = f"strips of {media.STRIP_SIDE}x{media.STRIP_SIDE} frames, --cache none"
    found.append(Contest("growth", "workers", contenders, BLOCKS, info={"base": base}, **effort))
    return found


def test_loader(contest, contender, measured):
    measured(contest, contender)
