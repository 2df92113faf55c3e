"""The op: validation, registration with PyTorch, choice of implementation."""

import torch
from torch import Tensor

from .. import dispatch
from . import reference


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    slope: float = 0.0,
    track: bool = True,
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """Batch norm over all but the channels, then (leaky) ReLU.

    z = (x - mean) / sqrt(variance + eps) * weight + bias; y = z if z > 0 else slope * z.

    Training takes the batch's mean and biased variance; evaluation takes the running ones. The
    arithmetic is fp32; statistics and parameter gradients are fp32 partial sums of the values as
    stored, merged in fp64 in a fixed order: two runs agree to the bit. First-order gradients only,
    of x, weight and bias; the slope counts at z = 0, as in PyTorch.

    Args:
        x: (N, C, H, W) or (N, C, T, H, W), fp32, fp16 or bf16; stored channels-last, or copied.
        weight, bias: (C,) fp32.
        running_mean, running_var: (C,) fp32, the variance unbiased.
        training: use the batch's statistics.
        momentum: weight of the new batch in the running statistics.
        eps: added to the variance.
        slope: for negative z; 0 is ReLU.
        track: update the running statistics, in place, when training.
        impl: see `dispatch.run`.

    Returns:
        y: shape and dtype of x, channels-last.

    Raises:
        TypeError: dtypes other than these.
        ValueError: shapes or devices that do not belong together, an empty x, an unknown `impl`,
            or training on a single value a channel.

    Source: Ioffe and Szegedy, "Batch Normalization", algorithms 1 and 2.
    """
    dispatch.check_impl(impl)
    vectors = {
        "weight": weight,
        "bias": bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }
    _check(x, vectors)
    rows = x.numel() // x.shape[1]
    if training and rows == 1:
        raise ValueError(f"training needs more than one value a channel, got x {tuple(x.shape)}")
    x = x.contiguous(memory_format=_channels_last(x))
    weight, bias = weight.contiguous(), bias.contiguous()
    if not training:
        return _evaluate(x, running_mean, running_var, weight, bias, eps, slope, impl)
    y, mean, variance = _train(x, weight, bias, eps, slope, impl)
    if track:
        _track(running_mean, running_var, mean.detach(), variance.detach(), rows, momentum, impl)
    return y


def _check(x: Tensor, vectors: dict[str, Tensor]) -> None:
    if x.dtype not in dispatch.DTYPES:
        raise TypeError(f"x must be fp32, fp16 or bf16, got {x.dtype}")
    if x.dim() not in (4, 5):
        raise ValueError(f"x must be (N, C, H, W) or (N, C, T, H, W), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must not be empty, got {tuple(x.shape)}")
    for name, vector in vectors.items():
        if vector.dtype != torch.float32:
            raise TypeError(f"{name} must be fp32, got {vector.dtype}")
        if vector.shape != (x.shape[1],):
            raise ValueError(
                f"{name} must be ({x.shape[1]},) for x {tuple(x.shape)}, got {tuple(vector.shape)}"
            )
        if vector.device != x.device:
            raise ValueError(f"{name} must be on {x.device} like x, got {vector.device}")
        if name.startswith("running") and not vector.is_contiguous():
            raise ValueError(
                f"{name} is updated in place: contiguous, got strides {vector.stride()}"
            )


def _channels_last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_channels_last(x))


@torch.library.custom_op("vgan_fast::norm_act_train", mutates_args=())
def _train(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the batch's mean and biased variance (not differentiable)."""
    arguments = x, weight, bias, eps, slope
    launcher = dispatch.launcher(__package__, "forward")
    return dispatch.run("norm_act_forward", impl, launcher, reference.forward, *arguments)


@_train.register_fake
def _(x, weight, bias, eps, slope, impl):
    return _like(x), torch.empty_like(weight), torch.empty_like(weight)


@torch.library.custom_op("vgan_fast::norm_act_evaluate", mutates_args=())
def _evaluate(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
    impl: str,
) -> Tensor:
    """y with given statistics (not differentiable)."""
    arguments = x, mean, variance, weight, bias, eps, slope
    launcher = dispatch.launcher(__package__, "apply")
    return dispatch.run("norm_act_apply", impl, launcher, reference.apply, *arguments)


@_evaluate.register_fake
def _(x, mean, variance, weight, bias, eps, slope, impl):
    return _like(x)


@torch.library.custom_op("vgan_fast::norm_act_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    slope: float,
    training: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    arguments = dy, x, mean, variance, weight, bias, eps, slope, training
    launcher = dispatch.launcher(__package__, "backward")
    return dispatch.run("norm_act_backward", impl, launcher, reference.backward, *arguments)


@_backward.register_fake
def _(dy, x, mean, variance, weight, bias, eps, slope, training, impl):
    return _like(x), torch.empty_like(weight), torch.empty_like(weight)


@torch.library.custom_op("vgan_fast::norm_act_track", mutates_args=("running_mean", "running_var"))
def _track(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    variance: Tensor,
    rows: int,
    momentum: float,
    impl: str,
) -> None:
    """Update the running statistics; apart from the forward op so that that one mutates nothing."""
    arguments = running_mean, running_var, mean, variance, rows, momentum
    launcher = dispatch.launcher(__package__, "track")
    dispatch.run("norm_act_track", impl, launcher, reference.track, *arguments)


def _gradients(ctx, dy: Tensor, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, *vectors = ctx.saved_tensors
    dy = dy.contiguous(memory_format=_channels_last(dy))
    return _backward(dy, x, *vectors, ctx.eps, ctx.slope, training, ctx.impl)


def _save_train(ctx, inputs, output):
    x, weight, bias, ctx.eps, ctx.slope, ctx.impl = inputs
    _, mean, variance = output
    ctx.save_for_backward(x, mean, variance, weight, bias)


def _train_gradients(ctx, dy, dmean, dvariance):
    return *_gradients(ctx, dy, training=True), None, None, None


def _save_evaluate(ctx, inputs, output):
    *tensors, ctx.eps, ctx.slope, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _evaluate_gradients(ctx, dy):
    dx, dweight, dbias = _gradients(ctx, dy, training=False)
    return dx, None, None, dweight, dbias, None, None, None


def _refuse(ctx, *gradients):
    raise NotImplementedError("norm_act has first-order gradients only")


_train.register_autograd(_train_gradients, setup_context=_save_train)
_evaluate.register_autograd(_evaluate_gradients, setup_context=_save_evaluate)
_backward.register_autograd(_refuse)
