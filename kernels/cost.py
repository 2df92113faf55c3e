"""`python -m vgan_fast.kernels.cost`: what a training step must compute and move, call by call.

The step of `--backend fused` in bf16: two streams, one logit, cross entropy, Adam, no moving
average, the calls that PyTorch makes for it included; a copy of the batch into a CUDA graph is not.
A line is a launch; one of PyTorch's calls counts as one, be it of the library or for many tensors.

Every figure follows from shapes; nothing is measured. Needs Triton and no GPU. A floor is the time
that a call takes on a device which either computes or moves bytes at its full rate, whichever lasts
longer. Bytes count each tensor once per read and once per write, as if no cache kept it from one
call to the next and some cache did within a call.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import click
from triton import cdiv

from vgan_fast.cli import Program
from vgan_fast.errors import UserError
from vgan_fast.shape import ClipShape

from .aot import SHARED
from .blend import triton_impl as blend
from .conv import gather, weight_gradient
from .head import triton_impl as head
from .norm import FEW_ROWS
from .norm import triton_impl as norm

# What an H200 was seen to reach: a large bf16 matrix product, and a pass over large tensors.
TFLOPS, TBYTES = 790.0, 4.0
BF16, FP32 = 2, 4  # bytes
CELL = 8 * 4  # values: 2x2x2 pixels of 4 channels
MULTIPLE = 8  # of channels; others are padded by copies that are not counted


@dataclass(frozen=True)
class Layer:
    """A convolution, transposed or not, between a coarse grid and a fine one.

    Attributes:
        name: for the table.
        coarse, fine: channels of each as they are multiplied.
        kernel: 4 (stride 2), or 2 on cells.
        sizes: of the coarse grid; two for a picture.
        pixels: channels of a pixel where the fine grid is one of cells; the network's own.
    """

    name: str
    coarse: int
    fine: int
    kernel: int
    sizes: tuple[int, ...]
    pixels: int = 0

    @property
    def fine_sizes(self) -> tuple[int, ...]:
        """Sizes of the fine grid."""
        return tuple(2 * s if self.kernel == 4 else s + 1 for s in self.sizes)

    @property
    def weights(self) -> int:
        """Weights as they are multiplied."""
        return self.coarse * self.fine * self.kernel ** len(self.sizes)

    @property
    def flops(self) -> int:
        """Of one clip in one direction: every coarse value meets every weight once."""
        taps = self.pixels * 4**3 if self.pixels else self.fine * self.kernel ** len(self.sizes)
        return 2 * prod(self.sizes) * self.coarse * taps

    @property
    def values(self) -> int:
        """Of one clip on both grids."""
        return prod(self.sizes) * self.coarse + prod(self.fine_sizes) * self.fine

    def channels(self, up: bool) -> int:
        """Of the result in one direction."""
        return self.fine if up else self.coarse

    def rows(self, up: bool) -> int:
        """Positions of the result of one clip in one direction."""
        return prod(self.fine_sizes if up else self.sizes)


@dataclass(frozen=True)
class Product:
    """A matrix product as it runs: padding, and what merged cells have past a border, included.

    Attributes:
        m, n, k: rows, columns and terms of a sum; the library's as they must be.
        direction: "up", "down", "head" or "weight gradient"; "library".
        layer: what it belongs to, unless it is a network's first or last.
        epilogue: as of `gather`'s cases ahead of time.
        config: the default on an H200.
        tile: rows, columns and terms a step of a block.
        splits: parts of a sum, by blocks of their own.
        blocks: of the launch.
    """

    m: int
    n: int
    k: int
    direction: str = "library"
    layer: Layer | None = None
    epilogue: str = ""
    config: gather.Config | weight_gradient.Config | head._Config | None = None
    tile: tuple[int, int, int] | None = None
    splits: int = 1
    blocks: int = 0


@dataclass(frozen=True)
class Call:
    """One launch, or one call of PyTorch.

    Attributes:
        part: of the step.
        name: what it does, and for which layer.
        kernel: package and function of a kernel, or name of PyTorch's operator.
        bytes: read and written in global memory.
        flops: operations of products, a multiply-add counted as two; padding is not counted.
        product: of what kind.
    """

    part: str
    name: str
    kernel: str
    bytes: int
    flops: int = 0
    product: Product | None = None

    @property
    def by(self) -> str:
        """Whose code it is: "triton" (ours), "library" (products) or "torch"."""
        if " " in self.kernel:
            return "triton"
        return "library" if self.product else "torch"

    def floor(self, tflops: float, tbytes: float) -> float:
        """Least seconds at so many TFLOP/s and TB/s."""
        return max(self.flops / (tflops * 1e12), self.bytes / (tbytes * 1e12))


@dataclass(frozen=True)
class Stream:
    """A network's body: a projection at its 4x4 end, and the layers.

    Attributes:
        projected: name of the projection.
        end: positions and channels there.
        layers: all but the head, in the order of forward.
    """

    projected: str
    end: tuple[int, int]
    layers: tuple[Layer, ...]


def generator_streams(shape: ClipShape) -> tuple[Stream, Layer, Stream, Layer]:
    """Foreground, head, background, background head."""
    found = []
    for name, end, pixels in (
        ("foreground", (shape.depth, 4, 4), 4),
        ("background", (4, 4), 3),
    ):
        pairs = list(itertools.pairwise(shape.widths))
        layers = tuple(
            Layer(f"{name} {k + 2}", *pair, 4, tuple(size << k for size in end))
            for k, pair in enumerate(pairs)
        )
        sizes = tuple(size << len(pairs) for size in end)
        found.append(Stream(f"{name} 1", (prod(end), shape.widths[0]), layers))
        if len(end) == 3:
            found.append(Layer("head", shape.width, CELL, 2, sizes, pixels))
        else:
            found.append(Layer("background head", shape.width, pixels, 4, sizes))
    return tuple(found)


def discriminator_stream(shape: ClipShape) -> Stream:
    """All layers, the first on cells; the projection is the last."""
    sizes = tuple(size // 2 for size in (shape.frames, shape.size, shape.size))
    layers = [Layer("layer 1", shape.width, CELL, 2, sizes, 3)]
    for k, (fine, coarse) in enumerate(itertools.pairwise(shape.widths[::-1])):
        sizes = tuple(size // 2 for size in sizes)
        layers.append(Layer(f"layer {k + 2}", coarse, fine, 4, sizes))
    return Stream(f"layer {len(layers) + 1}", (prod(sizes), shape.widths[0]), tuple(layers))


@dataclass(frozen=True)
class Pass:
    """Calls of one pass through a network, forward or backward.

    Attributes:
        part: of the step.
        batch: clips.
        groups: equal parts of the batch that are normalised apart.
    """

    part: str
    batch: int
    groups: int = 1

    def call(self, name: str, kernel: str, moved: int, *of_products) -> Call:
        """One call of it."""
        return Call(self.part, name, kernel, moved, *of_products)

    def copy(self, name: str, kernel: str, values: int, source: int, result: int) -> Call:
        """So many values, of so many bytes before and after."""
        return self.call(name, kernel, values * (source + result))

    def library(self, name: str, kernel: str, mnk: tuple[int, int, int], moved: int) -> Call:
        """A product by the library."""
        return self.call(name, kernel, moved, 2 * prod(mnk), Product(*mnk))

    def convolve(self, name: str, layer: Layer, up: bool, epilogue: str) -> Iterator[Call]:
        """One direction of a layer, and the merge of what its epilogue sums."""
        volume = len(layer.sizes) == 3
        sizes = (1,) * (not volume) + layer.sizes
        shape = gather._Layer(up, layer.kernel, volume, sizes, layer.coarse, layer.fine)
        config = gather._candidates(shape, self.batch, "16 bits", SHARED["sm_90"])[0]
        constants = gather._constants(shape, config, epilogue, "16 bits")
        sides = 2 if config.merged else 1
        grid = shape.parities(config.merged)
        # A tile straddles no groups, where there is something to sum.
        groups = self.groups if epilogue in ("statistics", "norm_backward") else 1
        rows = self.batch // groups * shape.rows(config.merged)
        parts = groups * cdiv(rows, config.rows) * grid  # of all groups
        channels = layer.channels(up)
        taps = (2 if up else layer.kernel) ** len(layer.sizes)
        product = Product(
            groups * rows * grid,
            channels * sides,
            taps * (layer.coarse if up else layer.fine),
            "up" if up else "down",
            layer,
            epilogue,
            config,
            (config.rows, constants["BLOCK_N"], constants["BLOCK_K"]),
            blocks=parts * cdiv(channels * sides, constants["BLOCK_N"]),
        )
        made = self.batch * layer.rows(up) * channels * BF16
        partial = 2 * channels * parts * sides * FP32
        counts = parts * sides * FP32
        grouped = self.groups * channels * FP32
        epilogue_bytes = {
            "none": 0,
            "shift": channels * FP32,
            "statistics": partial + counts,
            "masked": made,
            "norm_backward": made + self.coefficients(channels) + partial,
        }[epilogue]
        moved = (self.batch * layer.values + layer.weights) * BF16 + epilogue_bytes
        flops = self.batch * layer.flops
        yield self.call(name, "conv _gather_gemm", moved, flops, product)
        if epilogue == "statistics":
            moved = partial + counts + 2 * grouped
            yield self.call(f"{name}, merge", "conv _merge_statistics", moved)
        if epilogue == "norm_backward":
            yield self.call(f"{name}, merge", "conv _merge_sums", partial + 3 * grouped)

    def weight_gradient(self, layer: Layer) -> Iterator[Call]:
        """A layer's product over positions, and the sum over its splits."""
        name = f"{layer.name} weight gradient"
        taps = layer.kernel ** len(layer.sizes)
        config = weight_gradient._table(taps * layer.fine, layer.coarse, SHARED["sm_90"])[0]
        _, boxes = weight_gradient._constants(
            self.batch,
            layer.sizes,
            layer.kernel,
            (layer.fine, layer.fine),
            (layer.coarse, layer.coarse),
            config,
        )
        positions = self.batch * prod(layer.sizes)
        splits, _ = weight_gradient._split(boxes, positions, layer.weights)
        m, n = taps * layer.fine, layer.coarse
        blocks = cdiv(m, config.rows) * cdiv(n, config.columns) * splits
        tile = config.rows, config.columns, config.positions
        product = Product(
            m, n, positions, "weight gradient", layer, "", config, tile, splits, blocks
        )
        partial = splits * layer.weights * FP32
        moved = self.batch * layer.values * BF16 + partial
        yield self.call(name, "conv _product", moved, self.batch * layer.flops, product)
        if splits > 1:
            yield self.call(f"{name}, sum", "conv _sum", partial + layer.weights * FP32)

    def coefficients(self, channels: int) -> int:
        """Bytes of a norm's statistics and parameters."""
        return (2 * self.groups + 2) * channels * FP32

    def few(self, rows: int) -> bool:
        """Whether a norm of so many positions a clip takes one launch."""
        return self.batch // self.groups * rows <= FEW_ROWS

    def apply(self, name: str, rows: int, channels: int) -> Call:
        """Normalise and activate."""
        values = self.batch * rows * channels * BF16
        moved = 2 * values + self.coefficients(channels)
        return self.call(f"{name} norm, activation", "norm _apply_kernel", moved)

    def whole_norm(self, name: str, rows: int, channels: int) -> Iterator[Call]:
        """Statistics, normalise and activate."""
        values = self.batch * rows * channels * BF16
        if self.few(rows):
            moved = 2 * values + self.coefficients(channels)
            yield self.call(f"{name} norm, activation", "norm _whole_forward_kernel", moved)
            return
        per_group = self.batch // self.groups * rows
        grid, _ = norm._reduction_grid(per_group, channels, self.groups, norm.STATISTICS_DEPTH)
        partial = 3 * self.groups * channels * grid[1] * FP32
        yield self.call(f"{name} statistics", "norm _statistics_kernel", values + partial)
        # Of the values a row is read, which is not counted.
        moved = partial + 2 * self.groups * channels * FP32
        yield self.call(f"{name} statistics, merge", "norm _merge_statistics_kernel", moved)
        yield self.apply(name, rows, channels)

    def input_gradient(self, name: str, rows: int, channels: int) -> Iterator[Call]:
        """Of a norm whose sums are known, and its parameters' gradients."""
        values = self.batch * rows * channels * BF16
        moved = 3 * values + self.coefficients(channels) + 2 * self.groups * channels * FP32
        yield self.call(f"{name} norm's gradient", "norm _input_gradient_kernel", moved)

    def over_groups(self, name: str, channels: int) -> Iterator[Call]:
        """Sum of the groups' shares of a norm's parameters' gradients."""
        if self.groups > 1:
            moved = 2 * (self.groups + 1) * channels * FP32
            yield self.call(f"{name} norm, sum of groups", "aten::sum.dim_IntList", moved)

    def norm_backward(self, name: str, rows: int, channels: int) -> Iterator[Call]:
        """Of a norm that no convolution follows."""
        values = self.batch * rows * channels * BF16
        sums = 2 * self.groups * channels * FP32
        if self.few(rows):
            moved = 3 * values + self.coefficients(channels) + sums
            yield self.call(f"{name} norm's gradient", "norm _whole_backward_kernel", moved)
        else:
            per_group = self.batch // self.groups * rows
            grid, _ = norm._reduction_grid(
                per_group, channels, self.groups, norm.BACKWARD_SUMS_DEPTH
            )
            partial = sums * grid[1]
            moved = 2 * values + self.coefficients(channels) + partial
            yield self.call(f"{name} norm's sums", "norm _backward_sums_kernel", moved)
            moved = partial + sums // 2 + sums  # and the variance
            yield self.call(f"{name} norm's sums, merge", "norm _merge_sums_kernel", moved)
            yield from self.input_gradient(name, rows, channels)
        yield from self.over_groups(name, channels)

    def forward(self, stream: Stream, up: bool) -> Iterator[Call]:
        """Convolutions with norms; `downsample` gives no statistics of what it starts with."""
        layers = stream.layers
        previous, known = None, False  # the layer before, and whether its statistics are
        if up:
            yield from self.whole_norm(stream.projected, *stream.end)
        else:
            first, *layers = layers
            yield from self.convolve(f"{first.name} forward", first, up, "shift")
        for layer in layers:
            if previous and known:
                yield self.apply(previous.name, previous.rows(up), previous.channels(up))
            # The norm behind the discriminator's second layer takes its statistics in any case.
            known = (not up and previous is None) or not self.few(layer.rows(up))
            epilogue = "statistics" if known else "none"
            yield from self.convolve(f"{layer.name} forward", layer, up, epilogue)
            if not known:
                yield from self.whole_norm(layer.name, layer.rows(up), layer.channels(up))
            previous = layer
        if known:
            yield self.apply(previous.name, previous.rows(up), previous.channels(up))

    def backward(self, stream: Stream, up: bool, weights: bool) -> Iterator[Call]:
        """The way back to the norm at the generator's start, or to the discriminator's first."""
        layers = stream.layers if up else stream.layers[1:]
        last = layers[-1]
        yield from self.norm_backward(last.name, last.rows(up), last.channels(up))
        for k in reversed(range(len(layers))):
            layer = layers[k]
            name = f"{layer.name} input gradient"
            if weights:
                yield from self.weight_gradient(layer)
            if not (k or up):
                yield from self.convolve(name, layer, True, "masked")
                continue
            before = layers[k - 1].name if k else stream.projected
            of = layer.rows(not up), layer.channels(not up)
            yield from self.convolve(name, layer, not up, "norm_backward")
            yield from self.input_gradient(before, *of)
            yield from self.over_groups(before, of[1])

    def adam(self, parameters: int, tensors: int) -> Iterator[Call]:
        """The optimiser: fp32 parameter, gradient and moments, all but the gradient written."""
        steps = tensors * FP32
        yield self.call("Adam, steps", "aten::_foreach_add_.Scalar", 2 * steps)
        yield self.call("Adam", "aten::_fused_adam_", 7 * parameters * FP32 + steps)

    def track(self, channels: list[int]) -> Call:
        """Running statistics: two and a count read and written, those of groups and biases read."""
        moved = sum((4 + 2 * self.groups + 1) * c * FP32 for c in channels) + 16 * len(channels)
        return self.call("running statistics", "norm _track_kernel", moved)


def generator_forward(shape: ClipShape, batch: int) -> Iterator[Call]:
    """One pass of the two-stream generator."""
    run = Pass("G forward", batch)
    foreground, last, background, still_head = generator_streams(shape)
    latents = batch * shape.latent
    yield run.call("latents", "aten::randn.generator", latents * FP32)
    yield run.copy("latents, cast", "aten::_to_copy", latents, FP32, BF16)
    weights = _weights(shape.latent, foreground) + _weights(shape.latent, background)
    weights += still_head.weights + still_head.fine
    yield run.copy("weights, cast", "aten::_foreach_copy_", weights, FP32, BF16)
    for stream in (foreground, background):
        values = prod(stream.end)
        moved = (latents + shape.latent * values + batch * values) * BF16
        mnk = batch, values, shape.latent
        yield run.library(f"{stream.projected} forward", "vgan_fast::project", mnk, moved)
        yield from run.forward(stream, up=True)
    still = batch * still_head.rows(True) * still_head.fine
    moved = (batch * still_head.values + still_head.weights + still_head.fine) * BF16
    mnk = _library_mnk(still_head, batch)
    yield run.library("background head forward", "aten::convolution", mnk, moved)
    streams = foreground, background
    yield run.track([c for stream in streams for c in (stream.end[1], *_made(stream, True))])
    yield run.copy("background, planar", "aten::clone", still, BF16, BF16)
    yield run.copy("background, cast", "aten::_to_copy", still, BF16, FP32)
    yield run.copy("background, activation", "aten::tanh", still, FP32, FP32)
    yield run.copy("head weight, in cells", "aten::_to_copy", last.weights, FP32, BF16)
    cells, pixels = batch * last.rows(True), 8 * batch * prod(last.sizes)
    config = head.FORWARD[BF16]
    blocks = cdiv(cells, config.rows)
    tile = config.rows, CELL, head._fitting(config.columns, last.coarse)
    product = Product(cells, CELL, 8 * last.coarse, "head", last, "", config, tile, blocks=blocks)
    moved = (batch * prod(last.sizes) * last.coarse + last.weights + (4 + 3) * pixels) * BF16
    moved += (4 + still + blocks) * FP32
    flops = batch * last.flops
    yield run.call("head forward, blend", "head _forward", moved, flops, product)
    yield run.call("mask's mean", "blend _mean", (blocks + 1) * FP32)


def generator_backward(shape: ClipShape, batch: int) -> Iterator[Call]:
    """Gradients of the generator's weights from the video's gradient."""
    run = Pass("G step", batch)
    foreground, last, background, still_head = generator_streams(shape)
    pixels, still = 8 * batch * prod(last.sizes), batch * still_head.rows(True) * still_head.fine
    cells = batch * last.rows(True) * CELL
    programs = batch * cdiv(shape.size**2, blend.BLOCK)
    moved = ((3 + 4) * pixels + cells + 2 * still) * BF16 + (1 + 4 * programs) * FP32
    yield run.call("blend's gradient", "blend _backward", moved)
    yield run.call("head bias gradient", "aten::sum.dim_IntList", 4 * (programs + 1) * FP32)
    yield run.copy("head weight, in cells", "aten::copy_", last.weights, FP32, BF16)
    yield from run.convolve("head input gradient", last, False, "none")
    yield from run.weight_gradient(last)
    yield run.copy("head weight gradient, from cells", "aten::clone", last.weights, FP32, FP32)
    of_weight = still_head.weights + still_head.fine
    moved = (2 * batch * still_head.values - still + 2 * of_weight - still_head.fine) * BF16
    mnk = _library_mnk(still_head, batch)
    product = Product(*mnk)
    yield run.call(
        "background head gradients", "aten::convolution_backward", moved, 4 * prod(mnk), product
    )
    for stream in (background, foreground):
        yield from run.backward(stream, up=True, weights=True)
        values = prod(stream.end)
        mnk = shape.latent, values, batch
        moved = batch * (shape.latent + values) * BF16 + shape.latent * values * FP32
        name = f"{stream.projected} weight gradient"
        yield run.library(name, "vgan_fast::project_weight_gradient", mnk, moved)
        if stream is background:
            for what, size in (("bias", still_head.fine), ("weight", still_head.weights)):
                name = f"background head {what} gradient, cast"
                yield run.copy(name, "aten::_to_copy", size, BF16, FP32)
    parameters = _weights(shape.latent, foreground) + _weights(shape.latent, background)
    parameters += last.weights + 4 + of_weight
    tensors = 4  # of the heads
    for stream in (foreground, background):
        channels = [stream.end[1], *_made(stream, True)]
        parameters += 2 * sum(channels)
        tensors += 3 * len(channels)
    yield from run.adam(parameters, tensors)


def discriminator_forward(shape: ClipShape, run: Pass) -> Iterator[Call]:
    """One pass over cells of clips, and the loss."""
    stream = discriminator_stream(shape)
    first = stream.layers[0]
    values = prod(stream.end)
    weights = sum(layer.weights for layer in stream.layers[1:]) + values + 1
    yield run.copy("weights, cast", "aten::_foreach_copy_", weights, FP32, BF16)
    own = first.weights * 3 // 4
    yield run.call("layer 1 weight, zeros", "aten::zeros", first.weights * BF16)
    yield run.copy("layer 1 weight, in cells", "aten::copy_", own, FP32, BF16)
    yield from run.forward(stream, up=False)
    if run.groups > 1:  # the pass of the generator's step leaves them alone
        yield run.track(_made(stream, False))
    moved = (run.batch * values + values + 1 + run.batch) * BF16
    mnk = run.batch, 1, values
    yield run.library(f"{stream.projected} forward", "vgan_fast::project", mnk, moved)
    logits, losses = run.batch * BF16, run.groups * FP32
    yield run.call("loss", "loss _forward", logits + losses)
    yield run.call("loss's gradient", "loss _backward", 2 * logits + losses)


def discriminator_backward(shape: ClipShape, run: Pass, weights: bool) -> Iterator[Call]:
    """Gradients of one pass: of the weights, or of the cells."""
    stream = discriminator_stream(shape)
    first = stream.layers[0]
    values = prod(stream.end)
    moved = (run.batch + values + run.batch * values) * BF16
    mnk = run.batch, values, 1
    yield run.library(f"{stream.projected} input gradient", "aten::mm", mnk, moved)
    if weights:
        name = f"{stream.projected} weight gradient"
        moved = run.batch * (values + 1) * BF16 + values * FP32
        mnk = values, 1, run.batch
        yield run.library(name, "vgan_fast::project_weight_gradient", mnk, moved)
        moved = run.batch * BF16 + FP32
        yield run.call(f"{stream.projected} bias gradient", "aten::sum.dim_IntList", moved)
    yield from run.backward(stream, up=False, weights=weights)
    if not weights:
        yield from run.convolve("layer 1 input gradient", first, True, "none")
        return
    yield from run.weight_gradient(first)
    own = first.weights * 3 // 4
    yield run.copy("layer 1 weight gradient, from cells", "aten::clone", own, FP32, FP32)
    moved = run.batch * first.rows(False) * first.coarse * BF16 + first.coarse * FP32
    yield run.call("layer 1 bias gradient", "aten::sum.dim_IntList", moved)


def training_step(shape: ClipShape, batch: int) -> list[Call]:
    """Every call of one step, in order; one pass of the generator serves both networks.

    Raises:
        UserError: for sizes whose step is another: one layer alone, or padded channels.
    """
    if shape.levels < 2:
        raise UserError(f"--size {shape.size}: counted from 16 on")
    if shape.width % MULTIPLE:
        raise UserError(f"--width {shape.width}: counted for multiples of {MULTIPLE}")
    clip = 3 * shape.frames * shape.size**2
    cells = discriminator_stream(shape).layers[0].rows(True) * CELL
    stream = discriminator_stream(shape)
    calls = list(generator_forward(shape, batch))
    run = Pass("D step", 2 * batch, 2)
    moved = batch * (clip + cells * BF16)
    calls.append(run.call("frames to cells", "frames _frames_to_cells", moved))
    pack = batch * (clip + cells) * BF16
    calls.append(run.call("video to cells", "frames _clip_to_cells", pack))
    calls += discriminator_forward(shape, run)
    calls += discriminator_backward(shape, run, weights=True)
    first, *others = stream.layers
    parameters = sum(x.weights for x in others) + first.weights * 3 // 4 + shape.width
    parameters += 2 * sum(_made(stream, False)) + prod(stream.end) + 1
    calls += run.adam(parameters, 4 + 3 * len(others))
    run = Pass("G step", batch)
    calls.append(run.call("video to cells", "frames _clip_to_cells", pack))
    calls += discriminator_forward(shape, run)
    calls += discriminator_backward(shape, run, weights=False)
    calls.append(run.call("cells' gradient to video's", "frames _from_cells", pack))
    calls += generator_backward(shape, batch)
    return calls


def _made(stream: Stream, up: bool) -> list[int]:
    """Channels of its layers with a norm, but for a projection."""
    return [layer.channels(up) for layer in stream.layers if layer.kernel == 4]


def _weights(latent: int, stream: Stream) -> int:
    """Weights of a generator's stream."""
    return latent * prod(stream.end) + sum(layer.weights for layer in stream.layers)


def _library_mnk(layer: Layer, batch: int) -> tuple[int, int, int]:
    """Of the background's last layer: coarse positions, taps and channels on the other side."""
    return batch * layer.rows(False), layer.weights // layer.coarse, layer.coarse


def table(calls: list[Call], tflops: float, tbytes: float) -> Iterator[str]:
    """Lines of the report, calls in their order, sums last."""
    yield f"{'part':10} {'call':40} {'by':8} {'GFLOP':>9} {'MB':>8} {'floor us':>9} {'launches':>8}"
    for call in calls:
        yield (
            f"{call.part:10} {call.name:40} {call.by:8} {call.flops / 1e9:9.2f}"
            f" {call.bytes / 1e6:8.1f} {call.floor(tflops, tbytes) * 1e6:9.1f} {1:8}"
        )
    for by in ("triton", "library", "torch", "all"):
        of = [call for call in calls if by in (call.by, "all")]
        flops, moved = sum(call.flops for call in of), sum(call.bytes for call in of)
        floor = sum(call.floor(tflops, tbytes) for call in of)
        yield (
            f"{'sum':10} {by:40} {'':8} {flops / 1e9:9.2f} {moved / 1e6:8.1f}"
            f" {floor * 1e6:9.1f} {len(of):8}"
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
