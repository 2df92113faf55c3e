"""Time and memory of our training step against each of its sizes."""

import dataclasses

import torch

from benchmarks.measure import Contender, Contest, Device, Prepared
from benchmarks.presets import Networks, Preset
from benchmarks.rivals import KERNELS, captured, default
from vgan_fast.device import configure, resolved
from vgan_fast.gan_step import GANStep

ROUNDS = 4


def step_at(name: str, networks: Networks, device: Device, warm_up: int) -> Contender:
    """Our training step at one size."""
    # On a GPU with the default tiles: choosing them anew for every size takes minutes.
    best = captured(KERNELS) if device.gpu else default(device)

    def build(_) -> Prepared:
        settings = resolved(best.settings(networks, device))
        configure(settings)
        step = GANStep(settings)
        shape = networks.shape
        sizes = networks.batch, shape.frames, shape.size, shape.size, 3
        frames = torch.randint(0, 256, sizes, dtype=torch.uint8, device=device.device)
        for _ in range(warm_up):
            step(frames)
        return Prepared(lambda: step(frames), {"clips": networks.batch})

    return Contender(name, build, best.precision, best.about, best.graphed)


def contests(preset: Preset, device: Device) -> list[Contest]:
    """One of the sizes varied at a time."""
    base, warm_up = preset.growth, preset.warm_up + 1 if device.gpu else 1
    varied = {
        "batch": [dataclasses.replace(base, batch=batch) for batch in preset.batches],
        **{
            axis: [
                dataclasses.replace(base, shape=dataclasses.replace(base.shape, **{axis: value}))
                for value in values
            ]
            for axis, values in (
                ("frames", preset.frames),
                ("size", preset.sizes),
                ("width", preset.widths),
            )
        },
    }
    found = []
    for axis, points in varied.items():
        contenders = [
            step_at(
                str(point.batch if axis == "batch" else getattr(point.shape, axis)),
                point,
                device,
                warm_up,
            )
            for point in points
        ]
        info = {"base": str(base)}
        found.append(Contest("growth", axis, contenders, ROUNDS, 0, info=info, in_turns=False))
    return found


def test_growth(contest, contender, measured):
    measured(contest, contender)
