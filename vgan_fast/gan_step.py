"""One step of adversarial training: the object that owns networks, optimisers and random state."""

import contextlib
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from vgan_fast import cpu, fused, models
from vgan_fast.graph import CudaGraph, Graph, Replayed
from vgan_fast.kernels.dispatch import Impl
from vgan_fast.kernels.frames.reference import normalise_frames
from vgan_fast.losses import discriminator_loss, generator_loss
from vgan_fast.models import Discriminator, OneStreamGenerator, TwoStreamGenerator
from vgan_fast.settings import Settings
from vgan_fast.stale import forward_with_inputs, stale_input_gradient

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class GANStep:
    """Trains a generator against a discriminator, one batch a call (paper sections 3 and 4).

    Running statistics: one pass of the generator updates its own; the discriminator's two passes
    of its own step (real, then generated) update its own, and its pass in the generator's step
    does not. Each pass is normalised by the statistics of its own batch.

    The reference backend is the plain loop: contiguous, nothing frozen. Where the kernels run
    (`kernels_of`), networks are `vgan_fast.fused`'s, real and generated clips one batch. Otherwise
    clips and the 3D layers' weights are stored channels-last, and on a CPU networks are
    `vgan_fast.cpu`'s. But for the reference, optimisers are fused and the discriminator's weights
    get no gradient in the generator's step, where nobody reads it.

    Shapes are the same at every call and nothing waits for the device, but the gradient scaler of
    fp16 before a plain optimiser. With `settings.graph` the whole step is one replayed graph
    (`vgan_fast.graph.Replayed`): networks, gradients and optimiser state then stay where they are.

    Args:
        settings: with device, precision and graph resolved (`vgan_fast.device.resolved`).
        make_graph: what captures the step on a device.
    """

    def __init__(self, settings: Settings, make_graph: Callable[[torch.device], Graph] = CudaGraph):
        self.settings, self.device = settings, torch.device(settings.device)
        self.plain = settings.backend == "reference"
        self.impl = kernels_of(settings)
        self.fused = self.impl is not None
        device = self.device
        torch.manual_seed(settings.seed)
        self.generator = build_generator(settings).to(device)
        self.discriminator = build_discriminator(settings).to(device)
        self.sampler = self.generator
        if settings.average:
            self.sampler = copy.deepcopy(self.generator).requires_grad_(False)
        self.optimizers = {
            "generator": self._optimizer(self.generator, settings.lr),
            "discriminator": self._optimizer(
                self.discriminator, settings.lr if settings.lr_d is None else settings.lr_d
            ),
        }
        # One for both, as PyTorch advises: an overflow in either lowers the scale of both.
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self._one, self._ones = torch.ones((), device=device), torch.ones(2, device=device)
        self._mask_penalty = torch.tensor(settings.mask_penalty, device=device)
        self.random = torch.Generator(device).manual_seed(settings.seed)
        self._make_graph = make_graph
        self._run = self._captured_later()

    def __call__(self, frames: Tensor) -> dict[str, Tensor]:
        """Train on one batch.

        Args:
            frames: (N, T, H, W, 3) uint8 on the step's device.

        Returns:
            Scalars fp32 on the device, overwritten by the next call: `d_real` and `d_fake` (terms
            of the discriminator's loss, whose half-sum the original prints), `g` (the generator's
            adversarial term), and for two streams `mask` (the mask's mean).
        """
        return self._run(frames)

    def _train(self, frames: Tensor) -> dict[str, Tensor]:
        with self._autocast():
            fake, mask_mean = self._generate(self.latents(len(frames)))
        if self.settings.schedule == "original":
            d, g = self._original_schedule(self._clips(frames), fake, mask_mean)
        else:
            d, g = self._fresh_schedule(frames, fake, mask_mean)
        self.scaler.update()
        if self.settings.average:
            self._average()
        losses = {"d_real": d[0], "d_fake": d[1], "g": g}
        if mask_mean is not None:
            losses["mask"] = mask_mean
        return {name: value.detach() for name, value in losses.items()}

    def _fresh_schedule(self, frames: Tensor, fake: Tensor, mask_mean: Tensor | None):
        loss = self.settings.loss
        with self._autocast():
            if self.fused:
                logits = self.discriminator.score_pair(frames, fake)
            else:
                real_logits = self.discriminator(self._clips(frames))
                logits = torch.cat([real_logits, self.discriminator(fake.detach())])
        d = discriminator_loss(loss, logits, self.impl or "reference")
        self._update("discriminator", [d], [self._ones])

        self.discriminator.requires_grad_(self.plain)
        try:
            with _frozen_statistics(self.discriminator), self._autocast():
                logits = self.discriminator(fake)
            g = generator_loss(loss, logits, self.impl or "reference")
            self._update_generator(g, mask_mean)
        finally:  # A capture that fails here is followed by an ordinary step.
            self.discriminator.requires_grad_(True)
        return d, g

    def _original_schedule(self, real: Tensor, fake: Tensor, mask_mean: Tensor | None):
        loss = self.settings.loss
        real_logits = self.discriminator(real)
        fake_logits, inputs = forward_with_inputs(self.discriminator, fake.detach())
        d = discriminator_loss(loss, torch.cat([real_logits, fake_logits]))
        self._update("discriminator", [d], [self._ones])

        stale = fake_logits.detach().requires_grad_()
        g = generator_loss(loss, stale)
        (logit_gradient,) = torch.autograd.grad(g, stale)
        gradient = stale_input_gradient(self.discriminator, inputs, logit_gradient)
        # The inner product's gradient with respect to `fake` is `gradient`.
        self._update_generator((fake * gradient).sum(), mask_mean)
        return d, g

    def latents(self, count: int) -> Tensor:
        """Draw codes from N(0, 1): (count, latent) fp32."""
        return torch.randn(count, self.settings.latent, generator=self.random, device=self.device)

    def state_dict(self) -> dict:
        """Everything that the next step depends on but the weights: tensors and plain values."""
        return {
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "random": self.random.get_state(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Take back what `state_dict` gave."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            for parameter, moments in optimizer.state.items():
                for key, value in moments.items():
                    if value.shape == parameter.shape:
                        # Fused optimisers pair values by their place in memory, and runs of other
                        # versions or devices store theirs in another order.
                        moments[key] = torch.empty_like(parameter).copy_(value)
        self.random.set_state(state["random"])
        self.scaler.load_state_dict(state.get("scaler", {}))  # Older runs have none and need none.
        # The optimisers now hold other tensors than those that a graph would write to.
        self._run = self._captured_later()

    @property
    def replays(self) -> bool:
        """Whether the next call replays a graph."""
        return isinstance(self._run, Replayed) and self._run.captured

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

    def _captured_later(self) -> Callable[[Tensor], dict[str, Tensor]]:
        if not self.settings.graph:
            return self._train
        return Replayed(self._train, self._make_graph(self.device), [self.random])

    def _clips(self, frames: Tensor) -> Tensor:
        clips = normalise_frames(frames)
        return clips.contiguous() if self.plain else clips

    def _generate(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        made = self.generator(latents)
        return made if isinstance(made, tuple) else (made, None)

    def _update_generator(self, adversarial: Tensor, mask_mean: Tensor | None) -> None:
        if mask_mean is None:
            self._update("generator", [adversarial], [self._one])
        else:
            self._update("generator", [adversarial, mask_mean], [self._one, self._mask_penalty])

    def _update(self, name: str, terms: list[Tensor], weights: list[Tensor]) -> None:
        """A step down the gradient of the sum of weight * term, which itself nobody needs."""
        optimizer = self.optimizers[name]
        # Frees the gradients: those that a capture makes are the graph's, in memory of its own.
        optimizer.zero_grad()
        torch.autograd.backward(terms, [self.scaler.scale(weight) for weight in weights])
        self.scaler.step(optimizer)

    @torch.no_grad()
    def _average(self) -> None:
        means, values = (list(of.parameters()) for of in (self.sampler, self.generator))
        torch._foreach_lerp_(means, values, 1 - self.settings.average)

    def _autocast(self):
        dtype = _AUTOCAST.get(self.settings.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        if self.settings.optimizer == "sgd":
            return torch.optim.SGD(network.parameters(), lr, momentum=0.9, fused=not self.plain)
        # Fused means capturable in all but name: its step count is on the device either way, and a
        # run may be resumed with a graph that began without one.
        return torch.optim.Adam(
            network.parameters(),
            lr,
            betas=(0.5, 0.999),
            fused=not self.plain,
            capturable=not self.plain,
        )


def kernels_of(settings: Settings) -> Impl | None:
    """Which implementation the kernels' ops use, of resolved settings; None for plain layers."""
    if settings.backend == "fused":
        return "triton"
    if settings.backend == "auto" and settings.device == "cuda" and settings.precision != "fp16":
        return "auto"
    return None


def build_generator(settings: Settings) -> OneStreamGenerator | TwoStreamGenerator:
    """The generator that the settings describe, freshly initialised, on the CPU."""
    if settings.model == "one-stream":
        return _built("OneStreamGenerator", settings)
    return _built("TwoStreamGenerator", settings, settings.mask_bias)


def build_discriminator(settings: Settings) -> Discriminator:
    """The discriminator that the settings describe, freshly initialised, on the CPU."""
    return _built("Discriminator", settings, int(settings.logits))


def _built(name: str, settings: Settings, *arguments):
    impl = kernels_of(settings)
    if impl is not None:
        return getattr(fused, name)(settings.shape, *arguments, impl=impl)
    if settings.backend == "auto" and settings.device == "cpu":
        return getattr(cpu, name)(settings.shape, *arguments)
    network = getattr(models, name)(settings.shape, *arguments)
    if settings.backend != "reference":
        models.store_channels_last(network)
    return network


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
    generator: OneStreamGenerator | TwoStreamGenerator, latents: Tensor, streams: bool = True
) -> dict[str, Tensor]:
    """Clips made in evaluation mode, by stream, all fp32 (N, 3 or 1, T, H, W) in [-1, 1].

    "video" always; for two streams, where `streams` are wanted, also "foreground", "mask" (-1 for
    0, 1 for 1) and "background" (repeated over time).
    """
    training = generator.training
    generator.eval()
    if isinstance(generator, OneStreamGenerator):
        made = {"video": generator(latents).float()}
    elif not streams:
        made = {"video": generator(latents)[0].float()}
    else:
        of = generator.streams(latents)
        made = {
            "video": of.video,
            "foreground": of.foreground,
            "mask": 2 * of.mask - 1,
            "background": of.background[:, :, None].expand_as(of.video),
        }
    generator.train(training)
    return made


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
