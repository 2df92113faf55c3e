"""The ways to a batch: through the graph from files, or put together from squares and varied."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from .clip_set import ClipSet, Job
from .epochs import Sample
from .feed import PREFETCH, Feed
from .read_ahead import ReadAhead
from .resident import Resident
from .uploads import Uploads

if TYPE_CHECKING:
    from nvidia.dali import Pipeline


class Batches(Protocol):
    """Batch after batch, without end."""

    def next(self) -> tuple[list[int], Tensor]:
        """Return the numbers of the files shown, and the clips: uint8 (N, T, H, W, 3), RGB.

        The tensor is contiguous, on the training device, and owns its memory.
        """

    def close(self) -> None:
        """Prepare no more."""


class Streamed:
    """Clips read from files and cut as they are needed."""

    def __init__(self, feed: Feed):
        self._feed = feed

    def next(self) -> tuple[list[int], Tensor]:
        """See `Batches`."""
        numbers, clips = self._feed.next()
        return numbers, torch.from_dlpack(clips.as_tensor()).clone()

    def close(self) -> None:
        """See `Batches`."""
        self._feed.close()


class Squares(ABC):
    """Batches of square clips, put together on the host or in the GPU's memory.

    What the host puts together for a GPU is copied ahead, on a stream of its own.
    """

    def __init__(self, device: torch.device, on_host: bool):
        self._device = device
        self._uploads = Uploads(self._pick, device) if on_host and device.type == "cuda" else None

    def next(self) -> tuple[list[int], Tensor]:
        """See `Batches`."""
        return self._uploads.next() if self._uploads else self._pick(None)

    def close(self) -> None:
        """See `Batches`."""
        if self._uploads:
            self._uploads.close()

    @abstractmethod
    def _pick(self, buffer: Tensor | None) -> tuple[list[int], Tensor]:
        """Put the next batch together, in `buffer` where there is one."""


class Gathered(Squares):
    """Clips picked from a resident set.

    Args:
        resident: the set.
        batch: the samples of batch 0, 1, 2, …
        device: where the clips go.
    """

    def __init__(
        self, resident: Resident, batch: Callable[[int], list[Sample]], device: torch.device
    ):
        self._resident = resident
        self._samples = map(batch, itertools.count())
        super().__init__(device, on_host=not resident.squares.is_cuda)

    def _pick(self, buffer: Tensor | None) -> tuple[list[int], Tensor]:
        numbers, rows = self._resident.rows(next(self._samples))
        squares = self._resident.squares
        index = rows.flatten()
        if squares.is_cuda:  # from pageable memory the copy would wait for the GPU
            index = index.pin_memory().to(squares.device, non_blocking=True)
        clips = buffer.flatten(0, 1) if buffer is not None else None
        return numbers, torch.index_select(squares, 0, index, out=clips).unflatten(0, rows.shape)


class Stacked(Squares):
    """Clips read from files whose frames have the right size already.

    Args:
        clips: the files.
        jobs: the samples of batch 0, 1, 2, …
        workers: threads.
        device: where the clips go.
    """

    def __init__(
        self,
        clips: ClipSet,
        jobs: Callable[[int], list[Job]],
        *,
        workers: int,
        device: torch.device,
    ):
        self._reader = ReadAhead(jobs, clips.read_job, clips.name, threads=workers)
        super().__init__(device, on_host=True)

    def close(self) -> None:
        """See `Batches`."""
        super().close()
        self._reader.close()

    def _pick(self, buffer: Tensor | None) -> tuple[list[int], Tensor]:
        numbers, arrays = zip(*self._reader.take(), strict=True)
        clips = [clip for (clip,) in arrays]
        if buffer is None:
            return list(numbers), torch.from_numpy(np.stack(clips))
        np.stack(clips, out=buffer.numpy())
        return list(numbers), buffer


class Varied:
    """Clips gathered from memory and augmented by DALI on the training device.

    Args:
        squares: gives the clips before augmentation.
        vary: augmentation's parameters of the same batches, counted from 0.
        graph: `square_graph` without what this class knows.
        workers: threads of DALI.
        device: where the clips are.
    """

    def __init__(
        self,
        squares: Squares,
        vary: Callable[[int], Sequence[Sequence[np.ndarray]]],
        graph: Callable[..., Pipeline],
        *,
        batch_size: int,
        workers: int,
        device: torch.device,
    ):
        self._squares, self._device = squares, device
        self._shown: deque[list[int]] = deque()
        self._pipeline = graph(
            self._read,
            vary,
            batch_size=batch_size,
            num_threads=workers,
            prefetch_queue_depth=PREFETCH,
        )
        self._pipeline.build()

    def next(self) -> tuple[list[int], Tensor]:
        """See `Batches`."""
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        (clips,) = self._pipeline.run(stream)
        return self._shown.popleft(), torch.from_dlpack(clips.as_tensor()).clone()

    def close(self) -> None:
        """See `Batches`."""
        self._pipeline = None
        self._squares.close()

    def _read(self, _: int) -> tuple[Tensor | np.ndarray]:
        numbers, clips = self._squares.next()
        self._shown.append(numbers)
        return (clips if clips.is_cuda else clips.numpy(),)
