"""Each op that is no convolution: its kernel and its plain twin."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import Contender, Contest, Device, Prepared, Work, WrongResultError
from benchmarks.presets import Networks, Preset
from vgan_fast.kernels.blend import mask_blend
from vgan_fast.kernels.cost import Call, Pass, generator_streams
from vgan_fast.kernels.dispatch import kernels_run_on
from vgan_fast.kernels.frames import clip_to_cells, frames_to_cells, normalise_frames
from vgan_fast.kernels.head import head_blend
from vgan_fast.kernels.langevin import langevin_step, normals
from vgan_fast.kernels.norm import batch_statistics, norm_act

Outputs = tuple[Tensor, ...]
LIBRARY = "eager", "compiled"  # names of contenders that are PyTorch's own
SEED = 1


@dataclass
class Case:
    """An op on inputs: `call(impl)` gives its outputs; gradients flow to `inputs`.

    Attributes:
        forward, backward: FLOPs and bytes, in 16 bits, of each pass that it needs.
        library: the forward as PyTorch has it, of what makes noise like a tensor: where the twin,
            whose noise is the kernel's, is not what anybody would write.
    """

    name: str
    call: Callable[[str], Outputs]
    inputs: list[Tensor]
    forward: list[tuple[int, int]]
    backward: list[tuple[int, int]]
    library: Callable[[Callable[[Tensor], Tensor]], Outputs] | None = None


def counted(calls: Iterable[Call]) -> list[tuple[int, int]]:
    """FLOPs and bytes of calls of the cost table."""
    return [(call.flops, call.bytes) for call in calls]


def cases(networks: Networks, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Every op at the sizes of the networks' step."""
    shape, n = networks.shape, networks.batch
    t, s, w = shape.frames, shape.size, shape.width
    run = Pass("", n)
    pixels, still_pixels, cells = (
        n * t * s * s,
        n * s * s,
        n * 32 * (t // 2 + 1) * (s // 2 + 1) ** 2,
    )

    def random(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        x = torch.randn(*sizes, device=device).to(dtype)
        if x.dim() == 5:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return x.requires_grad_()

    x, still = random(n, w, t // 2, s // 2, s // 2), random(n, 3, s, s)
    weight, bias = random(w, 4, 4, 4, 4, dtype=torch.float32), random(4, dtype=torch.float32)
    _, head, _, _ = generator_streams(shape)
    flops, read = n * head.flops, x.numel() * 2 + weight.numel() * 4
    yield Case(
        "head and blend",
        lambda impl: head_blend(x, weight, bias, still, dtype=dtype, impl=impl),
        [x, weight, bias, still],
        [(flops, read + 7 * pixels * 2 + 3 * still_pixels * 2)],
        # The blend's gradient, then both products of it.
        [
            (0, (3 + 4 + 4) * pixels * 2 + 2 * 3 * still_pixels * 2),
            (flops, read + 4 * pixels * 2),
            (flops, read + 4 * pixels * 2),
        ],
    )
    for level, channels in enumerate(shape.widths[::-1][:3]):
        rows = (t * s * s) >> 3 * (level + 1)
        side = (t >> level + 1, s >> level + 1, s >> level + 1)
        y = random(n, channels, *side)
        gain, shift = random(channels, dtype=torch.float32), random(channels, dtype=torch.float32)

        def norm(impl: str, y=y, gain=gain, shift=shift) -> Outputs:
            statistics = batch_statistics(y, impl=impl)
            return (norm_act(y, *statistics, gain, shift, from_batch=True, impl=impl),)

        yield Case(
            f"norm and ReLU, {channels} channels",
            norm,
            [y, gain, shift],
            counted(run.whole_norm("", rows, channels)),
            counted(run.norm_backward("", rows, channels)),
        )
    logits = random(n, 4, t, s, s)
    yield Case(
        "mask blend",
        lambda impl: mask_blend(logits, still, dtype=dtype, impl=impl),
        [logits, still],
        [(0, 7 * pixels * 2 + 3 * still_pixels * 2)],
        [(0, 11 * pixels * 2 + 2 * 3 * still_pixels * 2)],
    )
    clip = torch.randn(n, 3, t, s, s, device=device).to(dtype).requires_grad_()
    packing = [(0, (3 * pixels + cells) * 2)]
    yield Case(
        "clip to cells", lambda impl: (clip_to_cells(clip, impl=impl),), [clip], packing, packing
    )
    frames = torch.randint(0, 256, (n, t, s, s, 3), dtype=torch.uint8, device=device)
    for name, op, made in (
        ("frames to cells", frames_to_cells, cells),
        ("normalise frames", normalise_frames, 3 * pixels),
    ):
        yield Case(
            name,
            lambda impl, op=op: (op(frames, dtype=dtype, impl=impl),),
            [],
            [(0, 3 * pixels + made * 2)],
            [],
        )
    video = torch.randn(n, 3, t, s, s, device=device)
    slope = torch.randn(n, 3, t, s, s, device=device).to(dtype)
    moment = torch.tensor(1, device=device)
    size, variance = 0.3, 100.0

    def library(noise: Callable[[Tensor], Tensor]) -> Outputs:
        return (video + size**2 / 2 * (slope - video / variance) + size * noise(video),)

    yield Case(
        "Langevin step",
        lambda impl: (
            langevin_step(
                video, slope, moment, seed=SEED, step_size=size, variance=variance, impl=impl
            ),
        ),
        [],
        [(0, 3 * pixels * (4 + 2 + 4))],
        [],
        library,
    )


def agree(ours: Iterable[Tensor], twin: Iterable[Tensor], precision: str) -> None:
    """Compare results within a few roundings of the precision; the tests are stricter.

    Raises:
        WrongResultError: they do not agree.
    """
    # fp32's own is 2**-23. Twice that, as both sum hundreds of terms, each in an order of its own:
    # 6.8e-7 of the norm and 3e-6 of the largest were seen in the head, in the interpreter.
    eps = {"fp32": 2**-22, "tf32": 2**-10, "bf16": 2**-7}[precision]
    for a, b in zip(ours, twin, strict=True):
        wrong = a.float() - b.float()
        for error, allowed in (
            (float(wrong.norm() / b.float().norm()), 4 * eps),
            (float(wrong.abs().max() / b.float().abs().max()), 16 * eps),
        ):
            if not error <= allowed:
                raise WrongResultError(f"off by {error:.2g} of the result, allowed {allowed:.2g}")


def contests(preset: Preset, device: Device) -> list[Contest]:
    """Forward and backward of every op."""
    # In Triton's interpreter bf16 is silently wrong.
    precision = "bf16" if device.gpu or not kernels_run_on(device.device) else "fp32"
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]

    def contender(number: int, name: str, backward: bool) -> Contender:
        def from_library(case: Case, name: str, expected: Outputs) -> Work:
            step = case.library
            if name == "compiled":
                step = torch.compile(step, backend=preset.compiler, dynamic=False)
            # Checked with the kernel's noise, timed with PyTorch's.
            noise = normals(expected[0].shape, 1, SEED, device.device)
            agree(step(lambda _: noise), expected, precision)
            return device.captured(lambda: step(torch.randn_like))

        def build(_) -> Prepared:
            torch.manual_seed(0)
            case = list(cases(preset.examined, dtype, device.device))[number]
            call = case.call
            expected = call("reference")
            if name in LIBRARY:
                return Prepared(from_library(case, name, expected))
            impl = "triton" if name == "kernel" else "reference"
            made = call(impl)
            seeds = [torch.randn_like(each) for each in expected]

            def back(outputs: Outputs) -> Outputs:
                found = torch.autograd.grad(
                    outputs, case.inputs, seeds, retain_graph=True, allow_unused=True
                )
                return tuple(each for each in found if each is not None)

            work = device.captured(lambda: back(made) if backward else call(impl))
            agree(work(), back(expected) if backward else expected, precision)
            return Prepared(work)

        return Contender(name, build, precision)

    rivals = ["twin"] + ["kernel"] * kernels_run_on(device.device)
    found = []
    for number, case in enumerate(cases(preset.examined, dtype, torch.device("meta"))):
        for direction, passes in (("forward", case.forward), ("backward", case.backward)):
            if passes:
                found.append(
                    Contest(
                        "kernel",
                        f"{case.name}, {direction}",
                        [
                            contender(number, name, direction == "backward")
                            for name in (*rivals, *(LIBRARY if case.library else ()))
                        ],
                        preset.rounds,
                        preset.warm_up,
                        counted=passes,
                        each=device.flush,
                    )
                )
    return found


def test_kernel(contest, contender, measured):
    measured(contest, contender)
