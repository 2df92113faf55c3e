"""The counted cost of a step, against what runs, counts by hand and PyTorch's own counter."""

import math
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.counting import launches
from vgan_fast import models
from vgan_fast.gan_step import GANStep
from vgan_fast.kernels.cost import Call, Product, training_step
from vgan_fast.settings import Settings
from vgan_fast.shape import ClipShape

PAPER = ClipShape()
SMALL = ClipShape(frames=16, size=32, width=8, latent=12)
TINY = ClipShape(frames=8, size=16, width=8, latent=8)


@pytest.fixture(scope="module")
def paper():
    return training_step(PAPER, 64)


def counted(module: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """FLOPs that PyTorch counts; forward only."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()


def named(calls: list[Call], *names: str, part: str = "") -> list[Call]:
    found = [c for c in calls if c.name.split()[0] in names and c.part.startswith(part)]
    assert found
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts the interpreter's launches")
def test_launches_are_those_of_a_step(monkeypatch):
    """And all of them are kernels: no twin of an op runs."""
    sizes = dict(frames=8, size=16, width=8, latent=8, batch_size=2, average=0.0)
    step = GANStep(Settings(backend="fused", precision="bf16", device="cpu", **sizes))
    frames = torch.randint(0, 256, (2, 8, 16, 16, 3), dtype=torch.uint8)
    step(frames)  # makes the optimisers' state
    with launches(monkeypatch) as ran:
        step(frames)
    table = training_step(TINY, 2)
    assert sum(ran.values()) == sum(call.launches for call in table)
    products = [call for call in table if call.product]
    gradients = [c for c in products if c.product.direction == "weight gradient"]
    # The head's forward has a kernel of its own; its backward has one of each.
    assert ran["conv _gather_gemm"] == len(products) - len(gradients) - 1
    assert ran["conv _product"] == len(gradients) + 1
    assert ran["head _forward"] == 1
    for kernel, name in (
        ("norm _apply_kernel", "norm_act"),
        ("norm _input_gradient_kernel", "norm_act_input_gradient"),
        ("norm _whole_forward_kernel", "batch_norm_act"),
        ("norm _whole_backward_kernel", "norm_act_backward"),
        ("norm _track_kernel", "norm_act_track"),
        ("loss _forward", "logistic_losses"),
        ("loss _backward", "logistic_losses_backward"),
        ("conv _merge_sums", "convolve_norm_backward"),
    ):
        assert ran[kernel] == len([c for c in table if c.name.split()[0] == name]), kernel
    for name in ("aten::_foreach_copy_", "aten::sum.dim_IntList", "aten::zeros"):
        in_ops = name == "aten::sum.dim_IntList"  # that of the head's bias
        expected = len([c for c in table if c.name.split()[0] == name.removeprefix("aten::")])
        assert ran[name] == expected + in_ops, name


def test_a_step_at_the_paper_s_sizes_has_at_most_150_launches(paper):
    assert sum(call.launches for call in paper) <= 150


@pytest.mark.parametrize("shape", [SMALL, TINY], ids=["32 pixels", "16 pixels"])
def test_products_of_the_generator_are_those_that_pytorch_counts(shape):
    calls = training_step(shape, 3)
    forward = named(calls, "convolve_statistics", "project", "convolution", part="G forward")
    ours = sum(call.flops for call in forward)
    # The head, without the padding of its cells.
    positions = 3 * shape.frames * shape.size**2 // 8
    ours += 2 * positions * shape.width * 4 * 4**3
    assert ours == counted(models.TwoStreamGenerator(shape), torch.randn(3, shape.latent))
    (head,) = named(calls, "head_blend")
    sizes = shape.frames // 2 + 1, shape.size // 2 + 1, shape.size // 2 + 1
    assert head.flops == 2 * 3 * math.prod(sizes) * 32 * 8 * shape.width


def test_products_of_the_discriminator_are_those_that_pytorch_counts_and_padding():
    calls = training_step(SMALL, 2)
    clip = torch.randn(2, 3, SMALL.frames, SMALL.size, SMALL.size)
    padding = 2 * 2 * SMALL.frames * SMALL.size**2 // 8 * (8 * 32 - 64 * 3) * SMALL.width
    expected = counted(models.Discriminator(SMALL), clip) + padding
    kinds = "convolve", "convolve_statistics", "project"
    in_g = [c for c in named(calls, *kinds, part="G step") if ", up" not in c.name]
    assert sum(c.flops for c in in_g) == expected
    # Real and generated clips are one batch.
    assert sum(c.flops for c in named(calls, *kinds, part="D step")) == 2 * expected


def test_backward_multiplies_as_often_as_forward(paper):
    """Once for the weights and once for the input, but for the first layers' inputs."""

    def flops(direction, part, kernel=4):
        found = [c.product for c in paper if c.product and c.part == part]
        return sum(p.flops for p in found if p.direction == direction and p.kernel[0] == kernel)

    assert flops("up", "G forward") == flops("down", "G step") - flops("down", "D step") / 2
    assert flops("up", "G forward") == flops("weight gradient", "G step")
    assert flops("down", "D step") == flops("up", "D step") == flops("weight gradient", "D step")
    assert flops("up", "G step") == flops("up", "D step") / 2
    assert flops("weight gradient", "D step", 2) == flops("down", "D step", 2)


def test_the_paper_s_step_is_46_gflop_a_clip_and_padding(paper):
    total = sum(c.flops for c in paper if c.product or c.by == "library")
    # Cells: a third more of D's first layer six times, borders of the head and of its gradient.
    assert 46.0 < total / 64 / 1e9 < 47.5


def test_bytes_by_hand(paper):
    """The paper's sizes at batch 64, in bf16; statistics in fp32."""

    def of(name, part, start):
        (call,) = [c for c in named(paper, name, part=part) if start in c.name]
        return call

    second = of("convolve_statistics", "D step", "128x64x16x32x32")
    assert second.product == Product("down", 128, 64, (4, 4, 4), 128 * 2048, 128, 64 * 64)
    values = 128 * (64 * 16384 + 128 * 2048) + 64 * 128 * 64
    assert second.bytes == 2 * values + 4 * 2 * 2 * 128
    assert second.launches == 2
    first = of("convolve", "D step", "128x32x17x33x33")
    cells, made = 128 * 32 * 17 * 33 * 33, 128 * 64 * 16384
    assert first.bytes == 2 * (cells + 32 * 64 * 8 + made) + 4 * 64
    # 2 splits of fp32 partial sums are written and read.
    third = next(c for c in paper if c.name == "weight gradient 128x128x8x16x16")
    weights = 4 * 256 * 128 * 64
    assert third.bytes == 2 * 128 * (128 * 2048 + 256 * 256) + weights + 2 * 2 * weights
    assert third.launches == 2
    fourth = next(c for c in paper if c.name == "weight gradient 128x256x4x8x8")
    assert fourth.launches == 1
    assert fourth.bytes == 2 * 128 * (256 * 256 + 512 * 32) + 4 * 512 * 256 * 64
    masked = of("convolve_masked", "D step", "128x128x8x16x16")
    assert masked.bytes == 2 * (128 * (128 * 2048 + 2 * 64 * 16384) + 64 * 128 * 64)
    backward = of("convolve_norm_backward", "D step", "128x256x4x8x8")
    vectors = 4 * (2 * 2 * 128 + 2 * 128 + 2 * 2 * 128)
    values = 128 * (256 * 256 + 2 * 128 * 2048) + 128 * 256 * 64
    assert backward.bytes == 2 * values + vectors
    apply = of("norm_act", "D step", "128x128x8x16x16")
    assert apply.bytes == 2 * 2 * 128 * 128 * 2048 + 4 * (2 * 2 * 128 + 2 * 128)
    whole = of("batch_norm_act", "G forward", "64x512x2x4x4")
    assert whole.bytes == 4 * 2 * 64 * 512 * 32 + 4 * (3 * 2 * 512 + 2 * 512)
    (head,) = named(paper, "head_blend")
    video, logits, still = 3 * 131072, 4 * 131072, 3 * 4096
    values = 64 * (64 * 16384 + logits + video + still)
    assert head.bytes == 2 * values + 4 * (64 * 256 + 4) + 2 * 4 * 64 * still + 4
    pair = of("pair_to_cells", "D step", "64x32")
    assert pair.bytes == 64 * 3 * 131072 * (1 + 2) + 2 * cells
    updates = [c for c in paper if c.name == "Adam"]
    generator, discriminator = models.TwoStreamGenerator(PAPER), models.Discriminator(PAPER)
    trained = [
        sum(p.numel() for n, p in network.named_parameters() if p.dim() > 1 or n not in biases)
        for network, biases in (
            (discriminator, {"layers.2.bias", "layers.5.bias", "layers.8.bias"}),
            (
                generator,
                {f"{s}.{i}.bias" for s in ("foreground", "background") for i in (0, 3, 6, 9)},
            ),
        )
    ]
    assert [c.bytes for c in updates] == [28 * n for n in trained]
    assert [c.flops for c in updates] == [12 * n for n in trained]


def test_a_floor_is_the_longer_of_computing_and_moving():
    assert Call("", "", "", 790e12, 0).floor(790, 4) == pytest.approx(1)
    assert Call("", "", "", 0, 4e12).floor(790, 4) == pytest.approx(1)
    assert Call("", "", "", 790e12, 8e12).floor(790, 4) == pytest.approx(2)


def test_cost_grows_with_the_batch_but_for_weights():
    one, two = (training_step(SMALL, batch) for batch in (32, 64))
    assert [c.name.split()[0] for c in one] == [c.name.split()[0] for c in two]
    for a, b in zip(one, two, strict=True):
        assert a.flops <= b.flops <= 2 * a.flops
        if a.product:
            assert b.flops == 2 * a.flops
        if a.name == "Adam":
            assert a == b


def test_the_program_prints_sums_of_what_it_lists():
    ended = subprocess.run(
        [sys.executable, "-m", "vgan_fast.kernels.cost", "--batch", "4", "--size", "32"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in ended.stdout.splitlines()[1:]]
    listed = [(float(w[-4]), int(w[-1])) for w in lines if w[0] != "sum"]
    sums = {w[1]: (float(w[-4]), int(w[-1])) for w in lines if w[0] == "sum"}
    assert math.isclose(sum(g for g, _ in listed), sums["all"][0], abs_tol=0.006 * len(listed))
    assert sum(n for _, n in listed) == sums["all"][1]
    parts = [sums[by] for by in ("triton", "library", "torch")]
    assert sum(n for _, n in parts) == sums["all"][1]
    refused = subprocess.run(
        [sys.executable, "-m", "vgan_fast.kernels.cost", "--size", "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --size 20")
