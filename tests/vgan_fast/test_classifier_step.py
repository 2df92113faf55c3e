"""Training a classifier on a discriminator's body."""

import copy
from dataclasses import replace

import pytest
import torch

from vgan_fast import fused
from vgan_fast.classifier_step import DROPOUT, ClassifierStep
from vgan_fast.kernels.frames.reference import normalise_frames
from vgan_fast.networks import build_discriminator
from vgan_fast.settings import Settings

TINY = Settings(
    batch_size=4, frames=4, size=16, width=4, latent=6, device="cpu", precision="fp32", lr=1e-3
)
FORMS = ["auto", "library", "reference"]


def batch(count=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (count, 4, 16, 16, 3), dtype=torch.uint8, generator=random)
    return frames, torch.arange(count) % 3


def test_the_body_is_the_discriminators_and_the_last_layer_is_new():
    torch.manual_seed(3)
    discriminator = build_discriminator(TINY)
    kept = copy.deepcopy(discriminator.state_dict())
    step = ClassifierStep(TINY, 3, discriminator)
    *body, last = step.classifier.layers
    for ours, theirs in zip(body, discriminator.layers[:-1], strict=True):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name])
    assert last.weight.shape == (3, 8, 1, 4, 4)  # as large as what it takes
    assert 0.008 < last.weight.std() < 0.012
    step(*batch())
    assert all(torch.equal(v, kept[k]) for k, v in discriminator.state_dict().items())
    fresh = ClassifierStep(TINY, 3).classifier.layers[0].weight
    assert not torch.equal(fresh, discriminator.layers[0].weight)


@pytest.mark.parametrize("backend", FORMS)
def test_it_learns_what_it_is_shown(backend):
    step = ClassifierStep(replace(TINY, backend=backend), 3)
    frames, labels = batch()
    losses = [step(frames, labels)["loss"].item() for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]
    assert step(frames, labels)["right"] == 1


def built(form, **options):
    if form == "kernels":  # with the kernels' twins, which run anywhere
        return fused.Discriminator(TINY.shape, 3, impl="reference", **options)
    return build_discriminator(replace(TINY, backend=form), 3, **options)


@pytest.mark.parametrize("form", [*FORMS, "kernels"])
def test_dropout_comes_before_the_last_layer_in_training_alone(form):
    network = built(form, dropout=DROPOUT)
    with torch.no_grad():
        network.layers[-1].weight.fill_(1.0)  # logits are sums of what the layer takes
        clips = normalise_frames(batch(64)[0]).contiguous()
        trained = network(clips)
        plain = built(form)
        plain.load_state_dict(network.state_dict())
        whole = plain(clips)
        taken = plain.layers[:-1](clips)
        # Each value is doubled or gone: a variance of its square.
        spread = taken.square().sum((1, 2, 3, 4)).sqrt()
        off = (trained - whole)[:, 0] / spread
        assert 0.7 < off.std() < 1.3
        assert off.mean().abs() < 0.5
        assert torch.equal(network.eval()(clips), network(clips))


def test_probabilities_are_of_evaluation_and_leave_training_on():
    step = ClassifierStep(TINY, 3)
    step(*batch())
    frames, _ = batch(6)
    kept = copy.deepcopy(step.classifier.state_dict())
    told = step.probabilities(iter([frames[:4], frames[4:]]))
    assert all(torch.equal(v, kept[k]) for k, v in step.classifier.state_dict().items())
    assert step.classifier.training
    torch.testing.assert_close(told.sum(1), torch.ones(6))
    with torch.no_grad():
        logits = step.classifier.eval()(normalise_frames(frames))
    torch.testing.assert_close(told, logits.softmax(1), rtol=1e-4, atol=1e-5)


def test_the_same_seed_trains_the_same_and_another_does_not():
    def trained(seed):
        step = ClassifierStep(replace(TINY, seed=seed), 3)
        return [step(*batch(seed=i))["loss"].item() for i in range(3)]

    assert trained(1) == trained(1) != trained(2)
