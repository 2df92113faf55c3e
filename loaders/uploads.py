"""Batches from the host to the GPU, copied while the GPU works on others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor


class Uploads:
    """Batches copied to the GPU ahead of time, on a stream of their own.

    A thread fills one of two page-locked buffers while the other is being copied.

    Args:
        pick: puts a batch into a buffer, or into new memory where there is none yet; returns it
            with a note.
        device: the GPU.
    """

    def __init__(
        self, pick: Callable[[Tensor | None], tuple[list[int], Tensor]], device: torch.device
    ):
        self._pick, self._device = pick, device
        self._stream = torch.cuda.Stream(device)
        self._buffers = deque([(None, None)] * 2)
        self._pool = ThreadPoolExecutor(1)
        self._coming = deque(self._pool.submit(self._upload) for _ in range(2))

    def next(self) -> tuple[list[int], Tensor]:
        """Return the note and the copy of the next batch; it belongs to the caller's stream."""
        note, copy, done = self._coming.popleft().result()
        self._coming.append(self._pool.submit(self._upload))
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(done)
        copy.record_stream(stream)
        return note, copy

    def close(self) -> None:
        """Stop copying ahead."""
        self._pool.shutdown(cancel_futures=True)

    def _upload(self) -> tuple[list[int], Tensor, torch.cuda.Event]:
        buffer, copied = self._buffers.popleft()
        if copied:
            copied.synchronize()
        note, buffer = self._pick(buffer)
        buffer = buffer if copied else buffer.pin_memory()
        with torch.cuda.stream(self._stream):
            copy = buffer.to(self._device, non_blocking=True)
            copied = self._stream.record_event()
        self._buffers.append((buffer, copied))
        return note, copy, copied
