"""`python -m vgan_fast.kernels.cost`: what a training step must compute and move, call by call.

The step is run on tensors that have shapes and no values, and each call that would launch something
is written down, so that the table is of the step as it is. Figures follow from shapes; nothing is
measured. A floor is the time that a call takes on a device which either computes or moves bytes at
its full rate, whichever lasts longer. Bytes count each tensor once per read and once per write, as
if no cache kept it from one call to the next.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import click
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vgan_fast.cli import Program
from vgan_fast.kernels.norm import FEW_ROWS
from vgan_fast.shape import ClipShape

# What an H200 was seen to reach: a large bf16 matrix product, and a pass over large tensors.
TFLOPS, TBYTES = 790.0, 4.0
# Of PyTorch's calls, what allocates or renames memory and writes none.
IDLE = ("empty", "detach", "alias", "_unsafe_view")


@dataclass(frozen=True)
class Product:
    """A matrix product: rows, columns, terms of each sum.

    Attributes:
        direction: "up", "down" or "weight gradient".
        coarse, fine, kernel: channels of the layer's sides, and its kernel size.
        m, n, k: rows, columns and terms, padding channels included.
        tile: of the default on an H200, and its warps; none of the head's forward.
        splits: of the sums, which a second launch adds up.
    """

    direction: str
    coarse: int
    fine: int
    kernel: tuple[int, ...]
    m: int
    n: int
    k: int
    tile: str = field(default="", compare=False)
    splits: int = field(default=1, compare=False)

    @property
    def flops(self) -> int:
        """A multiply-add counted as two."""
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True)
class Call:
    """One kernel with its finalisers, or one call of the library.

    Attributes:
        part: of the step.
        name: the operation, and what it is given.
        by: whose code it is: "triton" (ours), "library" (products) or "torch" (all else).
        flops: operations, a multiply-add counted as two.
        bytes: read and written in global memory.
        launches: kernels launched; a call of PyTorch or of the library is one.
        product: of a convolution.
    """

    part: str
    name: str
    by: str
    flops: float
    bytes: float
    launches: int = 1
    product: Product | None = None

    def floor(self, tflops: float, tbytes: float) -> float:
        """Least seconds at so many TFLOP/s and TB/s."""
        return max(self.flops / (tflops * 1e12), self.bytes / (tbytes * 1e12))


class _Recorder(TorchDispatchMode):
    """Writes down every call that launches something."""

    def __init__(self):
        super().__init__()
        self.part, self.calls = "", []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.name().split("::")[1]
        outs = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if _is(t)]
        if func.namespace == "vgan_fast":
            self.calls.append(_own(self.part, name, args, outs))
        elif func.namespace == "aten" and not (
            func.is_view or any(idle in func.name() for idle in IDLE)
        ):
            self.calls.append(_torch(self.part, name, args, outs))
        return out


def _is(x) -> bool:
    return isinstance(x, Tensor)


def _size(tensors) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if _is(x))


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape))


def _torch(part: str, name: str, args: tuple, outs: list[Tensor]) -> Call:
    """A pass over its operands; lists of tensors are one launch."""
    tensors = [t for a in args for t in (a if isinstance(a, (tuple, list)) else [a]) if _is(t)]
    written = outs or tensors[:1]
    if name.startswith("convolution"):  # the background's last layer
        a, b, *kernel = (x for x in args if _is(x) and x.shape[2:] == (4, 4)).__next__().shape
        coarse = next(x for x in args if _is(x) and x.shape[1] == a and x.dim() == 4)
        flops = 2 * coarse.numel() * b * prod(kernel)
        flops *= 2 if name.endswith("backward") else 1
        return Call(part, f"{name} {a} to {b}", "library", flops, _size(tensors + written))
    flops = 0
    if name in ("mm", "addmm"):
        flops = 2 * outs[0].numel() * tensors[-1].shape[0]
        return Call(part, f"{name} {_shape(outs[0])}", "library", flops, _size(tensors + written))
    of = _shape(written[0]) if len(written) == 1 else f"of {len(written)}"
    return Call(
        part, f"{name} {of}", "torch", sum(x.numel() for x in written), _size(tensors + written)
    )


def _own(part: str, name: str, args: tuple, outs: list[Tensor]) -> Call:
    """An operation of this project: what it reads of its arguments, and its launches."""
    x, written = args[0], _size(outs)
    of = f"{name} {_shape(x)}" if _is(x) else f"{name} of {len(x)}"

    def passes(reads, launches: int, each: int = 4, times: int = 1) -> Call:
        moved = times * _size(reads) + written
        return Call(
            part, of, "triton", each * sum(r.numel() for r in reads if _is(r)), moved, launches
        )

    def few(like: Tensor, groups: int) -> bool:
        return like.numel() // (like.shape[1] * groups) <= FEW_ROWS

    if name in ("convolve", "convolve_masked", "convolve_norm_backward", "convolve_statistics"):
        place = 5 if name == "convolve_statistics" else 0
        weight = args[{"convolve_statistics": 7, "convolve": 2}.get(name, 1)]
        up = args[-2]
        reads = args
        if name == "convolve":  # not the weight that its gradient belongs to
            reads = args[0], *args[2:5]
        elif name == "convolve_statistics":
            reads = args[5], args[7]
        product = _convolution(args[place], weight, up, outs[0])
        launches = 2 if name == "convolve_norm_backward" else 1
        if name == "convolve_statistics" and args[10]:
            launches = 2
        moved = _size(reads) + written
        title = f"{name} {_shape(args[place])}, {'up' if up else 'down'}"
        return Call(part, title, "triton", product.flops, moved, launches, product)
    if name == "weight_gradient":
        return _weight_gradient(part, *args[:3], written)
    if name in ("project", "project_weight_gradient"):
        inner = args[0].shape[1] if name == "project" else args[0].shape[0]
        reads = (args[0], *args[3:5]) if name == "project" else args[:2]
        flops = 2 * outs[0].numel() * inner
        return Call(part, f"{name} {_shape(outs[0])}", "library", flops, _size(reads) + written)
    if name == "head_blend":
        n, cin, *sizes = x.shape
        cells = prod(size + 1 for size in sizes)
        product = Product("up", cin, 32, (2, 2, 2), n * cells, 32, 8 * cin)
        still = 4 * args[3].numel()  # activated, fp32: written once, read back
        moved = _size(args[:4]) + written + 2 * still
        # Background to fp32 and activated, weight in cells, the kernel, the mask's mean.
        return Call(part, of, "triton", product.flops, moved, 5, product)
    if name == "head_blend_backward":
        return _head_backward(part, of, args, outs)
    if name == "batch_norm_act":
        whole = few(x, args[3])
        return passes((x, args[1], args[2]), 1 if whole else 3, 8, 3 if whole else 2)
    if name == "norm_act_backward":
        return passes(args[:6], 1 if few(args[1], len(args[2])) else 3, 16, 2)
    launches = {"batch_statistics": 2, "pair_to_cells": 2}.get(name, 1)
    reads = [t for a in args for t in (a if isinstance(a, (tuple, list)) else [a]) if _is(t)]
    return passes(reads, launches)


def _convolution(x: Tensor, weight: Tensor, up: bool, y: Tensor) -> Product:
    a, b, *kernel = weight.shape
    taps = prod(kernel)
    if up and kernel[0] == 4:  # of a result's taps, half along each axis
        taps //= 2 ** len(kernel)
    rows = y.numel() // y.shape[1]
    terms = taps * (a if up else b)
    direction, columns = "up" if up else "down", b if up else a
    from vgan_fast.kernels.conv import gather

    config = gather.configs(x, weight, up=up)[0]
    wide = min(config.columns, columns * (2 if config.merged else 1))
    tile = f"{config.rows}x{wide}x{config.depth}, {config.num_warps} warps"
    return Product(direction, a, b, tuple(kernel), rows, columns, terms, tile)


def _weight_gradient(part: str, fine: Tensor, coarse: Tensor, kernel: int, written: int) -> Call:
    from vgan_fast.kernels.conv import weight_gradient as module

    _, a, *sizes = coarse.shape
    b, taps = fine.shape[1], kernel ** len(sizes)
    splits, config = module.splits(fine, coarse, kernel), module.configs(fine, coarse, kernel)[0]
    tile = f"{config.rows}x{config.columns}x{config.positions}, {config.num_warps} warps"
    sizes_of = taps * b, a, coarse.numel() // a
    kernels = (kernel,) * len(sizes)
    product = Product("weight gradient", a, b, kernels, *sizes_of, tile, splits)
    partial = 2 * splits * written if splits > 1 else 0
    moved = _size((fine, coarse)) + written + partial
    name = f"weight gradient {_shape(fine)}"
    return Call(part, name, "triton", product.flops, moved, 1 + (splits > 1), product)


def _head_backward(part: str, of: str, args: tuple, outs: list[Tensor]) -> Call:
    """Blend in cells, weight in cells, input and weight gradient, what they are stored as."""
    from vgan_fast.kernels.conv import weight_gradient as module

    dvideo, _, x, weight, logits, background, _ = args
    n, cin, *sizes = x.shape
    cells = x.new_empty(n, 32, *(size + 1 for size in sizes))
    down = Product("down", cin, 32, (2, 2, 2), x.numel() // cin, cin, 8 * 32)
    splits = module.splits(cells, x, 2)
    weights = 4 * weight.numel()
    moved = _size((dvideo, logits, background, cells, *outs))  # the blend
    moved += _size((cells, x)) + _size((cells, x)) + 2 * splits * weights * (splits > 1)
    # Blend, sums of the bias, weight in cells, two products, weight from cells.
    return Call(part, of, "triton", 2 * down.flops, moved, 6 + (splits > 1), down)


def training_step(shape: ClipShape, batch: int) -> list[Call]:
    """Every call of one step of the two-stream GAN with one logit, in bf16, in order.

    As `vgan_fast.gan_step` runs it on the kernels, without a moving average; a test compares the
    launches of the two.
    """
    # A program's import: the kernels themselves know no networks.
    from vgan_fast import fused
    from vgan_fast.losses import discriminator_loss, generator_loss

    recorder = _Recorder()
    calls = recorder.calls
    # Real tensors in it would be a mistake of ours: constants of the operations are allowed.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        generator = fused.TwoStreamGenerator(shape, impl="reference")
        discriminator = fused.Discriminator(shape, impl="reference")
        frames = torch.empty(batch, shape.frames, shape.size, shape.size, 3, dtype=torch.uint8)
        one, ones = torch.ones(()), torch.ones(2)
        with recorder:
            recorder.part = "G forward"
            fake, mask = generator(torch.randn(batch, shape.latent))
            recorder.part = "D step"
            terms = discriminator_loss("cross-entropy", discriminator.score_pair(frames, fake))
            terms.backward(ones)
            _adam(calls, "D step", discriminator)
            recorder.part = "G step"
            discriminator.requires_grad_(False)
            for norm in discriminator.modules():
                norm.track_running_stats = False
            g = generator_loss("cross-entropy", discriminator(fake))
            torch.autograd.backward([g, mask], [one, one])
            _adam(calls, "G step", generator)
    return calls


def _adam(calls: list[Call], part: str, network: torch.nn.Module) -> None:
    """Read weight, gradient and both moments, write all but the gradient, fp32; count the step."""
    trained = sum(p.numel() for p in network.parameters() if p.grad is not None)
    calls.append(Call(part, "Adam", "torch", 12 * trained, 7 * 4 * trained))
    calls.append(Call(part, "Adam's count of steps", "torch", 0, 0))


def table(calls: list[Call], tflops: float, tbytes: float) -> Iterator[str]:
    """Lines of the report, calls in their order, sums last."""
    yield f"{'part':10} {'call':52} {'by':8} {'GFLOP':>9} {'MB':>8} {'floor us':>9} {'launches':>8}"
    for call in calls:
        yield (
            f"{call.part:10} {call.name:52} {call.by:8} {call.flops / 1e9:9.2f}"
            f" {call.bytes / 1e6:8.1f} {call.floor(tflops, tbytes) * 1e6:9.1f} {call.launches:8}"
        )
    for by in ("triton", "library", "torch", "all"):
        of = [call for call in calls if by in (call.by, "all")]
        flops, moved = sum(call.flops for call in of), sum(call.bytes for call in of)
        floor = sum(call.floor(tflops, tbytes) for call in of)
        launches = sum(call.launches for call in of)
        yield (
            f"{'sum':10} {by:52} {'':8} {flops / 1e9:9.2f} {moved / 1e6:8.1f}"
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
