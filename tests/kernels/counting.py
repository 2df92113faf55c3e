"""Record what a GPU would launch, on a CPU: the interpreter's kernels and PyTorch's own calls."""

from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

from vgan_fast.kernels import dispatch

# Allocate, look at or rename memory, and write none.
_IDLE = ("empty", "detach", "alias", "_unsafe_view", "profiler", "record_function")
# Ops of this project that are one call of the library.
_OF_THE_LIBRARY = {"vgan_fast::project", "vgan_fast::project_weight_gradient"}


class Launch(NamedTuple):
    """One launch; a call for many tensors, and one of the library, count as one.

    Attributes:
        kernel: package and function of a kernel, or name of PyTorch's operator.
        sizes: bytes of the tensors of each argument and, of an operator, of its results; 0 for
            what is none or was given before.
        grid: of a kernel.
        options: of a kernel, its constants among them.
    """

    kernel: str
    sizes: tuple[int, ...]
    grid: tuple[int, ...] = ()
    options: dict | None = None


class _Calls(TorchDispatchMode):
    def __init__(self, launched: list[Launch]):
        super().__init__()
        self.launched = launched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._can_decompose():  # within an op, a cast or a reshape: a copy, or none
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        name = func.name()
        inside = func.namespace == "vgan_fast" and name not in _OF_THE_LIBRARY
        if not (inside or func.is_view or any(idle in name for idle in _IDLE)):
            results = result if isinstance(result, tuple) else (result,)
            self.launched.append(Launch(name, _sizes((*args, *kwargs.values(), *results))))
        return result


def _sizes(arguments) -> tuple[int, ...]:
    seen, sizes = set(), []
    for argument in arguments:
        tensors = [x for x in tree_leaves(argument) if isinstance(x, Tensor)]
        fresh = [x for x in tensors if x.data_ptr() not in seen]
        seen |= {x.data_ptr() for x in fresh}
        sizes.append(sum(x.numel() * x.element_size() for x in fresh))
    return tuple(sizes)


@contextmanager
def launches(monkeypatch, execute: bool = True):
    """Record launches in their order; a twin that runs in place of a kernel is an error.

    Without `execute` kernels do nothing, which changes no launch: none depends on a value.
    """
    launched = []
    kernel, run, on = GridExecutor.__call__, dispatch.run, dispatch._on

    def counting(self, *arguments, **options):
        name = self.fn.__module__.split(".")[-2] + " " + self.fn.__name__
        sizes = _sizes((*arguments, *options.values()))
        launched.append(Launch(name, sizes, self.grid, options))
        if execute:
            with _disable_current_modes():  # the interpreter's own copies
                kernel(self, *arguments, **options)

    def without_twin(name, impl, launcher, twin, *arguments, **options):
        def refused(*_, **__):
            raise AssertionError(f"{name}: its twin runs")

        return run(name, impl, launcher, refused, *arguments, **options)

    def inside(*arguments):
        with calls:  # else modes are off within an op
            return on(*arguments)

    calls = _Calls(launched)
    with monkeypatch.context() as patched, calls:
        patched.setattr(GridExecutor, "__call__", counting)
        patched.setattr(dispatch, "run", without_twin)
        patched.setattr(dispatch, "_on", inside)
        yield launched
