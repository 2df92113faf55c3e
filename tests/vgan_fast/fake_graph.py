"""A CUDA graph's stand-in for a CPU: strict about all that a capture on a GPU forbids.

`capture` runs the function, records every operation below autograd, and puts back all the memory
that it changed: as on a GPU, nothing has been done. `replay` repeats the recorded operations on the
recorded tensors, without any of the function's Python, so what the function takes from anywhere but
those tensors is stale. Before that it records the function once more, and compares.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

UNKNOWN_ON_THE_HOST = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
WAITING = {"cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__"}


class ForbiddenError(RuntimeError):
    """What a capture on a GPU would refuse, or a replay get wrong."""


def pointer(tensor):
    return tensor.untyped_storage().data_ptr()


def tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


class NoWaiting(TorchFunctionMode):
    """Refuse methods that read a tensor on the host; on a CPU some are no operation at all."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name in WAITING:
            raise ForbiddenError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Operations in their order; `outside` is memory from before, as it was at its first use."""

    def __init__(self, random):
        super().__init__()
        self.operations, self.outside = [], {}
        self._random = {generator._cdata for generator in random}
        self._inside = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation.namespace == "profiler":  # an optimiser announces its step
            return operation(*args, **kwargs)
        if UNKNOWN_ON_THE_HOST & set(operation.tags):
            raise ForbiddenError(f"{operation} depends on data: the host would wait for the device")
        # The generator is another object of Python's each time.
        generator = getattr(kwargs.get("generator"), "_cdata", None)
        if torch.Tag.nondeterministic_seeded in operation.tags and generator not in self._random:
            raise ForbiddenError(f"{operation} draws from a generator that is not registered")
        for tensor in tensors((args, kwargs)):
            if pointer(tensor) not in self._inside and pointer(tensor) not in self.outside:
                whole = tensor.untyped_storage()
                self.outside[pointer(tensor)] = (whole, whole.clone())
        made = operation(*args, **kwargs)
        self._inside.update({pointer(t) for t in tensors(made)} - self.outside.keys())
        self.operations.append((operation, args, kwargs, made))
        return made

    def steps(self):
        """What has to be the same at each recording."""
        described = []
        for operation, args, kwargs, made in self.operations:
            of = [
                (tuple(leaf.shape), leaf.dtype, leaf.stride())
                if isinstance(leaf, torch.Tensor)
                else leaf
                for leaf in tree_flatten((args, kwargs, made))[0]
                if not isinstance(leaf, torch.Generator)
            ]
            described.append((str(operation), of))
        return described


class FakeGraph:
    """See `vgan_fast.graph.Graph`.

    Attributes:
        captures, replays: how often.
        state: pointers of the memory from before the capture that the function used.
    """

    def __init__(self, device=None):
        self.captures, self.replays = 0, 0

    def warm_up(self, function):
        return function()

    def capture(self, function, random):
        self._function, self._random = function, random
        self._tape, outputs = self._record()
        self.state = set(self._tape.outside)
        self.captures += 1
        return outputs

    def replay(self):
        tape, _ = self._record()
        if tape.steps() != self._tape.steps():
            pairs = zip(tape.steps(), self._tape.steps(), strict=False)
            at = next((pair for pair in pairs if pair[0] != pair[1]), "one is longer")
            raise ForbiddenError(f"not the operations that were captured: {at}")
        if moved := set(tape.outside) ^ self.state:
            raise ForbiddenError(f"{len(moved)} tensors from outside are not the captured ones")
        for operation, args, kwargs, recorded in self._tape.operations:
            with torch.no_grad():
                made = operation(*args, **kwargs)
                given = {pointer(tensor) for tensor in tensors((args, kwargs))}
                for old, new in zip(tensors(recorded), tensors(made), strict=True):
                    if pointer(new) not in given:  # neither in place nor a view
                        old.copy_(new)
        self.replays += 1

    def _record(self):
        tape = Tape(self._random)
        states = [generator.get_state() for generator in self._random]
        try:
            with NoWaiting(), tape:
                outputs = self._function()
        finally:
            for whole, before in tape.outside.values():
                whole.copy_(before)
            for generator, state in zip(self._random, states, strict=True):
                generator.set_state(state)
        return tape, outputs
