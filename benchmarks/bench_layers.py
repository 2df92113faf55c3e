"""Each convolution of a training step, in each direction: the library's and this project's."""

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor

from benchmarks.bench_kernels import agree
from benchmarks.measure import Contender, Contest, Device, Prepared
from benchmarks.presets import Networks, Preset
from vgan_fast.kernels import choice
from vgan_fast.kernels.conv import reference
from vgan_fast.kernels.cost import CELL
from vgan_fast.kernels.dispatch import kernels_run_on
from vgan_fast.kernels.doctor import Call, Layer, discriminator_layers, generator_layers
from vgan_fast.kernels.norm.api import channels_last

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
DIRECTIONS = "forward", "input gradient", "weight gradient"


def calls(networks: Networks) -> Iterator[tuple[Call, int]]:
    """Every layer of both networks in every direction, and the channels of its finer side.

    The clips are one batch everywhere: a step passes real and generated ones through the
    discriminator as a batch twice as large, and generated ones once more by themselves.
    """
    shape, n = networks.shape, networks.batch
    fine = shape.frames // 2, shape.size // 2, shape.size // 2
    ends = [
        (Layer("head", True, (shape.width, CELL, 2, 2, 2), fine, *["convolve"] * 2), 4),
        (Layer("background head", True, (shape.width, 3, 4, 4), fine[1:], *["convolve"] * 2), 3),
    ]
    of_generator = [(layer, layer.weight[1]) for layer in generator_layers(shape)] + ends
    first, *others = discriminator_layers(shape)
    of_discriminator = [(first, 3), *((layer, layer.weight[1]) for layer in others)]
    for part, layers in (("G", of_generator), ("D", of_discriminator)):
        for layer, channels in layers:
            for direction in DIRECTIONS:
                yield Call(part, layer, direction, n), channels


def sides(call: Call, channels: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Sizes of the coarse side, of the fine side and of the weight, without cells."""
    layer = call.layer
    axes = len(layer.sizes)
    coarse = call.batch, layer.weight[0], *layer.sizes
    fine = call.batch, channels, *(2 * size for size in layer.sizes)
    return coarse, fine, (layer.weight[0], channels, *[4] * axes)


def work_of_library(
    call: Call, channels: int, device: torch.device
) -> Callable[[str, bool], Callable[[], Tensor]]:
    """What PyTorch does for a layer's direction: `make(precision, stored channels-last)`."""
    torch.manual_seed(0)
    coarse, fine, weight = (torch.randn(of, device=device) for of in sides(call, channels))
    weight /= weight.shape[0] ** 0.5
    axes = len(call.layer.sizes)
    up = call.layer.up
    steps = [2] * axes, [1] * axes, [1] * axes, up, [0] * axes, 1
    given, made = (coarse, fine) if up else (fine, coarse)

    def make(precision: str, last: bool) -> Callable[[], Tensor]:
        def ready(x: Tensor) -> Tensor:
            layout = channels_last(x) if last else torch.contiguous_format
            return x.to(DTYPES[precision]).contiguous(memory_format=layout)

        x, dy, w = ready(given), ready(made), ready(weight)

        def work() -> Tensor:
            # As `vgan_fast.device.configure` sets them in training.
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            torch.backends.cudnn.benchmark = last
            if call.direction == "forward":
                return torch.convolution(x, w, None, *steps)
            mask = [call.direction == "input gradient", call.direction == "weight gradient", False]
            found = torch.ops.aten.convolution_backward(dy, x, w, None, *steps, mask)
            return found[0 if mask[0] else 1]

        return work

    return make


def contests(preset: Preset, device: Device) -> list[Contest]:
    """Every layer and direction."""
    precision = "bf16" if device.gpu or not kernels_run_on(device.device) else "fp32"

    def by_library(call: Call, channels: int, precision: str, last: bool):
        def build(_) -> Prepared:
            make = work_of_library(call, channels, device.device)
            work = device.captured(make(precision, last))
            agree([work()], [make("fp32", False)()], precision)
            return Prepared(work)

        return build

    def by_kernel(call: Call):
        def build(_) -> Prepared:
            torch.manual_seed(0)
            arguments, options = call.arguments(device.device, DTYPES[precision])
            runs = choice.candidates(call.operation, arguments, options)
            run = next(iter(runs.values()))  # the default
            expected = getattr(reference, call.operation)(*arguments, **options)
            work = device.captured(lambda: run(*arguments, **options))
            made = work()
            if isinstance(made, Tensor):
                made, expected = (made,), (expected,)
            agree(made, expected, precision)
            return Prepared(work)

        return build

    found = []
    for call, channels in calls(preset.examined):
        coarse, fine, weight = sides(call, channels)
        contenders = [Contender("fp32", by_library(call, channels, "fp32", False))]
        if device.gpu:
            contenders.append(Contender("TF32", by_library(call, channels, "tf32", False), "tf32"))
        name = "bf16, channels-last"
        contenders.append(Contender(name, by_library(call, channels, "bf16", True), "bf16"))
        if kernels_run_on(device.device) and call.layer.name != "background head":
            contenders.append(Contender("kernel", by_kernel(call), precision))
        taps = prod(weight[2:])
        flops = 2 * prod(coarse) * channels * taps
        moved = 2 * (prod(coarse) + prod(fine) + prod(weight))
        found.append(
            Contest(
                "layer",
                f"{call.part} {call.layer.name}, {call.direction}",
                contenders,
                preset.rounds,
                min(preset.warm_up, 1) if device.gpu else 0,
                counted=[(flops, moved)],
                each=device.flush,
                info={"operation": call.operation},
            )
        )
    return found


def test_layer(contest, contender, measured):
    measured(contest, contender)
