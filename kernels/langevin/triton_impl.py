"""A Langevin step in Triton: one pass over memory.

A counter of Philox serves four elements one after the other, so a program makes a quarter as many
counters as it has elements and puts their results between one another, in registers.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase

# Elements a program: 8 a thread, so that a 16-bit gradient moves 16 bytes at a time.
BLOCK, WARPS = 1024, 4


def langevin_step(
    x: Tensor,
    gradient: Tensor,
    moment: Tensor,
    fixed: Tensor | None,
    seed: int,
    step_size: float,
    variance: float | None,
    temperature: float,
    bounds: Sequence[float] | None,
) -> Tensor:
    """Launch on contiguous tensors."""
    dispatch.launches["langevin_step"] += 1
    _, channels, *sizes = x.shape
    pixels, count = math.prod(sizes), x.numel()
    moved = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    low, high = bounds or (None, None)
    _step[(triton.cdiv(count, BLOCK),)](
        dispatch.aligned(x),
        dispatch.aligned(gradient),
        moment,
        None if fixed is None else dispatch.aligned(fixed.view(torch.uint8)),
        moved,
        count,
        pixels,
        channels,
        seed,
        step_size**2 / 2,
        None if variance is None else 1 / variance,
        step_size * math.sqrt(temperature) if temperature else None,
        low,
        high,
        FIXED_EACH=fixed is not None and len(fixed) > 1,
        BLOCK=BLOCK,
        num_warps=WARPS,
        num_stages=1,
        **dispatch.OPTIONS,
    )
    return moved


@triton.jit(do_not_specialize=["channels", "seed"])
def _step(
    x,  # (N, C, pixels) fp32
    gradient,  # (N, C, pixels)
    moment,  # () int64
    fixed,  # none, or (N, pixels) uint8, or without FIXED_EACH (1, pixels)
    moved,  # (N, C, pixels) fp32, written
    count,
    pixels,
    channels,
    seed,
    drift,
    inverse_variance,  # none for a flat reference
    scale,  # of the noise, or none
    low,  # none, or as `high` a bound
    high,
    FIXED_EACH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    old = tl.load(x + at, mask=inside, other=0.0)
    slope = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    if inverse_variance is not None:
        slope -= old * inverse_variance
    new = old + drift * slope
    if scale is not None:
        new += scale * _normals(seed, tl.load(moment), program, BLOCK)
    if low is not None:
        # What is inside stays as it is, to the bit.
        new = 2 * _clamp(new, low, high) - new
        new = _clamp(new, low, high)
    if fixed is not None:
        # From its row on, in 32 bits, which divide faster. A single pixel is a constant, no tensor.
        row = program * BLOCK // pixels
        beyond = (program * BLOCK - row * pixels).to(tl.int32) + tl.arange(0, BLOCK)
        pixel = beyond % pixels
        if FIXED_EACH:
            clip = (row.to(tl.int32) + beyond // pixels) // channels
            pixel = clip.to(tl.int64) * pixels + pixel
        kept = tl.load(fixed + pixel, mask=inside, other=0)
        new = tl.where(kept != 0, old, new)
    tl.store(moved + at, new, mask=inside)


@triton.jit
def _clamp(x, low, high):
    return tl.clamp(x, low, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _normals(seed, moment, program, BLOCK: tl.constexpr):
    """Of a program's elements, in their order."""
    QUADS: tl.constexpr = BLOCK // 4
    first = program * QUADS
    # Quads are a power of two, so that the low word of a program's counters never overflows.
    low = first.to(tl.uint32) + tl.arange(0, QUADS).to(tl.uint32)
    high = (first >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, low, high, moment.to(tl.uint32), (moment >> 32).to(tl.uint32))
    n0, n1 = _pair(w0, w1)
    n2, n3 = _pair(w2, w3)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (BLOCK,))


@triton.jit
def _pair(uniform, direction):
    """Two normals of two words, as in the twin."""
    u = (uniform >> 1).to(tl.int32).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    radius = tl.sqrt(-2.0 * tl.log(u))
    bits = direction.to(tl.int32, bitcast=True)
    radius = tl.where(bits < 0, -radius, radius)
    f = (bits << 1).to(tl.float32) * 4.656612873077393e-10
    square = f * f
    cosine = -2.3824919481e-5 * square + 0.00091772485757
    cosine = cosine * square - 0.020862689242
    cosine = cosine * square + 0.25366932154
    cosine = cosine * square - 1.2337005138
    cosine = cosine * square + 1.0
    sine = 0.00015167852689 * square - 0.0046741575934
    sine = sine * square + 0.079689927399
    sine = sine * square - 0.64596378803
    sine = sine * square + 1.5707963705
    return radius * cosine, radius * (f * sine)


def aot_cases() -> list[AotCase]:
    """The step as sampling takes it, and with every part that it may have."""
    cases = []
    for dtype in ("fp32", "bf16"):
        for name, scale, fixed, each in (
            ("", "fp32", None, False),
            (", no noise", None, None, False),
            (", fixed pixels of all, bounds", "fp32", "*u8", False),
            (", fixed pixels of each, bounds", "fp32", "*u8", True),
        ):
            optional = {
                "fixed": fixed,
                "scale": scale,
                "low": fixed and "fp32",
                "high": fixed and "fp32",
            }
            given = {key: kind for key, kind in optional.items() if kind}
            cases.append(
                AotCase(
                    f"Langevin step, {dtype} gradient{name}",
                    _step,
                    {"x": "*fp32", "gradient": f"*{dtype}", "moment": "*i64", "moved": "*fp32"}
                    | {"count": "i32", "pixels": "i32", "channels": "i32", "seed": "i64"}
                    | {"drift": "fp32", "inverse_variance": "fp32"}
                    | given,
                    {key: None for key in optional if key not in given}
                    | {"FIXED_EACH": each, "BLOCK": BLOCK},
                    WARPS,
                    1,
                    "elementwise",
                    odd=("channels", "seed"),
                    narrow={8: 2},
                )
            )
    # As the launch has it of a clip of one pixel, whose number is a constant.
    one = {"pixels": 1}
    least = replace(
        cases[-1],
        name="Langevin step, one pixel",
        signature={key: kind for key, kind in cases[-1].signature.items() if key not in one},
        constexprs=cases[-1].constexprs | one,
        kind="small",
    )
    return [*cases, least]
