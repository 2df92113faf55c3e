import contextlib
import gc
import time
import weakref

import pytest
import torch

from benchmarks.measure import Contender, Contest, Device, Prepared, clock, race

CPU = Device(torch.device("cpu"))


def contest(contenders, **options):
    effort = {"rounds": 3, "warm_up": 1, "inspected": False, **options}
    return Contest("kind", "case", contenders, **effort)


def noting(name, notes):
    def build(stack):
        notes.append(f"build {name}")
        stack.callback(notes.append, f"close {name}")
        return Prepared(lambda: notes.append(name), {"clips": 2})

    return Contender(name, build)


def test_contenders_take_turns_and_the_one_before_each_is_not_theirs():
    notes = []
    of = contest([noting("a", notes), noting("b", notes)], each=lambda: notes.append("."))
    results = race(of, CPU)
    warm = [".", "build a", ".", "a", "build b", ".", "b"]
    assert notes == [*warm, *[".", "a", ".", "b"] * 3, "close b", "close a"]
    assert [len(result.seconds) for result in results.values()] == [3, 3]
    assert results["a"].info == {"clips": 2}


def test_without_turns_each_is_closed_before_the_next_is_built():
    notes = []
    race(contest([noting("a", notes), noting("b", notes)], in_turns=False, warm_up=0), CPU)
    assert notes == ["build a", *"aaa", "close a", "build b", *"bbb", "close b"]


def test_a_failure_costs_its_own_number_only():
    def build(_):
        raise RuntimeError("lacks\na part")

    notes = []
    results = race(contest([Contender("broken", build), noting("whole", notes)]), CPU)
    assert results["broken"].failed == "RuntimeError: lacks"
    assert not results["broken"].seconds
    assert len(results["whole"].seconds) == 3
    assert not results["whole"].failed


def test_a_failure_in_a_timed_round_costs_its_own_number_only():
    calls = []

    def work():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("broke")

    notes = []
    breaks = Contender("breaks", lambda _: Prepared(work))
    results = race(contest([breaks, noting("whole", notes)]), CPU)
    assert results["breaks"].failed == "RuntimeError: broke"
    assert not results["breaks"].seconds
    assert len(results["whole"].seconds) == 3


def test_a_captured_work_keeps_alive_what_it_reads(monkeypatch):
    class Graph:
        def replay(self):
            pass

    device = Device(torch.device("cpu"))
    device.gpu, device.stream = True, None
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: contextlib.nullcontext())

    def captured():
        read = torch.ones(3)
        return device.captured(lambda: read * 2), weakref.ref(read)

    work, read = captured()
    gc.collect()
    assert read() is not None
    assert work().tolist() == [2, 2, 2]
    del work
    gc.collect()
    assert read() is None


def test_a_contender_is_gone_when_the_next_is_built():
    alive = []

    class Step:
        def __init__(self):
            self.run = self.train  # refers to itself, as a training step does

        def train(self):
            pass

    def build(_):
        alive.append(sum(ref() is not None for ref in steps))
        step = Step()
        steps.append(weakref.ref(step))
        return Prepared(step.run)

    steps = []
    race(contest([Contender(name, build) for name in "abc"], in_turns=False), CPU)
    assert alive == [0, 0, 0]


def test_seconds_are_those_of_the_work():
    def slept(seconds):
        return Contender(str(seconds), lambda _: Prepared(lambda: time.sleep(seconds)))

    results = race(contest([slept(0.01), slept(0.03)], each=lambda: time.sleep(0.02)), CPU)
    assert 0.01 <= min(results["0.01"].seconds) < 0.02
    assert 0.03 <= min(results["0.03"].seconds) < 0.04


def test_memory_is_the_most_held_at_a_time():
    megabyte = torch.empty(1 << 18)

    def work():
        a = megabyte.clone()
        b = megabyte.clone()
        del a
        c = torch.cat([megabyte, megabyte])  # with b, three
        del b, c
        megabyte.clone()

    _, found = CPU.inspected(work)
    assert found["peak_bytes"] == 3 << 20
    assert found["launches"] >= 4


def test_what_is_inspected_reaches_the_results():
    def work():
        return torch.empty(1 << 18).fill_(1) @ torch.ones(1 << 18)

    of = contest([Contender("a", lambda _: Prepared(work))], inspected=True, profiled=True)
    info = race(of, CPU)["a"].info
    assert info["peak_bytes"] >= 2 << 20
    assert "aten::dot" in [name for name, _, _ in info["operations"]]


def test_the_clock_shows_what_it_was_fed():
    before = clock()
    clock.now += 1.5
    assert clock() == before + 1.5


@pytest.mark.parametrize("profiled", [False, True])
def test_a_trace_is_kept_where_it_is_wanted(tmp_path, profiled):
    device = Device(torch.device("cpu"), tmp_path / "traces")
    of = contest(
        [Contender("a", lambda _: Prepared(lambda: torch.ones(3) + 1))],
        inspected=True,
        profiled=profiled,
    )
    race(of, device)
    assert (tmp_path / "traces" / "case,_a.json.gz").exists() == profiled


def test_the_stack_is_closed_when_a_later_contender_fails():
    notes = []

    def build(_):
        raise MemoryError

    with contextlib.suppress(MemoryError):
        race(contest([noting("a", notes), Contender("b", build)]), CPU)
    assert notes[-1] == "close a"
