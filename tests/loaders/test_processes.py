"""Calls in processes of their own, killed at every moment that matters."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.family import of_session
from vgan_fast.errors import UserError
from vgan_fast.loaders import processes as module
from vgan_fast.loaders.processes import HungError, ProcessDiedError, Processes


def double(number):
    return 2 * number


def told(number):
    return number, os.getpid()


def dies(number):
    os.kill(os.getpid(), number)
    time.sleep(60)


def leaves(status):
    sys.exit(status)


def fails(error):
    raise error


def sleeps(seconds):
    time.sleep(seconds)
    return seconds


class PickyError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def picky():
    raise PickyError(1, 2)


def unspeakable():
    return threading.Lock()


@pytest.fixture
def one():
    with closing(Processes(1)) as processes:
        yield processes


def outcome(processes, function, *arguments, seconds=30):
    processes.submit("key", function, arguments, seconds)
    key, future = processes.next()
    assert key == "key"
    return future


def children():
    """Processes of this one that are alive."""
    found = set()
    for task in Path(f"/proc/{os.getpid()}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def test_every_call_is_done_once_by_all_processes():
    with closing(Processes(2)) as processes:
        waiting, done, workers = list(range(20)), {}, set()
        while waiting or not processes.idle:
            while waiting and processes.hungry:
                number = waiting.pop()
                processes.submit(number, told, (number,), 30)
            key, future = processes.next()
            done[key], worker = future.result()
            workers.add(worker)
        assert done == {number: number for number in range(20)}
        assert len(workers) == 2


def test_what_a_call_raises_is_passed_on(one):
    with pytest.raises(OSError, match="No space"):
        outcome(one, fails, OSError(28, "No space left")).result()
    with pytest.raises(UserError, match="a line"):
        outcome(one, fails, UserError("a line")).result()
    with pytest.raises(RuntimeError, match="PickyError: 1 2"):  # cannot be made again
        outcome(one, picky).result()
    with pytest.raises(RuntimeError, match=r"TypeError: cannot pickle '_thread.lock' object"):
        outcome(one, unspeakable).result()
    assert outcome(one, double, 4).result() == 8


@pytest.mark.parametrize(
    ("function", "argument", "message", "from_outside"),
    [
        (dies, signal.SIGKILL, "SIGKILL", True),
        (dies, signal.SIGTERM, "SIGTERM", True),
        (dies, signal.SIGSEGV, "SIGSEGV", False),
        (leaves, 3, "exit code 3", False),
    ],
    ids=["kill", "term", "crash", "exit"],
)
def test_a_death_is_told_and_the_next_call_goes_on(one, function, argument, message, from_outside):
    with pytest.raises(ProcessDiedError, match=message) as error:
        outcome(one, function, argument).result()
    assert error.value.from_outside == from_outside
    assert outcome(one, double, 4).result() == 8


def test_a_call_that_hangs_is_given_up_and_the_one_behind_it_done(one):
    began = time.monotonic()
    one.submit("hangs", sleeps, (60,), 0.3)
    one.submit("behind", double, (4,), 30)
    key, future = one.next()
    assert key == "hangs"
    with pytest.raises(HungError):
        future.result()
    key, future = one.next()
    assert (key, future.result()) == ("behind", 8)
    assert time.monotonic() - began < 20


def test_a_death_costs_the_call_at_hand_and_not_the_one_behind_it(one):
    one.submit("dies", dies, (signal.SIGKILL,), 30)
    one.submit("behind", double, (4,), 30)
    ended = dict(one.next() for _ in range(2))
    assert isinstance(ended["dies"].exception(), ProcessDiedError)
    assert ended["behind"].result() == 8


def test_a_process_that_is_killed_while_idle_costs_nothing(one):
    _, worker = outcome(one, told, 1).result()
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.2)
    number, other = outcome(one, told, 2).result()
    assert number == 2
    assert other != worker


def test_a_process_killed_before_its_call_begins_costs_nothing(one):
    before = children()
    one.submit("key", double, (4,), 30)
    while not (started := _started(before)):
        time.sleep(0.001)
    os.kill(started.pop(), signal.SIGKILL)
    key, future = one.next()
    assert (key, future.result()) == ("key", 8)


def _started(before):
    """The spawned processes beside those and the tracker of resources."""
    new = children() - before
    return {pid for pid in new if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def _ends_at_once():
    os._exit(1)


def test_processes_that_die_as_they_start_end_it():
    with closing(Processes(2, _ends_at_once)) as processes:
        processes.submit("key", double, (4,), 30)
        with pytest.raises(UserError, match="killed or hang as they start; is memory short"):
            processes.next()


def _never_starts():
    time.sleep(60)


def test_processes_that_hang_as_they_start_end_it(monkeypatch):
    monkeypatch.setattr(module, "STARTING", 0.5)
    with closing(Processes(1, _never_starts)) as processes:
        processes.submit("key", double, (4,), 30)
        with pytest.raises(UserError, match="killed or hang as they start"):
            processes.next()


def test_killed_all_the_time_everything_is_done_once_and_nothing_left():
    """At random moments, some of which lie between two calls or in the middle of a message."""
    open_before, before = len(os.listdir("/proc/self/fd")), children()
    stop, kills, draw = threading.Event(), [], random.Random(0)

    def kill():
        while not stop.wait(draw.uniform(0, 0.02)):
            workers = _started(before)
            if workers and len(kills) < 40:
                kills.append(draw.choice(sorted(workers)))
                try:
                    os.kill(kills[-1], signal.SIGKILL)
                except ProcessLookupError:
                    kills.pop()

    module_starts, module.STARTS = module.STARTS, 1000
    try:
        with closing(Processes(3)) as processes:
            threading.Thread(target=kill, daemon=True).start()
            waiting, done = list(range(150)), []
            while waiting or not processes.idle:
                while waiting and processes.hungry:
                    number = waiting.pop()
                    processes.submit(number, sleeps, (0.002,), 30)
                key, future = processes.next()
                if isinstance(future.exception(), ProcessDiedError):
                    waiting.append(key)
                else:
                    done.append(key)
    finally:
        stop.set()
        module.STARTS = module_starts
    assert sorted(done) == list(range(150))
    assert len(kills) >= 10
    assert not _started(before)
    assert len(os.listdir("/proc/self/fd")) <= open_before + 1  # the tracker of resources


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Busy or idle, and however that one ends."""
    script = tmp_path / "start.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys, time
        from test_processes import sleeps, told
        from vgan_fast.loaders.processes import Processes
        if __name__ == "__main__":
            processes = Processes(2)
            processes.submit("idle", told, (0,), 30)
            print(processes.next()[1].result()[1], flush=True)
            processes.submit("busy", told, (0,), 600)
            processes.submit("busy", sleeps, (600,), 600)
            processes.submit("busy", sleeps, (600,), 600)
            processes.next()
            print("at work", flush=True)
            time.sleep(600)
        """)
    )
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{os.getcwd()}"}
    program = subprocess.Popen(
        [sys.executable, script],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    program.stdout.readline()
    assert program.stdout.readline() == "at work\n"
    time.sleep(0.3)
    program.kill()
    program.wait()
    deadline = time.monotonic() + 10
    while alive := of_session(program.pid):
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
