"""The doctor: its calls are those of the networks, and what it says with and without a GPU."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.kernels.test_choice import FakeGpu, forget
from vgan_fast import fused
from vgan_fast.kernels import choice, doctor
from vgan_fast.kernels.conv import api, reference
from vgan_fast.shape import ClipShape

SHAPES = [ClipShape(8, 16, 6, 5), ClipShape(8, 32, 2, 3), ClipShape(4, 8, 4, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.size} pixels")
def test_its_calls_are_those_of_a_step(shape, monkeypatch):
    batch, made = 2, set()

    def run(name, module, impl, *arguments, **options):
        made.add(choice.label(name, arguments, options))
        return getattr(reference, name)(*arguments, **options)

    monkeypatch.setattr(api, "_run", run)
    generator = fused.TwoStreamGenerator(shape, impl="reference")
    discriminator = fused.Discriminator(shape, impl="reference")
    video, mask = generator(torch.randn(batch, shape.latent))
    frames = torch.zeros(batch, shape.frames, shape.size, shape.size, 3, dtype=torch.uint8)
    sum(s.sum() for s in discriminator.score_pair(frames, video.detach())).backward()
    discriminator.requires_grad_(False)
    (discriminator(video).sum() + mask).backward()

    cpu = torch.device("cpu")
    ours = [
        choice.label(call.operation, *call.arguments(cpu, torch.float32))
        for call in doctor.training_step(shape, batch)
    ]
    assert set(ours) == made


def test_random_arguments_are_such_as_the_kernels_take():
    for call in doctor.training_step(SHAPES[0], 2):
        (x, *rest), options = call.arguments(torch.device("cpu"), torch.float16)
        assert x.is_contiguous(memory_format=api.channels_last(x)) and x.dtype == torch.float16
        results = getattr(reference, call.operation)(x, *rest, **options)
        first = results[0] if isinstance(results, tuple) else results
        assert first.isfinite().all() and first.abs().max() > 0


def program(*arguments, cache):
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "-m", "vgan_fast.kernels.doctor", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_without_a_gpu_it_says_what_it_would_do(tmp_path):
    """The paper's sizes: without a GPU, nothing of that size is made."""
    file = tmp_path / "doctor.json"
    ended = program("--json", str(file), cache=tmp_path / "cache")
    assert ended.returncode == 0, ended.stderr
    assert "nothing was measured" in ended.stdout
    assert str(tmp_path / "cache" / "vgan_fast") in ended.stdout
    assert "  1. triton rows=" in ended.stdout and ". library\n" in ended.stdout
    assert not (tmp_path / "cache").exists()
    report = json.loads(file.read_text())
    assert not report["measured"] and report["environment"]["torch"] == torch.__version__
    calls = list(doctor.training_step(ClipShape(), 64))
    assert len(report["calls"]) == len(calls) == ended.stdout.count("  1. ")
    for call, row in zip(calls, report["calls"], strict=True):
        assert (row["part"], row["layer"], row["direction"]) == (
            call.part,
            call.layer.name,
            call.direction,
        )
        assert row["choice"] is None and row["call"] in ended.stdout
        names = [candidate["name"] for candidate in row["candidates"]]
        assert names[-1] == "library" and len(names) >= 2
        assert all(candidate["microseconds"] is None for candidate in row["candidates"])


def test_sizes_that_no_network_fits_are_refused(tmp_path):
    ended = program("--size", "20", cache=tmp_path)
    assert ended.returncode == 2 and ended.stderr.startswith("error: --size 20")


def test_a_measured_call_and_its_words(monkeypatch, tmp_path):
    """A device that is none, and implementations that are the twin."""
    monkeypatch.setattr(choice, "gpu", FakeGpu())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget(monkeypatch)
    call = next(doctor.training_step(SHAPES[0], 2))
    (x, *rest), options = call.arguments(torch.device("cpu"), torch.float32)

    class Device:
        type = "cuda"

    def run(*arguments, **options):
        return getattr(reference, call.operation)(*arguments, **options)

    def fail(*arguments, **options):
        raise RuntimeError("spilled")

    monkeypatch.setattr(doctor.Call, "arguments", lambda *_: ((x, *rest), options))
    monkeypatch.setattr(choice, "candidates", lambda *_: {"triton a": fail, "library": run})
    row = doctor.examined(call, Device(), torch.float32, fresh=False)
    assert row["choice"] == "library" and len(choice.gpu.timed) == 1
    title, words, first, second = doctor.lines(row)
    assert title == "G: foreground 2 forward" and words.strip() == row["call"]
    assert first.split() == ["triton", "a", "refused:", "RuntimeError:", "spilled"]
    assert second.startswith("  ->library") and second.endswith(" 1000000.0 us")
    doctor.examined(call, Device(), torch.float32, fresh=False)
    assert len(choice.gpu.timed) == 1
    doctor.examined(call, Device(), torch.float32, fresh=True)
    assert len(choice.gpu.timed) == 2
    monkeypatch.setattr(choice, "candidates", lambda *_: {"triton a": fail, "library": fail})
    with pytest.warns(UserWarning, match="no kernel was verified"):
        row = doctor.examined(call, Device(), torch.float32, fresh=True)
    assert list(doctor.lines(row))[-1] == "  ->reference"


@pytest.mark.gpu
def test_on_a_gpu_it_measures_once(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    arguments = ["--batch", "4", "--frames", "8", "--size", "32", "--width", "32"]
    outputs = [
        subprocess.run(
            [sys.executable, "-m", "vgan_fast.kernels.doctor", *arguments, *more],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        ).stdout
        for more in ([], [], ["--fresh"])
    ]
    assert outputs[0] == outputs[1] != outputs[2]
    calls = list(doctor.training_step(ClipShape(8, 32, 32), 4))
    assert outputs[0].count("  ->") == len(calls)
