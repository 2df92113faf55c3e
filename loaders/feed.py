"""Batches out of the DALI graph that reads files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .clip_set import ClipSet, Job
from .read_ahead import ReadAhead

if TYPE_CHECKING:
    from nvidia.dali import Pipeline
    from nvidia.dali.tensors import TensorListCPU, TensorListGPU

PREFETCH = 2  # batches that DALI prepares ahead


class Feed:
    """Batches of `file_graph`, one after the other.

    Args:
        clips: where the frames come from.
        jobs: the samples of batch 0, 1, 2, …; none after the last batch.
        vary: augmentation's parameters of batch 0, 1, 2, …, in `file_graph`'s form.
        graph: `file_graph` without what this class knows.
        batch_size: most samples in a batch.
        workers: reading threads, and threads of DALI.
        device: where the graph runs.
    """

    def __init__(
        self,
        clips: ClipSet,
        jobs: Callable[[int], list[Job]],
        vary: Callable[[int], Sequence[Sequence[np.ndarray]]],
        graph: Callable[..., Pipeline],
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
    ):
        self._device = device
        self._shown: deque[list[int]] = deque()
        self._reader = ReadAhead(jobs, clips.read_job, clips.name, threads=workers)
        self._pipeline = graph(
            self._read,
            vary,
            encoded=clips.encoded,
            sideways=clips.sideways,
            batch_size=batch_size,
            num_threads=workers,
            prefetch_queue_depth=PREFETCH,
        )
        self._pipeline.build()

    def next(self) -> tuple[list[int], TensorListCPU | TensorListGPU]:
        """Return the numbers of the files that were shown, and the graph's clips.

        The clips are DALI's memory: it is used again two calls later, or earlier where the calling
        thread's CUDA stream has got that far.

        Raises:
            UserError: every file has turned out to be broken, or a read is stuck.
        """
        # Bound to torch's stream, the outputs are reused by DALI only after work queued there.
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        (clips,) = self._pipeline.run(stream)
        return self._shown.popleft(), clips

    def close(self) -> None:
        """Stop the threads that prepare batches; the feed gives no more."""
        self._pipeline = None
        self._reader.close()

    def _read(self, _: int) -> tuple[list[np.ndarray], ...]:
        reads = self._reader.take()
        if not reads:
            raise StopIteration
        numbers, arrays = zip(*reads, strict=True)
        self._shown.append(list(numbers))
        return tuple(map(list, zip(*arrays, strict=True)))
