"""Which implementation a convolution runs on a GPU: measured at first use, kept on disk.

Candidates for a call are the launcher's Triton configurations and the library
(`vgan_fast.kernels.conv.library`). Each is verified against float64 on a sample before it is timed
on the tensors at hand; the fastest is chosen for calls of the same shapes, dtypes and precision.
What was measured is kept in a file of the user's cache directory, one for each environment: device,
versions, sources of the kernels.

Nothing is measured while a CUDA graph is captured, as that would break the capture, nor where
PyTorch is told to be deterministic, as clocks are not: unless the choice is known from before, the
default configuration runs, as it does on tensors that tell nothing (all zero, or not finite).
"""

import hashlib
import json
import logging
import statistics
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock
from torch import Tensor

from vgan_fast.errors import UserError
from vgan_fast.files import written_whole

from . import dispatch
from .conv import library, reference
from .conv.verify import Answer, RefusedError

LIBRARY, TWIN = "library", "reference"
_CONV = library.__package__
TRIES = 3  # after so many a call that nothing can be decided for has its default
WARM_UP, REPEATS = 3, 20
FLUSH = 1 << 28  # bytes: more than any GPU's L2 cache

Run = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Candidate:
    """What was found out about one implementation of a call.

    Attributes:
        name: a configuration, or `LIBRARY`.
        error: the largest of its results, as a share of what is allowed.
        microseconds: the median.
        refused: why it may not be chosen, or None; then there is no time.
    """

    name: str
    error: float | None = None
    microseconds: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Entry:
    """A decision: the name of a candidate, or `TWIN` if none could be verified, and its grounds."""

    choice: str
    candidates: tuple[Candidate, ...]


class Gpu:
    """What choosing asks of the device; tests stand in for it on a CPU."""

    def chooses(self, x: Tensor) -> bool:
        """Whether to choose for that tensor at all."""
        return x.is_cuda and not torch.are_deterministic_algorithms_enabled()

    def capturing(self) -> bool:
        """Whether a graph is being captured."""
        return torch.cuda.is_current_stream_capturing()

    def name(self, device: torch.device) -> str:
        """Of the device, with its compute capability."""
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        return f"{torch.cuda.get_device_name(device)}, {capability}"

    def seconds(self, run: Callable[[], object]) -> float:
        """Median time of the current GPU, with nothing of the arguments in its L2 cache."""
        flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")
        for _ in range(WARM_UP):
            run()
        spans = []
        for _ in range(REPEATS):
            # Four times, so that the host is done launching before the device is done flushing:
            # a replayed graph does not wait for launches either.
            for _ in range(4):
                flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            spans.append((start, end))
        torch.cuda.current_stream().synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in spans) / 1e3


gpu = Gpu()
_log = logging.getLogger(__name__)
_chosen: dict[tuple, Run] = {}  # by key: what a training's steps look up
_remembered: dict[torch.device, dict[str, Entry]] = {}  # by label: the device's file
_undecided: Counter[tuple] = Counter()  # by key: times that nothing could be decided
_announced: set[torch.device] = set()  # where choosing was
_lock = threading.RLock()  # autograd has threads of its own; two would time each other


def run(name: str, *arguments, **options):
    """Call the convolution's chosen implementation, choosing first where nothing is known.

    Args:
        name: of the twin in `vgan_fast.kernels.conv.reference`.
        arguments, options: the twin's.

    Raises:
        torch.AcceleratorError: a candidate broke the device.
    """
    key = _key(name, arguments, options)
    with torch.cuda.device_of(arguments[0]):
        chosen = _chosen.get(key)
        if chosen is None:
            twin = getattr(reference, name)
            with _lock:
                entry = decide(name, arguments, options)
            if entry is None:
                default = dispatch.launcher(_CONV, name, _module(name))
                chosen = partial(dispatch.run, name, "auto", default, twin)
                _undecided[key] += not gpu.capturing()
                if _undecided[key] < TRIES:
                    return chosen(*arguments, **options)
            elif entry.choice == TWIN:
                chosen = partial(dispatch.run, name, "reference", twin, twin)
            else:
                chosen = candidates(name, arguments, options)[entry.choice]
            _chosen[key] = chosen
        return chosen(*arguments, **options)


def candidates(name: str, arguments: tuple, options: dict) -> dict[str, Run]:
    """Implementations of a call by name: Triton's, the default first, and the library's."""
    module = import_module(f"{_CONV}.{_module(name)}")
    # Of the input and weight; of all arguments where there is no weight.
    given = arguments if name == "weight_gradient" else arguments[:2]
    configs = module.configs(*given, **options)
    launch = getattr(module, name)
    found = {_config_name(config): partial(launch, config=config) for config in configs}
    return found | {LIBRARY: getattr(library, name)}


def decide(name: str, arguments: tuple, options: dict, fresh: bool = False) -> Entry | None:
    """What was or is now chosen for a call, which the file then keeps.

    Args:
        name, arguments, options: see `run`.
        fresh: measure even if the file knows.

    Returns:
        The decision; None where none can be made now.
    """
    device, key = arguments[0].device, label(name, arguments, options)
    try:
        runs = candidates(name, arguments, options)
    except Exception as error:  # Triton's, whatever it is.
        warnings.warn(f"{name}: nothing to choose from ({_reason(error)})", stacklevel=3)
        return None
    if device not in _remembered:
        _remembered[device] = _read(*cache_file(device))
    entry = _remembered[device].get(key)
    if entry is not None and entry.choice in runs and not fresh:
        return entry
    if gpu.capturing():
        return None
    if device not in _announced:
        _announced.add(device)
        _log.warning("choosing kernels for this GPU, once for each shape: it can take minutes")
    entry = _measured(name, arguments, options, runs)
    if entry is None:
        return None
    if entry.choice == TWIN:  # not kept: the next process tries again, and says so again
        reasons = "; ".join(f"{c.name}: {c.refused}" for c in entry.candidates)
        warnings.warn(
            f"{key}: no kernel was verified, the reference runs ({reasons})", stacklevel=3
        )
        return entry
    _log.info("measured %s: %s", key, entry.choice)
    _remembered[device][key] = entry
    _store(*cache_file(device), key, entry)
    return entry


def label(name: str, arguments: tuple, options: dict) -> str:
    """A call in words: operation, shapes, dtypes, settings that matter."""
    _, _, tf32, benchmark, *given = _key(name, arguments, options)
    flags = " tf32" * tf32 + " benchmark" * benchmark
    return f"{name}({', '.join(map(_word, given))}){flags}"


def versions() -> dict[str, str]:
    """Of all that a measurement depends on but the device."""
    import triton

    return {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "kernels": _sources(),
    }


def cache_folder() -> Path:
    """Of the user."""
    return platformdirs.user_cache_path("vgan_fast")


def cache_file(device: torch.device) -> tuple[Path, dict[str, str]]:
    """Where a device's measurements are kept, and the environment that they are good for."""
    where = {"device": gpu.name(device), **versions()}
    digest = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / f"convolutions-{digest}.json", where


def _key(name: str, arguments: tuple, options: dict) -> tuple:
    """What the choice depends on: all but values of numbers with a fraction, and of tensors."""
    x = arguments[0]
    return (
        name,
        x.device,
        x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,  # how the library chooses
        *[
            (a.shape, a.dtype) if isinstance(a, Tensor) else a
            for a in arguments
            if not isinstance(a, float)
        ],
        *options.items(),
    )


def _word(part) -> str:
    if isinstance(part, torch.Size):
        return "x".join(map(str, part))
    if isinstance(part, tuple):
        return " ".join(map(_word, part))
    return str(part).removeprefix("torch.")


def _module(name: str) -> str:
    return "weight_gradient" if name == "weight_gradient" else "gather"


def _config_name(config) -> str:
    return "triton " + " ".join(f"{f.name}={getattr(config, f.name)}" for f in fields(config))


@cache
def _sources() -> str:
    """Digest of what is measured and of how it is verified."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("conv/*.py")), here / "norm" / "triton_impl.py", Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _read(path: Path, where: dict[str, str]) -> dict[str, Entry]:
    """Entries of a file; none where it is missing, damaged, or of another environment."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["environment"] != where:
            return {}
        return {
            key: Entry(str(entry["choice"]), tuple(Candidate(**c) for c in entry["candidates"]))
            for key, entry in stored["calls"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _store(path: Path, where: dict[str, str], key: str, entry: Entry) -> None:
    """Add an entry to the file, beside those of other processes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=10):
            calls = _read(path, where) | {key: entry}
            content = {"environment": where, "calls": {k: asdict(e) for k, e in calls.items()}}
            with written_whole(path) as part:
                part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    # The last: a file system that has no locks.
    except (OSError, UserError, NotImplementedError):
        warnings.warn(f"{path} cannot be written: kernels are measured at each start", stacklevel=2)


def _measured(name: str, arguments: tuple, options: dict, runs: dict[str, Run]) -> Entry | None:
    """Verify and time; None if the inputs tell right from wrong in no way, or memory is short."""
    try:
        answer = Answer(name, arguments, options)
    except torch.OutOfMemoryError:
        return None
    except torch.AcceleratorError:  # the device is lost, and nothing that follows would tell
        raise
    except Exception as error:  # Lack of a kernel for float64.
        reason = f"no answer in float64: {_reason(error)}"
        return Entry(TWIN, tuple(Candidate(each, refused=reason) for each in runs))
    if not 0 < answer.largest < float("inf"):
        return None
    found, own = {}, None
    # The library first: the others are allowed twice its error.
    for each in sorted(runs, key=lambda each: each != LIBRARY):
        share = None
        try:
            results = runs[each](*arguments, **options)
            errors = list(answer.errors(results if isinstance(results, tuple) else (results,)))
            if each == LIBRARY:
                own = [min(e.error, e.believed) for e in errors]
            base = own or [e.believed for e in errors]
            share = max(
                e.error / (2 * (o + e.unit)) if e.error else 0.0
                for e, o in zip(errors, base, strict=True)
            )
            if share > 1:
                raise RefusedError(f"error {share:.3g} times what is allowed")
            seconds = gpu.seconds(partial(runs[each], *arguments, **options))
            found[each] = Candidate(each, share, seconds * 1e6)
        except torch.OutOfMemoryError:
            return None
        except torch.AcceleratorError:
            raise
        except Exception as error:  # Whatever compiling, launching or the library raises.
            found[each] = Candidate(each, share, refused=_reason(error))
    report = tuple(found[each] for each in runs)
    verified = [c for c in report if c.refused is None]
    fastest = min(verified, key=lambda c: c.microseconds, default=Candidate(TWIN))
    return Entry(fastest.name, report)


def _reason(error: Exception) -> str:
    if isinstance(error, RefusedError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
