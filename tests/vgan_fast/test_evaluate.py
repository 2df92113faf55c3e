"""`vgan_fast.evaluate` as its users meet it."""

import hashlib
import json
import shutil
import subprocess

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import nn

from vgan_fast import evaluate, train
from vgan_fast.checkpoint import find_checkpoint, list_checkpoints, save_checkpoint
from vgan_fast.errors import UserError
from vgan_fast.evaluation import training
from vgan_fast.evaluation.result import Result
from vgan_fast.networks import build_discriminator, build_generator
from vgan_fast.settings import PRESETS, Settings

SIZES = dict(frames=16, size=16, width=4, latent=8, device="cpu", precision="fp32", graph=False)
FEW = ["--count", 6, "--training-clips", 8, "--resamples", 3, "--device", "cpu"]


def run(program, *arguments):
    """Exit status of a program run in this process."""
    with pytest.raises(SystemExit) as stop:
        program.main([str(a) for a in arguments])
    return stop.value.code or 0


def make(folder, step=5, **settings):
    """A run that nobody trained."""
    torch.manual_seed(step)
    settings = Settings(**{**SIZES, **settings})
    networks = {"generator": build_generator(settings)}
    networks["discriminator"] = build_discriminator(settings)
    save_checkpoint(folder, step, networks, {}, settings)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    one = dict(model="one-stream", mask_penalty=0.0)
    return make(folder / "first"), make(folder / "second", step=9, **one)


class Classes(nn.Module):
    def forward(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means = clips.mean((2, 3, 4))
        return means, 50 * means


@pytest.fixture
def detector_file(tmp_path):
    file = tmp_path / "detector.pt"
    torch.jit.script(Classes()).save(str(file))
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def test_runs_side_by_side_with_protocol_table_and_pictures(runs, tmp_path, capsys):
    out = tmp_path / "deep" / "r.json"
    assert run(evaluate.main, *runs, *FEW, "--seed", 4, "--out", out) == 0
    said = capsys.readouterr().out
    result = Result.load(out)
    assert [(r.name, r.step) for r in result.rows] == [("first", 5), ("second", 9), ("real", None)]
    of = result.protocol
    assert (of.data, of.split, of.held_out, of.count, of.seed) == (
        *("synthetic", "held-out", True),
        *(6, 4),
    )
    assert (of.frames, of.size, of.dimensions, of.resize) == (16, 16, 512, None)
    assert of.detector == f"random:{of.detector_sha256[:8]}"
    assert "vgan_fast.evaluate" in result.made_by["command"]
    assert [(p.first, p.second) for p in result.preferences] == [
        *(("first", "second"), ("first", "real"), ("second", "real")),
    ]
    assert all(row.frechet.low <= row.frechet.value <= row.frechet.high for row in result.rows)
    assert result.rows[2].frechet.value < result.rows[0].frechet.value
    assert set(result.rows[0].nearest) == {"features", "pixels"}
    assert "mask mean" in result.rows[0].statistics
    assert "mask mean" not in result.rows[1].statistics
    assert f"Fréchet[{of.detector}]" in said
    assert "6 clips are fewer than the detector's 512 features" in said
    assert sorted(p.name for p in out.parent.iterdir()) == [
        *("r-nearest-first.png", "r-nearest-second.png", "r.gif", "r.json", "r.md", "r.png"),
    ]
    assert (out.parent / "r.md").read_text() in said + "\n"
    strip, moving = iio.imread(out.parent / "r.png"), iio.imread(out.parent / "r.gif")
    assert strip.shape == (6 * 130 + 2, 110 + 8 * 130 + 2, 3)  # Two clips of each, eight frames.
    assert moving.shape[:3] == (16, 22 + 4 * 130 + 2, 3 * 130 + 2)
    assert strip[:, :110].min() < 100  # Names are written.
    nearest = iio.imread(out.parent / "r-nearest-first.png")
    assert nearest.shape == (12 * 130 + 2, 8 * 130 + 2, 3)


def test_numbers_come_again_and_stored_ones_make_one_table(runs, tmp_path, capsys):
    files = [tmp_path / name for name in ("a.json", "b.json", "c.json")]
    assert run(evaluate.main, runs[0], *FEW, "--out", files[0]) == 0
    assert run(evaluate.main, runs[1], *FEW, "--out", files[1]) == 0
    assert run(evaluate.main, *runs, *FEW, "--out", files[2]) == 0
    alone, both = Result.load(files[0]), Result.load(files[2])
    assert alone.rows[0] == both.rows[0]
    capsys.readouterr()
    assert run(evaluate.main, files[0], files[1]) == 0
    table = capsys.readouterr().out
    assert table.count("\n| first |") == table.count("\n| second |") == 1
    assert run(evaluate.main, runs[0], *FEW, "--seed", 1, "--out", files[2]) == 0
    capsys.readouterr()
    assert run(evaluate.main, files[0], files[2]) == 2
    assert "c.json: its seed is 1" in capsys.readouterr().err


def test_an_inception_score_where_the_detector_has_classes(runs, tmp_path, detector_file, capsys):
    file, sha = detector_file
    out = tmp_path / "r.json"
    trusted = ["--detector-file", file, "--trust", sha, "--detector-size", 8]
    assert run(evaluate.main, runs[0], *FEW, *trusted, "--out", out) == 0
    result = Result.load(out)
    assert result.protocol.detector_sha256 == sha
    assert result.protocol.resize == 8
    assert 1 <= result.rows[-1].inception.value <= 3
    assert f"Inception[torchscript:{sha[:8]}]" in capsys.readouterr().out


def test_discriminators_as_detectors(runs, tmp_path, capsys):
    labels = []
    for arguments in (
        [runs[0], "--detector", "discriminator"],
        [*runs, "--detector-run", runs[0]],
    ):
        assert run(evaluate.main, *arguments, *FEW, "--out", tmp_path / "r.json") == 0
        labels.append(Result.load(tmp_path / "r.json").protocol.detector)
    assert labels[0] == labels[1]
    assert labels[0].startswith("discriminator:")


def test_few_files_lower_the_count_and_are_said_to_be_trained_on(runs, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 16, 3), np.uint8)
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "clips.npy", noise)
    out = tmp_path / "r.json"
    assert run(evaluate.main, runs[0], *FEW, "--data", tmp_path / "set", "--out", out) == 0
    said = capsys.readouterr().out
    assert "only 9 real clips: sets of 4, not 6" in said
    assert "none held out from training" in said
    protocol = Result.load(out).protocol
    assert (protocol.count, protocol.split, protocol.held_out) == (4, "train", False)
    np.save(tmp_path / "set" / "clips.npy", noise[:3])
    out.unlink()
    assert run(evaluate.main, runs[0], *FEW, "--data", tmp_path / "set", "--out", out) == 2
    assert "3 clips in split train; 8 are needed" in capsys.readouterr().err
    assert not out.exists()


BAD = {
    "no runs": ([], "give runs to evaluate, or --compare"),
    "both": (["RUN", "--compare", "c"], "not both"),
    "steps": (["RUN", "--steps", 3], "--steps is for --compare"),
    "out": (["RUN", "--out", "r.txt"], "must end in .json"),
    "two detectors": (["RUN", "--detector", "random", "--detector-run", "RUN"], "give one of them"),
    "trust alone": (["RUN", "--trust", "00"], "are for --detector-file"),
    "no trust": (["RUN", "--detector-file", "FILE"], "carries code"),
    "false trust": (["RUN", "--detector-file", "FILE", "--trust", "00"], "not the trusted 00"),
    "own discriminators": (["RUN", "OTHER", "--detector", "discriminator"], "--detector-run"),
    "other sizes": (["RUN", "SMALL"], "evaluate them apart"),
    "other cut": (["RUN", "STRIDE", "--data", "synthetic"], "another --stride or --fps"),
    "too small to compare": (
        ["--compare", "c", "--preset", "short", "--steps", 1, "--detector-run", "SMALL"],
        "the detector discriminator:",
    ),
    "nowhere": (["RUN", "--out", "/proc/r.json"], "/proc/r.json: cannot be written"),
    "other data": (["RUN", "ELSEWHERE"], "choose with --data"),
    "small for random": (["SMALL"], "takes clips from 9 frames"),
    "future": (["FUTURE"], "goes on from given frames"),
    "no run": (["EMPTY"], "holds no checkpoint"),
    "split": (["RUN", "--split", "test"], "--split test"),
    "no data": (["RUN", "--data", "absent"], "absent"),
    "mixed": (["RUN", "FILE"], "stored results only"),
    "no result": (["FILE"], "is no result"),
    "count": (["RUN", "--count", 3], "--count"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_nothing_is_written(
    runs, tmp_path, monkeypatch, detector_file, capsys, case
):
    arguments, message = BAD[case]
    places = {"RUN": runs[0], "OTHER": runs[1], "FILE": detector_file[0]}
    if "SMALL" in arguments:
        places["SMALL"] = make(tmp_path / "small", frames=4)
    if "STRIDE" in arguments:
        places["STRIDE"] = make(tmp_path / "stride", data="elsewhere", stride=3)
    if "ELSEWHERE" in arguments:
        places["ELSEWHERE"] = make(tmp_path / "elsewhere", data="somewhere")
    if "FUTURE" in arguments:
        places["FUTURE"] = make(tmp_path / "future", model="future", mask_penalty=0.0)
    (tmp_path / "empty").mkdir()
    places["EMPTY"] = tmp_path / "empty"
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert run(evaluate.main, *(places.get(a, a) for a in arguments), "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list((tmp_path / "work").iterdir())


def test_the_disk_s_refusal_is_one_line(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(evaluate.main, runs[0], *FEW, "--out", tmp_path / "file" / "r.json") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.fixture
def in_this_process(monkeypatch):
    """Training of a comparison runs here, on tiny sizes; the models asked for are remembered."""
    tiny = dict(steps=4, batch_size=4, frames=16, size=16, width=4, latent=8)
    monkeypatch.setitem(PRESETS, "short", {**tiny, "checkpoint_every": 2, "sample_every": 100})
    commands = []

    def here(command):
        commands.append(command)
        status = run(train.main, *command[3:])
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(training.subprocess, "run", here)
    return commands


def test_compare_trains_what_lacks_resumes_what_was_cut_and_takes_the_rest(
    tmp_path, in_this_process, capsys
):
    out = tmp_path / "c"
    arguments = ["--compare", out, "--preset", "short", "--seed", 2, *FEW]
    assert run(evaluate.main, *arguments) == 0
    result = json.loads((out / "comparison.json").read_text())
    assert [row["name"] for row in result["rows"]] == [*training.MODELS, "real"]
    assert len(result["preferences"]) == 6
    assert [c[4].removeprefix("--model=") for c in in_this_process] == list(training.MODELS)
    table = (out / "comparison.md").read_text()
    for line in ("two-stream over one-stream", "autoencoder over real"):
        assert f"| {line} |" in table

    in_this_process.clear()
    shutil.rmtree(list_checkpoints(out / "one-stream")[-1])
    shutil.rmtree(out / "autoencoder")
    assert run(evaluate.main, *arguments) == 0
    assert [command[3] for command in in_this_process] == [
        f"--out={out / m}" for m in ("one-stream", "autoencoder")
    ]
    assert "--resume" in in_this_process[0]
    assert find_checkpoint(out / "one-stream").name == "step-00000004"
    in_this_process.clear()
    capsys.readouterr()
    assert run(evaluate.main, *arguments[:-2], "--device", "cpu", "--seed", 3) == 2
    assert "two-stream: holds a run with --seed 2, not 3" in capsys.readouterr().err
    assert not in_this_process


def test_a_training_that_fails_ends_the_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(
        training.subprocess, "run", lambda command: subprocess.CompletedProcess(command, 2)
    )
    with pytest.raises(UserError, match="training ended with status 2"):
        training.trained(tmp_path, "short", {"device": "cpu"})
