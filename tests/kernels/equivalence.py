"""How tests compare a kernel with float64, and how much error they allow it."""

import torch
from torch import Tensor

# bf16 arithmetic is silently wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.float16]
if torch.cuda.is_available():
    DTYPES.append(torch.bfloat16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP32 = torch.finfo(torch.float32).eps


def assert_close_to_float64(
    name: str, ours: Tensor, eager: Tensor, exact: Tensor, terms: int = 1
) -> None:
    """Fail if our largest error exceeds twice that of eager PyTorch in the same dtype.

    On a GPU some roundings of fp32 come on top, of what its units do by themselves: exp and its
    like are approximations there, and a chain of sums is as long as the kernel makes it, where
    PyTorch's is cut up in its own way. Rounded sums drift like a random walk; a tensor core adds
    16 products at a time and drops what is below the last digit.

    Args:
        name: of the tensor, for the message.
        ours: the kernel's result.
        eager: the same from the reference twin, computed in the kernel's dtype.
        exact: the same from the reference twin in float64.
        terms: products that the kernel sums in a row for a value.
    """
    assert ours.shape == exact.shape, f"{name}: {tuple(ours.shape)} is not {tuple(exact.shape)}"
    assert ours.isfinite().all(), f"{name}: not finite"
    eps = torch.finfo(ours.dtype).eps
    error = (ours.double() - exact).abs().max().item()
    eager_error = (eager.double() - exact).abs().max().item()
    largest = exact.abs().max().item()
    budget = 2 * (eager_error + eps * largest)
    if ours.is_cuda:
        budget += (6 + max(terms**0.5, terms / 16)) * FP32 * largest
    assert error <= budget, f"{name}: error {error:.3g}, allowed {budget:.3g}"
