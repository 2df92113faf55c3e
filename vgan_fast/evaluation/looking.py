"""One pass over clips that keeps what every number needs, and not the clips."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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


def look(batches: Iterable[dict[str, Tensor]], detector: Detector, shown: int = 8) -> Seen:
    """Look once at batches of clips by stream, (N, C, T, H, W) fp32 in [-1, 1]; see `Seen`.

    Statistics are means over batches, weighted by their sizes.
    """
    features, logits, miniatures, kept = [], [], [], []
    sums: dict[str, float] = {}
    count = 0
    for streams in batches:
        clips = streams["video"]
        of_clips, of_classes = detector(clips)
        features.append(of_clips)
        if of_classes is not None:
            logits.append(of_classes)
        miniatures.append(miniature(clips).cpu())
        if count < shown:
            frames = (clips[: shown - count].float().clamp(-1, 1) + 1) * 127.5
            kept.append(frames.round().to(torch.uint8).cpu())
        for name, value in _statistics(streams).items():
            sums[name] = sums.get(name, 0.0) + value * len(clips)
        count += len(clips)
    return Seen(
        features=torch.cat(features),
        logits=torch.cat(logits) if logits else None,
        miniatures=torch.cat(miniatures),
        shown=torch.cat(kept),
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
