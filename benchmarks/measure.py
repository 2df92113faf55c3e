"""Timing, memory and launches of a piece of work, the same on a CPU and a GPU.

pytest-benchmark's timer knows no device events and runs one benchmark after the other, so times are
taken here, rivals in turns, and handed to it: its clock then advances by what was measured.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

FLUSH = 256 << 20  # bytes: more than a cache holds, of a CPU or a GPU
OPERATIONS = 15  # rows of a per-operation table
Work = Callable[[], object]


class FedClock:
    """A clock for pytest-benchmark that shows the seconds it was fed."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds fed so far."""
        return self.now


clock = FedClock()


class Device:
    """What measuring asks of the device that the work is on.

    Args:
        device: that device.
        traces: folder for Chrome traces, if wanted.
    """

    def __init__(self, device: torch.device, traces: Path | None = None):
        self.device, self.gpu, self.traces = device, device.type == "cuda", traces
        self.stream = torch.cuda.Stream(device) if self.gpu else None
        self._flush = None

    def current(self) -> contextlib.AbstractContextManager:
        """Where all work is built and done: a backward is captured in its forward's stream only."""
        return torch.cuda.stream(self.stream) if self.gpu else contextlib.nullcontext()

    def flush(self) -> None:
        """Fill the cache with something else, so that inputs come from memory."""
        if self._flush is None:
            self._flush = torch.empty(FLUSH, dtype=torch.uint8, device=self.device)
        self._flush.zero_()

    def seconds(self, work: Work) -> float:
        """One call, from its start until the device has done it: by the device's own clock."""
        if not self.gpu:
            begin = time.perf_counter()
            work()
            return time.perf_counter() - begin
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def captured(self, work: Work) -> Work:
        """The work as a CUDA graph: launching one kernel takes longer than many a kernel.

        It returns what the work does, the same tensors at each call.
        """
        if not self.gpu:
            return work
        work()  # loads modules, which a capture forbids
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            made = work()

        def replay() -> object:
            graph.replay()
            return made

        replay.work = work  # keeps alive what the graph reads
        return replay

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def start_anew(self) -> None:
        """Let go of what nobody needs any more; the most bytes held are counted from now on."""
        gc.collect()  # training steps refer to themselves
        if self.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def most_allocated(self) -> int:
        """The most bytes that PyTorch held on a GPU since `start_anew`; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.gpu else 0

    def allocated(self) -> int:
        """Bytes that PyTorch holds on a GPU now; 0 on a CPU, where nothing counts them."""
        return torch.cuda.memory_allocated(self.device) if self.gpu else 0

    def inspected(self, work: Work) -> tuple[torch.profiler.profile, dict[str, int]]:
        """The profile of one call; its launches, and the most bytes held beyond those before.

        Launches are the device's kernels and copies on a GPU, and on a CPU the ATen operators that
        call no other. Bytes are those of PyTorch's allocator.
        """
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.wait()
            torch.cuda.reset_peak_memory_stats(self.device)
        before = self.allocated()
        with torch.profiler.profile(activities=activities, profile_memory=not self.gpu) as profile:
            work()
            self.wait()
        if self.gpu:
            launches = sum(map(self._on_device, profile.events()))
            peak = torch.cuda.max_memory_allocated(self.device) - before
            return profile, {"launches": launches, "peak_bytes": peak}
        launches = sum(
            event.name.startswith("aten::") and not event.cpu_children for event in profile.events()
        )
        # Of the raw events: those of `events()` are credited to operators, which frees are not.
        raw = profile.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in raw if e.name() == "[memory]")
        held = peak = 0
        for _, change in changes:
            held += change
            peak = max(peak, held)
        return profile, {"launches": launches, "peak_bytes": peak}

    def operations(self, profile: torch.profiler.profile) -> list[tuple[str, int, float]]:
        """What took longest of a profile: name, calls, seconds of its own."""
        found = []
        for row in profile.key_averages():
            if not self.gpu or self._on_device(row):
                spent = row.self_device_time_total if self.gpu else row.self_cpu_time_total
                found.append((row.key, row.count, spent / 1e6))
        return sorted(found, key=lambda row: -row[2])[:OPERATIONS]

    def _on_device(self, event) -> bool:
        """Whether a row of a profile is work of the GPU: a kernel or a copy."""
        return event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation


@dataclass
class Prepared:
    """Work that is ready.

    Attributes:
        work: what is timed.
        info: of one call, for the report: clips, opening_seconds and so on; may be filled by the
            work.
    """

    work: Work
    info: dict[str, float] = field(default_factory=dict)


@dataclass
class Contender:
    """One way to do a piece of work.

    Attributes:
        name: for the report.
        build: prepares the work and leaves on the stack what is to be closed afterwards; raises if
            the work cannot be done here, or does not do it right.
        precision: of the products' operands: bf16, fp16, tf32 or fp32.
        about: what it is, for the report.
        graphed: whether its memory is a graph's, which is taken while that is captured.
    """

    name: str
    build: Callable[[contextlib.ExitStack], Prepared]
    precision: str = "fp32"
    about: str = ""
    graphed: bool = False


@dataclass
class Contest:
    """A piece of work and the ways to do it.

    Attributes:
        kind: group of the report.
        case: which work.
        contenders: the first is what the others are compared with.
        counted: (FLOPs, bytes in 16 bits) of each of the passes that the work needs.
        info: of every contender, for the report.
        each: done before every timed call and not timed.
        in_turns: all contenders are ready at once and timed in turns; otherwise one after the
            other, for work that goes on between calls.
        rounds: timed calls of each contender.
        warm_up: calls of each before: they choose algorithms, compile and fill caches.
        inspected: count launches and memory of a call.
        profiled: keep its operations too, and its trace where that is wanted.
    """

    kind: str
    case: str
    contenders: list[Contender]
    rounds: int
    warm_up: int
    counted: list[tuple[int, int]] = field(default_factory=list)
    info: dict[str, float] = field(default_factory=dict)
    each: Work = lambda: None
    in_turns: bool = True
    inspected: bool = True
    profiled: bool = False


@dataclass
class Result:
    """What was measured of a contender.

    Attributes:
        seconds: of each round.
        info: for the report.
        failed: why there are no times.
    """

    seconds: list[float] = field(default_factory=list)
    info: dict[str, object] = field(default_factory=dict)
    failed: str = ""


class WrongResultError(Exception):
    """What a contender does is not what the first one does: it gets no time."""


def race(contest: Contest, device: Device) -> dict[str, Result]:
    """Measure contenders by name, in turns, so that ratios hold when the machine's speed drifts."""
    results = {contender.name: Result() for contender in contest.contenders}
    contenders = contest.contenders
    groups = [contenders] if contest.in_turns else [[contender] for contender in contenders]
    with device.current():
        contest.each()  # makes what all share
        for group in groups:
            with contextlib.ExitStack() as stack:
                _race_group(contest, group, device, results, stack)
    return results


def _race_group(
    contest: Contest,
    group: list[Contender],
    device: Device,
    results: dict[str, Result],
    stack: contextlib.ExitStack,
) -> None:
    works: dict[str, Prepared] = {}
    for contender in group:
        with _noted(results[contender.name]):
            works[contender.name] = _ready(
                contest, contender, device, results[contender.name], stack
            )
    for _ in range(contest.rounds):
        for name, prepared in works.items():
            result = results[name]
            if not result.failed:
                with _noted(result):
                    contest.each()
                    result.seconds.append(device.seconds(prepared.work))
    for name, prepared in works.items():
        results[name].info |= prepared.info


@contextlib.contextmanager
def _noted(result: Result) -> Iterator[None]:
    """Whatever building, compiling, work or lack of memory raises costs this result only."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        result.failed = f"{type(error).__name__}: {reason}"
        result.seconds.clear()


def _ready(
    contest: Contest,
    contender: Contender,
    device: Device,
    result: Result,
    stack: contextlib.ExitStack,
) -> Prepared:
    device.start_anew()
    before = device.allocated()
    prepared = contender.build(stack)
    for _ in range(contest.warm_up):
        contest.each()
        prepared.work()
    built = device.allocated() - before
    result.info = dict(contest.info)
    if contest.inspected:
        at_most = device.most_allocated() - before
        profile, found = device.inspected(prepared.work)
        held = at_most if contender.graphed and device.gpu else built + found["peak_bytes"]
        result.info |= found | {"peak_bytes": held}
        if contest.profiled:
            result.info["operations"] = device.operations(profile)
            if device.traces:
                device.traces.mkdir(parents=True, exist_ok=True)
                name = f"{contest.case}, {contender.name}.json.gz".replace(" ", "_")
                profile.export_chrome_trace(str(device.traces / name))
    return prepared
