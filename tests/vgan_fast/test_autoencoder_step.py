import copy
import dataclasses

import pytest
import torch

from vgan_fast import mixture
from vgan_fast.autoencoder_step import AutoencoderStep
from vgan_fast.errors import UserError
from vgan_fast.mixture import LatestCodes, Mixture
from vgan_fast.settings import Settings

TINY = Settings(
    model="autoencoder",
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
    return AutoencoderStep(dataclasses.replace(TINY, **changes))


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (4, 8, 16, 16, 3), dtype=torch.uint8, generator=generator)


def test_a_step_follows_the_textbook_loop_and_keeps_the_codes():
    step = tiny(backend="reference")
    encoder, decoder = copy.deepcopy(step.encoder), copy.deepcopy(step.generator)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    adam = torch.optim.Adam(parameters, lr=2e-4, betas=(0.5, 0.999))
    codes = []
    for i in range(3):
        losses = step(batch(i))
        real = batch(i).permute(0, 4, 1, 2, 3) / 127.5 - 1
        codes.append(encoder(real))
        made, mask = decoder(codes[-1])
        error = (made - real).square().mean()
        adam.zero_grad()
        error.backward()
        adam.step()
        torch.testing.assert_close(losses["error"], error.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses["mask"], mask.detach(), rtol=1e-4, atol=1e-5)
    assert codes[0].shape == (4, 6)
    kept = step.codes.latest()
    torch.testing.assert_close(kept, torch.cat(codes).detach(), rtol=1e-3, atol=1e-4)
    ours = [*step.encoder.named_parameters(), *step.generator.named_parameters()]
    for (name, value), expected in zip(ours, parameters, strict=True):
        if not name.endswith("bias"):  # one before a batch norm has rounding noise for a gradient
            torch.testing.assert_close(value, expected, rtol=1e-3, atol=2e-5)


def test_the_error_falls_below_that_of_the_mean():
    step = tiny(lr=2e-3)
    for _ in range(150):
        error = step(batch())["error"]
    clips = batch().permute(0, 4, 1, 2, 3) / 127.5 - 1
    assert error < 0.98 * clips.var()


def test_a_run_resumes_bit_for_bit():
    whole = tiny()
    for i in range(2):
        whole(batch(i))
    other = tiny(seed=1)
    for name, network in other.networks.items():
        network.load_state_dict(copy.deepcopy(whole.networks[name].state_dict()))
    other.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert torch.equal(whole(batch(2))["error"], other(batch(2))["error"])
    assert torch.equal(whole.codes.latest(), other.codes.latest())
    assert torch.equal(whole.sample(2)["video"], other.sample(2)["video"])


def test_the_ring_holds_the_latest_codes(monkeypatch):
    monkeypatch.setattr(mixture, "CODES", 5)
    ring = LatestCodes(1)
    assert ring.latest().shape == (0, 1)
    ring.add(torch.tensor([[0.0], [1.0], [2.0]]))
    assert ring.latest().flatten().tolist() == [0, 1, 2]
    ring.add(torch.tensor([[3.0], [4.0], [5.0]]))
    assert sorted(ring.latest().flatten().tolist()) == [1, 2, 3, 4, 5]
    ring.add(torch.arange(6.0, 14.0)[:, None])
    assert sorted(ring.latest().flatten().tolist()) == [9, 10, 11, 12, 13]


def test_a_mixture_draws_what_it_was_fitted_to(monkeypatch):
    monkeypatch.setattr(mixture, "COMPONENTS", 2)
    torch.manual_seed(0)
    near = torch.randn(900, 3) * torch.tensor([0.1, 1.0, 0.5]) + torch.tensor([4.0, 0.0, 0.0])
    far = torch.randn(300, 3) * torch.tensor([0.5, 0.2, 0.1]) - torch.tensor([4.0, 0.0, 1.0])
    drawn = Mixture(torch.cat([near, far])).draw(3000, seed=1)
    right = drawn[drawn[:, 0] > 0]
    assert abs(len(right) / 3000 - 0.75) < 0.04
    for of, given in ((right, near), (drawn[drawn[:, 0] < 0], far)):
        torch.testing.assert_close(of.mean(0), given.mean(0), atol=0.1, rtol=0)
        torch.testing.assert_close(of.std(0), given.std(0), atol=0.05, rtol=0.1)


def test_the_first_codes_of_a_seed_do_not_depend_on_their_number():
    fitted = Mixture(torch.randn(40, 3))
    assert torch.equal(fitted.draw(9, seed=2)[:4], fitted.draw(4, seed=2))
    assert not torch.equal(fitted.draw(4, seed=2), fitted.draw(4, seed=3))


def test_an_untrained_autoencoder_has_no_mixture():
    with pytest.raises(UserError, match="has seen no clips yet"):
        Mixture(LatestCodes(3).latest())
