"""The ops: validation, registration with PyTorch, choice of implementation."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .. import dispatch
from . import reference

# So few rows a group are normalised in one launch where there are three.
FEW_ROWS = 4096


def batch_statistics(
    x: Tensor, groups: int = 1, *, impl: dispatch.Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over each group of the batch; no gradient.

    fp32 partial sums of the values as stored, merged in fp64 in a fixed order: two runs agree to
    the bit.

    Args:
        x: (N, C, H, W) or (N, C, T, H, W), fp32, fp16 or bf16; stored channels-last, or copied.
        groups: equal parts that the batch falls into, one after the other.
        impl: see `dispatch.run`.

    Returns:
        Two of (groups, C) fp32. Gradients reach x through `norm_act`, not through them.

    Raises:
        TypeError: dtypes other than these.
        ValueError: an empty x, groups that do not divide its batch, one value a channel and group,
            or an unknown `impl`.
    """
    dispatch.check_impl(impl)
    _check_batch(x, groups)
    x = x.detach().contiguous(memory_format=channels_last(x))
    return _batch_statistics(x, groups, impl)


def norm_act(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    from_batch: bool,
    shared: bool = False,
    eps: float = 1e-5,
    slope: float = 0.0,
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """Batch norm with given statistics, then (leaky) ReLU.

    z = (x - mean) / sqrt(variance + eps) * weight + bias; y = z if z > 0 else slope * z.

    The arithmetic is fp32; the sums of its backward are as those of `batch_statistics`. First-order
    gradients only, of x, weight and bias; the slope counts at z = 0, as in PyTorch.

    Args:
        x: (N, C, H, W) or (N, C, T, H, W), fp32, fp16 or bf16; stored channels-last, or copied.
        mean, variance: (groups, C) fp32, of equal parts of the batch, one after the other.
        weight, bias: (C,) fp32.
        from_batch: whether they are the `batch_statistics` of x; then the gradient of x counts
            the way through them.
        shared: whether they are of the batch of all processes of torch.distributed's group, each of
            which has as many rows and calls this, and then goes backwards, in the same order.
        eps: added to the variance.
        slope: for negative z; 0 is ReLU.
        impl: see `dispatch.run`.

    Returns:
        y: shape and dtype of x, channels-last.

    Raises:
        TypeError: dtypes other than these.
        ValueError: shapes or devices that do not belong together, an empty x, or an unknown `impl`.

    Source: Ioffe and Szegedy, "Batch Normalization", algorithms 1 and 2.
    """
    dispatch.check_impl(impl)
    _check_x(x)
    check_norm(x, mean, variance, weight, bias)
    x = x.contiguous(memory_format=channels_last(x))
    vectors = (vector.contiguous() for vector in (mean.detach(), variance.detach(), weight, bias))
    return _norm_act(x, *vectors, from_batch, eps, slope, impl, shared)


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    *,
    eps: float = 1e-5,
    slope: float = 0.0,
    impl: dispatch.Impl = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """`batch_statistics` and `norm_act` with them, in one launch up to `FEW_ROWS` a group.

    Args:
        x, groups, eps, slope, impl: as of the two.
        weight, bias: (C,) fp32.

    Returns:
        y, differentiable as `norm_act`; mean and biased variance, (groups, C) fp32.

    Raises:
        TypeError, ValueError: as the two.
    """
    dispatch.check_impl(impl)
    _check_batch(x, groups)
    for name, vector in (("weight", weight), ("bias", bias)):
        _check_vector(name, vector, (x.shape[1],), x.device)
    x = x.contiguous(memory_format=channels_last(x))
    vectors = weight.contiguous(), bias.contiguous()
    y, mean, variance = _batch_norm_act(x, *vectors, groups, eps, slope, impl)
    return y, mean.detach(), variance.detach()


def track_statistics(
    running_means: list[Tensor],
    running_vars: list[Tensor],
    counts: list[Tensor],
    means: list[Tensor],
    variances: list[Tensor],
    biases: list[Tensor],
    rows: list[int],
    momentum: float,
    *,
    impl: dispatch.Impl = "auto",
) -> None:
    """Move running statistics of several norms, in place, towards those of each group in turn.

    Args:
        running_means, running_vars: a (C,) fp32 for each norm, contiguous; the variance unbiased.
        counts: a scalar int64 for each norm: groups tracked so far.
        means, variances: a (groups, C) fp32 for each norm, of `batch_statistics`, as many groups
            in all.
        biases: a (C,) fp32 for each norm: what the values lack, as a norm takes it out; it moves
            the running mean and nothing else.
        rows: for each norm, values a channel and group that they were taken over.
        momentum: weight of a new group.
        impl: see `dispatch.run`.

    Raises:
        TypeError: dtypes other than these.
        ValueError: shapes or devices that do not belong together, or an unknown `impl`.
    """
    dispatch.check_impl(impl)
    groups, device = len(means[0]), means[0].device
    of = zip(running_means, running_vars, counts, means, variances, biases, rows, strict=True)
    for running_mean, running_var, count, mean, variance, bias, _ in of:
        shape = mean.shape[-1:]
        _check_vector("bias", bias, shape, device)
        for name, vector in (("running_mean", running_mean), ("running_var", running_var)):
            _check_vector(name, vector, shape, device)
            if not vector.is_contiguous():
                raise ValueError(
                    f"{name} is updated in place: contiguous, got strides {vector.stride()}"
                )
        for name, vector in (("mean", mean), ("variance", variance)):
            _check_vector(name, vector, (groups, *shape), device)
        if count.dtype != torch.int64 or count.dim() or count.device != device:
            raise TypeError(f"count must be a scalar int64 on {device}, got {count}")
    given = ([v.detach().contiguous() for v in vectors] for vectors in (means, variances, biases))
    _track(*given, running_means, running_vars, counts, rows, momentum, impl)


def check_norm(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse statistics and parameters that do not fit x.

    Raises:
        TypeError, ValueError: see `norm_act`.
    """
    if mean.dim() != 2 or not len(mean) or x.shape[0] % len(mean):
        raise ValueError(
            f"mean must be (groups, {x.shape[1]}), the groups dividing the batch of x"
            f" {tuple(x.shape)}, got {tuple(mean.shape)}"
        )
    grouped, plain = (len(mean), x.shape[1]), (x.shape[1],)
    _check_vector("mean", mean, grouped, x.device)
    _check_vector("variance", variance, grouped, x.device)
    _check_vector("weight", weight, plain, x.device)
    _check_vector("bias", bias, plain, x.device)


def _check_batch(x: Tensor, groups: int) -> None:
    _check_x(x)
    if groups < 1 or x.shape[0] % groups:
        raise ValueError(f"groups must divide the batch of x {tuple(x.shape)}, got {groups}")
    if x.numel() == x.shape[1] * groups:
        raise ValueError(f"statistics need more than one value a channel, got x {tuple(x.shape)}")


def _check_x(x: Tensor) -> None:
    if x.dtype not in dispatch.DTYPES:
        raise TypeError(f"x must be fp32, fp16 or bf16, got {x.dtype}")
    if x.dim() not in (4, 5):
        raise ValueError(f"x must be (N, C, H, W) or (N, C, T, H, W), got {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must not be empty, got {tuple(x.shape)}")


def _check_vector(name: str, vector: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if vector.dtype != torch.float32:
        raise TypeError(f"{name} must be fp32, got {vector.dtype}")
    if vector.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(vector.shape)}")
    if vector.device != device:
        raise ValueError(f"{name} must be on {device}, got {vector.device}")


def channels_last(x: Tensor) -> torch.memory_format:
    """The layout of the kernels for a tensor of that rank."""
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=channels_last(x))


def _run(name: str, impl: str, *arguments):
    launcher, twin = dispatch.launcher(__package__, name), getattr(reference, name)
    return dispatch.run(name, impl, launcher, twin, *arguments)


@torch.library.custom_op("vgan_fast::batch_statistics", mutates_args=())
def _batch_statistics(x: Tensor, groups: int, impl: str) -> tuple[Tensor, Tensor]:
    return _run("batch_statistics", impl, x, groups)


@_batch_statistics.register_fake
def _(x, groups, impl):
    mean = x.new_empty(groups, x.shape[1], dtype=torch.float32)
    return mean, torch.empty_like(mean)


@torch.library.custom_op("vgan_fast::norm_act", mutates_args=())
def _norm_act(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    from_batch: bool,
    eps: float,
    slope: float,
    impl: str,
    shared: bool = False,
) -> Tensor:
    return _run("norm_act", impl, x, mean, variance, weight, bias, eps, slope)


@_norm_act.register_fake
def _(x, mean, variance, weight, bias, from_batch, eps, slope, impl, shared=False):
    return _like(x)


@torch.library.custom_op("vgan_fast::batch_norm_act", mutates_args=())
def _batch_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, slope: float, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    return _run("batch_norm_act", impl, x, weight, bias, groups, eps, slope)


@_batch_norm_act.register_fake
def _(x, weight, bias, groups, eps, slope, impl):
    mean = x.new_empty(groups, x.shape[1], dtype=torch.float32)
    return _like(x), mean, torch.empty_like(mean)


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
    from_batch: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    arguments = dy, x, mean, variance, weight, bias, eps, slope, from_batch
    return _run("backward", impl, *arguments)


@_backward.register_fake
def _(dy, x, mean, variance, weight, bias, eps, slope, from_batch, impl):
    return _like(x), x.new_empty(2, *mean.shape, dtype=torch.float32)


@torch.library.custom_op("vgan_fast::norm_act_input_gradient", mutates_args=())
def norm_input_gradient(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    sums: Tensor,
    eps: float,
    slope: float,
    from_batch: bool,
    masked: bool,
    impl: str,
) -> Tensor:
    """Gradient of x, channels-last: see `reference.input_gradient`."""
    arguments = dy, x, mean, variance, weight, bias, sums, eps, slope, from_batch, masked
    return _run("input_gradient", impl, *arguments)


@norm_input_gradient.register_fake
def _(dy, x, mean, variance, weight, bias, sums, eps, slope, from_batch, masked, impl):
    return _like(x)


@torch.library.custom_op(
    "vgan_fast::norm_act_track", mutates_args=("running_means", "running_vars", "counts")
)
def _track(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    biases: Sequence[Tensor],
    running_means: Sequence[Tensor],
    running_vars: Sequence[Tensor],
    counts: Sequence[Tensor],
    rows: Sequence[int],
    momentum: float,
    impl: str,
) -> None:
    """Apart from the other ops so that those mutate nothing."""
    arguments = running_means, running_vars, counts, means, variances, biases, rows, momentum
    _run("track", impl, *arguments)


def _save(ctx, inputs, output):
    *tensors, ctx.from_batch, ctx.eps, ctx.slope, ctx.impl, ctx.shared = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, dy):
    dy = dy.contiguous(memory_format=channels_last(dy))
    dx, sums = _backward(dy, *ctx.saved_tensors, ctx.eps, ctx.slope, ctx.from_batch, ctx.impl)
    if ctx.shared:
        given = *ctx.saved_tensors, over_processes(sums, True), ctx.eps, ctx.slope, True, False
        dx = norm_input_gradient(dy, *given, ctx.impl)
    dweight, dbias = over_groups(sums)
    return dx, None, None, dweight, dbias, None, None, None, None, None


def _save_batch(ctx, inputs, output):
    x, weight, bias, _, ctx.eps, ctx.slope, ctx.impl = inputs
    _, mean, variance = output
    ctx.save_for_backward(x, mean, variance, weight, bias)
    ctx.set_materialize_grads(False)


def _batch_gradients(ctx, dy, *_):
    dy = dy.contiguous(memory_format=channels_last(dy))
    dx, sums = _backward(dy, *ctx.saved_tensors, ctx.eps, ctx.slope, True, ctx.impl)
    return dx, *over_groups(sums), None, None, None, None


def over_processes(sums: Tensor, shared: bool) -> Tensor:
    """Means of the processes' sums over their rows where they share a batch, else the sums.

    Over a process's rows they are then what the sums of all are over all rows.
    """
    if not shared:
        return sums
    means = sums.clone()
    dist.all_reduce(means)
    return means.div_(dist.get_world_size())


def over_groups(sums: Tensor) -> Tensor:
    """Gradients of weight and bias, (2, C), from each group's shares, (2, groups, C)."""
    return sums.sum(1) if sums.shape[1] > 1 else sums.squeeze(1)


_norm_act.register_autograd(_gradients, setup_context=_save)
_batch_norm_act.register_autograd(_batch_gradients, setup_context=_save_batch)
