"""The logistic losses in Triton, a program a part of the batch; batches are small."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import dispatch
from ..aot import AotCase

BLOCK, WARPS = 256, 4


def logistic_losses(logits: Tensor, real: list[bool]) -> Tensor:
    """Launch on contiguous logits."""
    dispatch.launches["logistic_losses"] += 1
    losses = torch.empty(len(real), dtype=torch.float32, device=logits.device)
    count = len(logits) // len(real)
    _forward[(len(real),)](
        logits,
        losses,
        count,
        _bits(real),
        BLOCK=BLOCK,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    return losses


def logistic_losses_backward(dlosses: Tensor, logits: Tensor, real: list[bool]) -> Tensor:
    """Launch on contiguous gradients and logits."""
    dispatch.launches["logistic_losses_backward"] += 1
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    count = len(logits) // len(real)
    _backward[(len(real), triton.cdiv(count, BLOCK))](
        dlosses,
        logits,
        dlogits,
        count,
        _bits(real),
        BLOCK=BLOCK,
        num_warps=WARPS,
        **dispatch.OPTIONS,
    )
    return dlogits


def _bits(real: list[bool]) -> int:
    return sum(1 << part for part, label in enumerate(real) if label)


@triton.jit(do_not_specialize=["count", "real"])
def _forward(
    logits,  # (parts, count)
    losses,  # (parts,) fp32, written
    count,
    real,  # a bit for each part
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0)
    sign = 1.0 - 2.0 * ((real >> part) & 1)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = sign * tl.load(logits + part * count + at, mask=at < count, other=0.0).to(tl.float32)
        small = tl.exp(-tl.abs(z))
        above = 1 + small
        # log(1 + small) to the last digit: the rounding of `above` cancels in the quotient.
        rounded = tl.where(above == 1, 1.0, above - 1)
        log = tl.where(above == 1, small, tl.log(above) * (small / rounded))
        softplus = tl.maximum(z, 0.0) + log
        total += tl.where(at < count, softplus, 0.0).to(tl.float64)
    tl.store(losses + part, (tl.sum(total) / count).to(tl.float32))


@triton.jit(do_not_specialize=["count", "real"])
def _backward(
    dlosses,  # (parts,) fp32
    logits,  # (parts, count)
    dlogits,  # (parts, count), written
    count,
    real,  # a bit for each part
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0)
    sign = 1.0 - 2.0 * ((real >> part) & 1)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(logits + part * count + at, mask=at < count, other=0.0).to(tl.float32)
    # As in the twin: no difference of what is nearly equal.
    gradient = tl.load(dlosses + part) / count * sign * tl.sigmoid(sign * z)
    tl.store(dlogits + part * count + at, gradient.to(dlogits.dtype.element_ty), mask=at < count)


def aot_cases() -> list[AotCase]:
    """Both kernels on bf16 logits."""
    shared = {"logits": "*bf16", "count": "i32", "real": "i32"}
    return [
        AotCase(
            f"logistic losses {name}",
            kernel,
            shared | tensors,
            {"BLOCK": BLOCK},
            WARPS,
            3,
            "small",
            odd=("count", "real"),
        )
        for name, kernel, tensors in (
            ("forward", _forward, {"losses": "*fp32"}),
            ("backward", _backward, {"dlosses": "*fp32", "dlogits": "*bf16"}),
        )
    ]
