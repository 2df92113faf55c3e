"""Programs over full disks, killed between any two writes, and over damaged checkpoints."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise

import click
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._pytree import tree_flatten

from vgan_fast import generate, pictures, train, trainer
from vgan_fast.checkpoint import find_checkpoint, list_checkpoints, save_checkpoint
from vgan_fast.cli import Program
from vgan_fast.errors import UserError
from vgan_fast.settings import Settings

TINY = [
    *("--preset", "short", "--frames", 4, "--size", 16, "--width", 4, "--latent", 8),
    *("--batch-size", 4, "--device", "cpu", "--checkpoint-every", 2, "--sample-every", 3),
]


def run(program, *arguments):
    """Exit status of a program run in this process."""
    with pytest.raises(SystemExit) as stop:
        program.main([str(a) for a in arguments])
    return stop.value.code or 0


def content(folder):
    """Files of a run or a checkpoint: bytes, or what is in those that differ by times or memory."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name == "state.pt":
            leaves, _ = tree_flatten(torch.load(path, weights_only=True))
            found[name] = [v.tolist() if isinstance(v, torch.Tensor) else v for v in leaves]
        elif path.is_file() and "tfevents" not in name and path.name != "sha256.json":
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Six steps, with pictures at three and six."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run(train.main, *TINY, "--steps", 6, "--out", out) == 0
    return out


@contextlib.contextmanager
def files_up_to(size):
    """Let the system refuse larger files, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def one_line(error):
    lines = [line for line in error.splitlines() if line and "step" not in line.split("/")[-1]]
    assert "Traceback" not in error
    assert lines[-1].startswith("error: ")
    return lines[-1]


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "size", [300, 30_000, pytest.param(0, marks=slow), pytest.param(3000, marks=slow)]
)
def test_a_disk_that_fills_up_while_training(whole, tmp_path, capsys, size):
    """What is being written when it fills differs by size; checkpoints are whole or not there."""
    out = tmp_path / "run"
    with files_up_to(size):
        assert run(train.main, *TINY, "--steps", 6, "--out", out) == 2
    assert "the disk is full; free some space" in capsys.readouterr().err.splitlines()[-1]
    assert not [path for path in out.rglob(".*")]
    for path in list_checkpoints(out):
        find_checkpoint(path)
    shutil.rmtree(out)
    assert run(train.main, *TINY, "--steps", 6, "--out", out) == 0
    assert content(out) == content(whole)


@pytest.mark.parametrize(
    "arguments",
    [
        (generate.main, "RUN", "--out", "OUT/x.gif"),
        (generate.main, "RUN", "--out", "OUT/clips", "--each", "png"),
        (train.main, *TINY, "--profile", "--out", "OUT/profile"),
        pytest.param((generate.main, "RUN", "--out", "OUT/x.mp4"), marks=slow),
        pytest.param((train.main, "--history", "--out", "RUN"), marks=slow),
    ],
    ids=["gif", "clips", "profile", "mp4", "history"],
)
def test_a_disk_that_is_full_for_other_outputs(whole, tmp_path, capsys, arguments):
    program, *arguments = arguments
    copy = tmp_path / "run"
    shutil.copytree(whole, copy)
    out = tmp_path / "out"
    out.mkdir()
    given = [str(a).replace("RUN", str(copy)).replace("OUT", str(out)) for a in arguments]
    with files_up_to(100):
        assert run(program, *given) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "the disk is full; free some space" in error.splitlines()[-1]
    assert content(copy) == content(whole)
    left = [path for path in out.rglob("*") if path.is_file() and "tfevents" not in path.name]
    assert not left


def test_standard_output_on_a_full_disk_is_one_line(whole, tmp_path):
    command = [sys.executable, "-m", "vgan_fast.generate", whole, "--out", tmp_path / "x.gif"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.stderr == "error: standard output: the disk is full; free some space\n"
    assert ended.returncode == 2


def test_a_read_only_place_is_refused_in_one_line(whole, tmp_path, capsys):
    for program, *arguments in (
        (train.main, *TINY, "--steps", 2, "--out", "/proc/run"),
        (generate.main, whole, "--out", "/proc/x.gif"),
        (generate.main, whole, "--out", "/proc/clips"),
    ):
        assert run(program, *arguments) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: /proc/")
        assert "cannot be written" in error


class Killed(BaseException):
    """Ends a program where it stands, as SIGKILL does: nobody catches it."""


@pytest.mark.parametrize(
    "at", [pytest.param(n, marks=() if n in (2, 7) else slow) for n in range(10)]
)
def test_killed_between_any_two_writes_a_run_owes_nothing(whole, tmp_path, monkeypatch, at):
    """Weights, pictures, losses and animations are those of the run that never stopped."""
    out, calls = tmp_path / "run", []

    def counted(real):
        def function(*arguments, **options):
            if len(calls) == at:
                raise Killed
            calls.append(real)
            return real(*arguments, **options)

        return function

    with monkeypatch.context() as patched:
        for name in ("write_picture", "save_checkpoint", "_report", "_add_animation"):
            patched.setattr(trainer, name, counted(getattr(trainer, name)))
        patched.setattr(trainer.SummaryWriter, "close", lambda self: None)
        with pytest.raises(Killed):
            train.main.main([str(a) for a in (*TINY, "--steps", 6, "--out", out)])
    again = ["--resume", "--out", out] if list_checkpoints(out) else [*TINY, "--out", out]
    assert run(train.main, *again, "--steps", 6) == 0
    assert content(out) == content(whole)
    events, expected = (EventAccumulator(str(p)).Reload() for p in (out, whole))
    for tag in ("loss/g", "loss/d_real"):
        found, wanted = ([(e.step, e.value) for e in of.Scalars(tag)] for of in (events, expected))
        assert found == wanted
    for of in (events, expected):
        assert {image.step for image in of.Images("samples")} == {3, 6}


def test_history_is_on_disk_before_each_checkpoint_and_each_strip(tmp_path, monkeypatch):
    """TensorBoard writes in a thread of its own, which a kill takes with it."""
    calls = []
    for holder, name in (
        (trainer.SummaryWriter, "flush"),
        (trainer.SummaryWriter, "add_scalar"),
        (trainer, "save_checkpoint"),
        (trainer, "write_picture"),
    ):
        real = getattr(holder, name)
        monkeypatch.setattr(
            holder, name, lambda *a, _name=name, _real=real: (calls.append(_name), _real(*a))[1]
        )
    assert run(train.main, *TINY, "--steps", 3, "--out", tmp_path / "run") == 0
    before = [first for first, then in pairwise(calls) if then == "save_checkpoint"]
    assert before == ["flush"] * 3  # at steps 2 and 3, and at the end
    assert "write_picture flush write_picture" in " ".join(calls)


def test_sigterm_anywhere_ends_as_ctrl_c_does(whole, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    real = pictures.encode

    def terminated(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(pictures, "encode", terminated)
    assert run(generate.main, whole, "--out", tmp_path / "x.gif") == 143
    assert capsys.readouterr().err.strip() == "error: interrupted"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_interruption_that_a_library_makes_another_error_of_is_one(tmp_path, capsys):
    """As DALI does of what its callbacks raise."""

    @click.command(cls=Program)
    def program():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("Critical error in pipeline") from None

    assert run(program) == 143
    assert capsys.readouterr().err == "error: interrupted\n"


def test_an_interruption_in_a_finaliser_is_not_lost(capsys):
    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    @click.command(cls=Program)
    def program():
        Finalised()
        time.sleep(20)

    began = time.monotonic()
    assert run(program) == 143
    assert time.monotonic() - began < 10
    assert capsys.readouterr().err.strip() == "error: interrupted"


def test_an_interruption_in_what_is_executed_from_text_keeps_its_status():
    """As the making of a data class does while a program is imported."""
    program = (
        "import click; from vgan_fast.cli import Program\n"
        "@click.command(cls=Program)\n"
        "def main(): exec('import signal; signal.raise_signal(signal.SIGTERM)')\n"
        "main.main([])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode == 143


def test_a_fault_of_ours_is_no_line():
    @click.command(cls=Program)
    def program():
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        program.main([])


def test_a_program_may_run_in_a_thread(whole, tmp_path):
    """Where no signal can be caught."""
    found = []

    def work():
        try:
            generate.main.main([str(whole), "--out", str(tmp_path / "x.gif"), "--count", "1"])
        except SystemExit as end:
            found.append(end.code or 0)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]


def test_leftover_pictures_of_a_killed_run_are_removed(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "pictures" / ".step-00000006.gif-abc.part").mkdir()
    assert run(train.main, "--resume", "--out", out, "--steps", 7) == 0
    assert not list((out / "pictures").glob(".*"))


# Checkpoints.


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A run of three small checkpoints."""
    out, settings = tmp_path_factory.mktemp("three"), Settings()
    for step in (1, 2, 3):
        network = torch.nn.Linear(2, 2)
        save_checkpoint(out, step, {"net": network}, {"position": step}, settings)
    return out


def damaged_everywhere(three, name, damages):
    """Damage a file of the newest checkpoint in many ways; each is refused by name."""
    file = list_checkpoints(three)[-1] / name
    kept = file.read_bytes()
    try:
        for damaged in damages(kept):
            assert damaged != kept
            file.write_bytes(damaged)
            with pytest.raises(UserError) as error:
                find_checkpoint(three)
            message = str(error.value)
            assert "step-00000003" in message.partition(":")[0]
            assert message.endswith("remove step-00000003 to go on from step-00000002")
            assert "\n" not in message
    finally:
        file.write_bytes(kept)


FILES = ("weights.safetensors", "state.pt", "settings.json", "sha256.json")


@pytest.mark.parametrize("share", [0.04, pytest.param(1, marks=slow)])
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_off_at_any_byte_is_refused(three, name, share):
    def damages(kept):
        draw = random.Random(0)
        for at in {0, 1, len(kept) - 1, *draw.sample(range(len(kept)), int(share * len(kept)))}:
            yield kept[:at]

    damaged_everywhere(three, name, damages)


@pytest.mark.parametrize("share", [0.04, pytest.param(1, marks=slow)])
@pytest.mark.parametrize("name", FILES)
def test_any_byte_changed_is_refused(three, name, share):
    def damages(kept):
        draw = random.Random(0)
        for at in {0, len(kept) - 1, *draw.sample(range(len(kept)), int(share * len(kept)))}:
            for change in (1 << draw.randrange(8), draw.randrange(1, 256)):
                yield kept[:at] + bytes([kept[at] ^ change]) + kept[at + 1 :]
        yield kept + b"\n"

    damaged_everywhere(three, name, damages)


def test_what_is_offered_is_whole_and_the_offer_can_be_followed(whole, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    assert run(train.main, "--resume", "--out", out, "--steps", 8) == 0
    for path, name in zip(list_checkpoints(out)[1:], ("settings.json", "state.pt"), strict=True):
        (path / name).write_bytes(b"")
    capsys.readouterr()
    assert run(train.main, "--resume", "--out", out, "--steps", 9) == 2
    error = capsys.readouterr().err
    offer = "remove step-00000008 and step-00000006 to go on from step-00000004"
    assert error.rstrip().endswith(
        f"step-00000008/state.pt: is missing, truncated or corrupt; {offer}"
    )
    for name in ("step-00000008", "step-00000006"):
        shutil.rmtree(out / "checkpoints" / name)
    assert run(train.main, "--resume", "--out", out, "--steps", 6) == 0
    assert content(out / "checkpoints" / "step-00000006") == content(
        whole / "checkpoints" / "step-00000006"
    )


def test_without_any_whole_one_it_says_so(three, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(three, out)
    for path in list_checkpoints(out):
        (path / "state.pt").unlink()
    with pytest.raises(UserError, match=r"state.pt: .*; there is no earlier one that is whole"):
        find_checkpoint(out)


def test_killed_over_an_old_checkpoint_it_leaves_whole_ones(tmp_path, monkeypatch):
    settings, state = Settings(keep=1), {"position": 0}
    save_checkpoint(tmp_path, 1, {"net": torch.nn.Linear(2, 2)}, state, settings)
    real = shutil.rmtree

    def killed(path, ignore_errors=False):
        if not ignore_errors:
            (path / "weights.safetensors").unlink()
            raise Killed
        real(path, ignore_errors)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            save_checkpoint(tmp_path, 2, {"net": torch.nn.Linear(2, 2)}, state, settings)
    assert [find_checkpoint(path).name for path in list_checkpoints(tmp_path)] == ["step-00000002"]
    save_checkpoint(tmp_path, 3, {"net": torch.nn.Linear(2, 2)}, state, settings)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_an_old_checkpoint_that_cannot_be_dropped_is_one_line(whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"

    def refuses(path, ignore_errors=False):
        if "step-" in path.name and not ignore_errors:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuses)
    assert run(train.main, *TINY, "--keep", 1, "--steps", 6, "--out", out) == 2
    assert "checkpoints: cannot be written (permission denied)" in capsys.readouterr().err
    assert [path.name for path in list_checkpoints(out)] == ["step-00000004"]
    assert np.asarray(iio.imread(out / "pictures/step-00000003.png")).any()
    os.sync()
