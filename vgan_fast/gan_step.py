"""One step of adversarial training."""

import contextlib
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vgan_fast.distributed import ALONE, Ranks
from vgan_fast.graph import CudaGraph, Graph
from vgan_fast.losses import discriminator_loss, generator_loss
from vgan_fast.networks import build_discriminator, build_generator, kernels_of
from vgan_fast.sampling import sample_streams, with_own_statistics
from vgan_fast.settings import Settings
from vgan_fast.stale import forward_with_inputs, stale_input_gradient
from vgan_fast.step import Step


class GANStep(Step):
    """Trains a generator against a discriminator, one batch a call (paper sections 3 and 4).

    Running statistics: one pass of the generator updates its own; the discriminator's two passes
    of its own step (real, then generated) update its own, and its pass in the generator's step
    does not. Each pass is normalised by the statistics of its own batch.

    The reference backend is the plain loop: contiguous, nothing frozen. Where the kernels run
    (`kernels_of`), networks are `vgan_fast.fused`'s, real and generated clips one batch. Otherwise
    clips and the 3D layers' weights are stored channels-last, and on a CPU networks are
    `vgan_fast.cpu`'s. But for the reference the discriminator's weights get no gradient in the
    generator's step, where nobody reads it.

    Args:
        settings: with device, precision and graph resolved (`vgan_fast.device.resolved`).
        make_graph: what captures the step on a device.
        ranks: the processes that share each batch.
    """

    def __init__(
        self,
        settings: Settings,
        make_graph: Callable[[torch.device], Graph] = CudaGraph,
        ranks: Ranks = ALONE,
    ):
        device = torch.device(settings.device)
        self.impl = kernels_of(settings)
        self.fused = self.impl is not None
        torch.manual_seed(settings.seed)
        self.generator = build_generator(settings).to(device)
        self.discriminator = build_discriminator(settings).to(device)
        self.sampler = self.generator
        if settings.average:
            self.sampler = copy.deepcopy(self.generator).requires_grad_(False)
        self._ones = torch.ones(2, device=device)
        self._mask_penalty = torch.tensor(settings.mask_penalty, device=device)
        super().__init__(
            settings,
            {"generator": self.generator, "discriminator": self.discriminator},
            {
                "generator": settings.lr,
                "discriminator": settings.lr if settings.lr_d is None else settings.lr_d,
            },
            make_graph,
            ranks,
        )

    def _train(self, frames: Tensor) -> dict[str, Tensor]:
        """See `Step.__call__`.

        Returns:
            `d_real` and `d_fake` (terms of the discriminator's loss, whose half-sum the original
            prints), `g` (the generator's adversarial term), and the generator's further terms by
            name: for two streams `mask`, the mask's mean.
        """
        codes = self._codes(frames)
        with self._autocast():
            made = self.generator(codes)
        fake, mask_mean = made if isinstance(made, tuple) else (made, None)
        further = self._further_terms(codes, fake, mask_mean)
        if self.settings.schedule == "original":
            d, g = self._original_schedule(self._clips(frames), fake, further)
        else:
            d, g = self._fresh_schedule(frames, fake, further)
        self.scaler.update()
        if self.settings.average:
            self._average()
        losses = {"d_real": d[0], "d_fake": d[1], "g": g}
        losses |= {name: value for name, (value, _) in further.items()}
        return {name: value.detach() for name, value in losses.items()}

    def _codes(self, frames: Tensor) -> Tensor:
        """What the generator makes clips of."""
        return self.latents(len(frames))

    def _further_terms(
        self, codes: Tensor, fake: Tensor, mask_mean: Tensor | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Terms of the generator's loss beside the adversarial one, each with its weight."""
        return {} if mask_mean is None else {"mask": (mask_mean, self._mask_penalty)}

    def _fresh_schedule(self, frames: Tensor, fake: Tensor, further: dict):
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
            self._update_generator(g, further)
        finally:  # A capture that fails here is followed by an ordinary step.
            self.discriminator.requires_grad_(True)
        return d, g

    def _original_schedule(self, real: Tensor, fake: Tensor, further: dict):
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
        self._update_generator((fake * gradient).sum(), further)
        return d, g

    def latents(self, count: int) -> Tensor:
        """Draw codes from N(0, 1), for each process its rows of all: (count, latent) fp32."""
        shape = count * self.ranks.count, self.settings.latent
        return self.ranks.own(torch.randn(shape, generator=self.random, device=self.device))

    @property
    def networks(self) -> dict[str, nn.Module]:
        """See `Step.networks`."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        if self.settings.average:
            networks["averaged"] = self.sampler
        return networks

    def sample(self, count: int) -> dict[str, Tensor]:
        """Clips in [-1, 1] by stream, of the same codes at every call; see `sample_streams`."""
        # Not the training seed: its first latents are those of the first batch.
        seeded = torch.Generator().manual_seed(self.settings.seed + 1)
        latents = torch.randn(count, self.settings.latent, generator=seeded).to(self.device)
        with self._autocast():
            sampler = with_own_statistics(self.sampler) if self.settings.average else self.sampler
            return sample_streams(sampler, latents)

    def _update_generator(self, adversarial: Tensor, further: dict) -> None:
        values, weights = zip(*[(adversarial, self._one), *further.values()], strict=True)
        self._update("generator", list(values), list(weights))

    @torch.no_grad()
    def _average(self) -> None:
        means, values = (list(of.parameters()) for of in (self.sampler, self.generator))
        torch._foreach_lerp_(means, values, 1 - self.settings.average)


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
