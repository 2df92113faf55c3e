"""`python -m vgan_fast.kernels.doctor`: which implementation each layer and direction runs.

On a GPU every convolution of a training step is chosen on random numbers, as its first use would
(`vgan_fast.kernels.choice`), and kept in the same file; training then starts with it. Elsewhere
the calls and their candidates are listed.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import click
import torch
from torch import Tensor

from vgan_fast.cli import Program
from vgan_fast.files import written_whole
from vgan_fast.shape import ClipShape

from . import choice
from .conv.weights import pack
from .norm.api import FEW_ROWS, channels_last

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
}


@dataclass(frozen=True)
class Layer:
    """A convolution of the networks.

    Attributes:
        name: of the layer, as in the table of `vgan_fast.kernels.cost`.
        up: whether forward goes from the coarse side to the fine one.
        weight: (A, B, *kernel).
        sizes: of the coarse side.
        forward, input_gradient: the operations, see `vgan_fast.kernels.conv.reference`.
    """

    name: str
    up: bool
    weight: tuple[int, ...]
    sizes: tuple[int, ...]
    forward: str = "convolve_statistics"
    input_gradient: str = "convolve_norm_backward"


@dataclass(frozen=True)
class Call:
    """One direction of a layer, on so many clips in so many groups."""

    part: str
    layer: Layer
    direction: str
    batch: int
    groups: int = 1

    @property
    def operation(self) -> str:
        """Of `vgan_fast.kernels.conv.reference`."""
        made = [2 * size for size in self.layer.sizes] if self.layer.up else self.layer.sizes
        rows, forward = self.batch // self.groups * prod(made), self.layer.forward
        # The statistics of few rows are taken with their norm; not behind the first layer.
        if rows <= FEW_ROWS and self.layer.input_gradient == "convolve_norm_backward":
            forward = "convolve"
        by_direction = {
            "forward": forward,
            "input gradient": self.layer.input_gradient,
            "weight gradient": "weight_gradient",
        }
        return by_direction[self.direction]

    def arguments(self, device: torch.device, dtype: torch.dtype) -> tuple[tuple, dict]:
        """Random ones, positional and by name."""
        a, b, *kernel = self.layer.weight
        coarse_sizes = self.layer.sizes
        fine_sizes = [size + 1 if kernel[0] == 2 else 2 * size for size in coarse_sizes]

        def random(*sizes: int) -> Tensor:
            x = torch.randn(sizes, device=device, dtype=dtype)
            return x.contiguous(memory_format=channels_last(x))

        def vector(*sizes: int) -> Tensor:
            return torch.rand(sizes, device=device) + 0.5

        coarse = random(self.batch, a, *coarse_sizes)
        fine = random(self.batch, b, *fine_sizes)
        if self.direction == "weight gradient":
            return (fine, coarse, kernel[0]), {}
        up = self.layer.up == (self.direction == "forward")
        given, made = (coarse, fine) if up else (fine, coarse)
        inputs, outputs = (a, b) if up else (b, a)
        weight = torch.randn(self.layer.weight, device=device) / inputs**0.5
        grouped, eps, slope = (self.groups, outputs), 1e-5, 0.2
        norm = vector(*grouped), vector(*grouped), vector(outputs), vector(outputs)
        first = self.direction == "forward" and self.layer.forward == "convolve"
        rest = {
            "convolve": (vector(outputs), None, slope) if first else (None, None, 1.0),
            "convolve_statistics": (self.groups,),
            "convolve_masked": (made, slope),
            "convolve_norm_backward": (made, *norm, eps, slope),
        }
        return (given, pack(weight, dtype), *rest[self.operation]), {"up": up}


def generator_layers(shape: ClipShape) -> Iterator[Layer]:
    """Layers of the two-stream generator with stride 2 but for the heads, nothing to choose in."""
    pairs = list(itertools.pairwise(shape.widths))
    for k, pair in enumerate(pairs):
        sizes = shape.depth << k, 4 << k, 4 << k
        yield Layer(f"foreground {k + 2}", True, (*pair, 4, 4, 4), sizes)
    for k, pair in enumerate(pairs):
        yield Layer(f"background {k + 2}", True, (*pair, 4, 4), (4 << k, 4 << k))


def discriminator_layers(shape: ClipShape) -> Iterator[Layer]:
    """Layers of the discriminator but for the last, a matrix product; the first is on cells."""
    sizes = shape.frames // 2, shape.size // 2, shape.size // 2
    yield Layer("layer 1", False, (shape.width, 32, 2, 2, 2), sizes, "convolve", "convolve")
    for k, (fine, coarse) in enumerate(itertools.pairwise(shape.widths[::-1])):
        sizes = tuple(size // 2 for size in sizes)
        back = "convolve_norm_backward" if k else "convolve_masked"
        weight = coarse, fine, 4, 4, 4
        yield Layer(f"layer {k + 2}", False, weight, sizes, "convolve_statistics", back)


def training_step(shape: ClipShape, batch: int) -> Iterator[Call]:
    """Every convolution of a step of `vgan_fast.fused`'s two-stream networks, by direction."""
    for layer in generator_layers(shape):
        for direction in ("forward", "weight gradient", "input gradient"):
            yield Call("G", layer, direction, batch)
    first, *others = discriminator_layers(shape)
    for direction in ("forward", "weight gradient", "input gradient"):
        # Real and generated clips are one batch, whose pixels need no gradient.
        for layer in others if direction == "input gradient" else (first, *others):
            yield Call("D step", layer, direction, 2 * batch, 2)
    for direction in ("forward", "input gradient"):
        for layer in (first, *others):
            yield Call("G step, D", layer, direction, batch)


def examined(call: Call, device: torch.device, dtype: torch.dtype, fresh: bool) -> dict:
    """What the program tells of a call: names, candidates, and on a GPU the choice."""
    given = call.operation, *call.arguments(device, dtype)
    row = {"part": call.part, "layer": call.layer.name, "direction": call.direction}
    row |= {"call": choice.label(*given), "choice": None}
    found = ()
    if device.type != "cuda":
        found = [choice.Candidate(name) for name in choice.candidates(*given)]
    elif entry := choice.decide(*given, fresh=fresh):
        found, row["choice"] = entry.candidates, entry.choice
    return row | {"candidates": [asdict(candidate) for candidate in found]}


def lines(row: dict) -> Iterator[str]:
    """A call in words, the chosen candidate marked."""
    yield f"{row['part']}: {row['layer']} {row['direction']}"
    yield f"  {row['call']}"
    for number, candidate in enumerate(row["candidates"], 1):
        name, error, time = candidate["name"], candidate["error"], candidate["microseconds"]
        if row["choice"] is None:
            yield f"  {number}. {name}"
        elif candidate["refused"]:
            yield f"    {name:78} refused: {candidate['refused']}"
        else:
            mark = "->" if name == row["choice"] else ""
            yield f"  {mark:2}{name:78} {error:6.3f} of the error allowed {time:9.1f} us"
    if row["choice"] == choice.TWIN:
        yield f"  ->{choice.TWIN}"


@click.command(cls=Program)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True)
@click.option("--frames", type=int, default=32, show_default=True)
@click.option("--size", type=int, default=64, show_default=True)
@click.option("--width", type=int, default=64, show_default=True)
@click.option("--precision", type=click.Choice(list(DTYPES)), default="bf16", show_default=True)
@click.option("--fresh", is_flag=True, help="measure again what the cache file knows")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the table here")
def main(
    batch: int,
    frames: int,
    size: int,
    width: int,
    precision: str,
    fresh: bool,
    json_file: Path | None,
) -> int:
    """Print the candidates for each convolution of a training step, and which one is chosen.

    Errors are those against float64, as a share of what is allowed: twice the sum of the library's
    own error and a rounding. Times are medians. Without a GPU nothing is measured.
    """
    # As in training.
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    shape = ClipShape(frames, size, width)
    if measures := torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        file, where = choice.cache_file(device)
        print(*(f"{name:11} {value}" for name, value in where.items()), sep="\n")
        print(f"{'cache file':11} {file}\n")
    else:
        device, where = torch.device("meta"), choice.versions()
        print(*(f"{name:11} {value}" for name, value in where.items()), sep="\n")
        print(
            f"{'device':11} no GPU: nothing was measured, and on a CPU the reference runs.\n"
            f"{'cache file':11} none; on a GPU one in {choice.cache_folder()}\n\n"
            "On a GPU each call below is verified against float64 and timed at its first use, the\n"
            "library first, and the fastest is chosen. Until then, and in a graph's capture, the\n"
            "first runs. Configurations are those of a GPU with an H200's shared memory.\n"
        )
    rows = []
    for call in training_step(shape, batch):
        row = examined(call, device, DTYPES[precision], fresh)
        rows.append(row)
        print(*lines(row), sep="\n", flush=True)
    if json_file:
        content = {"environment": where, "measured": measures, "calls": rows}
        with written_whole(json_file) as part:
            part.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
