import copy
import dataclasses

import pytest
import torch

from vgan_fast.future_step import FutureStep
from vgan_fast.settings import Settings

TINY = Settings(
    model="future",
    condition=2,
    mask_penalty=0.0,
    batch_size=4,
    frames=8,
    size=16,
    width=4,
    latent=6,
    device="cpu",
    precision="fp32",
)


def tiny(**changes):
    return FutureStep(dataclasses.replace(TINY, **changes))


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (4, 8, 16, 16, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder": "latent", "condition": 1},
        {"reconstruction": "l2", "reconstruction_weight": 3.0},
        {"mask_penalty": 0.2},
    ],
    ids=str,
)
def test_a_step_follows_the_textbook_loop(changes):
    step = tiny(backend="reference", **changes)
    settings = step.settings
    generator, discriminator = copy.deepcopy(step.generator), copy.deepcopy(step.discriminator)
    options = {"lr": 2e-4, "betas": (0.5, 0.999)}
    adam_d = torch.optim.Adam(discriminator.parameters(), **options)
    adam_g = torch.optim.Adam(generator.parameters(), **options)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    for i in range(3):
        losses = step(batch(i))
        real = batch(i).permute(0, 4, 1, 2, 3) / 127.5 - 1
        given = real[:, :, : settings.condition]
        fake, mask = generator(given)
        adam_d.zero_grad()
        (bce(discriminator(real), ones) + bce(discriminator(fake.detach()), zeros)).backward()
        adam_d.step()
        adam_g.zero_grad()
        g_loss = bce(discriminator(fake), ones)
        error = fake[:, :, : settings.condition] - given
        distance = error.abs() if settings.reconstruction == "l1" else error**2
        weight = settings.reconstruction_weight
        (g_loss + weight * distance.mean() + settings.mask_penalty * mask).backward()
        adam_g.step()
        torch.testing.assert_close(losses["g"], g_loss.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            losses["reconstruction"], distance.mean().detach(), rtol=1e-4, atol=1e-5
        )
    expected = dict(generator.named_parameters())
    for name, value in step.generator.named_parameters():
        if not name.endswith("bias"):  # one before a batch norm has rounding noise for a gradient
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5)


def test_widths_are_doubled_as_in_the_originals_code_and_not_with_the_papers_encoder():
    assert tiny().generator.encoder[0].out_channels == 2 * TINY.width
    assert tiny().discriminator.layers[0].out_channels == 2 * TINY.width
    latent = tiny(encoder="latent")
    assert latent.generator.encoder[0].out_channels == TINY.width
    assert latent.discriminator.layers[0].out_channels == TINY.width


def test_the_generator_sees_the_given_frames_and_no_later_ones():
    step = tiny()
    step(batch())
    later, earlier = batch().clone(), batch().clone()
    later[:, 2:] = 255 - later[:, 2:]
    earlier[:, 1] = 255 - earlier[:, 1]
    made = {}
    for name, frames in {"as it is": batch(), "later": later, "earlier": earlier}.items():
        step._watched = frames
        made[name] = step.sample(4)["video"]
    assert torch.equal(made["as it is"], made["later"])
    assert not torch.equal(made["as it is"], made["earlier"])


def test_samples_go_on_from_clips_of_the_first_batch():
    step = tiny()
    with pytest.raises(RuntimeError, match="train on one first"):
        step.sample(2)
    step(batch(0))
    step(batch(1))
    streams = step.sample(3)
    assert list(streams) == ["real", "video", "foreground", "mask", "background"]
    wanted = batch(0)[:3].permute(0, 4, 1, 2, 3) / 127.5 - 1
    torch.testing.assert_close(streams["real"].float(), wanted)


def test_a_run_resumes_bit_for_bit_and_goes_on_watching_the_same_clips():
    whole = tiny()
    for i in range(2):
        whole(batch(i))
    other = tiny(seed=1)
    for name, network in other.networks.items():
        network.load_state_dict(copy.deepcopy(whole.networks[name].state_dict()))
    other.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert torch.equal(whole(batch(2))["g"], other(batch(2))["g"])
    assert torch.equal(whole.sample(2)["video"], other.sample(2)["video"])


def test_the_first_frame_is_learned():
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]])
    frames = colours[:, None, None, None].expand(4, 8, 16, 16, 3).to(torch.uint8)
    step = tiny(condition=1, lr=2e-3)
    first = step(frames)["reconstruction"].clone()
    for _ in range(60):
        last = step(frames)["reconstruction"]
    assert last < 0.5 * first
