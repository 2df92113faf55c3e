"""Which clip each sample of a batch shows: a pure function of seed and number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .augment import DRAWS


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip of a batch, before it is read."""

    file: int
    window: int  # which of the file's clips in a row it is; a random start ignores it
    place: float  # in [0, 1): where among the possible starts a random start lies
    draws: np.ndarray  # float64 (DRAWS,) in [0, 1): what augmentation makes its parameters of


class Spread:
    """Endless epochs of every file's clips in order, spread evenly over the file, to look at all.

    Sample number i is clip i mod `clips` of file i div `clips`: the first of a file starts at its
    beginning, the last ends at its end, and a single one begins halfway. The last batch of an
    epoch is filled up with the first samples.
    """

    def __init__(self, files: int, clips: int, batch_size: int):
        self._samples, self._clips, self._size = files * clips, clips, batch_size
        self.batches = -(-self._samples // batch_size)

    def batch(self, number: int) -> list[Sample]:
        """Return the samples of the batch of that number, counted from 0."""
        first = number % self.batches * self._size
        return [self._sample(i % self._samples) for i in range(first, first + self._size)]

    def _sample(self, number: int) -> Sample:
        file, clip = divmod(number, self._clips)
        place = clip / (self._clips - 1) if self._clips > 1 else 0.5
        # Places are below 1, where a random start would be just behind the last that fits.
        return Sample(file, clip, min(place, math.nextafter(1, 0)), np.full(DRAWS, 0.5))


class Epochs:
    """Endless epochs, each a seeded permutation of every sample, cut into full batches.

    File i owns `windows[i]` samples of an epoch. Where that makes fewer than one batch, the files
    are repeated in turn until they fill one, so three videos train at batch 32. The samples left
    over after the last full batch are dropped; the next epoch's permutation drops others.

    Several ranks share each epoch: their batches of the same number, one after the other, are the
    batch that a single rank with the sum of their batch sizes would have.
    """

    def __init__(
        self, windows: list[int], batch_size: int, seed: int, rank: int = 0, ranks: int = 1
    ):
        files = np.repeat(np.arange(len(windows)), windows)
        window = np.concatenate([np.arange(count) for count in windows])
        self._together = batch_size * ranks
        samples = max(len(files), self._together)
        self._files, self._windows = np.resize(files, samples), np.resize(window, samples)
        self._own = slice(rank * batch_size, (rank + 1) * batch_size)
        self._seed = seed
        self._drawn: tuple[int, np.ndarray] | None = None
        self.batches = samples // self._together  # per epoch and rank

    def batch(self, number: int) -> list[Sample]:
        """Return the samples of this rank's batch of that number, counted from 0."""
        epoch, index = divmod(number, self.batches)
        drawn = self._drawn  # once: several threads may ask
        if drawn is None or drawn[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._files))
            self._drawn = drawn = (epoch, order)
        chosen = drawn[1][index * self._together :][self._own]
        generator = np.random.default_rng([self._seed, epoch, index])
        draws = generator.random((self._together, 1 + DRAWS))[self._own]
        return [
            Sample(int(self._files[i]), int(self._windows[i]), float(u[0]), u[1:])
            for i, u in zip(chosen, draws, strict=True)
        ]
