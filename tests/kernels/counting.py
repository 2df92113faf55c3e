"""Count what a GPU would launch, on a CPU: the interpreter's kernels and PyTorch's own calls."""

from collections import Counter
from contextlib import contextmanager

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import GridExecutor

from vgan_fast.kernels import dispatch

# Allocate, look at or rename memory, and write none.
_IDLE = ("empty", "detach", "alias", "_unsafe_view", "profiler", "record_function")


class _Calls(TorchDispatchMode):
    def __init__(self, counted: Counter):
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._can_decompose():  # within an op, a cast or a reshape: a copy, or none
            with self:
                return func.decompose(*args, **(kwargs or {}))
        name = func.name()
        inside = func.namespace == "vgan_fast" and name not in _OF_THE_LIBRARY
        if not (inside or func.is_view or any(idle in name for idle in _IDLE)):
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


# Ops of this project that are one call of the library.
_OF_THE_LIBRARY = {"vgan_fast::project", "vgan_fast::project_weight_gradient"}


@contextmanager
def launches(monkeypatch):
    """Launches by name, of kernels by that of their function; a multi-tensor call counts as one."""
    counted = Counter()
    execute, on = GridExecutor.__call__, dispatch._on

    def counting(self, *arguments, **options):
        counted[self.fn.__module__.split(".")[-2] + " " + self.fn.__name__] += 1
        with _disable_current_modes():  # the interpreter's own copies
            return execute(self, *arguments, **options)

    def inside(*arguments):
        with calls:  # else modes are off within an op
            return on(*arguments)

    calls = _Calls(counted)
    with monkeypatch.context() as patched, calls:
        patched.setattr(GridExecutor, "__call__", counting)
        patched.setattr(dispatch, "_on", inside)
        yield counted
