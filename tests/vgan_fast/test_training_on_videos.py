"""Training on real clips in mixed codecs, broken ones among them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from vgan_fast.checkpoint import find_checkpoint

VIDEOS = os.environ.get("VGAN_FAST_TEST_VIDEOS")
pytestmark = pytest.mark.skipif(
    not VIDEOS, reason="VGAN_FAST_TEST_VIDEOS names no folder of real videos"
)
BROKEN = ("moviepy_test_video.mp4", "streamio_broken.mp4", "streamio_empty.flv")
SIZES = {"frames": 8, "size": 16, "width": 4, "batch-size": 4, "checkpoint-every": 20}


def command(out, *options):
    return [sys.executable, "-m", "vgan_fast.train", "--out", str(out), *options]


def fresh(out):
    sizes = (word for name, n in SIZES.items() for word in (f"--{name}", str(n)))
    return command(out, "--data", VIDEOS, "--device", "cpu", "--steps", "100", *sizes)


def finish(arguments):
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def weights(out):
    checkpoint = find_checkpoint(out)
    assert checkpoint.name == "step-00000100"
    return safetensors.torch.load_file(checkpoint / "weights.safetensors")


def test_a_hundred_steps_survive_broken_files_and_a_kill(tmp_path):
    whole, killed = Path(tmp_path, "whole"), Path(tmp_path, "killed")
    printed = finish(fresh(whole))
    for name in BROKEN:
        assert printed.count(name) == 1
    assert f"{len(BROKEN)} skipped" in printed

    process = subprocess.Popen(
        fresh(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "step-00000040").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert find_checkpoint(killed).name != "step-00000100"
    decoded = {file.name: file.stat().st_mtime_ns for file in (killed / "frames").glob("*.npy")}
    assert decoded
    finish(command(killed, "--resume"))
    for name, time_of_change in decoded.items():  # Nothing was decoded again.
        assert (killed / "frames" / name).stat().st_mtime_ns == time_of_change
    a, b = weights(whole), weights(killed)
    assert all(torch.equal(a[key], b[key]) for key in a)
