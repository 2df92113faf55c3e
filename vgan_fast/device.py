"""Where and in which precision a run computes."""

import ctypes
import dataclasses
import logging
import os
import platform

import torch

from vgan_fast.errors import UserError
from vgan_fast.kernels.dispatch import kernels_run_on
from vgan_fast.settings import Settings

_log = logging.getLogger(__name__)
# Parameters of glibc's mallopt, with a value to keep memory and the one that glibc settles at.
_MALLOC = (
    (-4, 0, 65536),  # M_MMAP_MAX, blocks that are mappings of their own
    (-3, 32 << 20, 32 << 20),  # M_MMAP_THRESHOLD, from which size they would be
    (-1, (1 << 31) - 1, 64 << 20),  # M_TRIM_THRESHOLD, free bytes on top that are kept
)


def find_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` stands for.

    Raises:
        UserError: for `cuda` where PyTorch sees no GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: PyTorch sees no CUDA GPU here; train with --device cpu from the start"
        )
    return torch.device(name)


def default_preset(name: str) -> str:
    """The paper's settings on a GPU, the short run on a CPU."""
    return "paper" if find_device(name).type == "cuda" else "short"


def resolved(settings: Settings) -> Settings:
    """The settings with nothing left to this machine: device, precision and graph are decided.

    bf16 where the device multiplies it natively; elsewhere a CPU emulates it and is slower than in
    fp32. The reference backend, and Metropolis-Hastings, are fp32 unless told otherwise. A step is
    one CUDA graph on a GPU, but for the reference backend and for fp16, whose gradient scaler is
    not captured.

    Raises:
        UserError: for a device that is not there, or that does not run the backend's kernels, a
            graph or TF32.
    """
    device = find_device(settings.device)
    if settings.backend == "fused" and not kernels_run_on(device):
        raise UserError("--backend fused: its kernels need a GPU; use --backend auto on a CPU")
    precision = settings.precision
    if precision == "auto":
        exact = settings.backend == "reference" or settings.metropolis
        bf16 = not exact and multiplies_bf16(device)
        precision = "bf16" if bf16 else "fp32"
    if precision == "tf32" and not _is_ampere(device):
        raise UserError("--precision tf32: needs a GPU from Ampere on; use --precision fp32")
    graph = settings.graph
    if graph and device.type != "cuda":
        raise UserError("--graph: CUDA graphs need a GPU; leave the option out on a CPU")
    if graph is None:
        graph = device.type == "cuda" and settings.backend != "reference"
        if graph and precision == "fp16":
            graph = False
            _log.warning("--precision fp16: no CUDA graph, its gradient scaler is not captured")
    return dataclasses.replace(settings, device=device.type, precision=precision, graph=graph)


def configure(settings: Settings) -> None:
    """Set PyTorch's global switches for a run: call once, before any work.

    Convolutions and products of fp32 tensors on a GPU round to TF32 for `tf32` and only then. On a
    CPU the process keeps the memory that it frees, but for the reference backend.
    """
    if settings.device == "cpu":
        _keep_freed_memory(settings.backend != "reference")
    tf32 = settings.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if settings.deterministic:
        # cuBLAS reads this when it starts; PyTorch refuses to be deterministic without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.backends.cudnn.benchmark = settings.backend != "reference"


def _keep_freed_memory(keep: bool) -> None:
    """Whether glibc reuses memory of any size, or else gives large blocks back to the system.

    The system hands out each page zeroed at its first touch: a fifth of the time of a batch of
    generated clips.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, kept, given_back in _MALLOC:
        mallopt(parameter, kept if keep else given_back)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether `device` does so natively."""
    if device.type == "cuda":
        return _is_ampere(device)
    # The only query that PyTorch has; private, so tests cover it.
    return torch.cpu._is_avx512_bf16_supported()


def _is_ampere(device: torch.device) -> bool:
    """Whether `device` is a GPU of that or a later generation: those multiply bf16 and TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
