"""How tests compare a kernel with float64, and how much error they allow it."""

import torch
from torch import Tensor

# bf16 arithmetic is silently wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.float16]
if torch.cuda.is_available():
    DTYPES.append(torch.bfloat16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def assert_close_to_float64(name: str, ours: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Fail if our largest error exceeds twice that of eager PyTorch in the same dtype.

    Args:
        name: of the tensor, for the message.
        ours: the kernel's result.
        eager: the same from the reference twin, computed in the kernel's dtype.
        exact: the same from the reference twin in float64.
    """
    assert ours.shape == exact.shape, f"{name}: {tuple(ours.shape)} is not {tuple(exact.shape)}"
    assert ours.isfinite().all(), f"{name}: not finite"
    eps = torch.finfo(ours.dtype).eps
    error = (ours.double() - exact).abs().max().item()
    eager_error = (eager.double() - exact).abs().max().item()
    budget = 2 * (eager_error + eps * exact.abs().max().item())
    assert error <= budget, f"{name}: error {error:.3g}, allowed {budget:.3g}"
