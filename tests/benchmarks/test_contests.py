"""What makes a contender wrong, and that it then has no number."""

import contextlib
import copy
import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import bench_generation, bench_kernels, bench_layers, bench_training_step, media
from benchmarks.bench_loaders import Source, delivery, theirs
from benchmarks.measure import Device, WrongResultError, race
from benchmarks.presets import PRESETS
from vgan_fast import cpu, losses
from vgan_fast.gan_step import GANStep
from vgan_fast.kernels import cost
from vgan_fast.settings import Settings

CPU = Device(torch.device("cpu"))
SMOKE = PRESETS["smoke"]


def of_kind(module, case):
    """The contest of that name, with the fewest calls."""
    (found,) = (c for c in module.contests(SMOKE, CPU) if c.case.startswith(case))
    return dataclasses.replace(found, rounds=1, inspected=False)


def failures(contest):
    return {name for name, result in race(contest, CPU).items() if result.failed}


def test_all_are_right_as_they_are():
    assert not failures(of_kind(bench_layers, "D layer 1, forward"))
    assert not failures(of_kind(bench_kernels, "mask blend, backward"))
    langevin = of_kind(bench_kernels, "Langevin step")
    assert {"twin", "eager", "compiled"} <= {contender.name for contender in langevin.contenders}
    assert not failures(langevin)


@pytest.mark.parametrize("network", ["discriminator", "generator"])
def test_a_step_with_a_sign_turned_has_no_number(monkeypatch, network):
    contest = of_kind(bench_training_step, "8x16x16")
    by_name = {contender.name: contender for contender in contest.contenders}
    contest.contenders = [by_name["reference fp32"], by_name["library bf16"]]
    # The reference has gone on by the time that the others are compared with its first step.
    assert not failures(dataclasses.replace(contest, warm_up=1))

    name, calls = f"{network}_loss", []
    right = getattr(losses, name)

    def wrong(*arguments):
        calls.append(name)
        value = right(*arguments)
        return value if len(calls) == 1 else 2 * value.detach() - value  # the value is the same

    monkeypatch.setattr(f"vgan_fast.gan_step.{name}", wrong)
    contest = of_kind(bench_training_step, "8x16x16")
    contest.contenders = [c for c in contest.contenders if c.name in by_name][:2]
    results = race(contest, CPU)
    assert results["library bf16"].failed.startswith(f"WrongResultError: the {network}'s gradient")
    assert not results["library bf16"].seconds


def first_step(backend="reference"):
    networks = SMOKE.trained[0]
    shape = networks.shape
    sizes = {"frames": shape.frames, "size": shape.size, "width": shape.width, "batch_size": 2}
    step = GANStep(Settings(**sizes, device="cpu", precision="fp32", backend=backend))
    frames = torch.randint(0, 256, (2, 8, 16, 16, 3), generator=torch.Generator().manual_seed(0))
    return bench_training_step.first_step(step, frames.to(torch.uint8))


@pytest.mark.parametrize("network", ["discriminator", "generator"])
@pytest.mark.parametrize("change", ["turned", "gone"])
def test_a_gradient_of_one_parameter_counts(network, change):
    expected = first_step()
    bench_training_step.compare(first_step("auto"), expected)
    whole = torch.cat([g.flatten() for g in expected[1][network].values()]).norm()
    counted = 0
    for name, gradient in expected[1][network].items():
        found = copy.deepcopy(expected)
        if change == "turned":
            found[1][network][name] = -gradient
        else:
            del found[1][network][name]
        if gradient.norm() > 0.01 * whole:
            counted += 1
            with pytest.raises(WrongResultError, match=name):
                bench_training_step.compare(found, expected)
    assert counted > 3


def test_later_losses_count():
    bench_training_step.compare_losses({"g": 1.05}, {"g": 1.0}, 0.1)
    with pytest.raises(WrongResultError, match="'g' is off by 20"):
        bench_training_step.compare_losses({"g": 1.2}, {"g": 1.0}, 0.1)


@pytest.mark.parametrize("change", [lambda mask: -mask, lambda mask: 0 * mask])
def test_a_generator_whose_mask_is_another_has_no_number(monkeypatch, change):
    contest = of_kind(bench_generation, "8x16x16")
    contest.contenders = [c for c in contest.contenders if c.name in ("reference fp32", "ours")]
    right = cpu.TwoStreamGenerator._logits

    def wrong(self, latent):
        head, background = right(self, latent)
        return torch.cat([head[:, :3], change(head[:, 3:])], dim=1), background

    assert not failures(dataclasses.replace(contest))
    monkeypatch.setattr(cpu.TwoStreamGenerator, "_logits", wrong)
    assert failures(contest) == {"ours"}


def test_results_that_differ_in_one_clip_are_not_those_of_the_twin():
    twin = torch.randn(8, 16)
    near = twin * (1 + 2**-23)
    bench_kernels.agree([near], [twin], "fp32")
    with pytest.raises(WrongResultError, match="allowed"):
        bench_kernels.agree([torch.cat([near[:7], -near[7:]])], [twin], "bf16")
    with pytest.raises(WrongResultError):
        bench_kernels.agree([near * torch.nan], [twin], "bf16")


@pytest.fixture
def strips():
    files = SMOKE.files
    return Source(partial(media.write_strips, files=files), False, files)


@pytest.mark.parametrize("shown", ["clips", "noise", "one frame", "half"])
def test_a_loader_of_other_clips_has_no_number(strips, shown):
    files = SMOKE.files

    def read(path, start, files):
        clip = media.strip_by_pillow(path, start, files)
        if shown == "noise":
            return np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8)
        if shown == "one frame":
            return clip[:1].repeat(len(clip), axis=0)
        return clip // 2 if shown == "half" else clip

    loader = delivery("theirs", theirs(read, 1, files, CPU), strips, files)
    with contextlib.ExitStack() as stack:
        if shown == "clips":
            assert loader.build(stack).info["clips"] % files.batch == 0
        else:
            with pytest.raises(WrongResultError):
                loader.build(stack)


def test_counts_are_those_of_the_cost_table():
    networks = SMOKE.trained[0]
    step = of_kind(bench_training_step, "8x16x16")
    calls = cost.training_step(networks.shape, networks.batch)
    assert sum(flops for flops, _ in step.counted) == sum(call.flops for call in calls)
    layers = {
        (call.name.removesuffix(" forward"), call.part): call.flops
        for call in cost.generator_forward(networks.shape, networks.batch)
        if call.name.endswith(" forward") and call.product
    }
    for contest in bench_layers.contests(SMOKE, CPU):
        name, direction = contest.case.removeprefix("G ").split(", ")
        if contest.case.startswith("G ") and direction == "forward" and name != "head":
            assert contest.counted[0][0] == layers[name, "G forward"], name


def test_contenders_are_left_out_by_name():
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_ceilings.py", "--collect-only"]
    found = subprocess.run(
        [*command, "-q", "--preset", "smoke", "--without", "fp32"],
        cwd=Path(bench_layers.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-2000:]
    assert "copy" in found.stdout and "fp32" not in found.stdout
