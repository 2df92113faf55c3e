"""Which file, and where in it, each sample comes from: a pure function of seed and number."""

from __future__ import annotations

import numpy as np


class Epochs:
    """Endless epochs, each a seeded permutation of every sample, cut into full batches.

    File i owns `clips[i]` samples of an epoch. Where that makes fewer than one batch, the files
    are repeated in turn until they fill one, so three videos train at batch 32. The samples left
    over after the last full batch are dropped; the next epoch's permutation drops others.
    """

    def __init__(self, clips: list[int], batch_size: int, seed: int):
        owners = np.repeat(np.arange(len(clips)), clips)
        self._owners = np.resize(owners, max(len(owners), batch_size))  # repeats in turn
        self._batch_size = batch_size
        self._seed = seed
        self._drawn: tuple[int, np.ndarray, np.ndarray] | None = None
        self.batches = len(self._owners) // batch_size  # per epoch

    def batch(self, number: int) -> list[tuple[int, float]]:
        """Return (file, fraction in [0, 1) of the possible starts) for each sample of a batch."""
        epoch, index = divmod(number, self.batches)
        if self._drawn is None or self._drawn[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            order = generator.permutation(self._owners)
            self._drawn = (epoch, order, generator.random(len(order)))
        _, order, fractions = self._drawn
        chosen = slice(index * self._batch_size, (index + 1) * self._batch_size)
        return list(zip(order[chosen].tolist(), fractions[chosen].tolist(), strict=True))
