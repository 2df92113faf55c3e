"""Options and fixtures: contests are raced once, and each contender is a benchmark."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch._dynamo

from benchmarks.measure import Device, clock, race
from benchmarks.presets import PRESETS


def pytest_addoption(parser):
    """Which preset, and whether for real."""
    parser.addoption(
        "--preset",
        choices=PRESETS,
        default="gpu" if torch.cuda.is_available() else "cpu",
        help="sizes and effort",
    )
    parser.addoption(
        "--dry-run",
        action="store_true",
        help="run the preset's code at tiny sizes on a CPU; its numbers mean nothing",
    )
    parser.addoption(
        "--without",
        action="append",
        default=[],
        metavar="TEXT",
        help="leave out contenders with this in their name, repeatable: compiling takes minutes",
    )
    parser.addoption(
        "--traces", type=Path, help="folder for a Chrome trace of each rival's training step"
    )


def pytest_configure(config):
    """Resolve the preset and the device, for collection and fixtures."""
    config.preset = PRESETS[config.getoption("--preset")]
    where = config.preset.device
    if config.getoption("--dry-run"):
        config.preset, where = config.preset.tiny(), "cpu"
    elif where == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--preset gpu needs a GPU; add --dry-run to try it on a CPU")
    # Contenders share the networks' code: each of them is a few compilations of it.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    config.device = Device(torch.device(where), config.getoption("--traces"))


def pytest_generate_tests(metafunc):
    """One benchmark for each contender of each contest that a module offers."""
    if "contender" in metafunc.fixturenames:
        without = metafunc.config.getoption("--without")
        contests = [
            dataclasses.replace(
                contest,
                contenders=[
                    each
                    for each in contest.contenders
                    if not any(text in each.name for text in without)
                ],
            )
            for contest in metafunc.module.contests(metafunc.config.preset, metafunc.config.device)
        ]
        pairs = [(contest, each.name) for contest in contests for each in contest.contenders]
        ids = [f"{contest.case}, {name}" for contest, name in pairs]
        metafunc.parametrize(("contest", "contender"), pairs, ids=ids)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """All benchmarks take their times from the clock that they are fed to."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))


@pytest.fixture(scope="session")
def results():
    """Of the contests that were raced, by kind and case."""
    return {}


@pytest.fixture
def measured(benchmark, results, request):
    """Race a contest unless it was, and hand a contender's times to pytest-benchmark."""

    def measure(contest, contender: str) -> None:
        key = contest.kind, contest.case
        if key not in results:
            torch.compiler.reset()  # of the last contest's networks
            results[key] = race(contest, request.config.device)
        result = results[key][contender]
        if result.failed:
            benchmark.skipped = True  # there is nothing to warn of
            pytest.fail(result.failed, pytrace=False)
        seconds = iter(result.seconds)

        def advance() -> None:
            clock.now += next(seconds)

        (of,) = (each for each in contest.contenders if each.name == contender)
        benchmark.group = f"{contest.kind}: {contest.case}"
        benchmark.extra_info.update(
            {
                **result.info,
                "kind": contest.kind,
                "case": contest.case,
                "contender": contender,
                "precision": of.precision,
                "about": of.about,
                "counted": contest.counted,
                "in_turns": contest.in_turns,
            }
        )
        benchmark.pedantic(advance, rounds=len(result.seconds))

    return measure
