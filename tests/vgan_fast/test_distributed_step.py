"""Two processes with half a batch each against one process with the whole."""

import dataclasses
from unittest import mock

import pytest
import torch
from processes import Together

from vgan_fast.autoencoder_step import AutoencoderStep
from vgan_fast.device import resolved
from vgan_fast.distributed import ALONE
from vgan_fast.future_step import FutureStep
from vgan_fast.gan_step import GANStep
from vgan_fast.kernels.loss.reference import logistic_losses
from vgan_fast.settings import Settings

STEPS, BATCH = 20, 8
TINY = Settings(
    batch_size=BATCH,
    frames=4,
    size=16,
    width=4,
    latent=6,
    lr=2e-3,
    device="cpu",
    precision="fp32",
    batch_norm="synchronised",
)
STEPS_OF = {"future": FutureStep, "autoencoder": AutoencoderStep}


def exact(step):
    """A step, all in float64."""
    for name, network in step.networks.items():
        if name == "codes":  # fp32, whatever goes in
            continue
        network.double()
        # What the reference rounds to fp32 on the way.
        network.register_forward_pre_hook(lambda _, given: tuple(x.double() for x in given))
    for name, value in vars(step).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(step, name, value.double())
    clips = step._clips
    step._clips = lambda frames: clips(frames).double()
    if isinstance(step, GANStep):
        latents = step.latents
        step.latents = lambda count: latents(count).double()
    return step


def batches(settings, count=STEPS):
    random = torch.Generator().manual_seed(1)
    shape = settings.batch_size, settings.frames, settings.size, settings.size, 3
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=random) for _ in range(count)]


def weights(step):
    return {
        f"{name}.{key}": value.clone()
        for name, network in step.networks.items()
        for key, value in network.state_dict().items()
    }


def trained(ranks, settings):
    """Losses of each step over all processes; weights before and after."""
    step = exact(STEPS_OF.get(settings.model, GANStep)(settings, ranks=ranks))
    before, losses = weights(step), []
    # The op takes no float64; its answer key does.
    with mock.patch("vgan_fast.losses.logistic_losses", lambda *of, impl: logistic_losses(*of)):
        for frames in batches(settings):
            made = ranks.means(step(ranks.own(frames)))
            losses.append({name: float(value) for name, value in made.items()})
    return losses, before, weights(step)


def noisy(names):
    """Biases before a norm, whose gradient is rounding noise, and the means that they shift."""
    means = {key for key in names if key.endswith(".running_mean")}
    layers = [key.split(".")[:-1] for key in means]
    return means | {".".join([*of, str(int(number) - 1), "bias"]) for *of, number in layers}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"backend": "reference", "average": 0.9},
        {"backend": "library", "model": "one-stream", "mask_penalty": 0.0, "logits": "2"},
        {"model": "future", "mask_penalty": 0.0},
        {"backend": "library", "model": "autoencoder", "mask_penalty": 0.0},
    ],
    ids=lambda changes: changes.get("model", changes.get("backend", "two-stream")),
)
def test_two_processes_follow_one(two, changes):
    settings = dataclasses.replace(TINY, **changes)
    expected_losses, before, expected = trained(ALONE, settings)
    (losses, _, first), (other_losses, _, other) = two(trained, settings)
    assert losses == other_losses
    for mine, right in zip(losses, expected_losses, strict=True):
        assert mine == pytest.approx(right, abs=1e-6)  # some are fp32, whatever goes in
    for key, right in expected.items():
        assert torch.equal(first[key], other[key]), key
        atol = 1e-6 if key in noisy(expected) or right.dtype == torch.float32 else 1e-9
        torch.testing.assert_close(first[key], right, rtol=0, atol=atol, msg=key)
        if key.endswith("weight"):
            assert (right - before[key]).abs().max() > 1e-3, key


def stepped(ranks, settings):
    """Losses and weights of a few steps on the kernels' twins, which compute in fp32."""
    with (
        mock.patch("vgan_fast.networks.kernels_of", lambda _: "reference"),
        mock.patch("vgan_fast.gan_step.kernels_of", lambda _: "reference"),
        mock.patch("vgan_fast.fused.FEW_ROWS", 64),  # of both sides of it there are layers here
    ):
        step = STEPS_OF.get(settings.model, GANStep)(settings, ranks=ranks)
        for network in step.networks.values():
            for norm in network.modules():
                norm.momentum = 1.0  # of norms: what they track is then the last batch's
        losses = [ranks.means(step(ranks.own(frames))) for frames in batches(settings, 3)]
    return [{name: float(value) for name, value in of.items()} for of in losses], weights(step)


@pytest.mark.parametrize("model", ["two-stream", "future", "autoencoder"])
def test_two_processes_follow_one_on_kernels(two, model):
    # Plain descent: Adam would make steps of the rounding of a small gradient.
    changes = {"mask_penalty": 0.0, "optimizer": "sgd", "lr": 0.05, "frames": 8}
    settings = dataclasses.replace(TINY, model=model, **changes)
    expected_losses, expected = stepped(ALONE, settings)
    (losses, first), (_, other) = two(stepped, settings)
    for mine, right in zip(losses, expected_losses, strict=True):
        assert mine == pytest.approx(right, rel=1e-4)
    for key, right in expected.items():
        assert torch.equal(first[key], other[key]), key
        atol = 0 if key.endswith("running_var") else 1e-5
        torch.testing.assert_close(first[key], right, rtol=1e-3, atol=atol, msg=key)
    (_, local), _ = two(stepped, dataclasses.replace(settings, batch_norm="local"))
    near = [torch.allclose(local[key], right, 1e-4, 1e-5) for key, right in expected.items()]
    assert not all(near)


def replayed(ranks):
    """Whether the last step was a graph's replay, and its losses: together, and alone."""
    settings = resolved(
        dataclasses.replace(TINY, device="cuda", precision="bf16", batch_size=BATCH, graph=True)
    )
    found = []
    for of in (ranks, ALONE):
        step = GANStep(settings, ranks=of)
        frames = [batch.cuda() for batch in batches(settings, 8)]
        for batch in frames:
            losses = step(of.own(batch))
        found.append((step.replays, {name: float(value) for name, value in losses.items()}))
    return found


@pytest.mark.gpu
def test_a_graph_holds_the_messages():
    """NCCL's, of one process: gradients and synchronised norms on the kernels."""
    one = Together(1)
    try:
        ((together, alone),) = one(replayed)
    finally:
        one.close()
    assert together[0]
    assert alone[0]
    assert together[1] == pytest.approx(alone[1], rel=1e-2)  # norms of few rows round otherwise
