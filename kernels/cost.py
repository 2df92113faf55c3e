"""`python -m vgan_fast.kernels.cost`: what a training step must compute and move, kernel by kernel.

Every figure follows from shapes; nothing is measured. A floor is the time that a call takes on a
device which either computes or moves bytes at its full rate, whichever lasts longer. Bytes count
each tensor once per read and once per write, as if no cache kept it from one call to the next.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import click

from vgan_fast.cli import Program
from vgan_fast.shape import ClipShape

# What an H200 was seen to reach: a large bf16 matrix product, and a pass over large tensors.
TFLOPS, TBYTES = 790.0, 4.0
BF16, FP32 = 2, 4  # bytes
TAPS = 4**3  # of a stride-2 layer
CELL = 8 * 4  # values: 2x2x2 pixels of 4 channels, one of them padding


@dataclass(frozen=True)
class Call:
    """One kernel, or one call of the library.

    Attributes:
        part: of the step.
        name: what it does, and for which layer.
        by: whose code it is: "triton" (ours) or "library".
        flops: operations, a multiply-add counted as two; padding included.
        bytes: read and written in global memory.
        launches: kernels launched, finalising ones included; the library's counted as one.
    """

    part: str
    name: str
    by: str
    flops: float
    bytes: float
    launches: int = 1

    def floor(self, tflops: float, tbytes: float) -> float:
        """Least seconds at so many TFLOP/s and TB/s."""
        return max(self.flops / (tflops * 1e12), self.bytes / (tbytes * 1e12))


@dataclass(frozen=True)
class Layer:
    """A convolution, transposed or not, between a smaller and a larger grid.

    Attributes:
        name: for the table.
        products: multiply-adds of one clip in one direction.
        weights: number of weights.
        source, result: values of one clip going in and coming out.
    """

    name: str
    products: int
    weights: int
    source: int
    result: int

    def call(self, part: str, what: str, batch: int, by: str = "library") -> Call:
        """One direction of it: forward, input gradient or weight gradient."""
        weight_bytes = FP32 if what == "weight gradient" else BF16
        moved = batch * (self.source + self.result) * BF16 + self.weights * weight_bytes
        return Call(part, f"{self.name} {what}", by, 2 * batch * self.products, moved)


def stride_two(name: str, inner: int, outer: int, grid: int, taps: int = TAPS) -> Layer:
    """Layer between `inner` channels on `grid` positions and `outer` channels on 2^d times that.

    `taps` is 4^d. Every value of the inner grid meets every weight once, in either direction.
    """
    products = grid * inner * outer * taps
    wide = grid * round(taps**0.5) * outer
    return Layer(name, products, inner * outer * taps, grid * inner, wide)


def generator_layers(shape: ClipShape) -> tuple[list[Layer], Layer, list[Layer], Layer]:
    """Foreground layers, head, background layers, background head; sources are the inner side."""
    widths = shape.widths
    grid = shape.depth * 16
    first = Layer(
        "foreground 1",
        shape.latent * widths[0] * grid,
        shape.latent * widths[0] * grid,
        shape.latent,
        widths[0] * grid,
    )
    still = Layer(
        "background 1",
        shape.latent * widths[0] * 16,
        shape.latent * widths[0] * 16,
        shape.latent,
        widths[0] * 16,
    )
    foreground, background = [first], [still]
    for k, (inner, outer) in enumerate(itertools.pairwise(widths)):
        foreground.append(stride_two(f"foreground {k + 2}", inner, outer, grid * 8**k))
        background.append(stride_two(f"background {k + 2}", inner, outer, 16 * 4**k, 16))
    last = shape.levels - 1
    head = stride_two("head", widths[-1], 4, grid * 8**last)
    still_head = stride_two("background head", widths[-1], 3, 16 * 4**last, 16)
    return foreground, head, background, still_head


def discriminator_layers(shape: ClipShape) -> tuple[Layer, list[Layer], Layer]:
    """First layer (on cells), the normalised layers, the last one; sources are the clip's side."""
    widths = shape.widths[::-1]
    grid = shape.frames * shape.size**2 // 8
    cells = (shape.frames // 2 + 1) * (shape.size // 2 + 1) ** 2 * CELL
    # Kernel 2 over cells of 32 values: 256 products where kernel 4 over 3 channels has 192.
    first = Layer(
        "layer 1", grid * 8 * CELL * widths[0], 8 * CELL * widths[0], cells, grid * widths[0]
    )
    layers = []
    for k, (inner, outer) in enumerate(itertools.pairwise(widths)):
        small = grid // 8 ** (k + 1)
        up = stride_two(f"layer {k + 2}", outer, inner, small)
        layers.append(Layer(up.name, up.products, up.weights, up.result, up.source))
    values = widths[-1] * shape.depth * 16
    return first, layers, Layer(f"layer {len(widths) + 1}", values, values, values, 1)


def norm_forward(part: str, layer: str, values: int) -> Iterator[Call]:
    """Statistics, then normalise and activate, of so many values."""
    yield Call(part, f"{layer} statistics", "triton", 4 * values, values * BF16, 2)
    yield Call(part, f"{layer} normalise, activate", "triton", 4 * values, 2 * values * BF16)


def norm_backward(part: str, layer: str, values: int) -> Iterator[Call]:
    """The two reductions, then the gradient, of so many values."""
    yield Call(part, f"{layer} norm's reductions", "triton", 8 * values, 2 * values * BF16, 2)
    yield Call(part, f"{layer} norm's gradient", "triton", 8 * values, 3 * values * BF16)


def generator_forward(shape: ClipShape, batch: int) -> Iterator[Call]:
    """One pass of the two-stream generator."""
    part = "G forward"
    foreground, head, background, still_head = generator_layers(shape)
    for layer in foreground + background:
        yield layer.call(part, "forward", batch)
        yield from norm_forward(part, layer.name, batch * layer.result)
    yield still_head.call(part, "forward", batch)
    pixels, still = shape.frames * shape.size**2, shape.size**2
    moved = batch * (head.source + (4 + 3) * pixels + 3 * still) * BF16 + head.weights * BF16
    yield Call(part, "head and blend", "triton", 2 * batch * head.products, moved, 2)


def discriminator_forward(shape: ClipShape, batch: int, part: str) -> Iterator[Call]:
    """One pass over cells of clips."""
    first, layers, last = discriminator_layers(shape)
    yield first.call(part, "forward", batch)
    yield Call(
        part, "layer 1 activate", "library", batch * first.result, 2 * batch * first.result * BF16
    )
    for layer in layers:
        yield layer.call(part, "forward", batch)
        yield from norm_forward(part, layer.name, batch * layer.result)
    yield last.call(part, "forward", batch)


def discriminator_backward(
    shape: ClipShape, batch: int, part: str, weights: bool, clip: bool
) -> Iterator[Call]:
    """Gradients of one pass: of the weights, and back to the cells, where asked for."""
    first, layers, last = discriminator_layers(shape)

    def convolution(layer: Layer, back: bool) -> Iterator[Call]:
        if weights:
            yield layer.call(part, "weight gradient", batch)
        if back:
            yield layer.call(part, "input gradient", batch)

    yield from convolution(last, True)
    for layer in reversed(layers):
        yield from norm_backward(part, layer.name, batch * layer.result)
        yield from convolution(layer, True)
    values = batch * first.result
    yield Call(part, "layer 1 activation's gradient", "library", values, 3 * values * BF16)
    yield from convolution(first, clip)


def generator_backward(shape: ClipShape, batch: int) -> Iterator[Call]:
    """Gradients of the generator's weights from the video's gradient."""
    part = "G backward"
    foreground, head, background, still_head = generator_layers(shape)
    pixels, still = shape.frames * shape.size**2, shape.size**2
    moved = batch * (3 + 4 + 4) * pixels * BF16 + batch * 2 * 3 * still * BF16
    yield Call(part, "blend's gradient", "triton", 0, moved, 2)
    for what in ("weight gradient", "input gradient"):
        yield head.call(part, what, batch, by="triton")
        yield still_head.call(part, what, batch)
    for layers in (foreground, background):
        for layer in reversed(layers):
            yield from norm_backward(part, layer.name, batch * layer.result)
            yield layer.call(part, "weight gradient", batch)
            if layer is not layers[0]:
                yield layer.call(part, "input gradient", batch)


def adam(part: str, parameters: int) -> Call:
    """Read weight, gradient and both moments, write all but the gradient, fp32."""
    return Call(part, "Adam", "library", 12 * parameters, 7 * parameters * FP32)


def training_step(shape: ClipShape, batch: int) -> list[Call]:
    """Every call of one step of the two-stream GAN with one logit, one pass of G shared."""
    clip = 3 * shape.frames * shape.size**2
    cells = (shape.frames // 2 + 1) * (shape.size // 2 + 1) ** 2 * CELL
    g_layers, head, still_layers, still_head = generator_layers(shape)
    _, d_layers, d_last = discriminator_layers(shape)
    g_weights = sum(x.weights for x in (*g_layers, head, *still_layers, still_head))
    d_weights = sum(x.weights for x in (*d_layers, d_last)) + 3 * TAPS * shape.width
    calls = list(generator_forward(shape, batch))
    calls.append(
        Call("D step", "frames to cells", "triton", 2 * batch * clip, batch * (clip + cells * BF16))
    )
    pack = batch * (clip + cells) * BF16
    calls.append(Call("D step", "video to cells", "triton", 0, pack))
    for which in ("real", "fake"):
        calls += discriminator_forward(shape, batch, f"D step, {which}")
        calls += discriminator_backward(shape, batch, f"D step, {which}", weights=True, clip=False)
    calls.append(adam("D step", d_weights))
    calls.append(Call("G step", "video to cells", "triton", 0, pack))
    calls += discriminator_forward(shape, batch, "G step, D")
    calls += discriminator_backward(shape, batch, "G step, D", weights=False, clip=True)
    calls.append(Call("G step", "cells' gradient to video's", "triton", 0, pack))
    calls += generator_backward(shape, batch)
    calls.append(adam("G step", g_weights))
    return calls


def table(calls: list[Call], tflops: float, tbytes: float) -> Iterator[str]:
    """Lines of the report, calls in their order, sums last."""
    yield f"{'part':16} {'call':34} {'by':8} {'GFLOP':>9} {'MB':>8} {'floor us':>9} {'launches':>8}"
    for call in calls:
        yield (
            f"{call.part:16} {call.name:34} {call.by:8} {call.flops / 1e9:9.2f}"
            f" {call.bytes / 1e6:8.1f} {call.floor(tflops, tbytes) * 1e6:9.1f} {call.launches:8}"
        )
    for by in ("library", "triton", "all"):
        of = [call for call in calls if by in (call.by, "all")]
        flops, moved = sum(call.flops for call in of), sum(call.bytes for call in of)
        floor = sum(call.floor(tflops, tbytes) for call in of)
        launches = sum(call.launches for call in of)
        yield (
            f"{'sum':16} {by:34} {'':8} {flops / 1e9:9.2f} {moved / 1e6:8.1f}"
            f" {floor * 1e6:9.1f} {launches:8}"
        )


@click.command(cls=Program)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True)
@click.option("--frames", type=int, default=32, show_default=True)
@click.option("--size", type=int, default=64, show_default=True)
@click.option("--width", type=int, default=64, show_default=True)
@click.option("--latent", type=int, default=100, show_default=True)
@click.option(
    "--tflops", type=click.FloatRange(0, min_open=True), default=TFLOPS, show_default=True
)
@click.option(
    "--tbytes", type=click.FloatRange(0, min_open=True), default=TBYTES, show_default=True
)
def main(
    batch: int, frames: int, size: int, width: int, latent: int, tflops: float, tbytes: float
) -> int:
    """Print FLOPs, bytes, floors and launches of a training step; nothing here is measured.

    The rates, in TFLOP/s and TB/s, are those of the device; an H200's by default.
    """
    for line in table(training_step(ClipShape(frames, size, width, latent), batch), tflops, tbytes):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
