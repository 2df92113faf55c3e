"""Which clip each sample is: every one once an epoch, from seed and number, shared among ranks."""

from collections import Counter

import numpy as np
import pytest

from vgan_fast.loaders.epochs import Epochs


def files(batch) -> list[int]:
    return [sample.file for sample in batch]


def as_text(batch) -> list[str]:
    """Samples in a form that compares, draws included."""
    return [f"{s.file} {s.window} {s.place} {s.draws.tolist()}" for s in batch]


def test_every_clip_once_an_epoch_in_a_new_order():
    epochs = Epochs([3, 1, 2], batch_size=2, seed=7)
    assert epochs.batches == 3
    orders = [
        [(s.file, s.window) for number in range(3) for s in epochs.batch(3 * epoch + number)]
        for epoch in range(20)
    ]
    every = [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]
    assert all(sorted(order) == every for order in orders)
    assert len(set(map(tuple, orders))) > 10


def test_incomplete_batch_is_dropped_and_not_always_the_same():
    epochs = Epochs([1] * 5, batch_size=2, seed=0)
    assert epochs.batches == 2
    seen = Counter(file for number in range(60) for file in files(epochs.batch(number)))
    assert sum(seen.values()) == 120
    assert min(seen.values()) > 10


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_few_clips_fill_a_batch_evenly(batch_size):
    epochs = Epochs([1, 1, 1], batch_size=batch_size, seed=0)
    batch = epochs.batch(5)
    assert len(batch) == batch_size
    counts = Counter(files(batch))
    if batch_size > 3:
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(set(as_text(batch))) == batch_size  # the starts differ


def test_a_batch_depends_on_seed_and_number_alone():
    epochs = Epochs([4, 5], batch_size=3, seed=1)
    forward = [as_text(epochs.batch(number)) for number in range(9)]
    backward = [as_text(epochs.batch(number)) for number in reversed(range(9))]
    assert forward == backward[::-1]
    other = Epochs([4, 5], 3, seed=2)
    assert not any(as_text(other.batch(number)) == forward[number] for number in range(9))
    assert len(set(map(tuple, forward))) == 9


def test_draws_are_uniform_and_new_for_each_sample():
    epochs = Epochs([30], batch_size=10, seed=3)
    samples = [sample for number in range(100) for sample in epochs.batch(number)]
    draws = np.array([[s.place, *s.draws] for s in samples])
    assert draws.min(axis=0).max() < 0.01
    assert 0.99 < draws.max(axis=0).min() < 1
    correlation = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(correlation).max() < 0.12  # 1000 samples: standard deviation 0.03
    assert len(np.unique(draws)) == draws.size


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_partition_each_epoch(ranks):
    """Together they see what one loader with their joint batch size sees, draws included."""
    windows = [5, 1, 4, 2]  # 12 samples
    alone = Epochs(windows, 2 * ranks, seed=4)
    shared = [Epochs(windows, 2, seed=4, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert {epochs.batches for epochs in shared} == {12 // (2 * ranks)}
    for number in range(3 * alone.batches):
        together = [text for epochs in shared for text in as_text(epochs.batch(number))]
        assert together == as_text(alone.batch(number))
    seen = [
        {
            (s.file, s.window)
            for number in range(epochs.batches, 2 * epochs.batches)
            for s in epochs.batch(number)
        }
        for epochs in shared
    ]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 12
