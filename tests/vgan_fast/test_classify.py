"""`vgan_fast.classify` as its users meet it."""

import json
import os
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from vgan_fast import classify
from vgan_fast.checkpoint import find_checkpoint, save_checkpoint
from vgan_fast.networks import build_discriminator, build_generator
from vgan_fast.settings import Settings

VIDEOS = os.environ.get("VGAN_FAST_TEST_VIDEOS")
QUICK = ["--device", "cpu", "--steps", "2", "--batch-size", "4", "--seeds", "2"]
QUICK += ["--fractions", "1,1/2", "--clips-per-video", "2"]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        classify.main.main([str(a) for a in arguments])
    return stop.value.code or 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a discriminator."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = Settings(frames=4, size=16, width=4, latent=6, device="cpu", precision="fp32")
    save_checkpoint(folder, 1, {"discriminator": build_discriminator(settings)}, {}, settings)
    return folder


@pytest.fixture(scope="module")
def strips(tmp_path_factory):
    """Two classes, bright and dark, of six strips of eight frames each, by folder."""
    folder = tmp_path_factory.mktemp("strips")
    random = np.random.default_rng(0)
    for name, level in (("bright", 200), ("dark", 20)):
        (folder / name).mkdir()
        for i in range(6):
            noise = random.integers(0, 40, (8 * 16, 16, 3)) + level
            iio.imwrite(folder / name / f"{i}.png", noise.astype(np.uint8))
    return folder


def test_a_comparison_leaves_numbers_a_table_and_a_picture(trained, strips, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(trained, "--data", strips, *QUICK, "--out", out) == 0
    assert {p.name for p in out.iterdir()} == {"results.json", "table.md", "transfer.png"}
    record = json.loads((out / "results.json").read_text())
    assert record["classes"] == ["bright", "dark"]
    assert record["chance"] == 0.5
    scores = record["scores"]
    assert len(scores) == 2 * 2 * 3
    videos = {(s["fraction"], s["videos"]) for s in scores}
    assert videos == {("1", 8), ("1/2", 4)}  # of six a class two test
    # Brightness alone tells the classes.
    assert all(s["video accuracy"] == 1 for s in scores if s["method"] == "logistic")
    assert np.sum(record["confusion"]["logistic"]) == 2 * 4
    assert "fine-tuned − random" in (out / "table.md").read_text()
    assert iio.imread(out / "transfer.png").ndim == 3
    assert "of the labels fine-tuned is" in capsys.readouterr().out


def test_the_same_seeds_give_the_same_numbers(trained, strips, tmp_path):
    records = []
    for name in "ab":
        assert run(trained, "--data", strips, *QUICK, "--out", tmp_path / name) == 0
        records.append(json.loads((tmp_path / name / "results.json").read_text())["scores"])
    assert records[0] == records[1]


def test_a_checkpoint_and_synthetic_motions(trained, tmp_path):
    few = ["--videos", 40, "--test-videos", 30, "--methods", "random", "--seeds", 1]
    arguments = ["--data", "synthetic-motions", *QUICK, *few, "--out", tmp_path / "out"]
    assert run(find_checkpoint(trained), *arguments) == 0
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {s["method"] for s in record["scores"]} == {"random"}
    assert np.sum(record["confusion"]["random"]) == 30


def test_splits_of_ucf101_are_averaged(trained, strips, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "UCF-101").symlink_to(strips)
    (lists / "classInd.txt").write_text("1 bright\n2 dark\n")
    for split in (1, 2, 3):
        train, test = [], []
        for label, name in enumerate(("bright", "dark"), start=1):
            for i in range(6):
                (test if i // 2 + 1 == split else train).append((f"{name}/{i}.png", label))
        lines = [f"{path} {label}" for path, label in train]
        (lists / f"trainlist0{split}.txt").write_text("\n".join(lines))
        (lists / f"testlist0{split}.txt").write_text("\n".join(path for path, _ in test))
    out = tmp_path / "out"
    arguments = [*QUICK, "--methods", "logistic", "--split", "all", "--out", out]
    assert run(trained, "--data", lists / "trainlist01.txt", *arguments) == 0
    scores = json.loads((out / "results.json").read_text())["scores"]
    assert [s["split"] for s in scores[::4]] == ["1", "2", "3"]
    assert {s["videos"] for s in scores} == {8, 4}
    assert run(trained, "--data", lists / "trainlist02.txt", *QUICK, "--out", tmp_path / "b") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "synthetic"], "--data synthetic: has no classes"),
        (["--data", "absent"], "absent: no such file or folder"),
        (["--data", "flat"], "flat: has no classes"),
        (["--data", "strips", "--split", "1"], "--split 1"),
        (["--data", "strips", "--test", "strips"], "is in the training set and in the test set"),
        (["--data", "synthetic-motions", "--test", "strips"], "has test clips of its own"),
        (["--data", "synthetic-motions", "--videos", "3"], "among --videos"),
        (["--data", "strips", "--methods", "svm"], "--methods: 'svm' is none of"),
        (["--data", "strips", "--fractions", "1,half"], "--fractions 1,half"),
        (["--data", "strips", "--fractions", "2"], "--fractions: 2 must be"),
        (["--data", "strips", "--seeds", "0"], "--seeds"),
        (["--data", "strips", "--lr", "0"], "--lr 0"),
        (["--data", "strips", "--test-share", "1"], "--test-share 1"),
        (["--data", "strips", "--out", "."], "--out .: is there already"),
    ],
    ids=" ".join,
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    trained, strips, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    Path("strips").symlink_to(strips)
    Path("flat").mkdir()
    for i in range(3):
        Path("flat", f"{i}.png").symlink_to(strips / "dark" / f"{i}.png")
    assert run(trained, *QUICK, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert {p.name for p in tmp_path.iterdir()} == {"strips", "flat"}


def test_a_run_without_discriminator_is_refused(trained, tmp_path, capsys):
    settings = Settings(model="autoencoder", mask_penalty=0.0, frames=4, size=8, width=4)
    networks = {"generator": build_generator(settings)}
    save_checkpoint(tmp_path / "run", 1, networks, {}, settings)
    assert run(tmp_path / "run", "--data", "synthetic-motions", "--out", tmp_path / "o") == 2
    assert "--model autoencoder has no discriminator" in capsys.readouterr().err
    assert run(trained, "--data", "synthetic-motions", "--out", "/proc/o") == 2
    assert "/proc/o: cannot be written" in capsys.readouterr().err


def test_the_extra_is_named_where_it_is_missing(trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert run(trained, "--data", "synthetic-motions") == 2
    assert "pip install 'vgan_fast[experiments]'" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing(trained, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vgan_fast.classifier_step.ClassifierStep.probabilities", interrupted)
    monkeypatch.chdir(tmp_path)
    assert run(trained, "--data", "synthetic-motions", *QUICK, "--videos", 60) == 130
    assert "error: interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not VIDEOS, reason="VGAN_FAST_TEST_VIDEOS names no folder of real videos")
def test_real_videos_in_two_classes(trained, tmp_path):
    out = tmp_path / "out"
    arguments = [*QUICK, "--seeds", 1, "--decoded", tmp_path / "decoded", "--out", out]
    assert run(trained, "--data", Path(VIDEOS) / "action", *arguments) == 0
    assert json.loads((out / "results.json").read_text())["classes"] == ["signer_a", "signer_b"]
