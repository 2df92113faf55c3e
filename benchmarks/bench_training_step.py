"""One training step by every rival, on the same batches in turns."""

import itertools

import torch
from torch import Tensor

from benchmarks.measure import Contender, Contest, Device, Prepared, WrongResultError
from benchmarks.presets import Networks, Preset
from benchmarks.rivals import Rival, rivals
from vgan_fast.device import configure, resolved
from vgan_fast.gan_step import GANStep
from vgan_fast.kernels.cost import training_step
from vgan_fast.loaders.synthetic import SyntheticClips

BATCHES = 8  # that take turns
TOLERANCE = 0.02  # relative error of losses after one step: bf16 keeps 8 bits
# bf16 against fp32: 0.09 was seen for the discriminator, whose real and generated terms nearly
# cancel at first, 0.15 for the generator, behind a discriminator whose first Adam step turned
# rounding into signs. A wrong sign or a missing term is off by about 1.
GRADIENT_TOLERANCE = {"discriminator": 0.2, "generator": 0.3}

# The first step's losses, and gradients by network and parameter on the CPU.
Expected = tuple[dict[str, float], dict[str, dict[str, Tensor]]]


def first_step(step: GANStep, frames: Tensor) -> Expected:
    """Train once; what is compared with the reference."""
    losses = {name: float(value) for name, value in step(frames).items()}
    gradients = {}
    for name, optimizer in step.optimizers.items():
        # Half the first gradient, in Adam's first moment: .grad of the reference's discriminator
        # also holds what the generator's step left there. Our kernels give biases before a norm no
        # gradient: the reference's is rounding noise.
        gradients[name] = {
            parameter: optimizer.state[value]["exp_avg"].to("cpu", copy=True)
            for parameter, value in step.networks[name].named_parameters()
            if value in optimizer.state
        }
    return losses, gradients


def compare(found: Expected, expected: Expected) -> None:
    """Refuse a path that disagrees after one step: in losses, or in either gradient.

    Raises:
        WrongResultError: it does.
    """
    for name, value in expected[0].items():
        error = abs(found[0][name] / value - 1)
        if not error < TOLERANCE:
            raise WrongResultError(f"the loss '{name}' is off by {error:.1%}")
    for name, tolerance in GRADIENT_TOLERANCE.items():
        shared = found[1][name].keys() & expected[1][name].keys()
        ours, right = (
            torch.cat([gradients[1][name][parameter].flatten() for parameter in sorted(shared)])
            for gradients in (found, expected)
        )
        error = float((ours - right).norm() / right.norm())
        if not error < tolerance:
            raise WrongResultError(f"the {name}'s gradient is off by {error:.1%}")


def contest(networks: Networks, preset: Preset, device: Device) -> Contest:
    """All rivals on networks of one size."""
    shape = networks.shape
    batches, current, expected = [], [], []

    def turn() -> None:
        if not batches:
            clips = SyntheticClips(
                frames=shape.frames,
                size=shape.size,
                batch_size=networks.batch,
                seed=0,
                device=device.device,
            )
            batches.extend(clips.next_batch() for _ in range(BATCHES))
            current.append(itertools.cycle(batches))

    def contender(rival: Rival) -> Contender:
        def build(_) -> Prepared:
            turn()
            settings = resolved(rival.settings(networks, device))
            configure(settings)
            step = GANStep(settings)
            for network in (step.generator, step.discriminator):
                rival.compile(network, preset.compiler)

            def work() -> None:
                configure(settings)
                torch.compiler.cudagraph_mark_step_begin()
                step(next(current[0]))

            found = first_step(step, batches[0])
            if not expected:
                expected.append(found)
            compare(found, expected[0])
            return Prepared(work, {"clips": networks.batch})

        return Contender(rival.name, build, rival.precision, rival.about)

    return Contest(
        "training step",
        str(networks),
        [contender(rival) for rival in rivals(device)],
        preset.rounds,
        preset.warm_up + 1 if device.gpu else min(preset.warm_up, 1),
        counted=[(call.flops, call.bytes) for call in training_step(shape, networks.batch)],
        profiled=True,
    )


def contests(preset: Preset, device: Device) -> list[Contest]:
    """Each of the trained networks."""
    return [contest(networks, preset, device) for networks in preset.trained]


def test_training_step(contest, contender, measured):
    measured(contest, contender)
