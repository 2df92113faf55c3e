import copy
import dataclasses

import pytest
import torch

from vgan_fast.gan_step import GANStep
from vgan_fast.networks import kernels_of
from vgan_fast.sampling import sample_streams, with_own_statistics
from vgan_fast.settings import Settings

TINY = Settings(batch_size=4, frames=8, size=16, width=4, latent=6, device="cpu", precision="fp32")
NORM_STATE = ("running_mean", "running_var", "num_batches_tracked")


def tiny(**changes):
    return GANStep(dataclasses.replace(TINY, **changes))


def batch(seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (4, 8, size, size, 3), dtype=torch.uint8, generator=generator)


def weights(step):
    return {
        f"{name}.{key}": value.clone()
        for name, network in step.networks.items()
        for key, value in network.state_dict().items()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "hinge"},
        {"logits": "2"},
        {"model": "one-stream", "mask_penalty": 0.0},
        {"optimizer": "sgd", "lr": 0.1},
        {"backend": "reference"},
        {"backend": "reference", "schedule": "original"},
        {"backend": "reference", "schedule": "original", "logits": "2"},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "fp16", "backend": "reference"},
        {"precision": "bf16", "backend": "reference"},
        {"precision": "fp16", "optimizer": "sgd", "lr": 0.1},
    ],
    ids=str,
)
def test_every_variant_trains_both_networks_and_reports_finite_losses(changes):
    step = tiny(**changes)
    before = weights(step)
    losses = step(batch())
    assert all(value.isfinite() and value.dim() == 0 for value in losses.values())
    assert ("mask" in losses) == (changes.get("model") != "one-stream")
    for key, value in weights(step).items():
        still = torch.equal(value, before[key])
        # A bias in front of a batch norm has no gradient but rounding noise.
        assert not still or key.endswith("bias"), key


def test_the_same_seed_repeats_and_another_does_not():
    runs = [tiny(seed=seed) for seed in (3, 3, 4)]
    losses = [[run(batch(i))["g"].item() for i in range(3)] for run in runs]
    assert losses[0] == losses[1] != losses[2]
    first, second = weights(runs[0]), weights(runs[1])
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_step_learns_to_tell_real_from_generated():
    step = tiny(lr=1e-9, lr_d=2e-3)  # The generator stands still.
    first = step(batch())
    first = first["d_real"] + first["d_fake"]
    for _ in range(15):
        last = step(batch())
    assert last["d_real"] + last["d_fake"] < 0.5 * first


def test_a_step_follows_the_textbook_loop():
    """The whole step against the algorithm written out without any of our machinery."""
    step = tiny(backend="reference")
    generator, discriminator = copy.deepcopy(step.generator), copy.deepcopy(step.discriminator)
    random = torch.Generator().manual_seed(step.settings.seed)
    options = {"lr": 2e-4, "betas": (0.5, 0.999)}
    adam_d = torch.optim.Adam(discriminator.parameters(), **options)
    adam_g = torch.optim.Adam(generator.parameters(), **options)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(4, 1), torch.zeros(4, 1)
    for i in range(3):
        losses = step(batch(i))
        real = batch(i).permute(0, 4, 1, 2, 3) / 127.5 - 1
        fake, mask = generator(torch.randn(4, 6, generator=random))
        adam_d.zero_grad()
        real_loss = bce(discriminator(real), ones)
        fake_loss = bce(discriminator(fake.detach()), zeros)
        (real_loss + fake_loss).backward()
        adam_d.step()
        adam_g.zero_grad()
        g_loss = bce(discriminator(fake), ones)
        (g_loss + 0.1 * mask).backward()
        adam_g.step()
        expected = {"d_real": real_loss, "d_fake": fake_loss, "g": g_loss, "mask": mask}
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value.detach(), rtol=1e-4, atol=1e-5)
    compared = [(step.generator, generator), (step.discriminator, discriminator)]
    for ours, theirs in compared:
        expected = dict(theirs.named_parameters())
        for name, value in ours.named_parameters():
            if not name.endswith("bias"):
                torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-5)


def test_the_default_path_agrees_with_the_reference_in_fp32():
    reference, fast = tiny(backend="reference"), tiny()
    expected, got = reference(batch()), fast(batch())
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)


def test_bf16_losses_and_gradients_stay_within_rounding_of_the_reference():
    fast, exact = tiny(precision="bf16"), tiny(backend="reference")
    got, expected = fast(batch()), exact(batch())
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=2e-2, atol=2e-3)

    def gradient(step, name):
        # Adam's first moment after one step; .grad of the reference's discriminator also holds
        # what the generator's step left there.
        moments = step.optimizers[name].state.values()
        return torch.cat([state["exp_avg"].flatten() for state in moments])

    # bf16 keeps 8 bits: less error would mean that it was not used, more that it went wrong. The
    # generator's gradient passes through both networks.
    for name, most in (("discriminator", 0.05), ("generator", 0.25)):
        truth = gradient(exact, name)
        error = (gradient(fast, name) - truth).norm() / truth.norm()
        assert 1e-3 < error < most, name


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_fp16_losses_and_gradients_stay_within_rounding_of_the_reference(backend):
    half, exact = tiny(precision="fp16", backend=backend), tiny(backend="reference")
    got, expected = half(batch()), exact(batch())
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=2e-3, atol=2e-4)

    def gradient(step, name):
        moments = step.optimizers[name].state.values()
        return torch.cat([state["exp_avg"].flatten() for state in moments])

    # fp16 keeps 11 bits, bf16 8: see the test above.
    for name, most in (("discriminator", 0.01), ("generator", 0.05)):
        truth = gradient(exact, name)
        error = (gradient(half, name) - truth).norm() / truth.norm()
        assert 1e-5 < error < most, name


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_fp16_overflow_skips_the_update_and_nothing_else(backend):
    step = tiny(precision="fp16", backend=backend)
    step(batch())
    step.scaler.update(2.0**60)
    step(batch(1))  # Every gradient overflows.
    trained = {key: value for key, value in weights(step).items() if "running" not in key}
    losses = step(batch(2))
    assert all(value.isfinite() for value in losses.values())
    assert step.scaler.get_scale() == 2.0**58
    for key, value in weights(step).items():
        assert value.isfinite().all()
        if key in trained and "num_batches" not in key:
            assert torch.equal(value, trained[key]), key
    for optimizer in step.optimizers.values():
        assert all(state["step"] == 1 for state in optimizer.state.values())


def test_the_scale_resumes():
    step = tiny(precision="fp16")
    step.scaler.scale(torch.ones(()))  # The scaler makes its state at its first use.
    step.scaler.update(2.0**60)
    step(batch())
    assert step.scaler.get_scale() == 2.0**59
    other = tiny(precision="fp16")
    other.load_state_dict(copy.deepcopy(step.state_dict()))
    for name, network in other.networks.items():
        network.load_state_dict(step.networks[name].state_dict())
    assert other.scaler.get_scale() == 2.0**59
    assert step(batch(1)) == other(batch(1))
    assert step.scaler.state_dict() == other.scaler.state_dict()


def test_a_state_from_before_the_scaler_is_taken():
    step = tiny()
    state = step.state_dict()
    del state["scaler"]
    step.load_state_dict(state)


def test_which_passes_update_the_discriminators_running_statistics():
    step = tiny()
    norm = next(m for m in step.discriminator.modules() if isinstance(m, torch.nn.BatchNorm3d))
    seen = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().float()))
    step(batch())
    assert len(seen) == 3  # real, generated, and the generator's step
    assert norm.num_batches_tracked == 2
    mean = torch.zeros(norm.num_features)
    for x in seen[:2]:
        mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3, 4))
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-6)
    assert norm.track_running_stats


def test_state_round_trip_continues_bit_for_bit():
    step = tiny(average=0.9)
    for i in range(2):
        step(batch(i))
    kept, state = weights(step), copy.deepcopy(step.state_dict())
    expected = [step(batch(i)) for i in (2, 3)]

    other = tiny(average=0.9, seed=0)
    for name, network in other.networks.items():
        network.load_state_dict(
            {k.removeprefix(f"{name}."): v for k, v in kept.items() if k.startswith(f"{name}.")}
        )
    other.load_state_dict(state)
    assert [other(batch(i)) for i in (2, 3)] == expected
    first, second = weights(step), weights(other)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_moving_average_follows_its_recursion():
    step = tiny(average=0.75)
    expected = step.generator.head.weight.detach().clone()
    for i in range(3):
        step(batch(i))
        expected = 0.75 * expected + 0.25 * step.generator.head.weight.detach()
    torch.testing.assert_close(step.sampler.head.weight, expected)
    assert "averaged" in step.networks
    assert "averaged" not in tiny().networks


def test_samples_are_the_average_in_evaluation_mode_and_disturb_nothing():
    plain, watched = tiny(average=0.5), tiny(average=0.5)
    for i in range(2):
        plain(batch(i))
        watched(batch(i))
        samples = watched.sample(3)
    assert torch.equal(plain.generator.head.weight, watched.generator.head.weight)
    assert torch.equal(plain.random.get_state(), watched.random.get_state())
    assert torch.equal(samples["video"], watched.sample(3)["video"])
    latents = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    averaged = with_own_statistics(watched.sampler)
    assert torch.equal(samples["video"], sample_streams(averaged, latents)["video"])
    # In evaluation mode a sample does not depend on the batch around it.
    alone = sample_streams(averaged, latents[:1])["video"]
    torch.testing.assert_close(samples["video"][:1], alone)
    assert set(samples) == {"video", "foreground", "mask", "background"}
    assert all(clip.shape[2:] == (8, 16, 16) for clip in samples.values())
    assert torch.equal(samples["background"][:, :, 0], samples["background"][:, :, 5])


def test_averaged_weights_are_sampled_with_statistics_of_their_own():
    step = tiny(average=0.5, lr=1e-2)
    for i in range(3):
        step(batch(i))
    kept = {key: value.clone() for key, value in step.sampler.state_dict().items()}
    own = with_own_statistics(step.sampler)
    assert all(torch.equal(step.sampler.state_dict()[key], kept[key]) for key in kept)

    # Activations in front of the first norm, over latents never used in the estimate.
    seen = []
    norm = own.foreground[1]
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    sample_streams(own, torch.randn(512, 6))
    fitted, stale = norm.running_var, step.sampler.foreground[1].running_var
    actual = seen[0].transpose(0, 1).flatten(1).var(dim=1)
    assert (fitted / actual - 1).abs().max() < 0.2
    assert (stale / actual - 1).abs().max() > 0.5


def test_the_penalty_closes_the_mask():
    masks = {}
    for penalty in (0.0, 50.0):
        step = tiny(mask_penalty=penalty, lr=2e-3, lr_d=1e-9)
        for i in range(30):
            masks[penalty] = step(batch(i))["mask"]
    assert masks[50.0] < 0.8 * masks[0.0]


def test_where_the_kernels_train():
    def of(**options):
        return kernels_of(dataclasses.replace(Settings(precision="bf16"), **options))

    assert of(backend="fused", device="cpu") == "triton"
    assert of(backend="auto", device="cuda") == "auto"
    assert of(backend="auto", device="cpu") is None
    assert of(backend="auto", device="cuda", precision="fp16") is None
    assert of(backend="reference", device="cuda", precision="fp32") is None
    assert of(backend="library", device="cuda") is None


def test_moments_come_back_in_their_parameters_order_in_memory():
    straight, resumed = tiny(), tiny()
    frames = batch()
    straight(frames)
    state = copy.deepcopy(straight.state_dict())
    for optimizer in state["optimizers"].values():  # as versions that stored no channels last
        for moments in optimizer["state"].values():
            moments.update({key: value.contiguous() for key, value in moments.items()})
    for name, network in resumed.networks.items():
        network.load_state_dict(straight.networks[name].state_dict())
    resumed.load_state_dict(state)
    straight(frames)
    resumed(frames)
    for name, network in resumed.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, straight.networks[name].state_dict()[key]), (name, key)
