"""`vgan_fast.study` as whoever runs a study meets it."""

import subprocess
import sys

import pytest
from small_study import make_study

from vgan_fast.study import server
from vgan_fast.study.__main__ import main
from vgan_fast.study.store import Study

TWO = ["--clips", "a=synthetic", "--clips", "b=synthetic"]
TINY = ["--frames", "2", "--size", "8", "--count", "2", "--trials", "3", "--catch", "1"]


@pytest.fixture(autouse=True)
def unserved(monkeypatch, tmp_path):
    """Studies are made and checked, not served."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server, "serve", lambda study, host, port: None)


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code or 0


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def test_a_study_is_made_once_and_the_same_command_goes_on(tmp_path, capsys):
    command = ["serve", "study.db", *TWO, "--static", "b", *TINY]
    assert run(*command) == 0
    printed = capsys.readouterr().out
    assert "making study.db" in printed
    assert "3 conditions (a, b, static b), 2 clips of each, 2 frames of 8x8" in printed
    study = Study(tmp_path / "study.db")
    rater = study.begin()
    assert run(*command) == 0
    assert "making" not in capsys.readouterr().out
    assert run("serve", "study.db") == 0
    assert Study(tmp_path / "study.db").knows(rater)
    assert study.options.fps == 12


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--count", "3"], "--count 3: study.db was made with 2; leave the option out to go on"),
        (["--fps", "5"], "--fps 5: study.db was made with 12"),
        (["--static", "a"], "--static a: study.db was made with nothing"),
        (["--clips", "c=synthetic"], "--clips c=synthetic: study.db was made with a=synthetic b="),
    ],
)
def test_another_study_does_not_take_the_place_of_one(tmp_path, capsys, changed, message):
    assert run("serve", "study.db", *TWO, *TINY) == 0
    before = (tmp_path / "study.db").read_bytes()
    capsys.readouterr()
    assert run("serve", "study.db", *changed) == 2
    assert message in one_line(capsys)
    assert (tmp_path / "study.db").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["serv"], "serv"),
        (["serve"], "DB"),
        (["serve", "x.db"], "name them with --clips NAME=SOURCE"),
        (["serve", "x.db", "--clips", "a=synthetic"], "two conditions are the least"),
        (["serve", "x.db", "--clips", "a", *TWO], "--clips a: must be NAME=SOURCE"),
        (["serve", "x.db", "--clips", "=synthetic", *TWO], "must be NAME=SOURCE"),
        (["serve", "x.db", "--clips", "a=", *TWO], "must be NAME=SOURCE"),
        (["serve", "x.db", "--clips", "a|b=synthetic", *TWO], "printable characters but |"),
        (["serve", "x.db", "--clips", f"{'n' * 41}=synthetic", *TWO], "up to 40"),
        (["serve", "x.db", "--clips", "a=synthetic", *TWO], "--clips a: the name is taken"),
        (["serve", "x.db", "--clips", "c=absent", *TWO], "--clips c=absent: no such file"),
        (["serve", "x.db", "--clips", "c=empty", *TWO], "empty: no video"),
        (["serve", "x.db", "--clips", "c=broken", *TWO], "broken"),
        (["serve", "x.db", *TWO, "--static", "c"], "--static c: is no name in --clips"),
        (["serve", "x.db", *TWO, "--count", "0"], "--count"),
        (["serve", "x.db", *TWO, "--trials", "0"], "--trials"),
        (["serve", "x.db", *TWO, "--catch", "-1"], "--catch"),
        (["serve", "x.db", *TWO, "--fps", "0"], "--fps"),
        (["serve", "x.db", *TWO, "--size", "4"], "--size"),
        (["serve", "x.db", *TWO, "--port", "70000"], "--port"),
        (["serve", "empty", *TWO], "empty"),
        (["serve", "broken/a.mp4", *TWO], "broken/a.mp4: cannot be read as a study"),
        (
            ["serve", "broken/a.mp4/x.db", *TWO, *TINY],
            "x.db: cannot be written (file exists); name another",
        ),
        (["results", "x.db"], "x.db: no such study"),
        (["results", "broken/a.mp4"], "cannot be read as a study"),
        (["results", "good.db", "--allowed-misses", "-1"], "--allowed-misses"),
        (["results", "good.db", "--out", "broken/a.mp4/t.md"], "cannot be written"),
        (["results", "good.db", "--out", "empty"], "empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_leaves_nothing(tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").write_bytes(b"no video" * 1000)
    make_study(tmp_path / "good.db")
    before = sorted(tmp_path.rglob("*"))
    assert run(*arguments) == 2
    assert message in one_line(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A file size limit of the system stands for it."""
    code = """
import resource, sys
from vgan_fast.study.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, "serve", "x.db", *TWO, "--size", "16", "--count", "9"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: x.db: cannot be written (")
    assert result.stderr.endswith("; name another file\n")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_results_are_printed_and_written(tmp_path, capsys):
    make_study(tmp_path / "study.db")
    assert run("results", "study.db", "--out", "table.md", "--allowed-misses", 1) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == printed
    assert "Without raters who missed more than 1 catch trials" in printed
    assert "No votes." in printed


def test_a_place_that_is_taken_is_one_line(tmp_path):
    """Of the real server, in processes of their own."""
    from small_study import free_port, served

    db, port = make_study(tmp_path / "study.db"), free_port()
    command = [sys.executable, "-m", "vgan_fast.study", "serve", db]
    with served(db, port):
        taken = subprocess.run([*command, "--port", str(port)], capture_output=True, text=True)
    assert taken.returncode == 2
    assert taken.stderr == (
        f"error: --host 127.0.0.1 --port {port}: cannot be listened at (address already in use);"
        " choose another\n"
    )
    for host in ("no.such.invalid", "a..b"):
        nowhere = subprocess.run([*command, "--host", host], capture_output=True, text=True)
        assert nowhere.returncode == 2
        assert nowhere.stderr.startswith(f"error: --host {host} --port 8000: cannot be")
        assert nowhere.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("absent", "command"),
    [("flask", "serve"), ("waitress", "serve"), ("scipy", "results"), ("flask", "--help")],
)
def test_without_the_extra_its_name_is_said(tmp_path, absent, command):
    code = f"""
import sys
sys.modules[{absent!r}] = None
from vgan_fast.study.__main__ import main
main({[command, "study.db"]!r})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if command == "--help":
        assert result.returncode == 0
        assert "serve" in result.stdout
    else:
        assert result.returncode == 2
        assert result.stderr == (
            f"error: the study needs {absent}, which is not installed:"
            " pip install 'vgan_fast[study]'\n"
        )


def test_a_study_that_goes_on_needs_no_pytorch(tmp_path):
    make_study(tmp_path / "study.db")
    code = """
import sys
sys.modules["torch"] = None
from vgan_fast.study import server
server.serve = lambda *_: None
from vgan_fast.study.__main__ import main
main(["serve", "study.db"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
