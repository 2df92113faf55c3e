"""A Markov random field over space and time, sampled where a clip is occluded.

The recovery baseline of "Synthesizing Dynamic Patterns by Spatial-Temporal Generative ConvNet"
(CVPR 2017, experiment 4): pairwise L1 or L2 potentials, Gibbs sampling. The field here is

    p(x) ~ exp(-w_space sum phi(x_i - x_j) - w_time sum phi(x_i - x_j)),  x in [0, 255],

over the pairs of neighbours in space and in time, phi(d) = |d| or d^2, each channel on its own.
So that the baseline is a strong one, both weights are fitted to what is visible of each clip
(`fit_weights`), rather than set by hand.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vgan_fast.baselines.conditionals import (
    LEVELS,
    draw_l1,
    draw_l2,
    log_density_l1,
    log_density_l2,
)
from vgan_fast.baselines.inputs import check_clip
from vgan_fast.errors import UserError

LEAST_SHARE = 0.5  # of an equal one of a site's energy, that pairs of each kind are held to bear
FITTED_SITES = 30_000  # drawn from the visible ones: weights to within a few percent
FEWEST_COMPLETE = 200  # sites with all neighbours visible, for the fit to be made on them alone
CHUNK = 1 << 15  # sites drawn at once: bounds the memory of a sweep to some 50 MB
SOLVER_STEPS = 2000

Potential = Literal["l1", "l2"]


@dataclass(frozen=True)
class Weights:
    """Of pairs in space and in time: per grey level (L1) or per squared grey level (L2)."""

    space: float
    time: float


def recover(
    clip: np.ndarray,
    occluded: np.ndarray,
    *,
    potential: Potential,
    sweeps: int,
    samples: int,
    seed: int,
) -> np.ndarray:
    """Draws of a clip's occluded pixels given its visible ones.

    The chain starts at a draw of a Gaussian field, which one linear system gives whatever the
    holes' size, so that the sweeps need not carry values into the middle of a large hole. For L2
    it is the field itself but for its ends at 0 and 255; for L1 it has the weights whose pairs,
    alone, vary as much. After `sweeps` sweeps the first sample is taken, and each further one
    `sweeps // 5` (at least one) sweeps later: samples of one chain, not independent.

    Args:
        clip: (T, H, W, 3) uint8; what it holds at occluded pixels does not matter.
        occluded: (T, H, W) bool.
        potential: "l1" or "l2".
        sweeps: before the first sample, >= 1.
        samples: >= 1.
        seed: of the sites that are fitted to and of all draws.

    Returns:
        (samples, T, H, W, 3) fp32 in [0, 255], the visible pixels as they were.

    Raises:
        UserError: with everything occluded, or no two neighbours visible.
        ValueError: on other shapes, types or counts.
    """
    check_clip(clip, occluded)
    if potential not in ("l1", "l2") or sweeps < 1 or samples < 1:
        raise ValueError(
            "needs potential 'l1' or 'l2', sweeps >= 1 and samples >= 1, got "
            f"{potential!r}, {sweeps} and {samples}"
        )
    generator = torch.Generator().manual_seed(seed)
    weights = fit_weights(clip, occluded, potential, seed)
    field = Field(occluded, potential, weights)
    if potential == "l1":
        # Differences of a pair alone have the variance 2 / w^2 (L1) and 1 / (2 w) (L2).
        gaussian = Weights(weights.space**2 / 4, weights.time**2 / 4)
    else:
        gaussian = weights
    start = Field(occluded, "l2", gaussian).gaussian_draw(torch.from_numpy(clip).float(), generator)
    values = start.clamp(0, LEVELS)
    drawn = np.empty((samples, *clip.shape), np.float32)
    for sample in range(samples):
        for _ in range(sweeps if sample == 0 else max(1, sweeps // 5)):
            values = field.sweep(values, generator)
        drawn[sample] = values.numpy()
    return drawn


def fit_weights(clip: np.ndarray, occluded: np.ndarray, potential: Potential, seed: int) -> Weights:
    """Weights of greatest pseudo-likelihood: the product of visible sites' conditionals.

    Of sites whose neighbours are all visible, `FITTED_SITES` at most, drawn by the seed; where
    there are too few of those, of all visible sites given the neighbours that are visible. A kind
    of pair that is never visible takes the other kind's weight. Whole grey levels are spread evenly
    over the step that they stand for, lest equal neighbours look closer than a camera can tell.

    No weight is less than half of what its pairs' differences ask for if they bear a third of a
    site's energy, as they do where the three axes are alike (whatever the weights, the axes' shares
    add up to 1). Where the neighbours in space tell all that those in time do, as in
    fire, pseudo-likelihood makes the L2 weight of time nil, and nothing would hold the frames of a
    gap: that would be a weak baseline.

    Args and errors as in `recover`.
    """
    generator = torch.Generator().manual_seed(seed)
    lattice = _Lattice(occluded.shape)
    visible = lattice.pad(torch.from_numpy(~occluded))
    sites = visible.nonzero()[:, 0]
    sites = sites[torch.randperm(len(sites), generator=generator)]
    reach = lattice.neighbours(sites)
    used = visible[reach]
    complete = (used == lattice.inside[reach]).all(1)
    if complete.sum() >= FEWEST_COMPLETE:
        sites, used = sites[complete], used[complete]
    has_pair = used.any(1)
    sites, used = sites[has_pair][:FITTED_SITES], used[has_pair][:FITTED_SITES]
    kinds = torch.stack([used[:, kind == _KIND].any() for kind in (0, 1)])
    if not kinds.any():
        raise UserError("no two neighbouring pixels are visible: a field cannot be fitted")
    levels = torch.from_numpy(clip).double()
    levels += torch.rand(levels.shape, generator=generator, dtype=torch.float64)
    values = lattice.pad(levels * LEVELS / (LEVELS + 1))
    centre = values[sites]
    around = values[lattice.neighbours(sites)].movedim(1, 2)
    used = used.unsqueeze(1).double()
    log_density = log_density_l1 if potential == "l1" else log_density_l2

    # The mean of w |d|, or of 2 w d^2, is a pair's share of a site's energy.
    degree = 1 if potential == "l1" else 2
    energies = degree * (around - centre.unsqueeze(2)).abs() ** degree * used
    of_kind = torch.stack([used * (kind == _KIND) for kind in (0, 1)])
    shares = (energies * of_kind).sum((1, 2, 3)) / (3 * of_kind.sum((1, 2, 3))).clamp(min=1)
    equal = 1 / (3 * torch.where(kinds, shares, shares.max()))
    least = LEAST_SHARE * equal
    logs = equal.log().requires_grad_()
    optimiser = torch.optim.LBFGS([logs], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        weights = logs.exp()[_KIND] * used
        value = -log_density(centre, around, weights).mean()
        value.backward()
        return value

    optimiser.step(loss)
    space, time = logs.detach().exp().maximum(least).tolist()
    return Weights(space if kinds[0] else time, time if kinds[1] else space)


_KIND = torch.tensor([1, 1, 0, 0, 0, 0])  # of each neighbour: 0 in space, 1 in time


class _Lattice:
    """Sites of a (T, H, W) volume in a flat one that is padded by one on each side."""

    def __init__(self, shape: tuple[int, int, int]):
        self.shape = shape
        _, height, width = (side + 2 for side in shape)
        steps = torch.tensor([height * width, width, 1])
        self.steps = steps
        self._offsets = torch.stack([-steps, steps], dim=1).flatten()
        self.inside = self.pad(torch.ones(shape, dtype=torch.bool))

    def pad(self, volume: Tensor) -> Tensor:
        """Of (T, H, W, ...) the flat padded volume, with zeros around."""
        padded = volume.new_zeros(*(side + 2 for side in self.shape), *volume.shape[3:])
        padded[1:-1, 1:-1, 1:-1] = volume
        return padded.flatten(0, 2)

    def unpad(self, flat: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return flat.unflatten(0, [side + 2 for side in self.shape])[1:-1, 1:-1, 1:-1]

    def neighbours(self, sites: Tensor) -> Tensor:
        """Flat places (n, 6) of the neighbours of sites (n,): before, after; above, below; ..."""
        return sites.unsqueeze(1) + self._offsets


class Field:
    """The field on a clip's lattice, of which only the occluded sites are drawn.

    Args:
        occluded: (T, H, W) bool.
        potential: "l1" or "l2".
        weights: positive.

    Attributes:
        colours: two sets of flat padded sites, those of even and those of odd t + h + w. No two
            sites of a set are neighbours, so that a set is drawn at once.
    """

    def __init__(self, occluded: np.ndarray, potential: Potential, weights: Weights):
        self._draw = draw_l1 if potential == "l1" else draw_l2
        self._lattice = _Lattice(occluded.shape)
        self._weights = torch.tensor([weights.space, weights.time], dtype=torch.float32)[_KIND]
        parity = torch.from_numpy(np.indices(occluded.shape).sum(0) % 2)
        hidden = torch.from_numpy(occluded)
        self.colours = [
            self._lattice.pad(hidden & (parity == colour)).nonzero()[:, 0] for colour in (0, 1)
        ]
        self._hidden = self._lattice.pad(hidden).nonzero()[:, 0]

    def sweep(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """A copy of `values` (T, H, W, 3) fp32 with each occluded site drawn once, given the rest.

        Exact draws of each conditional: a truncated Gaussian (L2), or pieces of exponentials
        between the neighbours' values (L1).
        """
        flat = self._lattice.pad(values)
        for colour in self.colours:
            for sites in colour.split(CHUNK):
                reach, weights = self._around(sites)
                flat[sites] = self._draw(
                    flat[reach].movedim(1, 2), weights.unsqueeze(1).expand(-1, 3, -1), generator
                )
        return self._lattice.unpad(flat).contiguous()

    def gaussian_draw(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """A copy of `values` (T, H, W, 3) fp32 with the occluded sites drawn at once, as L2.

        Without the ends at 0 and 255 the L2 field is Gaussian with precision 2 L, L the weighted
        Laplacian of the lattice: its mean plus (2 L)^-1 times noise of covariance 2 L, one noise
        for each pair, is an exact draw (perturb and solve). Conjugate gradients solve in fp64 to a
        millionth of the right-hand side: a thousandth was seen to leave gaps of whole frames, which
        hang on weak pairs, far off.
        """
        lattice, hidden = self._lattice, self._hidden
        reach, weights = self._around(hidden)
        weights = weights.unsqueeze(2)
        flat = lattice.pad(values.double())
        flat[hidden] = 0
        target = (weights * flat[reach]).sum(1)
        # A pair's noise pushes its two ends apart; it lies at the earlier end.
        noise = torch.zeros_like(target)
        for axis, step in enumerate(lattice.steps):
            pushes = torch.randn(flat.shape, generator=generator, dtype=flat.dtype)
            before, after = (2 * weights[:, 2 * axis : 2 * axis + 2]).sqrt().unbind(1)
            noise += before * pushes[hidden - step] - after * pushes[hidden]
        diagonal = weights.sum(1)

        def laplacian(x: Tensor) -> Tensor:
            full = torch.zeros_like(flat)
            full[hidden] = x
            return diagonal * x - (weights * full[reach]).sum(1)

        flat[hidden] = _solve(laplacian, diagonal, target + noise / 2)
        return lattice.unpad(flat).float().contiguous()

    def _around(self, sites: Tensor) -> tuple[Tensor, Tensor]:
        """Places and weights (n, 6) of the neighbours of sites (n,); weight 0 outside."""
        reach = self._lattice.neighbours(sites)
        return reach, self._lattice.inside[reach] * self._weights


def _solve(operator, diagonal: Tensor, target: Tensor) -> Tensor:
    """x with operator(x) = target (n, channels), by conjugate gradients scaled by the diagonal."""
    x = target / diagonal
    residual = target - operator(x)
    scaled = residual / diagonal
    direction = scaled.clone()
    size = (residual * scaled).sum(0)
    goal = 1e-12 * (target * target / diagonal).sum(0)
    for _ in range(SOLVER_STEPS):
        if bool((size <= goal).all()):
            break
        image = operator(direction)
        # A channel that is solved has nothing left to divide.
        length = size / (direction * image).sum(0).clamp(min=1e-30)
        x = x + length * direction
        residual = residual - length * image
        scaled = residual / diagonal
        before, size = size, (residual * scaled).sum(0)
        direction = scaled + size / before.clamp(min=1e-30) * direction
    return x
