"""Time of each kernel beside its reference twin and beside a copy of as many bytes.

    python -m benchmarks.kernels [--batch 64] [--dtype bf16]

At the paper's sizes, forward and backward of every op. The result is checked before it is timed:
one that is wrong prints no time. On a CPU without Triton's interpreter kernels do not run, and only
the twins are timed, which proves that this program works and nothing else.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.utils.benchmark
from torch import Tensor

from benchmarks.machine import describe
from vgan_fast.kernels.blend import mask_blend
from vgan_fast.kernels.dispatch import kernels_run_on
from vgan_fast.kernels.frames import clip_to_cells, frames_to_cells, normalise_frames
from vgan_fast.kernels.head import head_blend
from vgan_fast.kernels.norm import batch_statistics, norm_act

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ROUNDS = 20


@dataclass
class Case:
    """An op on inputs: `call(impl)` gives its outputs; gradients flow to `inputs`."""

    name: str
    call: Callable[[str], tuple[Tensor, ...]]
    inputs: list[Tensor]
    megabytes: float  # that the forward must read and write


def cases(n: int, dtype: torch.dtype, device: str, scale: int) -> Iterator[Case]:
    """Every op, the dearest first; `scale` divides width, height, frames."""
    t, s, w = 32 // scale, 64 // scale, 64
    size = torch.finfo(dtype).bits // 8

    def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        x = torch.randn(*shape, device=device).to(dtype)
        if x.dim() == 5:
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return x.requires_grad_()

    x, still = random(n, w, t // 2, s // 2, s // 2), random(n, 3, s, s)
    weight, bias = random(w, 4, 4, 4, 4, dtype=torch.float32), random(4, dtype=torch.float32)
    moved = (x.numel() + 7 * n * t * s * s) * size / 1e6
    yield Case(
        "head and blend",
        lambda impl: head_blend(x, weight, bias, still, dtype=dtype, impl=impl),
        [x, weight, bias, still],
        moved,
    )
    for channels, down in ((64, 2), (128, 4), (256, 8)):
        y = random(n, channels, t // down, s // down, s // down)
        gain, shift = random(channels, dtype=torch.float32), random(channels, dtype=torch.float32)

        def norm(impl: str, y=y, gain=gain, shift=shift):
            statistics = batch_statistics(y, impl=impl)
            return (norm_act(y, *statistics, gain, shift, from_batch=True, impl=impl),)

        yield Case(f"norm and ReLU, {channels}", norm, [y, gain, shift], 3 * y.numel() * size / 1e6)
    logits = random(n, 4, t, s, s)
    yield Case(
        "mask blend",
        lambda impl: mask_blend(logits, still, dtype=dtype, impl=impl),
        [logits, still],
        7 * n * t * s * s * size / 1e6,
    )
    clip = torch.randn(n, 3, t, s, s, device=device).to(dtype).requires_grad_()
    cells = n * 32 * (t // 2 + 1) * (s // 2 + 1) ** 2
    yield Case(
        "clip to cells",
        lambda impl: (clip_to_cells(clip, impl=impl),),
        [clip],
        (clip.numel() + cells) * size / 1e6,
    )
    frames = torch.randint(0, 256, (n, t, s, s, 3), dtype=torch.uint8, device=device)
    yield Case(
        "frames to cells",
        lambda impl: (frames_to_cells(frames, dtype=dtype, impl=impl),),
        [],
        (frames.numel() + cells * size) / 1e6,
    )
    yield Case(
        "normalise frames",
        lambda impl: (normalise_frames(frames, dtype=dtype, impl=impl),),
        [],
        frames.numel() * (1 + size) / 1e6,
    )


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Median time of a call, by the device's own clock where it has one."""
    for _ in range(3):
        work()
    if device == "cpu":
        timer = torch.utils.benchmark.Timer("work()", globals={"work": work})
        return timer.timeit(3).median * 1e3
    # Captured, as launching one from Python takes longer than many a pass.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)  # beyond the L2 cache
    times = []
    for _ in range(ROUNDS):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[ROUNDS // 2]


def right(ours: tuple[Tensor, ...], twin: tuple[Tensor, ...], dtype: torch.dtype) -> bool:
    """Whether results agree within a few roundings of the dtype; the tests are stricter."""
    return all(
        (a.float() - b.float()).abs().max() <= 16 * torch.finfo(dtype).eps * b.float().abs().max()
        for a, b in zip(ours, twin, strict=True)
    )


def timed(case: Case, impl: str, outputs: tuple[Tensor, ...], device: str) -> tuple[float, float]:
    """Milliseconds of the forward, and of the backward from `outputs` (NaN without gradients)."""
    forward = milliseconds(lambda: case.call(impl), device)
    if not case.inputs:
        return forward, float("nan")
    seeds = [torch.randn_like(made) for made in outputs]

    def backward() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs, case.inputs, seeds, retain_graph=True, allow_unused=True
        )

    return forward, milliseconds(backward, device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--scale", type=int, default=1, help="divide the clip's sides, to try out")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False
    impl = "triton" if kernels_run_on(torch.device(device)) else "reference"
    dtype = DTYPES[arguments.dtype]
    print("# Kernels\n")
    print(f"`python -m benchmarks.kernels {' '.join(sys.argv[1:])}`  ")
    print(f"{describe()}\n")
    if impl == "reference":
        print("No GPU: kernels do not run here, their twins are timed against themselves.\n")
    source = torch.empty(128 << 20, dtype=torch.uint8, device=device)
    copied = milliseconds(source.clone, device)
    rate = 2 * source.numel() / copied / 1e6
    print(f"A copy of {source.numel() / 1e6:.0f} MB moves {rate:,.1f} GB/s.\n")
    print("| op | forward ms | GB/s | of the copy | twin ms | backward ms | twin ms |")
    print("|---|---|---|---|---|---|---|")
    for case in cases(arguments.batch, dtype, device, arguments.scale):
        outputs = {choice: case.call(choice) for choice in {impl, "reference"}}
        if not right(outputs[impl], outputs["reference"], dtype):
            print(f"| {case.name} | wrong result, not timed | | | | | |", flush=True)
            continue
        times = {choice: timed(case, choice, made, device) for choice, made in outputs.items()}
        (forward, backward), (twin, twin_backward) = times[impl], times["reference"]
        speed = case.megabytes / forward
        print(
            f"| {case.name} | {forward:.3f} | {speed:,.1f} | {speed / rate:.0%} | {twin:.3f} |"
            f" {backward:.3f} | {twin_backward:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
