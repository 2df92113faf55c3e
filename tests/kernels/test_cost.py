"""The counted cost of a step, against counts by hand and PyTorch's own counter."""

import math
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vgan_fast import models
from vgan_fast.kernels.cost import (
    Call,
    discriminator_layers,
    generator_layers,
    norm_backward,
    norm_forward,
    training_step,
)
from vgan_fast.shape import ClipShape

PAPER = ClipShape()
SMALL = ClipShape(frames=16, size=32, width=8, latent=12)


def counted(module: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """FLOPs that PyTorch counts; forward only."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", [SMALL, ClipShape(8, 16, 8, 6)], ids=["32 pixels", "16 pixels"])
def test_products_of_the_generator_are_those_that_pytorch_counts(shape):
    foreground, head, background, still_head = generator_layers(shape)
    ours = sum(2 * 3 * x.products for x in (*foreground, head, *background, still_head))
    network = models.TwoStreamGenerator(shape)
    assert ours == counted(network, torch.randn(3, shape.latent))
    weights = sum(x.weights for x in (*foreground, head, *background, still_head))
    convolutions = [p for p in network.parameters() if p.dim() > 1]
    assert weights == sum(p.numel() for p in convolutions)


def test_products_of_the_discriminator_are_those_that_pytorch_counts_and_padding():
    first, layers, last = discriminator_layers(SMALL)
    clip = torch.randn(2, 3, SMALL.frames, SMALL.size, SMALL.size)
    positions = SMALL.frames * SMALL.size**2 // 8
    padding = positions * (8 * 32 - 64 * 3) * SMALL.width
    ours = sum(2 * 2 * x.products for x in (first, *layers, last)) - 2 * 2 * padding
    assert ours == counted(models.Discriminator(SMALL), clip)


def test_the_paper_s_step_is_46_gflop_a_clip_without_padding():
    """Three passes of G less its first layer's input gradient; 3 forward, 3 backward of D."""
    calls = training_step(PAPER, 64)
    convolutions = [c for c in calls if c.name.endswith(("forward", "gradient", "and blend"))]
    products = [c for c in convolutions if "norm" not in c.name and "activation" not in c.name]
    padding = 6 * 2 * 64 * 16384 * (256 - 192) * 64  # D's first layer: three forward, three back
    total = sum(c.flops for c in products) - padding
    assert total / 64 / 1e9 == pytest.approx(46.0, abs=0.1)


def test_bytes_by_hand():
    """The paper's sizes at batch 64: design figures of the activations, in bf16."""
    foreground, *_ = generator_layers(PAPER)
    assert [round(64 * x.result * 2 / 1e6, 1) for x in foreground] == [2.1, 8.4, 33.6, 134.2]
    first, layers, _ = discriminator_layers(PAPER)
    assert [round(64 * x.result * 2 / 1e6, 1) for x in (first, *layers)] == [134.2, 33.6, 8.4, 2.1]
    assert first.source == 17 * 33 * 33 * 32
    forward = layers[0].call("", "forward", 64)
    assert forward.bytes == 64 * (64 * 16384 + 128 * 2048) * 2 + 64 * 128 * 64 * 2
    gradient = layers[0].call("", "weight gradient", 64)
    assert gradient.bytes - forward.bytes == 64 * 128 * 64 * 2  # fp32 in place of bf16
    (head_call,) = [c for c in training_step(PAPER, 64) if c.name == "head and blend"]
    video, logits, still = 3 * 131072, 4 * 131072, 3 * 4096
    assert head_call.bytes == 2 * (64 * (64 * 16384 + logits + video + still) + 64 * 4 * 64)


def test_passes_of_the_norm():
    """Forward reads twice and writes once; backward reads four times and writes once."""
    assert sum(c.bytes for c in norm_forward("", "", 1000)) == 3 * 2000
    assert sum(c.launches for c in norm_forward("", "", 1000)) == 3
    assert sum(c.bytes for c in norm_backward("", "", 1000)) == 5 * 2000
    assert sum(c.launches for c in norm_backward("", "", 1000)) == 3


def test_a_floor_is_the_longer_of_computing_and_moving():
    assert Call("", "", "", 790e12, 0).floor(790, 4) == pytest.approx(1)
    assert Call("", "", "", 0, 4e12).floor(790, 4) == pytest.approx(1)
    assert Call("", "", "", 790e12, 8e12).floor(790, 4) == pytest.approx(2)


def test_cost_grows_with_the_batch_but_for_weights():
    one, two = (training_step(SMALL, batch) for batch in (1, 2))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        if a.name == "Adam":
            assert a == b
        else:
            assert b.flops == pytest.approx(2 * a.flops)
            assert a.bytes < b.bytes <= 2 * a.bytes


def test_the_program_prints_sums_of_what_it_lists():
    ended = subprocess.run(
        [sys.executable, "-m", "vgan_fast.kernels.cost", "--batch", "4", "--size", "32"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in ended.stdout.splitlines()[1:]]
    listed = [float(words[-3]) for words in lines if words[0] != "sum"]
    sums = {words[1]: float(words[-3]) for words in lines if words[0] == "sum"}
    assert math.isclose(sum(listed), sums["all"], abs_tol=0.06 * len(listed))
    assert math.isclose(sums["library"] + sums["triton"], sums["all"], abs_tol=0.2)
    refused = subprocess.run(
        [sys.executable, "-m", "vgan_fast.kernels.cost", "--size", "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --size 20")
