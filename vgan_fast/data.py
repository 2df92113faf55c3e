"""From settings to a loader."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vgan_fast.distributed import ALONE, Ranks
from vgan_fast.settings import SYNTHETIC, Settings
from vgan_fast.trainer import ClipSource

if TYPE_CHECKING:
    from vgan_fast.loaders.synthetic import SyntheticClips

# Loaders of files are imported where they are used: synthetic clips need none of their libraries.


def open_data(
    settings: Settings,
    run: Path,
    position: int = 0,
    batch_size: int | None = None,
    ranks: Ranks = ALONE,
) -> ClipSource:
    """The loader of `settings.data`, after `position` batches.

    Args:
        settings: with the device resolved (`vgan_fast.device.resolved`).
        run: folder of the run; decoded videos go into its `frames` unless `settings.decoded` says
            otherwise.
        position: number of batches to pass over.
        batch_size: clips in a batch of this process, where not its share of the settings'.
        ranks: the processes that share each batch, one's clips after another's. Process 0 decodes
            videos, the others wait for it.

    Raises:
        UserError: when the data cannot be used.
    """
    common = {
        "frames": settings.frames,
        "size": settings.size,
        "batch_size": batch_size or ranks.share(settings),
        "seed": settings.seed,
        "device": torch.device(settings.device),
        "position": position,
        "rank": ranks.number,
        "ranks": ranks.count,
    }
    if settings.data in SYNTHETIC:
        return synthetic_source(settings.data)(**common)
    from vgan_fast.loaders.clips import open_clips

    with ranks.first_before_others("data"):
        return open_clips(
            Path(settings.data),
            decoded=_decoded(settings, run),
            min_frames=settings.min_frames,
            fps=settings.fps,
            stride=settings.stride,
            start=settings.start,
            augmentation=settings.augmentation,
            cache=settings.cache,
            workers=settings.workers or ranks.workers,
            **common,
        )


def synthetic_source(name: str) -> "type[SyntheticClips]":
    """The source of clips that are drawn, by its name in `settings.SYNTHETIC`."""
    from vgan_fast.loaders.synthetic import SyntheticClips
    from vgan_fast.loaders.synthetic_motions import SyntheticMotions

    return {"synthetic": SyntheticClips, "synthetic-motions": SyntheticMotions}[name]


def describe_data(settings: Settings, run: Path) -> str:
    """One line on what the data consist of, from names alone.

    Raises:
        UserError: when there are none that can be used.
    """
    if settings.data in SYNTHETIC:
        return f"data: {settings.data.replace('-', ' ')}, drawn as they are needed"
    from vgan_fast.loaders.search import find_sources

    found = find_sources(Path(settings.data), _decoded(settings, run))
    return f"data: {found.described}, not yet opened"


def _decoded(settings: Settings, run: Path) -> Path:
    return Path(settings.decoded) if settings.decoded else run / "frames"
