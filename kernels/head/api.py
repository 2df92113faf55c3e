"""The head's public functions: validation, registration, dispatch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..dispatch import Impl
from . import reference


def head_blend(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    background: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """The two-stream generator's last step, from activations to the video, in one pass.

    logits = ConvTranspose3d(Cin -> 3 + 1, kernel 4, stride 2, padding 1)(x), then paper equation 3,
    G = m * f + (1 - m) * b with f = tanh of logits 0-2, m = sigmoid of logit 3 and b = tanh of the
    background, repeated over time. Products are of numbers in the dtype of x, summed in fp32; what
    follows is fp32. Differentiable once. Nothing is summed in an order that may change: results
    are deterministic.

    Args:
        x: (N, Cin, T/2, H/2, W/2), fp32, fp16 or bf16; any layout, read without a copy when stored
            channels-last.
        weight: (Cin, 4, 4, 4, 4) as of `torch.nn.ConvTranspose3d`, fp32, fp16 or bf16, rounded to
            the dtype of x inside: the gradient of an fp32 parameter is not rounded.
        bias: (4,), in the weight's dtype.
        background: (N, 3, H, W) logits, fp32, fp16 or bf16.
        dtype: of the video: fp32, fp16 or bf16.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        The video, (N, 3, T, H, W) in [-1, 1], contiguous (planar), and the mask's mean, scalar
        fp32 in [0, 1]. Gradients have the dtypes of the inputs; that of x is stored channels-last,
        that of the weight in the order (*kernel, 4, Cin).
        The logits are kept for the backward in the dtype of x.

    Raises:
        TypeError: a dtype is none of the three, or the bias's is not the weight's.
        ValueError: shapes or devices do not belong together, the batch is empty, or `impl` is
            unknown.
        RuntimeError: `impl="triton"` where kernels do not run.
    """
    dispatch.check_tensor("x", x, (None,) * 5)
    n, cin, _, h, w = x.shape
    dispatch.check_tensor("weight", weight, (cin, 4, 4, 4, 4), x.device)
    dispatch.check_tensor("bias", bias, (4,), x.device)
    dispatch.check_tensor("background", background, (n, 3, 2 * h, 2 * w), x.device)
    if bias.dtype != weight.dtype:
        raise TypeError(f"bias must have the weight's dtype {weight.dtype}, got {bias.dtype}")
    if dtype not in dispatch.DTYPES:
        raise TypeError(f"the video's dtype must be fp32, fp16 or bf16, got {dtype}")
    dispatch.check_impl(impl)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    video, mean, _ = _head_blend(x, weight, bias.contiguous(), background.contiguous(), dtype, impl)
    return video, mean


def head_tanh(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> Tensor:
    """The one-stream generator's last step: tanh of a transposed convolution to 3 channels.

    `head_blend` with a mask that is 1 everywhere, which hides the background: its logit has weights
    0 and bias infinity. The four-channel kernel would pad a third channel to four in any case.

    Args:
        x, dtype, impl: as of `head_blend`.
        weight: (Cin, 3, 4, 4, 4).
        bias: (3,).

    Returns:
        The video, (N, 3, T, H, W) in [-1, 1], contiguous.

    Raises:
        TypeError, ValueError, RuntimeError: as `head_blend`.
    """
    dispatch.check_tensor("x", x, (None,) * 5)
    n, cin, _, h, w = x.shape
    dispatch.check_tensor("weight", weight, (cin, 3, 4, 4, 4), x.device)
    dispatch.check_tensor("bias", bias, (3,), x.device)
    weight = F.pad(weight, (0, 0) * 3 + (0, 1))
    bias = F.pad(bias, (0, 1), value=float("inf"))
    hidden = x.new_zeros(n, 3, 2 * h, 2 * w)
    return head_blend(x, weight, bias, hidden, dtype=dtype, impl=impl)[0]


@torch.library.custom_op("vgan_fast::head_blend", mutates_args=())
def _head_blend(
    x: Tensor, weight: Tensor, bias: Tensor, background: Tensor, dtype: torch.dtype, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    launcher, twin = dispatch.launcher(__package__, "head_blend"), reference.head_blend
    arguments = x, weight, bias, background, dtype
    return dispatch.run("head_blend_forward", impl, launcher, twin, *arguments)


@_head_blend.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, background: Tensor, dtype: torch.dtype, impl: str):
    n, _, t, h, w = x.shape
    video = x.new_empty(n, 3, 2 * t, 2 * h, 2 * w, dtype=dtype)
    logits = x.new_empty(n, 4, 2 * t, 2 * h, 2 * w)
    mean = x.new_empty((), dtype=torch.float32)
    return video, mean, logits.contiguous(memory_format=torch.channels_last_3d)


@torch.library.custom_op("vgan_fast::head_blend_backward", mutates_args=())
def _head_blend_backward(
    dvideo: Tensor,
    dmean: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    background: Tensor,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    launcher, twin = (
        dispatch.launcher(__package__, "head_blend_backward"),
        reference.head_blend_backward,
    )
    arguments = dvideo, dmean, x, weight, logits, background
    return dispatch.run("head_blend_backward", impl, launcher, twin, *arguments)


@_head_blend_backward.register_fake
def _(
    dvideo: Tensor,
    dmean: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    background: Tensor,
    impl: str,
):
    return (
        torch.empty_like(x, memory_format=torch.channels_last_3d),
        weight.new_empty(4, 4, 4, 4, len(weight)).permute(4, 3, 0, 1, 2),  # packed
        weight.new_empty(4),
        torch.empty_like(background, memory_format=torch.contiguous_format),
    )


def _save(ctx, inputs, output):
    x, weight, _, background, _, ctx.impl = inputs
    video, _, logits = output
    ctx.save_for_backward(x, weight, logits, background)
    ctx.video = video.shape, video.dtype
    # Else a zero gradient of the logits is written at each call.
    ctx.set_materialize_grads(False)


def _backward(ctx, dvideo, dmean, _):
    x = ctx.saved_tensors[0]
    shape, dtype = ctx.video
    # An expanded gradient, such as a sum's, has strides of 0.
    dvideo = x.new_zeros(shape, dtype=dtype) if dvideo is None else dvideo.contiguous()
    dmean = x.new_zeros((), dtype=torch.float32) if dmean is None else dmean
    gradients = _head_blend_backward(dvideo, dmean, *ctx.saved_tensors, ctx.impl)
    return *gradients, None, None


_head_blend.register_autograd(_backward, setup_context=_save)
