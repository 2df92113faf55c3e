"""The convolutions' public functions: validation, registration, dispatch.

What a layer's kernels share across the layer's border decides where the ops are cut. A batch norm's
statistics ride in the convolution before it, and the two sums of its backward in that convolution's
twin behind it; so a tensor goes from op to op as the convolution left it, beside its statistics,
and the op that takes it normalises, activates and convolves. After a layer without a norm it goes
activated, which is what both sides need, and its gradient is that of the values before the (leaky)
ReLU: the op that takes it masks.
"""

import torch
from torch import Tensor

from .. import choice, dispatch
from ..dispatch import Impl
from ..norm.api import (
    channels_last,
    check_norm,
    norm_act,
    norm_input_gradient,
    over_groups,
    over_processes,
)
from . import reference
from .weights import pack, pack_cells, unpack_cells

CELL = 32  # values of a cell: 2x2x2 pixels of 4 channels


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    packed: Tensor | None = None,
    *,
    up: bool,
    slope: float = 1.0,
    impl: Impl = "auto",
) -> Tensor:
    """Convolution, bias, (leaky) ReLU. Differentiable once, **as to what the ReLU gets**.

    y = z if z > 0 else slope * z, where z is `torch.nn.Conv3d` of x (`up` false) or
    `torch.nn.ConvTranspose3d` (`up` true), kernel 4, stride 2, padding 1, or kernel 2, stride 1,
    no padding; likewise in two dimensions for kernel 4. Products are of numbers in the dtype of x,
    summed in fp32. The gradient that comes back must be z's: `masked_convolve` returns it so.
    With slope 1 there is no difference.

    Args:
        x: (N, B, *sizes), or (N, A, *sizes) where `up`; fp32, fp16 or bf16; stored channels-last,
            or copied. Without `up`, sizes are even for kernel 4.
        weight: (A, B, *kernel), fp32, fp16 or bf16, rounded to the dtype of x; its gradient is
            summed in fp32. Read without a permutation when its memory is (*kernel, B, A), as is
            that of its gradient. Or (A, 3 or 4, 4, 4, 4) for x in cells
            (`vgan_fast.kernels.frames`): a first layer, as it would be of the clip.
        bias: a value for each channel of y, fp32.
        packed: the weight in the dtype of x, where at hand; `weight` is then what the gradient
            belongs to.
        slope: for negative z; 0 is ReLU, 1 nothing.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        y: in the dtype of x, channels-last.

    Raises:
        TypeError: a dtype is none of these.
        ValueError: shapes or devices do not belong together, the batch is empty, or `impl` is
            unknown.
        RuntimeError: `impl="triton"` where kernels do not run.
    """
    dispatch.check_impl(impl)
    _check(x, weight, bias, up)
    x = x.contiguous(memory_format=channels_last(x))
    return _convolve(x, weight, _packed(weight, packed, x, up), bias, None, slope, up, impl)


def convolve_folded(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    up: bool,
    slope: float,
    impl: Impl = "auto",
) -> Tensor:
    """Convolution, scale and shift of each channel, (leaky) ReLU, in one pass; no gradient.

    A layer in evaluation mode, its batch norm and bias folded into scale and shift.

    Args:
        x, weight, up, slope, impl: as of `convolve`.
        scale, shift: a value for each channel of y, fp32.

    Returns:
        y: in the dtype of x, channels-last.

    Raises:
        TypeError, ValueError, RuntimeError: as `convolve`.
    """
    dispatch.check_impl(impl)
    _check(x, weight, shift, up)
    dispatch.check_tensor("scale", scale, shift.shape, x.device)
    x = x.detach().contiguous(memory_format=channels_last(x))
    packed = _packed(weight, None, x, up)
    return _convolve(x, packed, packed, shift.detach(), scale.detach(), slope, up, impl)


def masked_convolve(
    activated: Tensor,
    weight: Tensor,
    packed: Tensor | None = None,
    *,
    up: bool,
    slope: float,
    groups: int = 1,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolution of what a (leaky) ReLU made, and the statistics of the result.

    The gradient that it returns is that of the values before the ReLU: for `convolve`'s y. There is
    no bias: the norm that follows would take it out.

    Args:
        activated: (N, C, *sizes), y of `convolve` with the same slope.
        weight, packed, up, impl: as of `convolve`.
        slope: of the ReLU.
        groups: equal parts of the batch, one after the other, which are normalised apart.

    Returns:
        y as of `convolve`; its mean and biased variance, (groups, C) fp32, of y as stored: fp32
        sums within a tile, merged in fp64 in a fixed order. For `norm_convolve` or `norm_act`.

    Raises:
        TypeError, ValueError, RuntimeError: as `convolve`; ValueError where the groups do not
            divide the batch.
    """
    dispatch.check_impl(impl)
    _check(activated, weight, None, up)
    if groups < 1 or len(activated) % groups:
        raise ValueError(f"groups must divide the batch {len(activated)}, got {groups}")
    x = activated.contiguous(memory_format=channels_last(activated))
    packed = _packed(weight, packed, x, up)
    none = (None,) * 4
    given = x, *none, x.detach(), weight, packed
    y, mean, variance = _layer(*given, 0.0, slope, groups, up, impl)
    return y, mean.detach(), variance.detach()


def norm_convolve(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    weight: Tensor,
    packed: Tensor | None = None,
    activated: Tensor | None = None,
    *,
    up: bool,
    eps: float,
    slope: float,
    statistics: bool = True,
    shared: bool = False,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Batch norm of x with its own statistics, (leaky) ReLU, convolution, new statistics.

    Args:
        x: (N, C, *sizes), y of `masked_convolve` or of this, or whatever else.
        mean, variance: (groups, C) fp32, statistics of x. The gradient of x counts the way through
            them.
        gamma, beta: (C,) fp32.
        weight, packed, up, impl: as of `convolve`.
        activated: x normalised and activated, where at hand.
        eps: added to the variance.
        slope: of the ReLU.
        statistics: whether those of y are wanted; `batch_norm_act` of few rows makes its own.
        shared: as of `norm_act`, for the statistics of x; those of y are of this process's rows.

    Returns:
        y, mean and variance as of `masked_convolve`; None for what is not wanted.

    Raises:
        TypeError, ValueError, RuntimeError: as `convolve` and `norm_act`.
    """
    dispatch.check_impl(impl)
    _check(x, weight, None, up)
    check_norm(x, mean, variance, gamma, beta)
    x = x.contiguous(memory_format=channels_last(x))
    mean, variance = mean.detach(), variance.detach()
    if activated is None:
        with torch.no_grad():
            activated = norm_act(
                x, mean, variance, gamma, beta, from_batch=True, eps=eps, slope=slope, impl=impl
            )
    norm = mean, variance, gamma, beta
    packed = _packed(weight, packed, x, up)
    given = x, *norm, activated, weight, packed
    groups = len(mean) if statistics else 0
    y, mean, variance = _layer(*given, eps, slope, groups, up, impl, shared)
    return (y, mean.detach(), variance.detach()) if statistics else (y, None, None)


def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    packed: Tensor | None = None,
    packed_bias: Tensor | None = None,
) -> Tensor:
    """x @ weight + bias by the library: a convolution whose kernel is as large as a grid.

    Differentiable once; gradients of weight and bias are summed and stored in fp32.

    Args:
        x: (N, C), fp32, fp16 or bf16.
        weight: (C, K), fp32, fp16 or bf16.
        bias: (K,) fp32, fp16 or bf16.
        packed, packed_bias: weight and bias in the dtype of x, where at hand.

    Returns:
        (N, K) in the dtype of x.

    Raises:
        TypeError: a dtype is none of the three.
        ValueError: shapes or devices do not belong together, or something is empty.
    """
    dispatch.check_tensor("x", x, (None, None))
    dispatch.check_tensor("weight", weight, (x.shape[1], None), x.device)
    packed = weight.detach().to(x.dtype) if packed is None else packed
    if bias is not None:
        dispatch.check_tensor("bias", bias, weight.shape[1:], x.device)
        packed_bias = bias.detach().to(x.dtype) if packed_bias is None else packed_bias
    return _project(x, weight, bias, packed, packed_bias)


def _packed(weight: Tensor, packed: Tensor | None, x: Tensor, up: bool) -> Tensor:
    if _takes_cells(weight, x, up):
        return pack_cells(weight.detach(), x.dtype)
    return pack(weight.detach() if packed is None else packed, x.dtype)


def _takes_cells(weight: Tensor, x: Tensor, up: bool) -> bool:
    """Whether it is a first layer's and x lies in cells."""
    return not up and weight.dim() == 5 and weight.shape[1] in (3, 4) and x.shape[1] == CELL


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, up: bool) -> None:
    if x.dim() not in (4, 5):
        raise ValueError(f"x must be (N, C, H, W) or (N, C, T, H, W), got {tuple(x.shape)}")
    a, b, *kernel = weight.shape if weight.dim() == x.dim() else (0, 0)
    if kernel == [4, 4, 4] and _takes_cells(weight, x, up):
        b, kernel = CELL, [2, 2, 2]
    if kernel not in ([4] * (x.dim() - 2), [2, 2, 2]):
        raise ValueError(
            f"weight must be (A, B, 4, ...) or (A, B, 2, 2, 2) of the rank of x {tuple(x.shape)},"
            f" got {tuple(weight.shape)}"
        )
    dispatch.check_tensor("x", x, (None, a if up else b, *[None] * len(kernel)))
    dispatch.check_tensor("weight", weight, weight.shape, x.device)
    if not up and any(size % 2 if kernel[0] == 4 else size < 2 for size in x.shape[2:]):
        fit = "even" if kernel[0] == 4 else "2 at least"
        raise ValueError(f"sizes of x must be {fit}, got {tuple(x.shape)}")
    if bias is not None:
        dispatch.check_tensor("bias", bias, (b if up else a,), x.device)
        if bias.dtype != torch.float32:
            raise TypeError(f"bias must be fp32, got {bias.dtype}")


def _run(name: str, module: str, impl: str, *arguments, **options):
    if impl == "auto" and choice.gpu.chooses(arguments[0]):
        return choice.run(name, *arguments, **options)
    launcher, twin = dispatch.launcher(__package__, name, module), getattr(reference, name)
    return dispatch.run(name, impl, launcher, twin, *arguments, **options)


def _empty_result(x: Tensor, weight: Tensor, up: bool) -> Tensor:
    """For the fake kernels: what the convolution of x is stored in."""
    if weight.shape[2] == 2:
        sizes = [size + 1 if up else size - 1 for size in x.shape[2:]]
    else:
        sizes = [2 * size if up else size // 2 for size in x.shape[2:]]
    shape = x.shape[0], weight.shape[1 if up else 0], *sizes
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=channels_last(x))


@torch.library.custom_op("vgan_fast::convolve", mutates_args=())
def _convolve(
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    shift: Tensor | None,
    scale: Tensor | None,
    slope: float,
    up: bool,
    impl: str,
) -> Tensor:
    """`weight` is what the gradient belongs to, `packed` what is multiplied."""
    return _run("convolve", "gather", impl, x, packed, shift, scale, slope, up=up)


@_convolve.register_fake
def _(x, weight, packed, shift, scale, slope, up, impl):
    return _empty_result(x, packed, up)


@torch.library.custom_op("vgan_fast::convolve_masked", mutates_args=())
def _convolve_masked(
    dy: Tensor, packed: Tensor, activated: Tensor, slope: float, up: bool, impl: str
) -> Tensor:
    return _run("convolve_masked", "gather", impl, dy, packed, activated, slope, up=up)


@_convolve_masked.register_fake
def _(dy, packed, activated, slope, up, impl):
    return _empty_result(dy, packed, up)


@torch.library.custom_op("vgan_fast::convolve_norm_backward", mutates_args=())
def _convolve_norm_backward(
    dy: Tensor,
    packed: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    slope: float,
    up: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    arguments = dy, packed, x, mean, variance, gamma, beta, eps, slope
    return _run("convolve_norm_backward", "gather", impl, *arguments, up=up)


@_convolve_norm_backward.register_fake
def _(dy, packed, x, mean, variance, gamma, beta, eps, slope, up, impl):
    return _empty_result(dy, packed, up), mean.new_empty(2, *mean.shape)


@torch.library.custom_op("vgan_fast::weight_gradient", mutates_args=())
def _weight_gradient(fine: Tensor, coarse: Tensor, kernel: int, impl: str) -> Tensor:
    return _run("weight_gradient", "weight_gradient", impl, fine, coarse, kernel)


@_weight_gradient.register_fake
def _(fine, coarse, kernel, impl):
    taps = [kernel] * (fine.dim() - 2)
    packed = fine.new_empty(*taps, fine.shape[1], coarse.shape[1], dtype=torch.float32)
    return packed.permute(-1, -2, *range(len(taps)))


@torch.library.custom_op("vgan_fast::convolve_statistics", mutates_args=())
def _layer(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    activated: Tensor,
    weight: Tensor,
    packed: Tensor,
    eps: float,
    slope: float,
    groups: int,
    up: bool,
    impl: str,
    shared: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolves `activated`; the rest is what its gradient goes through and belongs to.

    Without groups there are no statistics but empty ones.
    """
    if not groups:
        y = _run("convolve", "gather", impl, activated, packed, None, None, 1.0, up=up)
        return y, *(y.new_empty(0, y.shape[1], dtype=torch.float32) for _ in range(2))
    return _run("convolve_statistics", "gather", impl, activated, packed, groups, up=up)


@_layer.register_fake
def _(x, mean, variance, gamma, beta, activated, weight, packed, *options):
    _, _, groups, up, *_ = options
    y = _empty_result(activated, packed, up)
    y_mean = y.new_empty(groups, y.shape[1], dtype=torch.float32)
    return y, y_mean, torch.empty_like(y_mean)


def _gradient_of_weight(
    weight: Tensor, packed: Tensor, x: Tensor, dy: Tensor, up: bool, impl: str
) -> Tensor:
    fine, coarse = (dy, x) if up else (x, dy)
    gradient = _weight_gradient(fine, coarse, packed.shape[2], impl)
    if gradient.shape != weight.shape:
        gradient = unpack_cells(gradient, weight.shape[1])
    return gradient.to(weight.dtype)


def _save_convolve(ctx, inputs, output):
    *tensors, _, _, _, ctx.up, ctx.impl = inputs
    ctx.save_for_backward(*tensors)


def _convolve_backward(ctx, dz):
    x, weight, packed = ctx.saved_tensors
    dz = dz.contiguous(memory_format=channels_last(dz))
    wants_x, wants_weight, _, wants_bias, *_ = ctx.needs_input_grad
    dx = dweight = dbias = None
    if wants_x:
        dx = _convolve(dz, packed, packed, None, None, 1.0, not ctx.up, ctx.impl)
    if wants_weight:
        dweight = _gradient_of_weight(weight, packed, x, dz, ctx.up, ctx.impl)
    if wants_bias:
        dbias = dz.sum((0, *range(2, dz.dim())), dtype=torch.float32)
    return dx, dweight, None, dbias, None, None, None, None


def _save_layer(ctx, inputs, output):
    *tensors, ctx.eps, ctx.slope, _, ctx.up, ctx.impl, ctx.shared = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _layer_backward(ctx, dy, *_):
    x, mean, variance, gamma, beta, activated, weight, packed = ctx.saved_tensors
    dy = dy.contiguous(memory_format=channels_last(dy))
    dx = dgamma = dbeta = dweight = None
    if ctx.needs_input_grad[6]:
        dweight = _gradient_of_weight(weight, packed, activated, dy, ctx.up, ctx.impl)
    if mean is None:
        if ctx.needs_input_grad[0]:
            dx = _convolve_masked(dy, packed, activated, ctx.slope, not ctx.up, ctx.impl)
    elif any(ctx.needs_input_grad[:5]):
        norm = x, mean, variance, gamma, beta
        g, sums = _convolve_norm_backward(
            dy, packed, *norm, ctx.eps, ctx.slope, not ctx.up, ctx.impl
        )
        means = over_processes(sums, ctx.shared)
        dx = norm_input_gradient(g, *norm, means, ctx.eps, ctx.slope, True, True, ctx.impl)
        dgamma, dbeta = over_groups(sums)
    return dx, None, None, dgamma, dbeta, None, dweight, *[None] * 7


_convolve.register_autograd(_convolve_backward, setup_context=_save_convolve)
_layer.register_autograd(_layer_backward, setup_context=_save_layer)


@torch.library.custom_op("vgan_fast::project", mutates_args=())
def _project(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor, packed_bias: Tensor | None
) -> Tensor:
    return x @ packed if packed_bias is None else torch.addmm(packed_bias, x, packed)


@_project.register_fake
def _(x, weight, bias, packed, packed_bias):
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("vgan_fast::project_weight_gradient", mutates_args=())
def _project_weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    if x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x.T, dy, out_dtype=torch.float32)
    return x.float().T @ dy.float()


@_project_weight_gradient.register_fake
def _(x, dy):
    return x.new_empty(x.shape[1], dy.shape[1], dtype=torch.float32)


def _save_project(ctx, inputs, output):
    x, weight, bias, packed, _ = inputs
    ctx.save_for_backward(x, packed)
    ctx.dtypes = weight.dtype, None if bias is None else bias.dtype


def _project_backward(ctx, dy):
    x, packed = ctx.saved_tensors
    wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
    weight_dtype, bias_dtype = ctx.dtypes
    dx = dy @ packed.T if wants_x else None
    dweight = _project_weight_gradient(x, dy).to(weight_dtype) if wants_weight else None
    dbias = dy.sum(0, dtype=torch.float32).to(bias_dtype) if wants_bias else None
    return dx, dweight, dbias, None, None


_project.register_autograd(_project_backward, setup_context=_save_project)
