"""Work on the GPU captured once and replayed: one launch where there were hundreds."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

Outputs = dict[str, Tensor]
WARM_UP = 3  # calls before the capture, as PyTorch's own `make_graphed_callables` does

_log = logging.getLogger(__name__)


class Graph(Protocol):
    """What `Replayed` asks of CUDA; tests stand in for it on a CPU."""

    def warm_up(self, function: Callable[[], Outputs]) -> Outputs:
        """Run the function as it will be captured: on another stream than the caller's."""

    def capture(self, function: Callable[[], Outputs], random: Sequence[torch.Generator]):
        """Record the function's work without doing any; its outputs, filled by each `replay`.

        After an exception nothing has been done, and the generators are as before.
        """

    def replay(self) -> None:
        """Do the recorded work, in the caller's stream, and advance the generators."""


class CudaGraph:
    """A CUDA graph and the stream that it is captured on.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device):
        self._device, self._stream = device, torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], Outputs]) -> Outputs:
        """See `Graph.warm_up`."""
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            outputs = function()
        caller.wait_stream(self._stream)
        return outputs

    def capture(self, function: Callable[[], Outputs], random: Sequence[torch.Generator]):
        """See `Graph.capture`."""
        graph = torch.cuda.CUDAGraph()
        # PyTorch has every graph register the device's own generator, too.
        drawn = [*random, torch.cuda.default_generators[self._stream.device.index]]
        kept = [generator.clone_state() for generator in drawn]
        for generator in random:
            graph.register_generator_state(generator)
        try:
            # thread_local: the loader's threads allocate and wait for events meanwhile, which
            # would break a "global" capture. The outer context is for a capture that fails to
            # end: `torch.cuda.graph` then leaves its stream the current one.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                outputs = function()
        except Exception:
            # Before torch 2.13 the generators go on believing that they are being captured.
            for generator, state in zip(drawn, kept, strict=True):
                generator.graphsafe_set_state(state)
            raise
        self._graph = graph
        return outputs

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._graph.replay()


class Replayed:
    """A function of tensors that is captured at one of its first calls and replayed from then on.

    The first `WARM_UP` calls run the function as it is: they count, each call does its work once.
    Inputs are copied into buffers of the graph in the caller's stream. That is the least that is
    right: loaders fill new memory two batches ahead on a stream of their own, so their copies
    overlap the replay without a second buffer here, and copying 25 MB (64 clips) costs an H200's
    memory 12 us by its 4.3 TB/s, where a graph for each of two buffers would be captured twice.

    The function must not wait for the device, nor depend on values of the host that change, and
    takes random numbers from `random` only. If it cannot be captured, one warning is logged and it
    runs as it is for good.

    Args:
        function: tensors, of the same shapes and dtypes at each call, to named tensors.
        graph: what captures it.
        random: the generators that it draws from.
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        graph: Graph,
        random: Sequence[torch.Generator] = (),
    ):
        self._function, self._random = function, random
        self._graph: Graph | None = graph
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Outputs | None = None
        self._calls = 0

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Run or replay the function.

        Returns:
            Its outputs; the next call overwrites them.

        Raises:
            ValueError: for an input of another shape or dtype than at the first call.
        """
        if self._graph is None:
            return self._function(*inputs)
        self._fill(inputs)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._graph.warm_up(self._run)
        if self._outputs is None:
            self._outputs = self._captured(self._graph)
        if self._outputs is None:
            self._graph, self._inputs = None, ()
            return self._function(*inputs)
        self._graph.replay()
        return self._outputs

    @property
    def captured(self) -> bool:
        """Whether calls replay the graph by now."""
        return self._outputs is not None

    def _fill(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = self._inputs or tuple(torch.empty_like(given) for given in inputs)
        for buffer, given in zip(self._inputs, inputs, strict=True):
            if (buffer.shape, buffer.dtype) != (given.shape, given.dtype):
                raise ValueError(
                    f"an input {tuple(given.shape)} {given.dtype} for a graph of "
                    f"{tuple(buffer.shape)} {buffer.dtype}"
                )
            buffer.copy_(given)

    def _run(self) -> Outputs:
        return self._function(*self._inputs)

    def _captured(self, graph: Graph) -> Outputs | None:
        try:
            return graph.capture(self._run, self._random)
        # Whatever an operation raises that cannot be captured, lack of memory included.
        except Exception as error:
            # The end of a broken capture raises once more; the first error is the cause.
            cause = error.__context__ or error
            reason = (str(cause).splitlines() or [type(cause).__name__])[0]
            _log.warning("no CUDA graph, which is slower: the capture failed (%s)", reason)
            return None
