"""How sure a number is, and which of two sets of clips looks more real to a detector."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vgan_fast.evaluation.result import Number

SHRINKAGE = 0.1  # of covariances towards their diagonals, for fewer clips than dimensions
LEVEL = 0.95


def bootstrap(
    statistic: Callable[..., float],
    samples: list[Tensor],
    resamples: int,
    seed: int = 0,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Number:
    """`statistic(*samples)` with its centred bootstrap interval over the rows of each sample.

    Rows are drawn with replacement, of each sample on its own. A resample holds repeated clips, so
    it has fewer distinct ones than the sample, and statistics that shrink with the count, such as
    the Fréchet distance, come out too large: only the spread of the resampled values is used, laid
    around the estimate. The bias that the estimate itself has by its count stays in: the
    real-against-real floor shows that one. The interval ends where the statistic does, at `bounds`.
    """
    generator = torch.Generator().manual_seed(seed)
    estimate = statistic(*samples)
    drawn = torch.tensor(
        [
            statistic(*(s[torch.randint(len(s), (len(s),), generator=generator)] for s in samples))
            for _ in range(resamples)
        ],
        dtype=torch.float64,
    )
    bias = float(drawn.mean()) - estimate
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = drawn.quantile(tails).tolist()
    least, most = bounds
    return Number(estimate, max(low - bias, least), min(high - bias, most), bias)


class Realism:
    """How typical features are of real clips: how near their log density is to the usual one.

    The density is that of a Gaussian fitted to every other real clip; the usual log density is the
    median of the rest. Its covariance is 0.9 of the sample's plus 0.1 of its diagonal, so that it
    can be inverted where there are fewer clips than dimensions. The density itself is no measure:
    real clips lie in a shell around their mean, and what blurs towards that mean, as an
    autoencoder's clips do, is denser than they are.

    Args:
        real: features (N, D), N >= 4.
    """

    def __init__(self, real: Tensor):
        fitted, rest = real[::2], real[1::2]
        self._mean = fitted.mean(0)
        covariance = torch.cov(fitted.T)
        diagonal = covariance.diagonal()
        covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * diagonal.diag()
        # A feature that never changes has no variance to divide by.
        covariance += (1e-6 * diagonal.mean()).clamp(min=1e-12) * torch.eye(len(diagonal))
        self._root = torch.linalg.cholesky(covariance.double())
        self._usual = self.log_density(rest).median()

    def __call__(self, features: Tensor) -> Tensor:
        """Scores (N,) fp64 <= 0 of features (N, D), larger for more typical ones."""
        return -(self.log_density(features) - self._usual).abs()

    def log_density(self, features: Tensor) -> Tensor:
        """Log density (N,) fp64 of features (N, D), up to a constant."""
        centred = (features - self._mean).double().T
        return -torch.linalg.solve_triangular(self._root, centred, upper=False).square().sum(0) / 2


def preference(a: Tensor, b: Tensor) -> float:
    """Share of the pairs of an `a` and a `b` in which that of `a` is larger; ties count half.

    Args:
        a: scores (N,).
        b: scores (M,).
    """
    ranked = b.sort().values.contiguous()
    below = torch.searchsorted(ranked, a.contiguous(), right=False)
    not_above = torch.searchsorted(ranked, a.contiguous(), right=True)
    return float((below + not_above).double().mean() / (2 * len(b)))
