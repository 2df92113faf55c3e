"""One pass over clips that keeps what every number needs, and not the clips."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vgan_fast.distributed import ALONE, Ranks
from vgan_fast.evaluation.detectors import Detector
from vgan_fast.evaluation.metrics import flicker, mask_auc, motion_energy

MINIATURE = (8, 16, 16)  # frames, height and width that clips are compared in, pixel by pixel


@dataclass(frozen=True)
class Seen:
    """What is kept of a set of clips, all on the CPU.

    Attributes:
        features: (N, D) fp64.
        logits: (N, C) fp64, None where the detector has no classes.
        miniatures: (N, 3 * 8 * 16 * 16) fp32 in [-1, 1], the clips scaled down.
        shown: the first clips, for pictures: uint8 (few, 3, T, H, W), a quarter of their memory.
        statistics: "motion" (mean squared difference of consecutive frames), "flicker" (share of
            the energy over time above half the Nyquist frequency); of clips with a mask also "mask
            mean", "mask < 0.3" (share of its pixels) and "mask AUC".
    """

    features: Tensor
    logits: Tensor | None
    miniatures: Tensor
    shown: Tensor
    statistics: dict[str, float]

    def clips(self, numbers: Tensor | slice) -> Tensor:
        """Some of the clips shown, (n, 3, T, H, W) fp32 in [-1, 1]."""
        return self.shown[numbers] / 127.5 - 1


def look(
    batches: Iterable[dict[str, Tensor]],
    detector: Detector,
    shown: int = 8,
    ranks: Ranks = ALONE,
) -> Seen:
    """Look once at batches of clips by stream, (N, C, T, H, W) fp32 in [-1, 1]; see `Seen`.

    Statistics are means over batches, weighted by their sizes.

    Args:
        batches: those of this process, the processes' one after another.
        detector: for the features.
        shown: clips kept, of this process's first.
        ranks: the processes; each gets what all have seen.
    """
    seen, count = [], 0
    for streams in batches:
        clips = streams["video"]
        frames = (clips[: max(0, shown - count)].float().clamp(-1, 1) + 1) * 127.5
        kept = frames.round().to(torch.uint8).cpu()
        features, logits = detector(clips)
        seen.append(Seen(features, logits, miniature(clips).cpu(), kept, _statistics(streams)))
        count += len(clips)
    return _as_one(ranks.together(seen))


def _as_one(seen: list[Seen]) -> Seen:
    """What was seen of sets one after another, as of one set."""
    sums: dict[str, float] = {}
    for of in seen:
        for name, value in of.statistics.items():
            sums[name] = sums.get(name, 0.0) + value * len(of.features)
    count = sum(len(of.features) for of in seen)
    return Seen(
        features=torch.cat([of.features for of in seen]),
        logits=None if seen[0].logits is None else torch.cat([of.logits for of in seen]),
        miniatures=torch.cat([of.miniatures for of in seen]),
        shown=torch.cat([of.shown for of in seen]),
        statistics={name: value / count for name, value in sums.items()},
    )


def miniature(clips: Tensor) -> Tensor:
    """Clips (N, 3, T, H, W) averaged down to 8 frames of 16x16, flat: (N, 6144) fp32."""
    return F.adaptive_avg_pool3d(clips.float(), MINIATURE).flatten(1)


def _statistics(streams: dict[str, Tensor]) -> dict[str, float]:
    video = streams["video"]
    found = {"motion": motion_energy(video), "flicker": flicker(video)}
    if "mask" in streams:
        mask = (streams["mask"] + 1) / 2  # Stored as pictures are.
        found |= {
            "mask mean": float(mask.mean()),
            "mask < 0.3": float((mask < 0.3).float().mean()),
            "mask AUC": mask_auc(mask, video),
        }
    return found
