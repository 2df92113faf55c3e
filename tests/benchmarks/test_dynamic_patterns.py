"""The tables of STGConvNet's results, at sizes whose numbers mean nothing."""

import json

import click.testing
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from benchmarks import recovery, textures
from vgan_fast import train


def run(program, *arguments):
    return click.testing.CliRunner().invoke(program.main, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def switches():
    """Programs that run in this process set PyTorch's switches for good."""
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        frames = random.integers(0, 256, (40, 16, 24, 3), np.uint8)
        iio.imwrite(folder / f"{name}.mp4", frames, plugin="pyav", codec="libx264", fps=12)
    return folder


def test_recovery_of_a_folder_and_going_on(videos, tmp_path):
    results = tmp_path / "results"
    options = ["--size", 16, "--frames", 8, "--layers", "4@5/2 1@*", "--steps", 2]
    options += ["--langevin-steps", 1, "--samples", 2, "--device", "cpu", "--results", results]
    (videos / "c.mp4").write_bytes(b"no video")
    done = run(recovery, videos, *options, "--seeds", 1, "--workers", 1)
    assert done.exit_code == 0, done.output
    text = (results / "recovery.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| a.mp4", "| b.mp4"))]
    assert [row.split(" | ")[0] for row in rows] == [
        f"| {name}.mp4, {kind}" for name in "ab" for kind in recovery.OCCLUSIONS
    ]
    kept = json.loads((results / "recovery.json").read_text())["cells"]
    assert len(kept) == 6
    for kind, cell in kept.items():
        numbers = [number for method in recovery.METHODS for number in cell[method]]
        assert all(0 < number < 255 for number in numbers), kind
    assert len(list(results.glob("recovery_*.png"))) == 6
    again = run(recovery, videos, *options, "--seeds", 1, "--workers", 1)
    assert again.exit_code == 0
    assert "seed 0" not in again.output  # nothing is measured twice
    other = run(recovery, videos, *options[:-1], results, "--seeds", 1, "--lr", 0.5)
    assert other.exit_code == 2
    assert "is of other options" in other.output


def test_textures_of_a_run(videos, tmp_path):
    out, results = tmp_path / "run", tmp_path / "results"
    options = ["--model", "stgconvnet", "--layers", "4@5/2 2@2x*x*", "--frames", 8, "--size", 16]
    options += ["--langevin-steps", 1, "--steps", 2, "--chains", 3, "--device", "cpu"]
    trained = run(train, *options, "--data", videos / "a.mp4", "--out", out)
    assert trained.exit_code == 0, trained.output
    done = run(textures, out, "--states", 3, "--langevin-steps", 2, "--results", results)
    assert done.exit_code == 0, done.output
    rows = [line.split(" | ") for line in done.output.splitlines() if line.startswith("| run |")]
    names = [row[1] for row in rows]
    assert names[-3:] == ["linear system, 3 states", "its first frame, still", "real clips, halves"]
    assert "STGConvNet" in names
    assert iio.imread(results / "texture_run.png").ndim == 3
    nothing = run(textures)
    assert nothing.exit_code == 2
    assert "name runs" in nothing.output
