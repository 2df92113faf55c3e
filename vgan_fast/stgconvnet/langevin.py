"""Langevin dynamics: clips drawn from an energy model, step by step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vgan_fast.kernels.dispatch import Impl
from vgan_fast.kernels.langevin import langevin_step, normals
from vgan_fast.stgconvnet.model import Scored


class Drawn(NamedTuple):
    """Where chains have got to.

    Attributes:
        chains: (N, 3, T, H, W) fp32.
        accepted: share of proposals that became steps, scalar; 1 without Metropolis-Hastings.
    """

    chains: Tensor
    accepted: Tensor


@dataclass(frozen=True)
class Langevin:
    """Steps I <- I + d²/2 (df/dI - I / s²) + d sqrt(T) N(0, 1) (paper, equation of the sampler).

    Without correction they draw from (exp(f) q)^(1/T) up to a bias that vanishes with d. The noise
    is a function of `seed`, the number of the step and the place in the chains: state is nothing
    but the chains and that number.

    Attributes:
        step_size: d, > 0, in grey levels.
        variance: s² of the Gaussian reference q; None for a flat one, between `bounds`.
        temperature: T; at 0 the steps go down the energy without noise.
        metropolis: accept each step of a chain with the probability that makes the bias vanish
            (Metropolis-Hastings); costs one more evaluation a call.
        bounds: range of pixels, None for none. It reflects once what leaves it; steps that are not
            small beside it pile up at its ends.
        seed: of the noise, 0 to 2^62.
        impl: see `vgan_fast.kernels.dispatch`.

    Raises:
        ValueError: `metropolis` with a temperature of 0 or with bounds, where it is not defined.
    """

    step_size: float = 0.3
    variance: float | None = 1.0
    temperature: float = 1.0
    metropolis: bool = False
    bounds: tuple[float, float] | None = None
    seed: int = 0
    impl: Impl = "auto"

    def __post_init__(self):
        if self.metropolis and (self.temperature == 0 or self.bounds is not None):
            raise ValueError("Metropolis-Hastings needs a temperature above 0 and no bounds")

    @torch.no_grad()
    def __call__(
        self,
        scored: Callable[[Tensor], Scored],
        chains: Tensor,
        moment: Tensor,
        steps: int,
        fixed: Tensor | None = None,
    ) -> Drawn:
        """Take steps.

        Args:
            scored: f and its gradient (`EnergyNetwork.frozen`).
            chains: (N, 3, T, H, W) fp32, pixels less their mean.
            moment: number of the first step, an int64 scalar on the device; advanced in place.
            steps: how many.
            fixed: bool (N or 1, 1, T, H, W), pixels that stay as they are.
        """
        if self.metropolis:
            return self._corrected(scored, chains, moment, steps, fixed)
        for _ in range(steps):
            chains = self._proposed(chains, scored(chains)[1], moment, fixed)
            moment += 1
        return Drawn(chains, torch.ones((), device=chains.device))

    def _proposed(self, chains: Tensor, gradient: Tensor, moment: Tensor, fixed) -> Tensor:
        return langevin_step(
            chains,
            gradient,
            moment,
            seed=self.seed,
            step_size=self.step_size,
            variance=self.variance,
            temperature=self.temperature,
            fixed=fixed,
            bounds=self.bounds,
            impl=self.impl,
        )

    def _corrected(self, scored, chains: Tensor, moment: Tensor, steps: int, fixed) -> Drawn:
        scores, gradient = scored(chains)
        accepted = torch.zeros((), device=chains.device)
        for _ in range(steps):
            proposal = self._proposed(chains, gradient, moment, fixed)
            proposed_scores, proposed_gradient = scored(proposal)
            ratio = self._log_density(proposed_scores, proposal)
            ratio -= self._log_density(scores, chains)
            ratio += self._log_step(proposal, proposed_gradient, chains, fixed)
            ratio -= self._log_step(chains, gradient, proposal, fixed)
            # Before 0 there are no moments: numbers that no step's noise takes.
            drawn = normals(ratio.shape, -1 - moment, self.seed, chains.device)
            keep = torch.special.log_ndtr(drawn.double()) < ratio
            accepted += keep.float().mean() / steps
            scores = torch.where(keep, proposed_scores, scores)
            keep = keep[:, None, None, None, None]
            chains = torch.where(keep, proposal, chains)
            gradient = torch.where(keep, proposed_gradient, gradient)
            moment += 1
        return Drawn(chains, accepted)

    def _log_density(self, scores: Tensor, chains: Tensor) -> Tensor:
        """Of each chain, up to a constant: (N,) float64."""
        energy = -scores.double()
        if self.variance is not None:
            energy = energy + _squared(chains) / (2 * self.variance)
        return -energy / self.temperature

    def _log_step(self, of: Tensor, gradient: Tensor, to: Tensor, fixed) -> Tensor:
        """Log density of a proposal, up to the constant that all proposals share: (N,) float64."""
        if self.variance is not None:
            gradient = gradient - of / self.variance
        noise = to - of - self.step_size**2 / 2 * gradient
        if fixed is not None:
            noise = noise.masked_fill(fixed, 0)
        return -_squared(noise) / (2 * self.step_size**2 * self.temperature)


def _squared(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).sum(1)
