"""One step of adversarial training: the object that owns networks, optimisers and random state."""

import contextlib
import copy
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from vgan_fast import fused, models
from vgan_fast.kernels.frames import frames_to_cells
from vgan_fast.kernels.frames.reference import normalise_frames
from vgan_fast.losses import discriminator_loss, generator_loss
from vgan_fast.models import Discriminator, OneStreamGenerator, TwoStreamGenerator
from vgan_fast.settings import Settings
from vgan_fast.stale import forward_with_inputs, stale_input_gradient


class GANStep:
    """Trains a generator against a discriminator, one batch a call (paper sections 3 and 4).

    Running statistics: one pass of the generator updates its own; the discriminator's two passes
    of its own step (real, then generated) update its own, and its pass in the generator's step
    does not. Each pass is normalised by the statistics of its own batch.

    The reference backend is the plain loop: contiguous, nothing frozen. The fused backend runs
    `vgan_fast.fused`'s networks and takes real clips as cells. Otherwise clips and the 3D
    layers' weights are stored channels-last, optimisers are fused, and the discriminator's weights
    get no gradient in the generator's step, where nobody reads it.

    Shapes are the same at every call and nothing waits for the device.

    Args:
        settings: with device and precision resolved (`vgan_fast.device.resolved`).
    """

    def __init__(self, settings: Settings):
        self.settings, self.device = settings, torch.device(settings.device)
        self.plain = settings.backend == "reference"
        self.fused = settings.backend == "fused"
        device = self.device
        torch.manual_seed(settings.seed)
        self.generator = build_generator(settings).to(device)
        self.discriminator = build_discriminator(settings).to(device)
        if not self.plain:
            for network in (self.generator, self.discriminator):
                _store_channels_last(network)
        self.sampler = self.generator
        if settings.average:
            self.sampler = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizers = {
            "generator": self._optimizer(self.generator, settings.lr),
            "discriminator": self._optimizer(
                self.discriminator, settings.lr if settings.lr_d is None else settings.lr_d
            ),
        }
        self.random = torch.Generator(device).manual_seed(settings.seed)

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            frames: (N, T, H, W, 3) uint8 on the step's device.

        Returns:
            Scalars on the device: `d_real` and `d_fake` (terms of the discriminator's loss),
            `d` (their half-sum, as the original prints), `g` (the generator's adversarial term),
            and for two streams `mask` (the mask's mean).
        """
        if self.fused:
            dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
            real = frames_to_cells(frames, dtype=dtype, impl="triton")
        else:
            real = normalise_frames(frames)
        if self.plain:
            real = real.contiguous()
        with self._autocast():
            fake, mask_mean = self._generate(self.latents(len(frames)))
        if self.settings.schedule == "original":
            losses = self._original_schedule(real, fake, mask_mean)
        else:
            losses = self._fresh_schedule(real, fake, mask_mean)
        if self.settings.average:
            self._average()
        if mask_mean is not None:
            losses["mask"] = mask_mean
        losses["d"] = (losses["d_real"] + losses["d_fake"]) / 2
        return {name: value.detach() for name, value in losses.items()}

    def _fresh_schedule(self, real: Tensor, fake: Tensor, mask_mean: Tensor | None):
        loss = self.settings.loss
        with self._autocast():
            score_real = self.discriminator.score_cells if self.fused else self.discriminator
            real_logits = score_real(real)
            fake_logits = self.discriminator(fake.detach())
        d_real, d_fake = discriminator_loss(loss, real_logits, fake_logits)
        self._update("discriminator", d_real + d_fake)

        self.discriminator.requires_grad_(self.plain)
        with _frozen_statistics(self.discriminator), self._autocast():
            logits = self.discriminator(fake)
        g = generator_loss(loss, logits)
        self._update("generator", g + self._penalty(mask_mean))
        self.discriminator.requires_grad_(True)
        return {"d_real": d_real, "d_fake": d_fake, "g": g}

    def _original_schedule(self, real: Tensor, fake: Tensor, mask_mean: Tensor | None):
        loss = self.settings.loss
        real_logits = self.discriminator(real)
        fake_logits, inputs = forward_with_inputs(self.discriminator, fake.detach())
        d_real, d_fake = discriminator_loss(loss, real_logits, fake_logits)
        self._update("discriminator", d_real + d_fake)

        stale = fake_logits.detach().requires_grad_()
        g = generator_loss(loss, stale)
        (logit_gradient,) = torch.autograd.grad(g, stale)
        gradient = stale_input_gradient(self.discriminator, inputs, logit_gradient)
        # The inner product's gradient with respect to `fake` is `gradient`.
        self._update("generator", (fake * gradient).sum() + self._penalty(mask_mean))
        return {"d_real": d_real, "d_fake": d_fake, "g": g}

    def latents(self, count: int) -> Tensor:
        """Draw codes from N(0, 1): (count, latent) fp32."""
        return torch.randn(count, self.settings.latent, generator=self.random, device=self.device)

    def state_dict(self) -> dict:
        """Everything that the next step depends on but the weights: tensors and plain values."""
        return {
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "random": self.random.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take back what `state_dict` gave."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.random.set_state(state["random"])

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks whose weights a checkpoint keeps."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        if self.settings.average:
            networks["averaged"] = self.sampler
        return networks

    def sample(self, count: int) -> dict[str, Tensor]:
        """The same `count` samples at every call, to watch them change: see `sample_streams`."""
        # Not the training seed: its first latents are those of the first batch.
        seeded = torch.Generator().manual_seed(self.settings.seed + 1)
        latents = torch.randn(count, self.settings.latent, generator=seeded).to(self.device)
        with self._autocast():
            sampler = with_own_statistics(self.sampler) if self.settings.average else self.sampler
            return sample_streams(sampler, latents)

    def _generate(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        made = self.generator(latents)
        return made if isinstance(made, tuple) else (made, None)

    def _penalty(self, mask_mean: Tensor | None) -> Tensor | float:
        return 0.0 if mask_mean is None else self.settings.mask_penalty * mask_mean

    def _update(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def _average(self) -> None:
        weight = 1 - self.settings.average
        for mean, value in zip(self.sampler.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(value, weight)

    def _autocast(self):
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16"
        )

    def _optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        if self.settings.optimizer == "sgd":
            return torch.optim.SGD(network.parameters(), lr, momentum=0.9, fused=not self.plain)
        return torch.optim.Adam(network.parameters(), lr, betas=(0.5, 0.999), fused=not self.plain)


def build_generator(settings: Settings) -> OneStreamGenerator | TwoStreamGenerator:
    """The generator that the settings describe, freshly initialised, on the CPU."""
    networks, options = _networks(settings)
    if settings.model == "one-stream":
        return networks.OneStreamGenerator(settings.shape, **options)
    return networks.TwoStreamGenerator(settings.shape, settings.mask_bias, **options)


def build_discriminator(settings: Settings) -> Discriminator:
    """The discriminator that the settings describe, freshly initialised, on the CPU."""
    networks, options = _networks(settings)
    return networks.Discriminator(settings.shape, int(settings.logits), **options)


def _networks(settings: Settings) -> tuple[ModuleType, dict]:
    return (fused, {"impl": "triton"}) if settings.backend == "fused" else (models, {})


@torch.no_grad()
def with_own_statistics(generator: OneStreamGenerator | TwoStreamGenerator):
    """A copy of an averaged generator that has the running statistics of its own activations.

    Averaged weights have other activations than the weights that they average, so neither those'
    statistics nor their average fit: with them samples lose motion. Estimated from 512 latents,
    always the same ones.
    """
    own = copy.deepcopy(generator)
    latents = torch.randn(8, 64, own.shape.latent, generator=torch.Generator().manual_seed(0))
    update_bn(latents.to(next(own.parameters()).device), own)
    return own


@torch.no_grad()
def sample_streams(
    generator: OneStreamGenerator | TwoStreamGenerator, latents: Tensor
) -> dict[str, Tensor]:
    """Clips made in evaluation mode, by stream, all fp32 (N, 3 or 1, T, H, W) in [-1, 1].

    "video" always; for two streams also "foreground", "mask" (-1 for 0, 1 for 1) and "background"
    (repeated over time).
    """
    training = generator.training
    generator.eval()
    if isinstance(generator, OneStreamGenerator):
        made = {"video": generator(latents)}
    else:
        streams = generator.streams(latents)
        made = {
            "video": streams.video,
            "foreground": streams.foreground,
            "mask": 2 * streams.mask - 1,
            "background": streams.background[:, :, None].expand_as(streams.video),
        }
    generator.train(training)
    return made


def _store_channels_last(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.to(memory_format=torch.channels_last_3d)


@contextlib.contextmanager
def _frozen_statistics(network: nn.Module):
    """Normalise by the batch's statistics and leave the running ones alone."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
