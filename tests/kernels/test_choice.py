"""The choice among kernels: verified, timed, remembered; and the library's candidates."""

import inspect
import json
import multiprocessing
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.equivalence import DEVICE, DTYPES, assert_close_to_float64
from vgan_fast.kernels import choice, dispatch
from vgan_fast.kernels.conv import api, convolve, library, masked_convolve, norm_convolve, reference
from vgan_fast.kernels.conv.weights import pack
from vgan_fast.kernels.norm import batch_statistics

# Batch, A, B, sizes of the coarse side, kernel.
CLIP, PICTURE, CELLS = (4, 40, 8, (1, 2, 3), 4), (3, 7, 3, (3, 5), 4), (2, 16, 32, (2, 3, 2), 2)
SHAPES = {"clip": CLIP, "odd picture": PICTURE, "cells": CELLS}
GATHERS = ["convolve", "convolve_statistics", "convolve_masked", "convolve_norm_backward"]
OPERATIONS = [*GATHERS, "weight_gradient"]


def call(name, shape=CLIP, up=False, groups=None, dtype=torch.float32, seed=0):
    """Name, arguments and options, as `_run` in the ops' module has them."""
    make = torch.Generator(DEVICE).manual_seed(seed)
    n, a, b, sizes, kernel = shape
    groups = groups or (2 if n % 2 == 0 else 1)

    def randn(*size):
        return torch.randn(size, generator=make, device=DEVICE)

    def channels_last(x):
        return x.to(dtype).contiguous(memory_format=api.channels_last(x))

    coarse = channels_last(randn(n, a, *sizes))
    fine = channels_last(randn(n, b, *[s + 1 if kernel == 2 else 2 * s for s in sizes]))
    if name == "weight_gradient":
        return name, (fine, coarse, kernel), {}
    x, other, inputs, outputs = (coarse, fine, a, b) if up else (fine, coarse, b, a)
    weight = pack(randn(a, b, *[kernel] * len(sizes)) / (4 * inputs) ** 0.5, dtype)
    vector, grouped = randn(outputs), randn(groups, outputs)
    norm = grouped, grouped.abs() + 0.5, vector, vector.flip(0)
    rest = {
        "convolve": (vector, vector.abs() + 0.5, 0.2),
        "convolve_statistics": (groups,),
        "convolve_masked": (other, 0.2),
        "convolve_norm_backward": (other, *norm, 1e-3, 0.2),
    }
    return name, (x, weight, *rest[name]), {"up": up}


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


class Implementation:
    """The twin, and what is done to its results."""

    def __init__(self, twin, spoil=lambda *results: None, seconds=1.0):
        self.twin, self.spoil, self.seconds, self.calls = twin, spoil, seconds, 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        results = self.twin(*arguments, **options)
        self.spoil(*as_tuple(results))
        return results


class FakeGpu(choice.Gpu):
    """Any tensor is on it; its clock knows what each implementation takes."""

    def __init__(self):
        self.is_capturing, self.timed, self.named = False, [], "Fake, 9.0"

    def chooses(self, x):
        return True

    def capturing(self):
        return self.is_capturing

    def name(self, device):
        return self.named

    def seconds(self, run):
        self.timed.append(run)
        return getattr(run.func, "seconds", 1.0)


def forget(monkeypatch):
    """As a new process."""
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "_undecided", Counter())
    monkeypatch.setattr(choice, "_remembered", {})


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    fake = FakeGpu()
    monkeypatch.setattr(choice, "gpu", fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget(monkeypatch)
    return fake


@pytest.fixture
def offer(monkeypatch):
    """Put implementations in the place of the candidates."""

    def put(**runs):
        monkeypatch.setattr(choice, "candidates", lambda *call: runs)
        return runs

    return put


def twin(name, *args, **kwargs):
    return Implementation(getattr(reference, name), *args, **kwargs)


def cache_file():
    return choice.cache_file(torch.device(DEVICE))[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_library_agrees_with_the_twin(name, shape, up, dtype):
    _, arguments, options = call(name, shape, up, dtype=dtype)
    before = dispatch.launches.copy()
    ours = as_tuple(getattr(library, name)(*arguments, **options))
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in arguments]
    eager = as_tuple(getattr(reference, name)(*arguments, **options))
    exact = as_tuple(getattr(reference, name)(*wide, **options))
    for index, results in enumerate(zip(ours, eager, exact, strict=True)):
        assert_close_to_float64(f"result {index}", *results)
        assert results[0].dtype == results[1].dtype
        assert results[0].stride() == results[1].stride()
    assert (dispatch.launches - before) == {
        "convolve": {"norm_act": 1},
        "convolve_statistics": {"batch_statistics": 1},
        "convolve_norm_backward": {"norm_act": 1},
    }.get(name, {})


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("given", [(), ("shift",), ("scale",)], ids=["neither", "shift", "scale"])
def test_the_library_s_optional_arguments(given, up):
    _, (x, weight, vector, _, _), options = call("convolve", up=up)
    vectors = dict.fromkeys(given, vector)
    ours = library.convolve(x, weight, **vectors, **options)
    expected = reference.convolve(x, weight, **vectors, **options)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_library_multiplies_what_it_is_given_under_autocast():
    _, (x, weight, *_), options = call("convolve")
    expected = library.convolve(x, weight, **options)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert library.convolve(x, weight, **options).equal(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_real_candidates_are_verified(name, up, dtype, gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    entry = choice.decide(*call(name, PICTURE, up, dtype=dtype))
    names = [candidate.name for candidate in entry.candidates]
    assert names[-1] == "library" and names[0].startswith("triton rows=")
    assert [c.refused for c in entry.candidates] == [None] * len(names)
    assert all(0 <= c.error <= 1 and c.microseconds == 1e6 for c in entry.candidates)
    assert len(gpu.timed) == len(names)
    assert entry.choice == names[0], "the default where nothing is faster"


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_fastest_runs(name, gpu, offer):
    given = call(name)
    runs = offer(
        default=twin(name, seconds=3), other=twin(name, seconds=1), library=twin(name, seconds=2)
    )
    results = as_tuple(choice.run(given[0], *given[1], **given[2]))
    expected = as_tuple(getattr(reference, name)(*given[1], **given[2]))
    assert all(map(torch.equal, results, expected))
    counts = [run.calls for run in runs.values()]
    choice.run(given[0], *given[1], **given[2])
    assert [run.calls for run in runs.values()] == [counts[0], counts[1] + 1, counts[2]]


def spoil_clip(index):
    return lambda y, *_: y[index].mul_(1.1)


def spoil_tile(y, *_):
    channels_second = y if y.shape[1] > 32 else y.movedim(0, 1)
    channels_second[:, 32:].mul_(1.1)


def spoil_value(y, *_):
    y[(0, 37, *[0] * (y.dim() - 2))] += 0.5


SPOILED = {
    "sign": (OPERATIONS, lambda y, *_: y.neg_()),
    "one NaN": (OPERATIONS, lambda y, *_: y[0, 1].view(-1)[:1].fill_(torch.nan)),
    "NaN in the last": (OPERATIONS, lambda *results: results[-1].fill_(torch.nan)),
    "above the budget": (OPERATIONS, lambda y, *_: y.mul_(1.001)),
    "first clip": (GATHERS, spoil_clip(0)),
    "a clip in the middle": (GATHERS, spoil_clip(1)),
    "last clip": (GATHERS, spoil_clip(-1)),
    "second tile": (OPERATIONS, spoil_tile),
    "a value of the first clip": (GATHERS, spoil_value),
    "one tap": (["weight_gradient"], lambda y: y[..., 0].mul_(1.1)),
    "all zero": (OPERATIONS, lambda y, *_: y.zero_()),
    "mean": (["convolve_statistics"], lambda y, mean, _: mean[0, :1].add_(1e-4)),
    "mean of the last group": (["convolve_statistics"], lambda y, mean, _: mean[-1].mul_(1.001)),
    "variance": (["convolve_statistics"], lambda y, _, variance: variance.mul_(1 + 1e-5)),
    "unbiased": (["convolve_statistics"], lambda y, _, variance: variance.mul_(13 / 12)),
    "groups": (["convolve_statistics"], lambda y, mean, _: mean.copy_(mean.flip(0))),
    "first sum": (["convolve_norm_backward"], lambda y, sums: sums[0, :, 3].mul_(1.1)),
    "second sum": (["convolve_norm_backward"], lambda y, sums: sums[1].mul_(1.001)),
    "sums exchanged": (
        ["convolve_norm_backward"],
        lambda y, sums: sums.copy_(sums.flip(0)),
    ),
}


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        pytest.param(name, spoil, id=f"{name}: {what}")
        for what, (names, spoil) in SPOILED.items()
        for name in names
    ],
)
def test_a_wrong_candidate_is_refused(name, spoil, gpu, offer):
    runs = offer(fast=twin(name, spoil, seconds=0.1), library=twin(name))
    entry = choice.decide(*call(name))
    fast, slow = entry.candidates
    assert entry.choice == "library"
    assert "times what is allowed" in fast.refused or fast.refused == "not finite"
    assert fast.microseconds is None and slow.refused is None
    assert [run.func for run in gpu.timed] == [runs["library"]]


@pytest.mark.parametrize("name", GATHERS)
def test_a_wrong_clip_in_a_later_part_is_refused(name, gpu, offer):
    """More clips than are looked at together."""
    offer(fast=twin(name, spoil_clip(8), seconds=0.1), library=twin(name))
    assert choice.decide(*call(name, (10, *CLIP[1:]))).choice == "library"


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_raises_or_has_another_shape_is_refused(name, gpu, offer):
    def no_registers(*results):
        raise RuntimeError("out of registers\nand more")

    narrow = Implementation(
        lambda *a, **o: as_tuple(getattr(reference, name)(*a, **o))[0][..., :-1]
    )
    offer(a=twin(name, no_registers), b=narrow, library=twin(name))
    entry = choice.decide(*call(name))
    first, second, third = entry.candidates
    assert first.refused == "RuntimeError: out of registers"
    assert second.refused.startswith("result of shape (") and third.refused is None
    assert entry.choice == "library"


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_wrong_library_excuses_nobody(name, gpu, offer):
    wrong = {"spoil": lambda y, *_: y.mul_(1.01), "seconds": 0.1}
    offer(right=twin(name), as_wrong=twin(name, **wrong), library=twin(name, **wrong))
    entry = choice.decide(*call(name))
    assert entry.choice == "right"
    assert all("times what" in c.refused for c in entry.candidates[1:])


def test_without_the_library_rounding_is_allowed_and_no_more(gpu, offer):
    def fail(*results):
        raise RuntimeError("no algorithm")

    name = "convolve"
    offer(right=twin(name), wrong=twin(name, lambda y: y.mul_(1.01)), library=twin(name, fail))
    right, wrong, _ = choice.decide(*call(name)).candidates
    assert right.refused is None and wrong.refused


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_inputs_that_tell_nothing_decide_nothing(value, gpu, offer, monkeypatch):
    """All results of a multiplication by zero are right."""
    ran = []
    monkeypatch.setattr(
        choice.dispatch, "run", lambda name, impl, *rest, **options: ran.append(impl)
    )
    name, (dy, *rest), options = call("convolve_masked")
    runs = offer(fast=twin(name), library=twin(name))
    choice.run(name, torch.full_like(dy, value), *rest, **options)
    assert ran == ["auto"] and not gpu.timed and not cache_file().exists()
    choice.run(name, dy, *rest, **options)
    assert ran == ["auto"] and len(gpu.timed) == len(runs)


def test_either_side_of_a_rectifier_is_right_where_rounding_decides(gpu, offer):
    name, (dy, weight, x, mean, variance, gamma, beta, *rest), options = call(
        "convolve_norm_backward", groups=1
    )
    beta = torch.zeros_like(beta)
    x[0, 5], x[-1, 3] = mean[0, 5], mean[0, 3] - 1  # z is 0; z is not
    given = name, (dy, weight, x, mean, variance, gamma, beta, *rest), options
    rstd = torch.rsqrt(variance[0] + rest[0])

    def other_side(clip, channel, distance):
        """Times 5 for the slope of 0.2; the sums are those of what is stored."""

        def spoil(g, sums):
            added = 4 * g[clip, channel]
            g[clip, channel] += added
            sums[1, 0, channel] += added.sum()
            sums[0, 0, channel] += added.sum() * distance * rstd[channel]

        return spoil

    offer(
        either=twin(name, other_side(0, 5, 0.0)),
        wrong=twin(name, other_side(-1, 3, -1.0)),
        library=twin(name),
    )
    either, wrong, _ = choice.decide(*given).candidates
    assert either.refused is None and wrong.refused


def test_where_nothing_is_verified_the_twin_runs_with_one_warning(gpu, offer, monkeypatch):
    name, arguments, options = call("convolve")
    runs = offer(bad=twin(name, torch.Tensor.neg_), library=twin(name, torch.Tensor.zero_))
    with pytest.warns(
        UserWarning, match="no kernel was verified.*bad: error .* times what is allowed"
    ):
        y = choice.run(name, *arguments, **options)
    assert y.equal(reference.convolve(*arguments, **options))
    counts = [run.calls for run in runs.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice.run(name, *arguments, **options)
    assert [run.calls for run in runs.values()] == counts
    assert not cache_file().exists()
    forget(monkeypatch)
    with pytest.warns(UserWarning, match="no kernel was verified"):
        choice.run(name, *arguments, **options)


def test_no_answer_in_float64_is_no_verification(gpu, offer, monkeypatch):
    name, arguments, options = call("convolve")
    offer(fast=twin(name), library=twin(name))

    def fail(*call):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(choice, "Answer", fail)
    with pytest.warns(UserWarning, match="no answer in float64: RuntimeError: no such kernel"):
        choice.run(name, *arguments, **options)
    assert not gpu.timed


def test_a_launcher_without_candidates_leaves_the_default(gpu, monkeypatch):
    def fail(*call):
        raise ImportError("no Triton")

    monkeypatch.setattr(choice, "candidates", fail)
    monkeypatch.setattr(choice.dispatch, "run", lambda name, impl, *rest, **options: impl)
    name, arguments, options = call("convolve")
    with pytest.warns(UserWarning, match="nothing to choose from.*no Triton"):
        assert choice.run(name, *arguments, **options) == "auto"


def test_a_new_process_does_not_measure_again(gpu, offer, monkeypatch):
    name, arguments, options = call("weight_gradient")
    runs = offer(slow=twin(name, seconds=2), library=twin(name))
    choice.run(name, *arguments, **options)
    assert len(gpu.timed) == 2
    counts = {key: run.calls for key, run in runs.items()}
    forget(monkeypatch)
    choice.run(name, *arguments, **options)
    assert len(gpu.timed) == 2
    assert [run.calls - counts[key] for key, run in runs.items()] == [0, 1]
    assert choice.decide(name, arguments, options, fresh=True).choice == "library"
    assert len(gpu.timed) == 4


def test_a_step_looks_up_in_memory(gpu, offer, monkeypatch):
    name, arguments, options = call("convolve")
    offer(fast=twin(name), library=twin(name))
    choice.run(name, *arguments, **options)
    for used in ("decide", "candidates", "label", "_read", "cache_file"):
        monkeypatch.setattr(choice, used, None)
    choice.run(name, *arguments, **options)


def stored(path):
    return json.loads(path.read_text())


DAMAGE = {
    "empty": lambda path: path.write_text(""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "no object": lambda path: path.write_text("[1, 2]"),
    "too deep": lambda path: path.write_text("[" * 200_000),
    "null": lambda path: path.write_text("null"),
    "foreign": lambda path: edit(path, lambda c: c["environment"].update(device="other")),
    "other version": lambda path: edit(path, lambda c: c["environment"].update(torch="1.0")),
    "no environment": lambda path: edit(path, lambda c: c.pop("environment")),
    "no calls": lambda path: edit(path, lambda c: c.pop("calls")),
    "calls a list": lambda path: edit(path, lambda c: c.update(calls=[])),
    "unknown candidate": lambda path: edit(path, lambda c: entry(c).update(choice="triton x=1")),
    "choice a list": lambda path: edit(path, lambda c: entry(c).update(choice=[])),
    "older candidates": lambda path: edit(path, lambda c: entry(c).update(candidates=[{"a": 1}])),
}


def edit(path, change):
    content = stored(path)
    change(content)
    path.write_text(json.dumps(content))


def entry(content):
    (found,) = content["calls"].values()
    return found


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_or_foreign_file_is_rebuilt(damage, gpu, offer, monkeypatch):
    given = call("convolve")
    offer(fast=twin("convolve", seconds=0.5), library=twin("convolve"))
    choice.decide(*given)
    path = cache_file()
    before = stored(path)
    damage(path)
    forget(monkeypatch)
    assert choice.decide(*given).choice == "fast"
    assert len(gpu.timed) == 4
    after = stored(path)
    assert after["environment"] == before["environment"]
    assert after["calls"].keys() == before["calls"].keys()
    assert entry(after)["choice"] == "fast"


def test_what_the_file_says(gpu, offer):
    given = call("convolve_statistics", dtype=torch.float16)
    offer(bad=twin(given[0], spoil_clip(0)), library=twin(given[0], seconds=2.0))
    choice.decide(*given)
    content = stored(cache_file())
    assert content["environment"]["device"] == "Fake, 9.0"
    ((label, found),) = content["calls"].items()
    assert label == ("convolve_statistics(4x8x2x4x6 float16, 40x8x4x4x4 float16, 2, up False)")
    assert found["choice"] == "library"
    bad, good = found["candidates"]
    assert "times what is allowed" in bad["refused"] and bad["microseconds"] is None
    assert good["microseconds"] == 2e6 and 0 <= good["error"] < 1


def test_environments_have_files_of_their_own(gpu, monkeypatch):
    import triton

    found = {cache_file()}
    for change in (
        lambda: monkeypatch.setattr(gpu, "named", "Fake, 10.0"),
        lambda: monkeypatch.setattr(torch, "__version__", "9.9"),
        lambda: monkeypatch.setattr(triton, "__version__", "9.9"),
        lambda: monkeypatch.setattr(torch.version, "cuda", "99"),
        lambda: monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 99),
        lambda: monkeypatch.setattr(choice, "_sources", lambda: "changed"),
    ):
        change()
        found.add(cache_file())
    assert len(found) == 7


def test_the_kernels_version_is_that_of_their_sources(monkeypatch):
    before = choice._sources.__wrapped__()
    read = Path.read_bytes
    for changed in ("gather.py", "library.py", "weight_gradient.py", "triton_impl.py", "choice.py"):
        monkeypatch.setattr(
            Path,
            "read_bytes",
            lambda path, changed=changed: read(path) + b"#" * (path.name == changed),
        )
        assert choice._sources.__wrapped__() != before, changed


def test_what_tells_calls_apart(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    calls = [call(name) for name in OPERATIONS]
    calls += [
        call("convolve", up=True),
        call("convolve", CELLS),
        call("convolve", dtype=torch.float16),
        call("convolve_statistics", groups=1),
        call("convolve_norm_backward", groups=1),
    ]
    name, arguments, options = call("convolve")
    calls.append((name, (*arguments[:2], None, None, 1.0), options))
    labels, keys = {choice.label(*c) for c in calls}, {choice._key(*c) for c in calls}
    half = choice.label(*call("convolve", dtype=torch.float16))
    for flag in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, flag, True)
        labels.add(choice.label(*calls[0]))
        keys.add(choice._key(*calls[0]))
        if flag == "allow_tf32":  # nothing to products of 16 bits
            assert choice.label(*call("convolve", dtype=torch.float16)) == half
    assert len(labels) == len(keys) == len(calls) + 2
    again = call("convolve", seed=1)
    assert choice.label(*again) in labels
    other_slope = again[0], (*again[1][:-1], 0.7), again[2]
    assert choice._key(*other_slope) == choice._key(*again)


def store_many(path, first, barrier):
    barrier.wait()
    for index in range(first, first + 15):
        choice._store(path, {"device": "x"}, f"call {index}", choice.Entry("library", ()))


def test_two_processes_write_one_file(tmp_path):
    path = tmp_path / "made" / "convolutions.json"
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    processes = [
        context.Process(target=store_many, args=(path, first, barrier)) for first in (0, 15)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert set(choice._read(path, {"device": "x"})) == {f"call {index}" for index in range(30)}


def test_a_folder_that_cannot_be_written_costs_a_warning(gpu, offer, tmp_path):
    (tmp_path / "vgan_fast").write_text("in the way")
    offer(library=twin("convolve"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert choice.decide(*call("convolve")).choice == "library"


def test_nothing_is_measured_in_a_capture(gpu, offer, monkeypatch):
    defaults = []
    monkeypatch.setattr(
        choice.dispatch, "run", lambda name, impl, *rest, **options: defaults.append((name, impl))
    )
    known, unknown = call("convolve"), call("weight_gradient")
    runs = offer(fast=twin("convolve"), library=twin("convolve", seconds=2))
    choice.decide(*known)
    timed = len(gpu.timed)
    gpu.is_capturing = True
    before = runs["fast"].calls
    choice.run(known[0], *known[1], **known[2])
    assert runs["fast"].calls == before + 1 and not defaults
    offer(fast=twin("weight_gradient"), library=twin("weight_gradient"))
    choice.run(unknown[0], *unknown[1], **unknown[2])
    assert defaults == [("weight_gradient", "auto")] and len(gpu.timed) == timed
    gpu.is_capturing = False
    choice.run(unknown[0], *unknown[1], **unknown[2])
    assert len(defaults) == 1 and len(gpu.timed) == timed + 2


def test_the_default_in_a_capture_is_the_launcher_s(gpu, monkeypatch):
    monkeypatch.setattr(choice.dispatch, "run", lambda *given, **options: given[2:4])
    gpu.is_capturing = True
    before = dispatch.launches.copy()
    for name in OPERATIONS:
        given = call(name, PICTURE)
        launch, reference_twin = choice.run(name, *given[1], **given[2])
        assert reference_twin is getattr(reference, name)
        launch(*given[1], **given[2])
    assert dispatch.launches - before == dict.fromkeys(OPERATIONS, 1)


def test_two_threads_measure_one_after_the_other(gpu, offer):
    name, arguments, options = call("convolve")
    offer(fast=twin(name, lambda y: time.sleep(0.2)), library=twin(name))
    threads = [
        threading.Thread(target=choice.run, args=(name, *arguments), kwargs=options)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gpu.timed) == 2


def test_where_choices_are_made(monkeypatch):
    on_cpu, on_gpu = torch.ones(1), SimpleNamespace(is_cuda=True)
    real = choice.Gpu()
    assert not real.chooses(on_cpu) and real.chooses(on_gpu)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert not real.chooses(on_gpu)


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
def test_only_auto_chooses(impl, gpu, monkeypatch):
    seen = []

    def run(name, *arguments, **options):
        seen.append(name)
        return getattr(reference, name)(*arguments, **options)

    monkeypatch.setattr(choice, "run", run)
    _, (x, weight, bias, *_), _ = call("convolve")
    x, weight = x.requires_grad_(), weight.requires_grad_()
    for y in (
        convolve(x, weight, bias, up=False, impl=impl),
        masked_convolve(x, weight, up=False, slope=0.2, impl=impl)[0],
        norm_convolve(
            x,
            *batch_statistics(x, impl="reference"),
            *torch.ones(2, x.shape[1], device=DEVICE),
            weight,
            up=False,
            eps=1e-3,
            slope=0.2,
            impl=impl,
        )[0],
    ):
        y.sum().backward()
    assert set(seen) == (set(OPERATIONS) if impl == "auto" else set())


def test_gradients_through_chosen_kernels(gpu):
    _, (x, weight, bias, *_), _ = call("convolve", PICTURE)
    gradients = []
    for impl in ("auto", "reference"):
        inputs = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
        y = convolve(*inputs, up=False, slope=1.0, impl=impl)
        y.square().sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    assert len(choice._chosen) == 3, "forward and two gradients"
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_every_twin_can_be_sampled():
    """The sample goes by the names of the arguments."""
    known = {"mean", "variance", "groups", "weight", "up", "slope", "eps", "kernel"}
    vectors = {"shift", "scale", "bias", "gamma", "beta"}
    images = {"x", "dy", "activated", "fine", "coarse"}
    for name in OPERATIONS:
        assert set(inspect.signature(getattr(reference, name)).parameters) <= (
            known | vectors | images
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_a_gpu_every_candidate_is_verified_and_timed(name, up, dtype, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget(monkeypatch)
    entry = choice.decide(*call(name, (16, 128, 64, (4, 8, 8), 4), up, dtype=dtype))
    assert [c.refused for c in entry.candidates] == [None] * len(entry.candidates)
    times = {c.name: c.microseconds for c in entry.candidates}
    assert times[entry.choice] == min(times.values())
    assert all(1 < time < 1e5 for time in times.values())


@pytest.mark.gpu
def test_on_a_gpu_the_clock_measures_the_device():
    a = torch.randn(4096, 4096, device="cuda")
    small, large = (choice.gpu.seconds(lambda n=n: a[:n] @ a) for n in (512, 4096))
    assert 3 < large / small < 16


@pytest.mark.gpu
def test_on_a_gpu_a_capture_takes_what_was_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget(monkeypatch)
    _, (x, weight, bias, *_), _ = call("convolve", (16, 128, 64, (4, 8, 8), 4))
    expected = convolve(x, weight, bias, up=False)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = convolve(x, weight, bias, up=False)
    graph.replay()
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("where", ["answer", "candidate"])
def test_short_memory_decides_nothing_and_a_lost_device_is_no_choice(
    where, gpu, offer, monkeypatch
):
    given = call("convolve")
    raised = torch.OutOfMemoryError("CUDA out of memory")

    def fail(*arguments, **options):
        raise raised

    offer(bad=fail if where == "candidate" else twin(given[0]), library=twin(given[0]))
    if where == "answer":
        monkeypatch.setattr(choice, "Answer", fail)
    for _ in range(2):
        assert choice.decide(*given) is None
    assert not cache_file().exists()
    raised = torch.AcceleratorError("illegal memory access")
    with pytest.raises(torch.AcceleratorError):
        choice.decide(*given)


def test_what_cannot_be_decided_is_not_tried_for_ever(gpu, offer, monkeypatch):
    name, (dy, *rest), options = call("convolve_masked")
    offer(fast=twin(name), library=twin(name, seconds=2.0))
    asked = []
    measured = choice._measured
    monkeypatch.setattr(choice, "_measured", lambda *a: (asked.append(0), measured(*a))[1])
    for _ in range(6):
        choice.run(name, torch.zeros_like(dy), *rest, **options)
    assert len(asked) == choice.TRIES
