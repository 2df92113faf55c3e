"""Which file and which start each sample has: every sample once an epoch, from seed and number."""

from collections import Counter

import pytest

from vgan_fast.loaders.epochs import Epochs


def test_every_clip_once_an_epoch_in_a_new_order():
    epochs = Epochs([3, 1, 2], batch_size=2, seed=7)
    assert epochs.batches == 3
    orders = [
        [file for number in range(3) for file, _ in epochs.batch(3 * epoch + number)]
        for epoch in range(20)
    ]
    assert all(Counter(order) == {0: 3, 1: 1, 2: 2} for order in orders)
    assert len(set(map(tuple, orders))) > 10


def test_incomplete_batch_is_dropped_and_not_always_the_same():
    epochs = Epochs([1] * 5, batch_size=2, seed=0)
    assert epochs.batches == 2
    seen = Counter(file for number in range(60) for file, _ in epochs.batch(number))
    assert sum(seen.values()) == 120
    assert min(seen.values()) > 10


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_few_clips_fill_a_batch_evenly(batch_size):
    epochs = Epochs([1, 1, 1], batch_size=batch_size, seed=0)
    batch = epochs.batch(5)
    assert len(batch) == batch_size
    counts = Counter(file for file, _ in batch)
    if batch_size > 3:
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(set(batch)) == batch_size  # the starts differ


def test_a_batch_depends_on_seed_and_number_alone():
    epochs = Epochs([4, 5], batch_size=3, seed=1)
    forward = [epochs.batch(number) for number in range(9)]
    backward = [epochs.batch(number) for number in reversed(range(9))]
    assert forward == backward[::-1]
    assert forward != [Epochs([4, 5], 3, seed=2).batch(number) for number in range(9)]
    assert len(set(map(tuple, forward))) == 9


def test_starts_cover_the_whole_range():
    epochs = Epochs([10], batch_size=10, seed=3)
    fractions = [fraction for number in range(100) for _, fraction in epochs.batch(number)]
    assert 0 <= min(fractions) < 0.01
    assert 0.99 < max(fractions) < 1
