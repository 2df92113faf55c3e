"""`python -m vgan_fast.loaders.inspect` as its users meet it."""

import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
from loader_media import frame, write_strip, write_video

from vgan_fast.loaders import inspect


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        inspect.main([str(argument) for argument in arguments])
    return stop.value.code or 0


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    """A frame of 128x128 (small ones are enlarged) between gaps of two pixels."""
    top, left = 2 + 130 * row, 2 + 130 * column
    return sheet[top : top + 128, left : left + 128]


def test_videos_are_listed_with_rates_classes_and_rejects(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "data/walk/a.mp4", frames=40)
    write_video(tmp_path / "data/walk/b.avi", "mjpeg", 10, pix_fmt="yuvj420p")
    write_video(tmp_path / "data/run/c.mp4", frames=20)
    (tmp_path / "data/run/broken.mp4").write_text("no video")
    (tmp_path / "data/notes.txt").write_text("no video")
    options = ("--frames", 8, "--size", 32, "--batch-size", 3, "--batches", 2, "--device", "cpu")
    assert run("data", *options, "--out", "sheet.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data: 4 videos: 3 usable, 70 frames, 8 clips of 8, ")
    assert "1 skipped" in lines[0]
    assert "2 classes" in lines[0]
    assert "1 .txt" in lines[0]
    table = {words[0].rpartition("/")[2]: words[1:] for words in map(str.split, lines[1:5])}
    assert table == {
        "file": ["class", "frames", "a", "second"],
        "a.mp4": ["walk", "40", "25"],
        "b.avi": ["walk", "10", "25"],
        "c.mp4": ["run", "20", "25"],
    }
    assert lines[5:8] == [
        "lengths: 10 to 40 frames, median 20",
        "frames a second: 3 at 25",
        "classes: run 1, walk 2",
    ]
    assert lines[8].startswith("skipped ")
    assert "broken.mp4: " in lines[8]
    assert lines[9] == "sheet.png: 6 clips of 8 frames, 32x32, from above:"
    names = [line.rpartition("/")[2] for line in lines[10:]]
    assert len(names) == 6  # of the eight clips of an epoch, five are of a.mp4 and two of c.mp4
    assert 3 <= names.count("a.mp4") <= 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "sheet.png"]


def test_the_sheet_shows_clips_as_the_network_sees_them(tmp_path, monkeypatch):
    """Each row a clip, its eight frames in order, the red mark at the top left."""
    monkeypatch.chdir(tmp_path)
    write_strip(tmp_path / "a.jpg", 8)
    options = ("--frames", 8, "--size", 32, "--batch-size", 2, "--device", "cpu")
    assert run("a.jpg", *options) == 0
    sheet = iio.imread("contact_sheet.png").astype(int)
    assert sheet.shape == (2 + 2 * 130, 2 + 8 * 130, 3)
    for row in range(2):
        for column in range(8):
            expected = frame(column, 32, 32).repeat(4, 0).repeat(4, 1)
            assert np.abs(tile(sheet, row, column) - expected).mean() < 4
    assert (
        run("a.jpg", *options, "--flip", "--crop", 0.5, "--brightness", 0.5, "--out", "b.png") == 0
    )
    assert np.abs(iio.imread("b.png").astype(int) - sheet).mean() > 10


def test_the_sheet_must_not_become_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_strip(tmp_path / "a.jpg", 8)
    assert run(".", "--frames", 8, "--size", 32, "--device", "cpu") == 2
    assert "lies in . and would be taken for a strip" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_large_sets_are_summed_up(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(inspect.LISTED + 1):
        write_strip(tmp_path / "data" / f"{number}.jpg", 4 + number % 3, side=16)
    assert run("data", "--frames", 4, "--size", 16, "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 8
    assert lines[1] == "lengths: 4 to 6 frames, median 5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthetic"], "synthetic clips are no files"),
        (["absent"], "absent: no such file or folder"),
        (["a.jpg", "--out", "sheet.gif"], "--out sheet.gif: must end in .png"),
        (["a.jpg", "--crop", "2"], "--crop 2.0: must lie between"),
        (["a.jpg", "--fps", "10"], "--fps 10"),
        (["a.jpg", "--out", "a.jpg/sheet.png"], "sheet.png"),
        ([], "DATA"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    write_strip(tmp_path / "a.jpg", 8)
    sizes = ["--frames", "8", "--size", "32", "--device", "cpu"]
    assert run(*arguments, *sizes) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_it_runs_as_a_program():
    ended = subprocess.run(
        [sys.executable, "-m", "vgan_fast.loaders.inspect", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "draw batches as the network would see them" in ended.stdout
