"""`python -m vgan_fast.prepare`, as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from camera_media import take, write_take
from network_media import COLOURS, write_labels, write_network

from vgan_fast.loaders.preparation import apart
from vgan_fast.prepare import main

FEW = ("--workers", "1", "--size", "64", "--frames", "8", "--min-frames", "4", "--no-report")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for seed in range(3):
        write_take(folder / f"{'ab'[seed % 2]}/{seed}.avi", take(seed, 26, shift=1))
    (folder / "a/broken.mp4").write_bytes(b"nothing")
    return folder


def prepare(*arguments) -> int:
    with pytest.raises(SystemExit) as exit:
        main([*map(str, arguments)])
    return exit.value.code


def test_from_raw_video_to_a_trained_network(videos, tmp_path, capsys, monkeypatch):
    from vgan_fast.train import main as train

    out = tmp_path / "set"
    assert prepare(videos, "--out", out, "--validation", 0, *FEW) == 0
    printed = capsys.readouterr().out
    assert "left out a/broken.mp4: it cannot be decoded" in printed
    assert "9 clips of 3 videos: train 9; 72 frames, 0 in no clip" in printed
    row = next(line.split() for line in printed.splitlines() if line.startswith("a/0.avi"))
    assert row[1:4] == ["3", "24", "0"]
    before, after, ratio, motion = map(float, row[4:])
    assert ratio == pytest.approx(after / before, abs=0.01)
    assert ratio < 0.8
    assert motion > 0.2
    monkeypatch.chdir(tmp_path)
    small = ["--frames", "8", "--size", "16", "--width", "4", "--batch-size", "4", "--steps", "3"]
    options = [*small, "--preset", "short", "--min-frames", "8", "--device", "cpu", "--out", "run"]
    with pytest.raises(SystemExit) as exit:
        train(["--data", str(out), *options])
    assert exit.value.code == 0
    assert "2 classes" in capsys.readouterr().out
    assert list(tmp_path.glob("run/checkpoints/*"))


def test_the_same_command_again_changes_nothing(videos, tmp_path, capsys):
    command = (videos / "b", "--out", tmp_path / "set", "--motion", "none", *FEW)
    assert prepare(*command) == 0
    first = capsys.readouterr().out
    stamp = (tmp_path / "set/manifest.jsonl").stat().st_mtime_ns
    assert prepare(*command) == 0
    assert capsys.readouterr().out == first
    assert (tmp_path / "set/manifest.jsonl").stat().st_mtime_ns == stamp


def test_scenes_are_kept_by_name_and_scored(videos, tmp_path, capsys):
    network, labels = write_network(tmp_path / "net.onnx"), write_labels(tmp_path / "labels.txt")
    scenes = ("--scene-model", network, "--scene-labels", labels, "--scene-side", 32)
    plain = ("--scene-mean", 0, 0, 0, "--scene-std", 1, 1, 1, "--motion", "none")
    out = tmp_path / "all"
    assert prepare(videos / "b", "--out", out, *scenes, *plain, *FEW) == 0
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert lines
    assert all(set(line["scenes"]) == set(COLOURS) for line in lines)
    best = {max(line["scenes"], key=line["scenes"].get) for line in lines}
    other = next(colour for colour in COLOURS if colour not in best)
    command = (videos / "b", "--out", tmp_path / "none", *scenes, *plain, "--scene", other, *FEW)
    assert prepare(*command) == 2
    streams = capsys.readouterr()
    assert "rejected stretches: scene" in streams.out
    assert "not one clip has come of it" in streams.err
    rejected = (tmp_path / "none/rejected.jsonl").read_text().splitlines()
    assert f"none of {other} reaches 0.5" in json.loads(rejected[0])["detail"]


def dies(_):
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(_):
    time.sleep(600)


@pytest.mark.parametrize("work", [dies, hangs])
def test_a_network_that_kills_or_hangs_opencv_is_named(videos, tmp_path, capsys, monkeypatch, work):
    monkeypatch.setattr(apart, "_load_scenes", work)
    monkeypatch.setattr(apart, "_LOADING", 2)
    network, labels = write_network(tmp_path / "net.onnx"), write_labels(tmp_path / "labels.txt")
    scenes = ("--scene-model", network, "--scene-labels", labels)
    assert prepare(videos, "--out", tmp_path / "set", *scenes) == 2
    assert "net.onnx: OpenCV crashes or hangs over it" in capsys.readouterr().err


def test_other_weights_beside_a_network_are_another_recipe(videos, tmp_path, capsys):
    network, labels = write_network(tmp_path / "net.onnx"), write_labels(tmp_path / "labels.txt")
    scenes = ("--scene-model", network, "--scene-labels", labels, "--scene-side", 32)
    command = (videos / "b", "--out", tmp_path / "set", *scenes, "--motion", "none", *FEW)
    assert prepare(*command) == 0
    (tmp_path / "net.onnx.data").write_bytes(b"other")
    assert prepare(*command) == 2
    assert "was begun with another recipe (scenes: model:" in capsys.readouterr().err


BAD = {
    "no videos": ((), "Missing argument 'VIDEOS...'"),
    "gone": (("gone",), "gone: no such file or folder"),
    "frames 1": (("{}", "--frames", 1), "'--frames': 1 is not in the range"),
    "frames word": (("{}", "--frames", "many"), "'--frames': 'many' is not a valid int"),
    "min over frames": (("{}", "--min-frames", 40), "--min-frames 40: is over --frames 32"),
    "min-frames 0": (("{}", "--min-frames", 0), "'--min-frames': 0 is not in the range"),
    "size": (("{}", "--size", 4), "'--size': 4 is not in the range"),
    "strip": (("{}", "--frames", 100, "--size", 1000), "is over JPEG's 65500"),
    "skip": (("{}", "--skip", -1), "'--skip': -1 is not in the range"),
    "fps 0": (("{}", "--fps", 0), "'--fps': 0.0 is not in the range"),
    "fps nan": (("{}", "--fps", "nan"), "--fps nan"),
    "motion": (("{}", "--motion", "affine"), "'--motion': 'affine' is not one of"),
    "max-error": (("{}", "--max-error", 0), "'--max-error': 0.0 is not in the range"),
    "max-error nan": (("{}", "--max-error", "nan"), "--max-error nan"),
    "min-overlap": (("{}", "--min-overlap", 1), "'--min-overlap': 1.0 is not in the range"),
    "scene alone": (("{}", "--scene", "beach"), "--scene and --scene-labels: need --scene-model"),
    "model alone": (("{}", "--scene-model", "x"), "--scene-model: needs --scene-labels"),
    "model gone": (
        ("{}", "--scene-model", "x", "--scene-labels", "labels.txt"),
        "x: cannot be read (No such file or directory); correct --scene-model",
    ),
    "labels gone": (("{}", "--scene-model", "x", "--scene-labels", "y"), "y: cannot be read"),
    "threshold": (("{}", "--scene-threshold", 2), "'--scene-threshold': 2.0 is not in the range"),
    "side": (("{}", "--scene-side", 0), "'--scene-side': 0 is not in the range"),
    "mean": (("{}", "--scene-mean", 1, 2), "--scene-mean"),
    "std": (
        ("{}", "--scene-std", 0, 1, 1, "--scene-model", "x", "--scene-labels", "labels.txt"),
        "--scene-std",
    ),
    "format": (("{}", "--format", "zip"), "'--format': 'zip' is not one of"),
    "quality": (("{}", "--quality", 101), "'--quality': 101 is not in the range"),
    "shard-clips": (("{}", "--shard-clips", 0), "'--shard-clips': 0 is not in the range"),
    "validation": (("{}", "--validation", 1.5), "'--validation': 1.5 is not in the range"),
    "test": (("{}", "--test", -0.1), "'--test': -0.1 is not in the range"),
    "nothing left": (("{}", "--validation", 0.5, "--test", 0.5), "leave nothing for training"),
    "seed": (("{}", "--seed", -1), "'--seed': -1 is not in the range"),
    "engine": (("{}", "--engine", "spark"), "'--engine': 'spark' is not one of"),
    "workers": (("{}", "--workers", 0), "'--workers': 0 is not in the range"),
    "unknown": (("{}", "--colour", "red"), "No such option"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, videos, tmp_path, capsys, monkeypatch):
    arguments, message = BAD[case]
    monkeypatch.chdir(tmp_path)
    write_labels(Path("labels.txt"))
    arguments = [videos if argument == "{}" else argument for argument in arguments]
    assert prepare(*arguments, "--out", "set") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not Path("set").exists()


def test_out_is_asked_for(videos, capsys):
    assert prepare(videos) == 2
    assert "Missing option '--out'" in capsys.readouterr().err


def test_out_among_the_videos_is_no_source(videos, tmp_path):
    out = videos / "set"
    assert prepare(videos, "--out", out, "--motion", "none", *FEW) == 0
    sources = {json.loads(line)["source"] for line in (out / "manifest.jsonl").open()}
    assert all(not source.startswith("set") for source in sources)


def test_interrupted_it_says_how_to_go_on(videos, tmp_path):
    command = [sys.executable, "-m", "vgan_fast.prepare", videos, "--out", tmp_path / "set"]
    process = subprocess.Popen(
        [*command, "--workers", "1"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while not (tmp_path / "set/.preparing").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.rstrip().endswith("stopped; the same command goes on with it")
    assert "Traceback" not in error


def test_ray_absent_is_said_with_the_extra(videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert prepare(videos, "--out", tmp_path / "set", "--engine", "ray", *FEW) == 2
    assert "pip install 'vgan_fast[ray]'" in capsys.readouterr().err
