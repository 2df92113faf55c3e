"""How good samples are: Fréchet distance on a fixed extractor, motion and mask statistics."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RandomExtractor(nn.Module):
    """A fixed, untrained 3D convolution network: features of a clip that need no download.

    Three 4x4x4 convolutions, stride 2, padding 1, 3 -> 32 -> 64 -> 128 channels, LeakyReLU 0.2,
    orthogonal weights drawn from seed 0, zero bias. Its distances compare runs of this project
    with each other and with nothing else.
    """

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Conv3d(inner, outer, 4, stride=2, padding=1)
            for inner, outer in ((3, 32), (32, 64), (64, 128))
        )
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        self.requires_grad_(False)

    def forward(self, clip: Tensor) -> Tensor:
        """Features (N, 512) of clips (N, 3, T, H, W) in [-1, 1].

        Mean and standard deviation over positions, of the frames and of the frame differences.
        """
        return torch.cat([*self._moments(clip), *self._moments(clip.diff(dim=2))], dim=1)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return x.mean((2, 3, 4)), x.std((2, 3, 4))


def features(extractor: RandomExtractor, batches: Iterable[Tensor]) -> Tensor:
    """Features (clips, 512), fp64, of batches of clips (N, 3, T, H, W) in [-1, 1]."""
    with torch.inference_mode():
        return torch.cat([extractor(batch.float()).double() for batch in batches])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (samples, dimensions).

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), in fp64 by symmetric eigenvalues: the
    trace of the root is that of (S_a^(1/2) S_b S_a^(1/2))^(1/2).

    Raises:
        ValueError: with fewer than two samples or unequal dimensions.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (>= 2, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    covariance_a, covariance_b = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    return float(mean + covariance_a.trace() + covariance_b.trace() - 2 * cross)


def motion_energy(clip: Tensor) -> float:
    """Mean squared difference of consecutive frames of clips (N, 3, T, H, W) in [-1, 1]."""
    return float(clip.float().diff(dim=2).square().mean())


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
