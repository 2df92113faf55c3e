"""Numbers on clips and on their features: distances, scores, motion and mask statistics."""

import math

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (samples, dimensions).

    Computed in fp64; see `frechet_of_gaussians`. Fewer samples than dimensions are compared with
    each other instead of their covariances, which is faster and the same. The estimate
    is too large by an amount that falls with the number of samples: compare distances at equal
    counts only.

    Raises:
        ValueError: with fewer than two samples or unequal dimensions.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (>= 2, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    if min(len(a), len(b)) < a.shape[1]:
        return _frechet_of_few(a, b)
    return frechet_of_gaussians(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))


def frechet_of_gaussians(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Fréchet distance of two Gaussians with means (D,) and covariances (D, D), in fp64.

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), by symmetric eigenvalues: the trace of the
    root is that of (S_a^(1/2) S_b S_a^(1/2))^(1/2). Covariances may be singular.
    """
    values, vectors = torch.linalg.eigh(cov_a.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b.double() @ root).clamp(min=0).sqrt().sum()
    mean = (mean_a.double() - mean_b.double()).square().sum()
    return float(mean + cov_a.double().trace() + cov_b.double().trace() - 2 * cross)


def _frechet_of_few(a: Tensor, b: Tensor) -> float:
    """The same of centred samples A and B: tr (S_a S_b)^(1/2) sums the singular values of A B'."""
    mean = (a.mean(0) - b.mean(0)).square().sum()
    a = (a - a.mean(0)) / (len(a) - 1) ** 0.5
    b = (b - b.mean(0)) / (len(b) - 1) ** 0.5
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return float(mean + a.square().sum() + b.square().sum() - 2 * cross)


def inception_score(logits: Tensor) -> float:
    """exp E KL(p(y|x) || p(y)) of class logits (samples, classes): 1 to the number of classes.

    Raises:
        ValueError: without samples or with fewer than two classes.
    """
    if logits.ndim != 2 or len(logits) < 1 or logits.shape[1] < 2:
        raise ValueError(f"logits must be (>= 1, >= 2), got {tuple(logits.shape)}")
    given = logits.double().log_softmax(1)
    # In logarithms: a class that nobody predicts must not make a NaN of 0 * log 0.
    marginal = given.logsumexp(0) - math.log(len(given))
    return float((given.exp() * (given - marginal)).sum(1).mean().exp())


def motion_energy(clip: Tensor) -> float:
    """Mean squared difference of consecutive frames of clips (N, 3, T, H, W) in [-1, 1]."""
    return float(clip.float().diff(dim=2).square().mean())


def flicker(clip: Tensor) -> float:
    """Share of the energy over time that lies above half the Nyquist frequency, in [0, 1].

    Of clips (N, 3, T, H, W), pixel by pixel, the constant part left out; clips in which nothing
    moves have none. White noise has about a half, smooth motion little.
    """
    spectrum = torch.fft.rfft(clip.float(), dim=2)[:, :, 1:].abs().square()
    # Every frequency but Nyquist's own stands for two: its negative has the same energy.
    spectrum[:, :, : (clip.shape[2] - 1) // 2] *= 2
    by_frequency = spectrum.double().sum((0, 1, 3, 4))
    frequency = torch.arange(1, len(by_frequency) + 1, device=clip.device) / clip.shape[2]
    total = float(by_frequency.sum())
    return float(by_frequency[frequency > 0.25].sum()) / total if total else 0.0


def mask_auc(mask: Tensor, video: Tensor) -> float:
    """Probability that a moving pixel's mask exceeds a still one's.

    Moving are the tenth of each batch's pixels that differ most from their clip's median over
    time, mean absolute over channels; ties count half.

    Args:
        mask: (N, 1, T, H, W) in [0, 1].
        video: (N, 3, T, H, W), made with that mask.
    """
    video = video.float()
    departure = (video - video.median(dim=2, keepdim=True).values).abs().mean(1).flatten()
    moving = torch.zeros_like(departure, dtype=torch.bool)
    moving[departure.topk(len(departure) // 10).indices] = True
    # Ranks by value, ties sharing their mean rank: the Mann-Whitney statistic.
    _, group, counts = mask.float().flatten().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks = (last - (counts - 1) / 2).double()[group]
    positives = int(moving.sum())
    negatives = len(moving) - positives
    above = ranks[moving].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
