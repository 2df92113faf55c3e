"""The counted cost of a step, against the step itself, counts by hand and PyTorch's own counter."""

import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.counting import Launch, launches
from vgan_fast import models
from vgan_fast.errors import UserError
from vgan_fast.gan_step import GANStep
from vgan_fast.kernels.conv import gather, weight_gradient
from vgan_fast.kernels.cost import Call, Product, main, table, training_step
from vgan_fast.kernels.loss import logistic_losses
from vgan_fast.losses import discriminator_loss, generator_loss
from vgan_fast.settings import Settings
from vgan_fast.shape import ClipShape

PAPER = ClipShape()
SMALL = ClipShape(frames=16, size=32, width=8, latent=12)
TINY = ClipShape(frames=8, size=16, width=8, latent=8)
BIG_BATCH = 264  # whose first norms have too many rows for one launch

in_the_interpreter = pytest.mark.skipif(
    torch.cuda.is_available(), reason="counts what the interpreter launches"
)
# Of each argument, how often it is read or written where that is not once: counters, moments and
# running statistics are both, the fp32 weight of a projection is neither.
PASSES = {
    "aten::_foreach_add_.Scalar": (2,),
    "aten::_fused_adam_": (2, 1, 2, 2),
    "norm _track_kernel": (2, 2, 2),
    "norm _merge_statistics_kernel": (0,),  # but for a row
    "vgan_fast::project": (1, 0, 0),
}


def launched(monkeypatch, shape: ClipShape, batch: int, execute: bool) -> list[Launch]:
    """What a step launches, of a training that has begun."""
    sizes = {name: getattr(shape, name) for name in ("frames", "size", "width", "latent")}
    settings = Settings(
        backend="fused", precision="bf16", device="cpu", graph=False, batch_size=batch, **sizes
    )
    step = GANStep(settings)
    frames = torch.zeros(batch, shape.frames, shape.size, shape.size, 3, dtype=torch.uint8)
    with launches(monkeypatch, execute=False):
        step(frames)
    with launches(monkeypatch, execute) as found:
        step(frames)
    return found


def moved(launch: Launch) -> int:
    passes = PASSES.get(launch.kernel, ())
    times = passes + (1,) * (len(launch.sizes) - len(passes))
    return sum(n * size for n, size in zip(times, launch.sizes, strict=True))


def compare(calls: list[Call], found: list[Launch]) -> None:
    """Launches by name, in order; then bytes, and how products are cut up, call by call."""
    assert Counter(c.kernel for c in calls) == Counter(x.kernel for x in found)
    assert [c.kernel for c in calls] == [x.kernel for x in found]
    for call, launch in zip(calls, found, strict=True):
        assert call.bytes == moved(launch), call
        product, options = call.product, launch.options
        assert call.by == ("triton" if options else "library" if product else "torch"), call
        assert not product or options or product == Product(product.m, product.n, product.k)
        if not (product and options):
            continue
        assert product.blocks == math.prod(launch.grid), call
        warps, stages = product.config.num_warps, product.config.num_stages
        assert (options["num_warps"], options["num_stages"]) == (warps, stages), call
        columns = options.get("BLOCK_N", 32)
        if launch.kernel == "conv _product":
            assert product.splits == launch.grid[1], call
            depth = math.prod(options[f"BOX_{axis}"] for axis in "NDHW")
        else:
            depth = options["BLOCK_K"]
        assert product.tile == (options["BLOCK_M"], columns, depth), call
        if launch.kernel == "conv _gather_gemm":
            plain = "plain" if product.epilogue in ("none", "shift") else product.epilogue
            assert options["EPILOGUE"] == plain, call
            assert options["MERGED"] == product.config.merged, call
            assert product.direction == ("up" if options["UP"] else "down"), call
            assert (options["A"], options["B"]) == (product.layer.coarse, product.layer.fine)
        else:
            direction = {"conv _product": "weight gradient", "head _forward": "head"}
            assert (product.direction, product.epilogue) == (direction[launch.kernel], ""), call


@in_the_interpreter
@pytest.mark.filterwarnings("ignore:overflow")  # the interpreter's bf16 is wrong
@pytest.mark.parametrize(
    ("shape", "batch", "execute"),
    [(TINY, 2, True), (SMALL, 4, False), (PAPER, 64, False), (TINY, BIG_BATCH, False)],
    ids=["two layers, executed", "three layers", "paper", "big batch"],
)
def test_a_step_launches_what_the_table_says(shape, batch, execute, monkeypatch):
    """And all that is this project's is kernels: `launches` refuses twins."""
    compare(training_step(shape, batch), launched(monkeypatch, shape, batch, execute))


@in_the_interpreter
def test_what_counts_as_a_launch(monkeypatch):
    logits = torch.zeros(4, 1)
    with launches(monkeypatch) as found:
        logistic_losses(logits, [True, False], impl="triton")
        torch.empty(3).view(3).detach()
        torch.zeros(2).to(torch.bfloat16)
    names = [launch.kernel for launch in found]
    assert names == ["loss _forward", "aten::zeros", "aten::_to_copy"]
    assert [sum(launch.sizes) for launch in found] == [16 + 8, 8, 8 + 4]
    with launches(monkeypatch), pytest.raises(AssertionError, match="logistic_losses: its twin"):
        logistic_losses(logits, [True, False], impl="reference")


def test_the_paper_s_step_is_at_most_150_launches():
    assert len(training_step(PAPER, 64)) <= 150


def test_no_call_of_a_part_has_the_name_of_another():
    names = Counter((call.part, call.name) for call in training_step(PAPER, 64))
    assert max(names.values()) == 1
    assert list(dict.fromkeys(part for part, _ in names)) == ["G forward", "D step", "G step"]


def modules(network: torch.nn.Module, *inputs: torch.Tensor) -> dict[str, int]:
    """FLOPs of each layer's forward, as PyTorch counts them, by its name."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return {name: sum(of.values()) for name, of in counter.get_flop_counts().items()}


@pytest.mark.parametrize("shape", [SMALL, TINY], ids=["32 pixels", "16 pixels"])
def test_flops_of_each_layer_are_those_that_pytorch_counts(shape):
    calls = {(call.part, call.name): call.flops for call in training_step(shape, 2)}
    generator = models.TwoStreamGenerator(shape)
    expected = modules(generator, torch.randn(2, shape.latent))
    for stream in ("foreground", "background"):
        for k in range(shape.levels):
            flops = expected[f"TwoStreamGenerator.{stream}.{3 * k}"]
            assert calls["G forward", f"{stream} {k + 1} forward"] == flops
            assert calls["G step", f"{stream} {k + 1} weight gradient"] == flops
            if k:
                assert calls["G step", f"{stream} {k + 1} input gradient"] == flops
    head, still = (expected[f"TwoStreamGenerator.{x}"] for x in ("head", "background_head"))
    assert calls["G forward", "head forward, blend"] == head
    assert calls["G step", "head input gradient"] == head
    assert calls["G step", "head weight gradient"] == head
    assert calls["G forward", "background head forward"] == still
    assert calls["G step", "background head gradients"] == 2 * still
    clip = torch.randn(2, 3, shape.frames, shape.size, shape.size)
    expected = modules(models.Discriminator(shape), clip)
    for k in range(shape.levels + 1):
        flops = expected[f"Discriminator.layers.{max(0, 3 * k - 1)}"]
        assert calls["D step", f"layer {k + 1} forward"] == 2 * flops
        assert calls["D step", f"layer {k + 1} weight gradient"] == 2 * flops
        assert calls["G step", f"layer {k + 1} forward"] == flops
        assert calls["G step", f"layer {k + 1} input gradient"] == flops
        if k:
            assert calls["D step", f"layer {k + 1} input gradient"] == 2 * flops


@pytest.mark.parametrize("shape", [SMALL, TINY], ids=["32 pixels", "16 pixels"])
def test_flops_of_a_step_are_those_that_pytorch_counts(shape):
    generator, discriminator = models.TwoStreamGenerator(shape), models.Discriminator(shape)
    real = torch.randn(2, 3, shape.frames, shape.size, shape.size)
    with FlopCounterMode(display=False) as counter:
        fake, mask = generator(torch.randn(2, shape.latent))
        logits = torch.cat([discriminator(real), discriminator(fake.detach())])
        discriminator_loss("cross-entropy", logits).sum().backward()
        discriminator.requires_grad_(False)
        (generator_loss("cross-entropy", discriminator(fake)) + mask).backward()
    assert sum(call.flops for call in training_step(shape, 2)) == counter.get_total_flops()


def test_the_paper_s_step_is_46_gflop_a_clip():
    """Three passes of G less its first layer's input gradient; 3 forward, 3 backward of D."""
    total = sum(call.flops for call in training_step(PAPER, 64))
    assert total / 64 / 1e9 == pytest.approx(46.0, abs=0.1)


def test_products_by_hand():
    """Rows, columns, terms, splits and blocks at the paper's sizes, batch 64, as in the plan."""
    found = {
        (call.part, call.name): (p.m, p.n, p.k, p.splits, p.blocks)
        for call in training_step(PAPER, 64)
        if (p := call.product)
    }
    cells = 17 * 33 * 33
    expected = {
        ("G forward", "foreground 1 forward"): (64, 16384, 100, 1, 0),
        ("G forward", "foreground 2 forward"): (8 * 2048, 256, 4096, 1, 8 * 8 * 2),
        ("G forward", "foreground 3 forward"): (8 * 16384, 128, 2048, 1, 8 * 128),
        # Both results of a cell along w in the columns: 17 cells for 16 of them.
        ("G forward", "foreground 4 forward"): (4 * 139264, 128, 1024, 1, 4 * 1088),
        ("G forward", "background head forward"): (64 * 1024, 3 * 16, 64, 1, 0),
        ("G forward", "head forward, blend"): (64 * cells, 32, 512, 1, 9257),
        ("D step", "layer 1 forward"): (128 * 16384, 64, 256, 1, 16384),
        ("D step", "layer 2 forward"): (262144, 128, 4096, 1, 1024),
        ("D step", "layer 3 forward"): (32768, 256, 8192, 1, 256),
        ("D step", "layer 4 forward"): (4096, 512, 16384, 1, 128),
        ("D step", "layer 5 forward"): (128, 1, 16384, 1, 0),
        ("D step", "layer 5 input gradient"): (128, 16384, 1, 1, 0),
        ("D step", "layer 5 weight gradient"): (16384, 1, 128, 1, 0),
        ("D step", "layer 4 weight gradient"): (64 * 256, 512, 4096, 1, 64 * 4),
        ("D step", "layer 3 weight gradient"): (64 * 128, 256, 32768, 2, 32 * 2 * 2),
        ("D step", "layer 2 weight gradient"): (64 * 64, 128, 262144, 8, 16 * 8),
        ("D step", "layer 1 weight gradient"): (256, 64, 2097152, 264, 264),
        ("G step", "layer 1 input gradient"): (64 * cells, 32, 512, 1, 9257),
        ("G step", "head input gradient"): (1048576, 64, 256, 1, 8192),
        ("G step", "head weight gradient"): (256, 64, 1048576, 263, 263),
        ("G step", "foreground 1 weight gradient"): (100, 16384, 64, 1, 0),
        ("G step", "background head gradients"): (64 * 1024, 3 * 16, 64, 1, 0),
        ("G step", "background 2 weight gradient"): (16 * 256, 512, 1024, 1, 64),
    }
    assert {key: found[key] for key in expected} == expected
    # Gathering, weight gradients, the head's, the library's.
    assert len(found) == 28 + 11 + 1 + 11


# Clips of 8x16x16 and batch 2: 8x8 pixels of a picture at width 8, 4x8x8 positions of a clip; cells
# are 5x9x9 of 32 values. A row for each kernel and epilogue.
FOUR, EIGHT = 2 * 16 * 32, 2 * 8 * 256  # values of the clips' 2x4x4 and 4x8x8 grids
CELLS, CLIP = 2 * 32 * 5 * 9 * 9, 2 * 3 * 8 * 16 * 16
WEIGHTS = 16 * 8 * 64
BY_HAND = {
    "G forward": {
        "latents": 2 * 8 * 4,
        "latents, cast": 16 * 4 + 16 * 2,
        "weights, cast": (8 * 16 * 32 + WEIGHTS + 8 * 16 * 16 + 16 * 8 * 16 + 8 * 3 * 16 + 3) * 6,
        "foreground 1 forward": (2 * 8 + 8 * 512 + 2 * 512) * 2,
        "foreground 1 norm, activation": 2 * FOUR * 2 + 4 * 16 * 4,
        "foreground 2 forward": (FOUR + WEIGHTS + EIGHT) * 2,
        "foreground 2 norm, activation": 2 * EIGHT * 2 + 4 * 8 * 4,
        "background head forward": (2 * 8 * 64 + 8 * 3 * 16 + 3 + 2 * 3 * 256) * 2,
        # Running mean and variance both ways, mean, variance and bias of the batch; counts.
        "running statistics": (16 + 8 + 16 + 8) * 7 * 4 + 4 * 8 * 2,
        "background, planar": 2 * 3 * 256 * 4,
        "background, cast": 2 * 3 * 256 * 6,
        "background, activation": 2 * 3 * 256 * 8,
        "head weight, in cells": 8 * 4 * 64 * 6,
        # A tile has 128 of the 810 cells.
        "head forward, blend": (EIGHT + 8 * 4 * 64 + CLIP // 3 * 7) * 2 + (4 + 1536 + 7) * 4,
        "mask's mean": 7 * 4 + 4,
    },
    "D step": {
        "frames to cells": CLIP + CELLS * 2,
        "video to cells": CLIP * 2 + CELLS * 2,
        "weights, cast": (WEIGHTS + 16 * 32 + 1) * 6,
        "layer 1 weight, zeros": 8 * 32 * 8 * 2,
        "layer 1 weight, in cells": 8 * 3 * 64 * 6,
        "layer 1 forward": (2 * CELLS + 8 * 32 * 8 + 2 * EIGHT) * 2 + 8 * 4,
        # Sums and squares of a tile for each group.
        "layer 2 forward": (2 * EIGHT + WEIGHTS + 2 * FOUR) * 2 + 2 * 2 * 16 * 4 + 2 * 4,
        "layer 2 forward, merge": (2 * 2 * 16 + 2 + 2 * 2 * 16) * 4,
        "layer 2 norm, activation": 2 * 2 * FOUR * 2 + (4 + 2) * 16 * 4,
        "running statistics": 16 * (4 + 2 * 2 + 1) * 4 + 8 * 2,
        "layer 3 forward": (4 * 512 + 512 + 1 + 4) * 2,
        "loss": 4 * 2 + 2 * 4,
        "loss's gradient": 2 * 4 * 2 + 2 * 4,
        "layer 3 input gradient": (4 + 512 + 4 * 512) * 2,
        "layer 3 weight gradient": (4 * 512 + 4) * 2 + 512 * 4,
        "layer 3 bias gradient": 4 * 2 + 4,
        "layer 2 norm's gradient": 3 * 2 * FOUR * 2 + (4 + 2 + 4) * 16 * 4,
        "layer 2 norm, sum of groups": (2 * 2 + 2) * 16 * 4,
        "layer 2 weight gradient": (2 * EIGHT + 2 * FOUR) * 2 + WEIGHTS * 4,
        "layer 2 input gradient": (2 * FOUR + WEIGHTS + 2 * 2 * EIGHT) * 2,
        "layer 1 weight gradient": (2 * CELLS + 2 * EIGHT) * 2 + 8 * 32 * 8 * 4,
        "layer 1 weight gradient, from cells": 8 * 3 * 64 * 8,
        "layer 1 bias gradient": 2 * EIGHT * 2 + 8 * 4,
        "Adam, steps": 7 * 2 * 4,
        # Weight and bias of layer 1, weight of 2, its norm, weight and bias of 3.
        "Adam": (8 * 3 * 64 + 8 + WEIGHTS + 2 * 16 + 512 + 1) * 7 * 4 + 7 * 4,
    },
    "G step": {
        "video to cells": CLIP * 2 + CELLS * 2,
        "cells' gradient to video's": CELLS * 2 + CLIP * 2,
        "blend's gradient": (CLIP // 3 * 7 + 2 * 1536 + CELLS) * 2 + (1 + 2 * 4) * 4,
        "head bias gradient": (2 * 4 + 4) * 4,
        "head weight, in cells": 8 * 4 * 64 * 6,
        "head input gradient": (CELLS + 8 * 4 * 64 + EIGHT) * 2,
        "head weight gradient, from cells": 8 * 4 * 64 * 8,
        "background head gradients": (1536 + 2 * 1024 + 2 * 384 + 3) * 2,
        "background head bias gradient, cast": 3 * 6,
        "background head weight gradient, cast": 8 * 3 * 16 * 6,
        "foreground 2 input gradient": (EIGHT + WEIGHTS + 2 * FOUR) * 2 + (4 * 16 + 2 * 16) * 4,
        "foreground 2 input gradient, merge": (2 * 16 + 3 * 16) * 4,
        "foreground 1 norm's gradient": 3 * FOUR * 2 + (4 + 2) * 16 * 4,
        "foreground 1 weight gradient": (2 * 8 + 2 * 512) * 2 + 8 * 512 * 4,
    },
}


def test_bytes_by_hand():
    calls = training_step(TINY, 2)
    for part, rows in BY_HAND.items():
        found = {call.name: call.bytes for call in calls if call.part == part}
        assert {name: found[name] for name in rows} == rows
    covered = {c.kernel for c in calls if c.name in BY_HAND[c.part]}
    assert covered == {c.kernel for c in calls}


def test_bytes_of_many_rows_by_hand():
    """Sums of splits, and norms that take more than a launch, at the paper's sizes."""
    found = {(c.part, c.name): c.bytes for c in training_step(PAPER, 64)}
    weights = 64 * 128 * 64
    assert found["D step", "layer 2 weight gradient, sum"] == (8 + 1) * weights * 4
    values = 64 * 64 * 16384
    # 32768 tiles of 32 rows, 43 to a program: sums of two kinds from 763 of them.
    partial = 2 * 64 * 763 * 4
    assert found["G step", "foreground 4 norm's sums"] == 2 * values * 2 + 4 * 64 * 4 + partial
    assert found["G step", "foreground 4 norm's sums, merge"] == partial + 3 * 64 * 4
    assert found["G step", "foreground 4 norm's gradient"] == 3 * values * 2 + 6 * 64 * 4


def test_what_is_not_counted_is_refused():
    with pytest.raises(UserError, match="--size 8: counted from 16 on"):
        training_step(ClipShape(8, 8, 8, 8), 2)
    with pytest.raises(UserError, match="--width 12: counted for multiples of 8"):
        training_step(ClipShape(8, 16, 12, 8), 2)


def test_a_floor_is_the_longer_of_computing_and_moving():
    assert Call("", "", "", 0, 790 * 10**12).floor(790, 4) == pytest.approx(1)
    assert Call("", "", "", 4 * 10**12, 0).floor(790, 4) == pytest.approx(1)
    assert Call("", "", "", 8 * 10**12, 790 * 10**12).floor(790, 4) == pytest.approx(2)
    assert Call("", "", "", 8 * 10**12, 790 * 10**12).floor(79, 4) == pytest.approx(10)


def test_the_table_lists_every_call_and_sums_them():
    calls = training_step(PAPER, 64)
    header, *lines = [line.split() for line in table(calls, 790, 4)]
    assert header == ["part", "call", "by", "GFLOP", "MB", "floor", "us", "launches"]
    listed, last = lines[: len(calls)], lines[len(calls) :]

    def figures(*of: Call) -> list[str]:
        flops, moved = sum(c.flops for c in of) / 1e9, sum(c.bytes for c in of) / 1e6
        floor = sum(c.floor(790, 4) for c in of) * 1e6
        return [f"{flops:.2f}", f"{moved:.1f}", f"{floor:.1f}", str(len(of))]

    for call, words in zip(calls, listed, strict=True):
        assert words == [*call.part.split(), *call.name.split(), call.by, *figures(call)]
    kinds = {by: [c for c in calls if c.by == by] for by in ("triton", "library", "torch")}
    assert last == [["sum", by, *figures(*of)] for by, of in (kinds | {"all": calls}).items()]
    assert sum(map(len, kinds.values())) == len(calls)


def test_the_program_takes_sizes_and_rates():
    def run(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "vgan_fast.kernels.cost", *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    sizes = ("--batch", "4", "--frames", "16", "--size", "32", "--width", "8", "--latent", "12")
    ended = run(*sizes, "--tflops", "1", "--tbytes", "2")
    assert ended.stdout.splitlines() == list(table(training_step(SMALL, 4), 1, 2))
    defaults = {option.name: option.default for option in main.params}
    sizes = {name: getattr(PAPER, name) for name in ("frames", "size", "width", "latent")}
    assert defaults == {"batch": 64, "tflops": 790.0, "tbytes": 4.0, **sizes}
    refused = run("--size", "20")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --size 20")


def test_tiles_are_those_of_an_h200():
    calls = {(c.part, c.name): c.product for c in training_step(PAPER, 64) if c.product}
    assert calls["D step", "layer 2 forward"].config == gather._LONG[0]
    assert calls["D step", "layer 2 weight gradient"].config == weight_gradient._WIDE[0]
