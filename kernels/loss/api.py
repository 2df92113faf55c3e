"""The op: validation, registration with PyTorch, choice of implementation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import dispatch
from . import reference


def logistic_losses(
    logits: Tensor, real: Sequence[bool], *, impl: dispatch.Impl = "auto"
) -> Tensor:
    """Mean cross entropy of calling a part of the batch real, or generated: paper equation 1.

    mean log(1 + exp(-z)) for real, mean log(1 + exp(z)) for generated, in fp32 and finite for any
    finite z. Differentiable once. It is small: what it saves are launches, about ten a loss.

    Args:
        logits: (N, 1), log odds of real, fp32, fp16 or bf16.
        real: labels of equal parts of the batch, one after the other.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        A loss for each part, fp32 >= 0.

    Raises:
        TypeError: the dtype is none of the three.
        ValueError: the logits are not (N, 1), the batch is empty or does not fall into as many
            parts as there are labels, or `impl` is unknown.
        RuntimeError: `impl="triton"` where kernels do not run.
    """
    dispatch.check_tensor("logits", logits, (None, 1))
    dispatch.check_impl(impl)
    if not real or len(logits) % len(real):
        raise ValueError(f"{len(logits)} logits do not fall into {len(real)} equal parts")
    return _logistic_losses(logits.contiguous(), list(real), impl)


def _run(name: str, impl: str, *arguments):
    launcher, twin = dispatch.launcher(__package__, name), getattr(reference, name)
    return dispatch.run(name, impl, launcher, twin, *arguments)


@torch.library.custom_op("vgan_fast::logistic_losses", mutates_args=())
def _logistic_losses(logits: Tensor, real: Sequence[bool], impl: str) -> Tensor:
    return _run("logistic_losses", impl, logits, real)


@_logistic_losses.register_fake
def _(logits, real, impl):
    return logits.new_empty(len(real), dtype=torch.float32)


@torch.library.custom_op("vgan_fast::logistic_losses_backward", mutates_args=())
def _logistic_losses_backward(
    dlosses: Tensor, logits: Tensor, real: Sequence[bool], impl: str
) -> Tensor:
    return _run("logistic_losses_backward", impl, dlosses, logits, real)


@_logistic_losses_backward.register_fake
def _(dlosses, logits, real, impl):
    return torch.empty_like(logits)


def _save(ctx, inputs, output):
    logits, ctx.real, ctx.impl = inputs
    ctx.save_for_backward(logits)


def _backward(ctx, dlosses):
    (logits,) = ctx.saved_tensors
    # An expanded gradient, such as a sum's, has strides of 0.
    arguments = dlosses.contiguous(), logits, ctx.real, ctx.impl
    return _logistic_losses_backward(*arguments), None, None


_logistic_losses.register_autograd(_backward, setup_context=_save)
