"""Whether samples are copies of training clips."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Nearest:
    """How near samples lie to training clips, against clips that were not trained on.

    Attributes:
        median_ratio: median distance of a sample to its nearest training clip, over the median of
            the usual distances. Well under 1 is copying; over 1 is far from all real clips.
        closer: share of samples nearer to a training clip than the least usual distance.
        clips: (N,) the nearest training clip of each sample.
        order: (N,) the samples, those nearest to a training clip first.
    """

    median_ratio: float
    closer: float
    clips: Tensor
    order: Tensor


def usual_distances(training: Tensor, others: Tensor | None) -> Tensor:
    """How far real clips lie from the training clips (M, D): the nearest one's distance of each.

    Args:
        training: features or miniatures of training clips.
        others: of held-out clips (K, D); None, where none was held out, takes each training clip's
            distance to another one.

    Raises:
        ValueError: where a single training clip has no other to be compared with.
    """
    if others is not None:
        return _distances(others, training).min(1).values
    if len(training) < 2:
        raise ValueError("one training clip alone has no distance to another")
    return _distances(training, training).fill_diagonal_(torch.inf).min(1).values


def nearest(samples: Tensor, training: Tensor, usual: Tensor) -> Nearest:
    """Compare the samples' distances to the nearest training clip with the usual ones.

    Args:
        samples: features or miniatures of samples (N, D).
        training: of training clips (M, D).
        usual: what `usual_distances` gives.
    """
    own, clips = _distances(samples, training).min(1)
    return Nearest(
        median_ratio=float(own.median() / usual.median().clamp(min=1e-12)),
        closer=float((own < usual.min()).double().mean()),
        clips=clips,
        order=own.argsort(),
    )


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By products, in fp64: in fp32 the distances of near clips would drown in their rounding.
    return torch.cdist(a.double(), b.double(), compute_mode="use_mm_for_euclid_dist")
