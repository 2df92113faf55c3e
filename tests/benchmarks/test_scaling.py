"""What `benchmarks.scaling` counts is what a step sends."""

import torch

from benchmarks.scaling import all_reduce, collectives, page, row, sent
from vgan_fast.distributed import Ranks
from vgan_fast.gan_step import GANStep
from vgan_fast.settings import Settings

TINY = Settings(
    batch_size=4,
    frames=8,
    size=16,
    width=4,
    latent=6,
    device="cpu",
    backend="library",
    precision="fp32",
    batch_norm="synchronised",
)


class Counting(Ranks):
    """One process that notes how many bytes it would send."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def average(self, tensors):
        self.bytes.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def test_the_messages_counted_are_those_of_a_step():
    ranks = Counting()
    GANStep(TINY, ranks=ranks)(torch.randint(0, 256, (4, 8, 16, 16, 3), dtype=torch.uint8))
    of = collectives(TINY)
    assert sorted(ranks.bytes) == sorted((*of.gradients, *of.norms))


def test_a_ring_sends_all_but_a_share_twice():
    assert sent(800, 8) == 2 * 7 * 100
    assert sent(800, 1) == all_reduce(800, 1) == 0
    assert all_reduce(10**9, 64) > all_reduce(10**9, 8) > 10**9 / 450e9


def test_more_gpus_are_faster_until_the_gradients_take_over():
    of = collectives(Settings(device="cuda", precision="bf16", backend="library"))
    assert of.gradients == (4 * 16_245_383, 4 * 11_041_473)
    one, eight, many = (row(gpus, 64 // gpus, of) for gpus in (1, 8, 64))
    speeds = [r.speed(r.local) for r in (one, eight, many)]
    assert speeds == sorted(speeds)
    assert one.gradients == one.norms == 0
    assert many.gradients > many.computes
    assert many.hidden == many.gradients
    assert one.local == one.computes


def test_the_page_says_that_nothing_was_measured():
    text = page()
    assert "No time here was measured" in text
    rows = [
        line.split(" | ")[:2] for line in text.splitlines() if line[:3] in ("| 1", "| 8", "| 6")
    ]
    assert rows == [
        *(["| 1", "64"], ["| 8", "64"], ["| 64", "64"]),
        *(["| 1", "64"], ["| 8", "8"], ["| 64", "1"]),
    ]
