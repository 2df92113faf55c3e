"""Whether samples are copies of training clips."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Nearest:
    """How near samples lie to training clips, against clips that were not trained on.

    Attributes:
        median_ratio: median distance of a sample to its nearest training clip, over the same of
            the clips for comparison. Well under 1 is copying; over 1 is far from all real clips.
        closer: share of samples nearer to a training clip than any clip for comparison is.
        clips: (N,) the nearest training clip of each sample.
        order: (N,) the samples, those nearest to a training clip first.
    """

    median_ratio: float
    closer: float
    clips: Tensor
    order: Tensor


def nearest(samples: Tensor, training: Tensor, others: Tensor | None) -> Nearest:
    """Compare distances to the nearest training clip.

    Args:
        samples: features or miniatures of samples (N, D).
        training: of training clips (M, D).
        others: of held-out clips (K, D); None compares with each training clip's distance to
            another one, where none was held out.

    Raises:
        ValueError: where a single training clip has no other to be compared with.
    """
    if others is None:
        if len(training) < 2:
            raise ValueError("one training clip alone has no distance to another")
        between = _distances(training, training).fill_diagonal_(torch.inf)
        usual = between.min(1).values
    else:
        usual = _distances(others, training).min(1).values
    own, clips = _distances(samples, training).min(1)
    return Nearest(
        median_ratio=float(own.median() / usual.median().clamp(min=1e-12)),
        closer=float((own < usual.min()).double().mean()),
        clips=clips,
        order=own.argsort(),
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Not by products: differences of near clips would drown in their rounding.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
