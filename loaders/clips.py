"""Batches of clips from videos or JPEG strips: the loader that training reads from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vgan_fast.errors import UserError

from .cache import Frames, decode_videos
from .epochs import Epochs
from .search import find_files
from .sources import Strips, Videos
from .strips import Strip, measure_strips

if TYPE_CHECKING:
    from nvidia.dali import Pipeline
    from nvidia.dali.tensors import TensorListCPU, TensorListGPU

PREFETCH = 2  # batches that DALI prepares ahead


def open_clips(
    data: Path,
    *,
    frames: int,
    size: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    cache: Path,
    min_frames: int = 1,
    position: int = 0,
    workers: int | None = None,
) -> ClipLoader:
    """Open a folder, a list or a single file of videos or JPEG strips as endless batches of clips.

    Videos are decoded once, here, into `cache`; a later opening finds them there. Decoding starts
    processes, so a script must call this under `if __name__ == "__main__":`.

    Args:
        data: folder (searched recursively), list file (one path a line), one video or one strip.
        frames: T, frames in a clip; a shorter video or strip repeats its last frame.
        size: side of the clips in pixels: the short side is scaled to it and the centre cut out.
        batch_size: N, clips in a batch.
        seed: not negative; the batches depend on it and on the files, not on `workers`.
        device: a CPU or an NVIDIA GPU; clips are scaled, and strips decoded, where they go.
        cache: folder for decoded frames, created where absent. A frame takes 12·size² bytes, times
            the aspect ratio: its short side is stored at up to 2·size pixels.
        min_frames: videos and strips with fewer frames are skipped.
        position: number of batches to begin after; the rest equals an uninterrupted loader's.
        workers: decoding processes, and threads of DALI; None means one for each CPU that
            this process may use.

    Raises:
        UserError: a setting is out of range, `data` holds nothing usable, `cache` cannot be
            written, the device is absent, or DALI is not installed.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    for name, value, least in (
        ("--frames", frames, 1),
        ("--size", size, 1),
        ("--batch-size", batch_size, 1),
        ("--seed", seed, 0),
        ("--min-frames", min_frames, 1),
        ("workers", workers, 1),
        ("position", position, 0),
    ):
        if value < least:
            raise UserError(f"{name} is {value}; it must be {least} or more")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {device}; clips are made on cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device is {device}, but torch finds no GPU here; use --device cpu")
    graph = _load_graph()  # DALI missing is better said before an hour of decoding than after

    found = find_files(data, cache)
    readable: list[Strip] | list[Frames]
    if found.strips:
        readable, skipped = measure_strips(found.files)
    else:
        readable, skipped = decode_videos(found.files, cache, short_side=2 * size, workers=workers)
    skipped |= {
        file.source: f"{file.length} frames: under --min-frames {min_frames}"
        for file in readable
        if file.length < min_frames
    }
    usable = [file for file in readable if file.length >= min_frames]
    if not usable:
        longest = max((file.length for file in readable), default=0)
        raise UserError(_nothing_usable(data, skipped, longest))
    source = Strips(usable, frames, skipped) if found.strips else Videos(usable, frames)
    return ClipLoader(
        source,
        Epochs(source.clips, batch_size, seed),
        partial(
            graph,
            strips=found.strips,
            size=size,
            device="gpu" if device.type == "cuda" else "cpu",
            device_id=_device_id(device),
        ),
        batch_size=batch_size,
        workers=workers,
        device=device,
        position=position,
        skipped=skipped,
        fingerprint=_fingerprint(usable),
        summary=(
            f"{data}: {len(usable)} {'strips' if found.strips else 'videos'},"
            f" {sum(file.length for file in usable)} frames,"
            f" {sum(source.clips)} clips of {frames};"
            f" {sum(file.length < frames for file in usable)} shorter and padded,"
            f" {len(skipped)} skipped, {found.ignored} other files ignored"
        ),
    )


class ClipLoader:
    """Endless batches of clips; made by open_clips.

    With B full batches in an epoch, batch number b is batch b mod B of epoch b div B: a pure
    function of the seed, the files and b.

    Attributes:
        summary: one line: what was found, and how many were padded, skipped and ignored.
        skipped: each broken or too short file, and why. A strip whose damage shows only when it
            is decoded joins later, with a warning in the log.
        position: number of batches handed out so far, those passed over at opening included.
        fingerprint: changes when the usable files or their lengths do: batch number `position` is
            the same clips only under the same fingerprint.
    """

    def __init__(
        self,
        source: Videos | Strips,
        epochs: Epochs,
        graph: Callable[..., Pipeline],
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
        position: int,
        skipped: dict[Path, str],
        summary: str,
        fingerprint: str,
    ):
        self.summary = summary
        self.fingerprint = fingerprint
        self.skipped = skipped
        self.position = position
        self._source = source
        self._epochs = epochs
        self._graph = graph
        self._batch_size = batch_size
        self._workers = workers
        self._device = device
        self._pipeline = self._start()

    def next_batch(self) -> torch.Tensor:
        """Return the next batch: uint8 (N, T, size, size, 3), RGB, contiguous, on the device.

        The tensor owns its memory.

        Raises:
            UserError: every strip has turned out to be broken.
        """
        # Bound to torch's stream, the outputs are reused by DALI only after the copy below.
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        while True:
            try:
                clips, *ends = self._pipeline.run(stream)
            except RuntimeError:
                if not self._skip_broken_strips():
                    raise
            else:
                if not _blank(ends) or not self._skip_broken_strips():
                    break
            self._pipeline = self._start()  # an error leaves a pipeline unusable
        self.position += 1
        return torch.from_dlpack(clips.as_tensor()).clone()

    def close(self) -> None:
        """Stop the threads that prepare batches; the loader gives no more."""
        self._pipeline = None

    def __enter__(self) -> ClipLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Pipeline:
        """Return a pipeline whose first batch is number `position`."""
        first = self.position

        def read(iteration: int) -> tuple[list[np.ndarray], ...]:
            samples = self._epochs.batch(first + iteration)
            arrays = [self._source.read(*sample) for sample in samples]
            return tuple(map(list, zip(*arrays, strict=True)))

        pipeline = self._graph(
            read,
            batch_size=self._batch_size,
            num_threads=self._workers,
            prefetch_queue_depth=PREFETCH,
        )
        pipeline.build()
        return pipeline

    def _skip_broken_strips(self) -> bool:
        """Decode each strip of the batches in preparation alone, skip those that fail.

        Returns whether there was one.
        """
        if isinstance(self._source, Videos):
            return False
        ahead = range(self.position, self.position + PREFETCH + 1)
        drawn = sorted({file for number in ahead for file, _ in self._epochs.batch(number)})
        strips = {self._source.stand_in(file): file for file in drawn}
        broken = [strip for strip, file in strips.items() if not self._decodes(file)]
        for strip in broken:
            self._source.skip(strip, "its pixels cannot be decoded")
        return bool(broken)

    def _decodes(self, file: int) -> bool:
        sample = [[array] for array in self._source.read(file, 0.0)]
        alone = self._graph(lambda _: sample, batch_size=1, num_threads=1, prefetch_queue_depth=1)
        try:
            _, *ends = alone.run()
        except RuntimeError:
            return False
        return not _blank(ends)


def _blank(ends: Sequence[TensorListCPU | TensorListGPU]) -> bool:
    """Whether the pixels of any strip in a batch stop before its end; see `clip_graph`."""
    from .graph import BLANK

    if not ends:
        return False
    least, largest = (values.as_cpu().as_array() for values in ends)
    return bool(((least == BLANK) & (largest == BLANK)).any())


def _load_graph() -> Callable[..., Pipeline]:
    """Import DALI only where clips are read: everything else works without it."""
    try:
        from .graph import clip_graph
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise UserError(
            "reading clips needs NVIDIA DALI, which is not installed: pip install"
            " nvidia-dali-cuda130"
        ) from error
    return clip_graph


def _device_id(device: torch.device) -> int | None:
    """Return DALI's name for the device: the GPU's number, or None for a CPU."""
    if device.type == "cpu":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _fingerprint(files: Sequence[Strip | Frames]) -> str:
    named = [(str(file.source), file.length) for file in files]
    return hashlib.sha256(repr(named).encode()).hexdigest()


def _nothing_usable(data: Path, skipped: dict[Path, str], longest: int) -> str:
    reasons = "; ".join(f"{file}: {reason}" for file, reason in list(skipped.items())[:3])
    remedy = f"lower --min-frames (the longest has {longest} frames)" if longest else "give others"
    return f"{data}: none of its {len(skipped)} files can be used: {remedy}; the first: {reasons}"
