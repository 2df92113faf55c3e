"""Writing whole or not at all, and what killed programs have left."""

import errno
import os
import subprocess
import sys
import time

import pytest

from vgan_fast import files
from vgan_fast.errors import UserError
from vgan_fast.files import explained, written_whole


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(files, "_cleared", set())


def left_by_a_killed_program(path):
    """Kill a program in the middle of writing `path`, or a folder of that name."""
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from vgan_fast.files import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, path], check=False)
    (left,) = path.parent.glob(f".{path.name}-*")
    return left


def aged(path, seconds=120):
    past = time.time() - seconds
    os.utime(path, (past, past))


def test_what_a_killed_program_left_is_removed_by_the_next(tmp_path):
    left = left_by_a_killed_program(tmp_path / "a.gif")
    aged(left)
    with written_whole(tmp_path / "b.gif") as part:
        part.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b.gif"]


@pytest.mark.parametrize("name", [".cache-folder", ".my-notes.part", ".a-12345678{}", ".b-2{}"])
def test_what_is_being_written_now_or_is_another_s_is_left_alone(tmp_path, name):
    young = left_by_a_killed_program(tmp_path / "a.gif")
    other = tmp_path / name.format(files._SCRATCH)
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    aged(other)
    with written_whole(tmp_path / "b.gif") as part:
        part.write_text("slow")
        aged(part.parent)
        files._cleared.clear()
        with written_whole(tmp_path / "c.gif") as second:
            second.write_text("quick")
    assert {path.name for path in tmp_path.iterdir()} == {
        young.name,
        other.name,
        "b.gif",
        "c.gif",
    }


def test_nothing_is_held_open_afterwards(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with written_whole(tmp_path / "a") as part:
        part.write_text("whole")
    with pytest.raises(UserError), written_whole(tmp_path / "b"):
        raise OSError(errno.ENOSPC, "full")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "x: the disk is full; free some space or choose another --out"),
        (errno.EDQUOT, "x: the disk is full; free some space or choose another --out"),
        (errno.EFBIG, "x: the disk is full; free some space or choose another --out"),
        (errno.EROFS, r"x: cannot be written .read-only file system.; choose another --out"),
        (errno.EACCES, r"x: cannot be written .permission denied.; choose another --out"),
        (errno.EIO, r"x: cannot be written .input/output error.; choose another --out"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
@pytest.mark.parametrize("at", ["mkdtemp", "write", "fsync", "replace"])
def test_whatever_fails_is_one_line_and_the_older_file_stays(
    tmp_path, monkeypatch, number, message, at
):
    path = tmp_path / "x"
    path.write_text("older")

    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    module = files.tempfile if at == "mkdtemp" else os
    with monkeypatch.context() as patched:
        if at != "write":
            patched.setattr(module, at, fails)
        with pytest.raises(UserError, match=f"{message}$") as error, written_whole(path) as part:
            part.write_text("newer")
            if at == "write":
                fails()
    assert "\n" not in str(error.value)
    assert path.read_text() == "older"
    assert [other.name for other in tmp_path.iterdir()] == ["x"]


def test_other_errors_pass(tmp_path):
    with pytest.raises(KeyError), explained(tmp_path):
        raise KeyError("x")
