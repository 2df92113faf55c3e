"""Batches out of the DALI graph; strips that do not decode are found, named and skipped."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
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
        self._clips, self._jobs, self._vary = clips, jobs, vary
        self._graph = partial(graph, strips=clips.encoded)
        self._batch_size, self._workers, self._device = batch_size, workers, device
        self._position = 0
        self._reader: ReadAhead | None = None
        self._start()

    def next(self) -> tuple[list[int], TensorListCPU | TensorListGPU]:
        """Return the numbers of the files that were shown, and the graph's clips.

        The clips are DALI's memory: it is used again two calls later, or earlier where the calling
        thread's CUDA stream has got that far.

        Raises:
            UserError: every file has turned out to be broken, or a read is stuck.
        """
        # Bound to torch's stream, the outputs are reused by DALI only after work queued there.
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        while True:
            try:
                clips, *ends = self._pipeline.run(stream)
            except RuntimeError:
                if not self._skip_broken():
                    raise
            else:
                if not _blank(ends) or not self._skip_broken():
                    break
            self._start()  # an error leaves a pipeline unusable
        self._position += 1
        return self._shown.popleft(), clips

    def close(self) -> None:
        """Stop the threads that prepare batches; the feed gives no more."""
        self._pipeline = None
        self._reader.close()

    def _start(self) -> None:
        """Prepare batches from number `_position` on."""
        if self._reader:
            self._reader.close()
        first = self._position
        self._shown: deque[list[int]] = deque()
        self._reader = ReadAhead(
            lambda iteration: self._jobs(first + iteration),
            self._clips.read_job,
            self._clips.name,
            threads=self._workers,
        )

        def read(_: int) -> tuple[list[np.ndarray], ...]:
            reads = self._reader.take()
            if not reads:
                raise StopIteration
            numbers, arrays = zip(*reads, strict=True)
            self._shown.append(list(numbers))
            return tuple(map(list, zip(*arrays, strict=True)))

        self._pipeline = self._graph(
            read,
            lambda iteration: self._vary(first + iteration),
            batch_size=self._batch_size,
            num_threads=self._workers,
            prefetch_queue_depth=PREFETCH,
        )
        self._pipeline.build()

    def _skip_broken(self) -> bool:
        """Decode each strip of the batches in preparation alone, skip those that fail.

        Returns whether there was one.
        """
        if not self._clips.encoded:
            return False
        ahead = range(self._position, self._position + PREFETCH + 1)
        drawn = {self._clips.stand_in(job.file) for number in ahead for job in self._jobs(number)}
        broken = [number for number in sorted(drawn) if not self._decodes(number)]
        for number in broken:
            self._clips.skip(number, "its pixels cannot be decoded")
        return bool(broken)

    def _decodes(self, number: int) -> bool:
        try:
            arrays = self._clips.read(self._clips.files[number], np.zeros(1, int))
        except OSError:
            return False
        alone = self._graph(
            lambda _: [[array] for array in arrays],
            lambda _: [array[:1] for array in self._vary(self._position)],
            batch_size=1,
            num_threads=1,
            prefetch_queue_depth=1,
        )
        try:
            _, *ends = alone.run()
        except RuntimeError:
            return False
        return not _blank(ends)


def _blank(ends: Sequence[TensorListCPU | TensorListGPU]) -> bool:
    """Whether the pixels of any strip in a batch stop before its end; see `file_graph`."""
    from .graph import BLANK

    if not ends:
        return False
    least, largest = (values.as_cpu().as_array() for values in ends)
    return bool(((least == BLANK) & (largest == BLANK)).any())
