"""The mask blend's public functions: validation, registration, dispatch."""

import torch
from torch import Tensor

from .. import dispatch
from ..dispatch import Impl
from . import reference


def mask_blend(
    head: Tensor,
    background: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Blend G = m * f + (1 - m) * b from logits (paper equation 3), in one pass.

    f = tanh of the head's channels 0-2, m = sigmoid of its channel 3, b = tanh of the background,
    repeated over time. Arithmetic is fp32. Differentiable once, in one pass: the activations are
    computed again from the saved logits, and the background's gradient is summed over time on the
    way. Nothing is summed in an order that may change: results are deterministic.

    Args:
        head: (N, 4, T, H, W) logits, fp32, fp16 or bf16; any layout, read without a copy when
            stored channels-last.
        background: (N, 3, H, W) logits, fp32, fp16 or bf16; any layout, read without a copy when
            contiguous.
        dtype: of the video: fp32, fp16 or bf16.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        The video, (N, 3, T, H, W) in [-1, 1], contiguous (planar), and the mask's mean, scalar
        fp32 in [0, 1]: fp32 sums within a block of pixels, merged in float64. Gradients have the
        dtypes of the inputs; the head's is stored channels-last.

    Raises:
        TypeError: a dtype is none of the three.
        ValueError: shapes or devices do not belong together, the batch is empty, or `impl` is
            unknown.
        RuntimeError: `impl="triton"` where kernels do not run.
    """
    dispatch.check_tensor("head", head, (None, 4, None, None, None))
    n, _, _, h, w = head.shape
    dispatch.check_tensor("background", background, (n, 3, h, w), head.device)
    if dtype not in dispatch.DTYPES:
        raise TypeError(f"the video's dtype must be fp32, fp16 or bf16, got {dtype}")
    dispatch.check_impl(impl)
    head = head.contiguous(memory_format=torch.channels_last_3d)
    return _mask_blend(head, background.contiguous(), dtype, impl)


def blend(
    foreground: Tensor, mask: Tensor, background: Tensor, *, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Blend G = m * f + (1 - m) * b from activated streams (paper equation 3), in one pass.

    `mask_blend` without its activations, for any f, m and b; fp32 arithmetic, deterministic, and
    differentiable once, in one pass, likewise.

    Args:
        foreground: (N, 3, T, H, W), fp32, fp16 or bf16; any layout, read without a copy when
            contiguous (planar), as are the others.
        mask: (N, 1, T, H, W), fp32, fp16 or bf16.
        background: (N, 3, H, W), fp32, fp16 or bf16, repeated over time.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        The video in the foreground's shape and dtype, contiguous, and the mask's mean, scalar
        fp32. Gradients have the dtypes of the inputs and are contiguous.

    Raises:
        TypeError: a dtype is none of the three.
        ValueError: shapes or devices do not belong together, the batch is empty, or `impl` is
            unknown.
        RuntimeError: `impl="triton"` where kernels do not run.
    """
    dispatch.check_tensor("foreground", foreground, (None, 3, None, None, None))
    n, _, t, h, w = foreground.shape
    dispatch.check_tensor("mask", mask, (n, 1, t, h, w), foreground.device)
    dispatch.check_tensor("background", background, (n, 3, h, w), foreground.device)
    dispatch.check_impl(impl)
    return _blend(foreground.contiguous(), mask.contiguous(), background.contiguous(), impl)


@torch.library.custom_op("vgan_fast::mask_blend", mutates_args=())
def _mask_blend(
    head: Tensor, background: Tensor, dtype: torch.dtype, impl: str
) -> tuple[Tensor, Tensor]:
    launcher, twin = dispatch.launcher(__package__, "mask_blend"), reference.mask_blend
    return dispatch.run("mask_blend_forward", impl, launcher, twin, head, background, dtype)


@_mask_blend.register_fake
def _(head: Tensor, background: Tensor, dtype: torch.dtype, impl: str):
    n, _, t, h, w = head.shape
    return head.new_empty(n, 3, t, h, w, dtype=dtype), head.new_empty((), dtype=torch.float32)


@torch.library.custom_op("vgan_fast::mask_blend_backward", mutates_args=())
def _mask_blend_backward(
    dvideo: Tensor, dmean: Tensor, head: Tensor, background: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    launcher, twin = (
        dispatch.launcher(__package__, "mask_blend_backward"),
        reference.mask_blend_backward,
    )
    arguments = dvideo, dmean, head, background
    return dispatch.run("mask_blend_backward", impl, launcher, twin, *arguments)


@_mask_blend_backward.register_fake
def _(dvideo: Tensor, dmean: Tensor, head: Tensor, background: Tensor, impl: str):
    dhead = torch.empty_like(head, memory_format=torch.channels_last_3d)
    return dhead, torch.empty_like(background, memory_format=torch.contiguous_format)


@torch.library.custom_op("vgan_fast::blend", mutates_args=())
def _blend(
    foreground: Tensor, mask: Tensor, background: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    launcher, twin = dispatch.launcher(__package__, "blend"), reference.blend
    return dispatch.run("blend_forward", impl, launcher, twin, foreground, mask, background)


@_blend.register_fake
def _(foreground: Tensor, mask: Tensor, background: Tensor, impl: str):
    video = torch.empty_like(foreground, memory_format=torch.contiguous_format)
    return video, foreground.new_empty((), dtype=torch.float32)


@torch.library.custom_op("vgan_fast::blend_backward", mutates_args=())
def _blend_backward(
    dvideo: Tensor, dmean: Tensor, foreground: Tensor, mask: Tensor, background: Tensor, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    launcher, twin = dispatch.launcher(__package__, "blend_backward"), reference.blend_backward
    arguments = dvideo, dmean, foreground, mask, background
    return dispatch.run("blend_backward", impl, launcher, twin, *arguments)


@_blend_backward.register_fake
def _(
    dvideo: Tensor, dmean: Tensor, foreground: Tensor, mask: Tensor, background: Tensor, impl: str
):
    streams = foreground, mask, background
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in streams)


def _register_autograd(op, backward_op) -> None:
    """Register the backward of `op`, whose last argument is `impl` and whose tensors are saved."""

    def save(ctx, inputs, output):
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.arguments = len(inputs)
        ctx.impl = inputs[-1]

    def backward(ctx, dvideo, dmean):
        # An expanded gradient, such as a sum's, has strides of 0.
        saved = ctx.saved_tensors
        gradients = backward_op(dvideo.contiguous(), dmean, *saved, ctx.impl)
        return *gradients, *[None] * (ctx.arguments - len(saved))

    op.register_autograd(backward, setup_context=save)


_register_autograd(_mask_blend, _mask_blend_backward)
_register_autograd(_blend, _blend_backward)
