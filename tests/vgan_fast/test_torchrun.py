"""`torchrun -m vgan_fast.train` as its users meet it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vgan_fast.checkpoint import find_checkpoint, list_checkpoints

pytestmark = pytest.mark.slow
TINY = ["--frames", "4", "--size", "16", "--width", "4", "--latent", "8", "--batch-size", "4"]
TINY += ["--device", "cpu"]
STEPS = 300
RUN = [*TINY, "--steps", STEPS, "--checkpoint-every", 20, "--sample-every", 1000]


def torchrun(*arguments, restarts=0, program=("-m", "vgan_fast.train"), cwd=None):
    """Two processes of a program and the torchrun that watches them.

    Not --standalone, which has a new store for each attempt.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launcher = ["torch.distributed.run", "--master-port", str(port), "--nproc-per-node", "2"]
    launcher += ["--max-restarts", str(restarts), *program]
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, [*launcher, *arguments])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def ended(process, seconds=120):
    """Exit status, standard output and error of a torchrun, and no process left behind."""
    stdout, stderr = process.communicate(timeout=seconds)
    return process.returncode, stdout, stderr


def wait_for(process, condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def rank_of(process, number):
    """The process of that rank which a torchrun has started."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == process.pid and f"RANK={number}".encode() in variables:
            return int(entry.name)
    raise AssertionError(f"no process of rank {number}")


def assert_same(first, second):
    """The last checkpoints of two runs."""
    a, b = (
        safetensors.torch.load_file(find_checkpoint(run) / "weights.safetensors")
        for run in (first, second)
    )
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def errors(stderr):
    """What the program's processes said, whatever torchrun says of them."""
    return re.findall(r"\berror: .*", stderr)  # behind a bar of progress, too


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing happens to."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    status, stdout, stderr = ended(torchrun(*RUN, "--out", out))
    assert status == 0, stderr
    assert stdout.count("writing to") == stdout.count("done: ") == 1  # rank 0 alone
    return out


def test_a_killed_process_is_started_again_and_the_run_ends_as_if_nothing_were(whole, tmp_path):
    out = tmp_path / "run"
    process = torchrun(*RUN, "--out", out, restarts=1)
    wait_for(process, lambda: len(list_checkpoints(out)) > 1)
    os.kill(rank_of(process, 1), signal.SIGKILL)
    status, stdout, stderr = ended(process)
    assert status == 0, stderr
    assert f"a process died: going on from {out}/checkpoints/step-" in stdout
    assert find_checkpoint(out).name == f"step-{STEPS:08d}"
    assert_same(out, whole)


def test_what_was_there_before_is_not_gone_on_with(whole):
    before = find_checkpoint(whole).stat().st_mtime_ns
    status, _, stderr = ended(torchrun(*RUN, "--out", whole, restarts=1))
    assert status != 0
    assert len(errors(stderr)) == 2  # of each attempt
    assert all("already holds a run" in line for line in errors(stderr))
    assert find_checkpoint(whole).stat().st_mtime_ns == before


def test_another_number_of_processes_resumes_and_goes_on(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    command = [sys.executable, "-m", "vgan_fast.train", "--resume", "--out", out]
    subprocess.run([*command, "--steps", str(STEPS + 5)], check=True)
    state = torch.load(find_checkpoint(out) / "state.pt", weights_only=True)
    assert state["position"] == STEPS + 5


@pytest.mark.parametrize(
    ("number", "of"),
    [(signal.SIGINT, "torchrun"), (signal.SIGTERM, "torchrun"), (signal.SIGTERM, "rank 1")],
)
def test_a_signal_saves_and_ends_all_after_the_same_step(tmp_path, number, of):
    out = tmp_path / "run"
    given = [*TINY, "--steps", 100000, "--checkpoint-every", 10, "--out", out]
    process = torchrun(*given)
    wait_for(process, lambda: list_checkpoints(out))
    os.kill(process.pid if of == "torchrun" else rank_of(process, 1), number)
    status, stdout, stderr = ended(process)
    assert status != 0
    assert stdout.count("stopped and saved") == 1
    assert not errors(stderr)
    last = find_checkpoint(out)
    state = torch.load(last / "state.pt", weights_only=True)
    assert f"step-{state['position']:08d}" == last.name


def test_bad_input_is_one_line(tmp_path):
    status, _, stderr = ended(torchrun(*TINY, "--batch-size", 5, "--out", tmp_path / "run"))
    assert status != 0
    assert errors(stderr) == [
        "error: --batch-size 5: must be a multiple of the 2 processes, which share each batch"
    ]
    assert not (tmp_path / "run").exists()


def test_options_that_click_refuses_are_one_line():
    status, _, stderr = ended(torchrun("--batch-size", "many"))
    assert status != 0
    assert len(errors(stderr)) == 1


@pytest.mark.parametrize("number", [0, 1])
def test_an_error_of_one_process_is_said_once(tmp_path, number):
    script = tmp_path / "program.py"
    script.write_text(FAILING.format(number=number))
    started = time.monotonic()
    status, _, stderr = ended(torchrun(*RUN, "--out", tmp_path / "run", program=[script]))
    assert status != 0
    assert errors(stderr) == ["error: this process has no data"]
    assert time.monotonic() - started < 60


FAILING = """
import os
from vgan_fast import train
from vgan_fast.errors import UserError
from vgan_fast.loaders.synthetic import SyntheticClips

if os.environ["RANK"] == "{number}":
    def next_batch(clips):
        if clips.position == 5:
            raise UserError("this process has no data")
        return draw(clips)
    draw, SyntheticClips.next_batch = SyntheticClips.next_batch, next_batch

train.main()
"""


def test_a_dead_process_ends_the_others_where_none_is_started_again(tmp_path):
    out = tmp_path / "run"
    process = torchrun(*TINY, "--steps", 100000, "--checkpoint-every", 10, "--out", out)
    wait_for(process, lambda: list_checkpoints(out))
    os.kill(rank_of(process, 1), signal.SIGKILL)
    status, _, stderr = ended(process, seconds=60)
    assert status != 0
    assert len(errors(stderr)) == 1
    assert "another process of the run has died or is stuck" in stderr
    assert find_checkpoint(out)


def test_generated_clips_are_those_of_one_process(whole, tmp_path):
    for out in ("clips", "clips.png"):
        given = [whole, "--count", 130, "--seed", 3, "--each", "png", "--device", "cpu", "--out"]
        alone = [sys.executable, "-m", "vgan_fast.generate", *map(str, given)]
        subprocess.run([*alone, tmp_path / f"alone-{out}"], check=True)
        program = ["-m", "vgan_fast.generate"]
        process = torchrun(*given, tmp_path / f"two-{out}", program=program)
        status, stdout, stderr = ended(process)
        assert status == 0, stderr
        assert stdout.count("130 clips of") == 1
    assert (tmp_path / "alone-clips.png").read_bytes() == (tmp_path / "two-clips.png").read_bytes()
    mine, theirs = (sorted((tmp_path / f"{of}-clips").iterdir()) for of in ("two", "alone"))
    assert [file.name for file in mine] == [file.name for file in theirs]
    assert len(mine) == 130
    assert [file.read_bytes() for file in mine] == [file.read_bytes() for file in theirs]


def test_numbers_are_those_of_one_process(whole, tmp_path):
    given = [whole, "--count", 130, "--training-clips", 70, "--detector", "discriminator"]
    given += ["--device", "cpu", "--out"]
    alone = [sys.executable, "-m", "vgan_fast.evaluate", *map(str, given)]
    subprocess.run([*alone, tmp_path / "alone.json"], check=True)
    program = ["-m", "vgan_fast.evaluate"]
    status, stdout, stderr = ended(torchrun(*given, tmp_path / "two.json", program=program))
    assert status == 0, stderr
    assert stdout.count("stored: ") == 1
    results = [json.loads((tmp_path / f"{of}.json").read_text()) for of in ("alone", "two")]
    for result in results:
        del result["made_by"]
    assert results[0] == results[1]
    for suffix in ("png", "gif"):
        assert (tmp_path / f"two.{suffix}").read_bytes() == (
            tmp_path / f"alone.{suffix}"
        ).read_bytes()


def test_programs_that_are_not_shared_say_so(whole):
    program = ["-m", "vgan_fast.classify"]
    status, _, stderr = ended(torchrun(whole, "--data", "synthetic-motions", program=program))
    assert status != 0
    (line,) = errors(stderr)
    assert "runs as one process; start it without torchrun" in line


def test_chains_are_not_shared(tmp_path):
    status, _, stderr = ended(torchrun("--model", "stgconvnet", "--out", tmp_path / "run"))
    assert status != 0
    assert errors(stderr) == [
        "error: --model stgconvnet: its chains belong to one process; start it without torchrun"
    ]
