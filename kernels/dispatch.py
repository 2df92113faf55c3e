"""Which implementation of an op runs: its Triton kernel, or its reference twin."""

import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

Impl = Literal["auto", "triton", "reference"]
Result = TypeVar("Result")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # that kernels take
# Of every launch. Pinned, as Triton 3.10 turns the default around.
OPTIONS = {"enable_fp_fusion": True}

# Kernel launches by name, for tests and benchmarks to see that a kernel ran.
launches: Counter[str] = Counter()
_broken: set[str] = set()  # ops whose kernel failed under "auto"


def check_impl(impl: str) -> None:
    """Refuse an unknown implementation.

    Raises:
        ValueError: `impl` is none of `Impl`.
    """
    if impl not in get_args(Impl):
        raise ValueError(f"impl must be one of {', '.join(get_args(Impl))}, got {impl!r}")


def kernels_run_on(device: torch.device) -> bool:
    """Whether Triton kernels run on tensors of that device: on a GPU, or in the interpreter."""
    if device.type == "cuda":
        return True
    from triton import knobs

    return device.type == "cpu" and knobs.runtime.interpret


def run(
    name: str,
    impl: Impl,
    kernel: Callable[..., Result],
    twin: Callable[..., Result],
    *arguments,
    **options,
) -> Result:
    """Call `kernel` or `twin` with the arguments, the first a tensor or a list of them.

    "reference" calls the twin. "triton" calls the kernel and lets its errors through. "auto" calls
    the kernel on a GPU; one that fails there warns once, and its twin runs from then on.

    Raises:
        RuntimeError: "triton" was asked for where kernels do not run.
    """
    first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
    device = first.device
    if impl == "triton":
        if not kernels_run_on(device):
            raise RuntimeError(
                f"{name}: impl='triton' needs tensors on a GPU, got {device}; move them there or"
                " use impl='auto'"
            )
        return _on(first, kernel, arguments, options)
    if impl == "auto" and device.type == "cuda" and name not in _broken:
        try:
            return _on(first, kernel, arguments, options)
        # Not the kernel's fault, or nothing that its twin would survive.
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        # Whatever compiling or launching raises; wrong arguments were refused before.
        except Exception as error:
            _broken.add(name)
            warnings.warn(f"{name}: its kernel failed ({error}); the reference runs", stacklevel=2)
    # Dtypes are the wrapper's choice; autocast would make its own inside the twin.
    with torch.autocast(device.type, enabled=False):
        return twin(*arguments, **options)


def launcher(package: str, name: str, module: str = "triton_impl") -> Callable:
    """The function `name` of the package's module; Triton is imported when it is called."""

    def launch(*arguments, **options):
        return getattr(import_module(f"{package}.{module}"), name)(*arguments, **options)

    return launch


def shared_memory(device: torch.device) -> int:
    """Bytes of it that a block may take; the interpreter takes what an H200 does."""
    if device.type != "cuda":
        return 227 << 10
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def check_tensor(
    name: str, x: Tensor, shape: tuple[int | None, ...], device: torch.device | None = None
) -> None:
    """Refuse a tensor that kernels cannot take.

    Args:
        name: of the tensor, for the message.
        x: the tensor.
        shape: sizes; None for any but 0.
        device: where it must be, if anywhere.

    Raises:
        ValueError: another shape, or another device.
        TypeError: its dtype is none of fp32, fp16 and bf16.
    """
    fits = x.dim() == len(shape) and all(
        size == wanted or (wanted is None and size > 0)
        for size, wanted in zip(x.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be ({wanted}) and not empty, got {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be fp32, fp16 or bf16, got {x.dtype}")
    if device is not None and x.device != device:
        raise ValueError(f"{name} is on {x.device}, the first argument on {device}")


def aligned(x: Tensor) -> Tensor:
    """The tensor, copied where it does not start on 16 bytes: accesses would be narrow."""
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _on(tensor: Tensor, kernel: Callable[..., Result], arguments: tuple, options: dict) -> Result:
    # Triton launches on the current GPU, whatever the tensors' is.
    with torch.cuda.device_of(tensor):
        return kernel(*arguments, **options)
