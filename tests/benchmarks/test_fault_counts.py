"""The command that counts faults: it sees what is lost, wrong, left behind or growing."""

import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("nvidia.dali")

from benchmarks import killing, soaking
from benchmarks.family import Sample, gone_within, of_session, sample
from benchmarks.killing import Preparing, Tally, Training
from benchmarks.soaking import WARM_UP, Soak


def subject(tmp_path, kept):
    made = Preparing(tmp_path, tmp_path / "whole")
    made.kept = kept
    return made


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        ({"a.tar": b"1", "b.tar": b"2"}, ""),
        ({"a.tar": b"1"}, 'not as the run that never stopped: ["b.tar"]'),
        ({"a.tar": b"1", "b.tar": b"3"}, 'not as the run that never stopped: ["b.tar"]'),
        ({"a.tar": b"1", "b.tar": b"2", "c.tar": b""}, 'stopped: ["c.tar"]'),
        ({"a.tar": b"1", "b.tar": b"2", ".x-1.part": b""}, "left behind"),
    ],
    ids=["same", "lost", "other", "more", "leftover"],
)
def test_a_finished_run_is_held_against_the_one_that_never_stopped(tmp_path, files, wrong):
    out, tally = tmp_path / "out", Tally("prepare")
    out.mkdir()
    for name, content in files.items():
        (out / name).write_bytes(content)
    killing._compare(subject(tmp_path, {"a.tar": b"1", "b.tar": b"2"}), out, tally)
    assert (tally.counts == Counter({"bit for bit the same": 1})) == (wrong in ("", "left behind"))
    assert wrong in " ".join(tally.wrong)
    assert bool(tally.wrong) == bool(wrong)


def test_half_files_and_half_checkpoints_are_seen(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"12")
    assert subject(tmp_path, {"a.tar": b"123"}).halfway(tmp_path) == ["a.tar: is half a file"]
    assert subject(tmp_path, {"a.tar": b"12"}).halfway(tmp_path) == []
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert "is missing" in Training(tmp_path, tmp_path).halfway(tmp_path)[0]


def test_arrays_are_the_same_by_every_value():
    assert killing._same(np.arange(3), np.arange(3))
    assert not killing._same(np.arange(3), np.arange(4))
    assert not killing._same(np.arange(3), b"")
    assert not killing._same(np.float32(1), np.float32(1.0000001))


def test_growth_beyond_its_bound_is_seen():
    steady = Sample(500.0, 10, 3, 2, 0, 1)
    done = Soak([steady] * (WARM_UP + 9))
    assert done.grown() == []
    for held, by in (("resident_mb", 30), ("descriptors", 1), ("temporary", 1)):
        grown = Sample(**{**vars_of(steady), held: getattr(steady, held) + by})
        done = Soak([steady] * (WARM_UP + 6) + [grown] * 3)
        assert [line.split()[0] for line in done.grown()] == [held]
    warm = Sample(200.0, 3, 1, 1, 0, 0)
    assert Soak([warm] * WARM_UP + [steady] * 9).grown() == []


def vars_of(of):
    return {name: getattr(of, name) for name in soaking.BOUNDS}


def test_a_family_is_counted_with_its_orphans(tmp_path):
    child = "import subprocess, sys; subprocess.Popen(['sleep', '30']); print(flush=True)"
    wait = child + "; sys.stdin.read()"
    parent = subprocess.Popen(
        [sys.executable, "-c", wait],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    parent.stdout.readline()
    (tmp_path / "left").touch()
    found = sample(parent.pid, tmp_path)
    assert (found.processes, found.temporary) == (2, 1)
    assert found.resident_mb > 3
    parent.kill()
    parent.wait()
    assert not gone_within(parent.pid, 0.1)
    for orphan in of_session(parent.pid):
        os.kill(orphan, 9)
    assert gone_within(parent.pid, 5)
    parent.stdin.close()
    parent.stdout.close()


@pytest.mark.slow
def test_some_kills_and_a_short_soak(tmp_path):
    """As its users run it; nothing is wrong."""
    command = [sys.executable, "-m", "benchmarks.faults", "--kills", "6", "--soak", "0.01"]
    ended = subprocess.run(
        [*command, "--out", tmp_path / "faults.md"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    page = (tmp_path / "faults.md").read_text()
    assert "random kill points" in page
    assert "Wrong: 0." in page


def test_only_what_python_prints_at_birth_is_counted_apart():
    born = (
        'Traceback (most recent call last):\n  File "<string>", line 1, in <module>\n'
        '  File "/lib/multiprocessing/spawn.py", line 122, in spawn_main\n'
        "    exitcode = _main(fd, parent_sentinel)\n"
        "               ^^^^^^^^^^^^^^^^^^^^^^^^^^\nEOFError: Ran out of input\n"
    )
    ours = born.replace("EOFError: Ran out of input", "KeyError: 'clip'")
    assert killing._CUT_OFF.sub("", f"preparing\n{born}") == "preparing\n"
    assert not killing._CUT_OFF.search(ours)
    assert not killing._CUT_OFF.search(born.replace('"<string>"', '"train.py"'))
