"""What a pixel of the Markov random field may be, given its neighbours: densities and draws.

The conditional of one value x in [0, 255] is ~ exp(-sum_j w_j phi(x - x_j)) over its neighbours'
values x_j: for phi(d) = d^2 a Gaussian cut off at the ends, for phi(d) = |d| an exponential in each
piece between two neighbours' values. Throughout `around` are the neighbours' values (..., 6) and
`weights` theirs, positive, 0 for those that there are not.
"""

import torch
from torch import Tensor

LEVELS = 255.0  # the field lives on [0, LEVELS]


def _pieces_l1(around: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the L1 conditional: ends (..., 8), slopes (..., 7) and energies at the ends (..., 8).

    Between two neighbours' values the energy is linear.
    """
    values, order = around.sort(-1)
    weights = weights.expand_as(around).gather(-1, order)
    total = weights.sum(-1, keepdim=True)
    lowest = torch.zeros_like(total)
    ends = torch.cat([lowest, values, lowest + LEVELS], -1)
    slopes = torch.cat([-total, 2 * weights.cumsum(-1) - total], -1)
    steps = (slopes * ends.diff(dim=-1)).cumsum(-1)
    first = (weights * values).sum(-1, keepdim=True)
    return ends, slopes, torch.cat([first, first + steps], -1)


def _log_masses_l1(ends: Tensor, slopes: Tensor, energies: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the integrals of exp(-energy) over the pieces, and their |energy steps|."""
    widths = ends.diff(dim=-1)
    # (1 - exp(-u)) / u tends to 1 as the piece gets flat.
    falls = (slopes * widths).abs().clamp(min=1e-6)
    lower = torch.minimum(energies[..., :-1], energies[..., 1:])
    return (widths * -torch.expm1(-falls) / falls).clamp(min=1e-30).log() - lower, falls


def log_density_l1(centre: Tensor, around: Tensor, weights: Tensor) -> Tensor:
    """Logarithm of the conditional density (...) at `centre` (...)."""
    energy = (weights * (centre.unsqueeze(-1) - around).abs()).sum(-1)
    return -energy - _log_masses_l1(*_pieces_l1(around, weights))[0].logsumexp(-1)


def draw_l1(around: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Exact draws (...) of the conditional, fp32: of a piece, by its mass, then in it."""
    ends, slopes, energies = _pieces_l1(around, weights)
    logs, falls = _log_masses_l1(ends, slopes, energies)
    shares = logs.softmax(-1).cumsum(-1)
    uniform = torch.rand((2, *around.shape[:-1]), generator=generator)
    piece = (shares[..., :-1] < uniform[0].unsqueeze(-1)).sum(-1, keepdim=True)
    left, right = ends.gather(-1, piece), ends.gather(-1, piece + 1)
    fall, slope = falls.gather(-1, piece), slopes.gather(-1, piece)
    # From the likelier end of the piece, an exponential that stops at the other one.
    way = -torch.log1p(uniform[1].unsqueeze(-1) * torch.expm1(-fall)) / fall * (right - left)
    return torch.where(slope > 0, left + way, right - way).squeeze(-1)


def _gaussian_l2(around: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the L2 conditional: mean, deviation, and the Gaussian's masses below 0 and below 255."""
    total = weights.sum(-1)
    mean = (weights * around).sum(-1) / total
    deviation = (2 * total).rsqrt()
    below = torch.special.ndtr(-mean / deviation)
    return mean, deviation, below, torch.special.ndtr((LEVELS - mean) / deviation)


def log_density_l2(centre: Tensor, around: Tensor, weights: Tensor) -> Tensor:
    """Logarithm of the conditional density (...) at `centre` (...), up to a constant."""
    mean, deviation, below, upto = _gaussian_l2(around, weights)
    return -((centre - mean) / deviation).square() / 2 - deviation.log() - (upto - below).log()


def draw_l2(around: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Exact draws (...) of the conditional, fp32, by inverting the cumulative distribution."""
    # fp64: a quantile near 1 of fp32 would now and then be 1, and infinite. The mean lies within
    # [0, 255], so that each end cuts off a half at most, and no mass is lost to rounding.
    mean, deviation, below, upto = _gaussian_l2(around.double(), weights.double())
    uniform = torch.rand(mean.shape, generator=generator, dtype=torch.float64)
    normal = torch.special.ndtri(below + uniform * (upto - below))
    return (mean + deviation * normal).clamp(0, LEVELS).float()
