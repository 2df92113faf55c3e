"""The op: validation, registration with PyTorch, choice of implementation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import dispatch
from . import reference

SEEDS = 2**62  # how many there are


def langevin_step(
    x: Tensor,
    gradient: Tensor,
    moment: Tensor,
    *,
    seed: int,
    step_size: float,
    variance: float | None,
    temperature: float = 1.0,
    fixed: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
    impl: dispatch.Impl = "auto",
) -> Tensor:
    """One Langevin step on p(x) ~ exp f(x) q(x), q Gaussian or flat, in one pass; no gradient.

    x + step_size^2 / 2 * (gradient - x / variance) + step_size * sqrt(temperature) * noise: the
    update of STGConvNet (CVPR 2017), section 3, at temperature 1. fp32 arithmetic.

    The noise is a function of seed, moment and place, as `normals` gives it: an element gets the
    same number whatever the batch is cut into on the device, and results are deterministic. Where
    the number of elements, and of pixels of a clip, is a multiple of 16, memory is moved 16 bytes
    at a time.

    Args:
        x: (N, C, T, H, W) fp32; copied first where not contiguous (planar).
        gradient: df/dx, of the same shape, fp32, fp16 or bf16; copied likewise.
        moment: number of the step, a scalar int64 on the device of x. It is read there and then: a
            CUDA graph replays the step with what is in it at that time.
        seed: of the chain, from 0 up to 2^62 and not including it.
        step_size: > 0, in units of x.
        variance: of the Gaussian reference q about 0, > 0, in squared units of x; None for a flat
            one.
        temperature: >= 0; at 0 no noise is made.
        fixed: (N or 1, 1, T, H, W) bool, True for pixels whose channels stay as they are, bit for
            bit; None for none.
        bounds: lowest and highest value of what is not fixed. What leaves that range is reflected
            at the end that it left by, and clamped if it leaves by the other one then; None for
            none. A NaN stays.
        impl: see `vgan_fast.kernels.dispatch`.

    Returns:
        The next x, a new tensor, (N, C, T, H, W) fp32, contiguous.

    Raises:
        TypeError: a dtype is another.
        ValueError: shapes or devices do not belong together, x is empty or requires a gradient, a
            number is out of its range, or `impl` is unknown.
        RuntimeError: `impl="triton"` where kernels do not run.
    """
    dispatch.check_tensor("x", x, (None,) * 5)
    if x.dtype != torch.float32:
        raise TypeError(f"x must be fp32, got {x.dtype}")
    if x.requires_grad:
        raise ValueError("no gradient flows through a Langevin step: x must not require one")
    dispatch.check_tensor("gradient", gradient, tuple(x.shape), x.device)
    _check_moment(moment, x.device)
    if fixed is not None:
        _check_fixed(fixed, x)
    _check_numbers(seed, step_size, variance, temperature, bounds)
    dispatch.check_impl(impl)
    return _langevin_step(
        x.contiguous(),
        gradient.detach().contiguous(),
        moment,
        None if fixed is None else fixed.contiguous(),
        seed,
        step_size,
        variance,
        temperature,
        bounds,
        impl,
    )


def normals(
    shape: Sequence[int], moment: Tensor | int, seed: int, device: torch.device | str | None = None
) -> Tensor:
    """The noise of a Langevin step, as its twin makes it; a kernel's differs by about 1e-6.

    Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) under
    the key `seed`: of elements 4i to 4i + 3 in contiguous order the counter is i in the two low
    words and `moment` in the two high ones, and its four words become two pairs of normals by the
    transform of Box and Muller. Their absolute value is at most 6.67.

    Args:
        shape: of the tensor.
        moment: number of the step, int64 scalar or Python number.
        seed: of the chain, from 0 up to 2^62 and not including it.
        device: of the result; the moment's, or the CPU, where None.

    Returns:
        fp32 of that shape, contiguous.

    Raises:
        TypeError: a moment of another dtype.
        ValueError: a moment that is no scalar or on another device, or a seed out of range.
    """
    _check_seed(seed)
    if isinstance(moment, int):
        moment = torch.tensor(moment, device=device)
    # "cuda" is the current GPU, whose tensors say which.
    where = moment.device if device is None else torch.empty(0, device=device).device
    _check_moment(moment, where)
    return reference.normals(torch.Size(shape), moment, seed)


def _check_moment(moment: Tensor, device: torch.device) -> None:
    if moment.dtype != torch.int64:
        raise TypeError(f"moment must be int64, got {moment.dtype}")
    if moment.dim():
        raise ValueError(f"moment must be a scalar, got {tuple(moment.shape)}")
    if moment.device != device:
        raise ValueError(f"moment is on {moment.device}, not on {device}")


def _check_fixed(fixed: Tensor, x: Tensor) -> None:
    n, _, *sizes = x.shape
    if fixed.dtype != torch.bool:
        raise TypeError(f"fixed must be bool, got {fixed.dtype}")
    if tuple(fixed.shape) not in ((n, 1, *sizes), (1, 1, *sizes)):
        sizes = ", ".join(map(str, sizes))
        raise ValueError(f"fixed must be ({n} or 1, 1, {sizes}), got {tuple(fixed.shape)}")
    if fixed.device != x.device:
        raise ValueError(f"fixed is on {fixed.device}, the first argument on {x.device}")


def _check_seed(seed: int) -> None:
    if not 0 <= seed < SEEDS:
        raise ValueError(f"seed must be from 0 to 2^62 - 1, got {seed}")


def _check_numbers(
    seed: int,
    step_size: float,
    variance: float | None,
    temperature: float,
    bounds: tuple[float, float] | None,
) -> None:
    _check_seed(seed)
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be above 0 and finite, got {step_size}")
    if variance is not None and not 0 < variance < math.inf:
        raise ValueError(f"variance must be above 0 and finite, got {variance}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be 0 or above and finite, got {temperature}")
    if bounds is not None:
        low, high = bounds
        if not -math.inf < low < high < math.inf:
            raise ValueError(f"bounds must be finite, the lower one first, got {low} and {high}")


@torch.library.custom_op("vgan_fast::langevin_step", mutates_args=())
def _langevin_step(
    x: Tensor,
    gradient: Tensor,
    moment: Tensor,
    fixed: Tensor | None,
    seed: int,
    step_size: float,
    variance: float | None,
    temperature: float,
    bounds: Sequence[float] | None,
    impl: str,
) -> Tensor:
    launcher, twin = dispatch.launcher(__package__, "langevin_step"), reference.langevin_step
    arguments = gradient, moment, fixed, seed, step_size, variance, temperature, bounds
    return dispatch.run("langevin_step", impl, launcher, twin, x, *arguments)


@_langevin_step.register_fake
def _(x, *_):
    return torch.empty_like(x)
