"""Real clips to measure against, each once: which there are, and whether they were held out."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from vgan_fast.data import open_data, synthetic_source
from vgan_fast.errors import UserError
from vgan_fast.kernels.frames.reference import normalise_frames
from vgan_fast.loaders.augment import Augmentation
from vgan_fast.loaders.search import PREPARED
from vgan_fast.settings import SYNTHETIC, Settings

HELD_OUT_SEED = 1000  # of synthetic clips, as in this project's other measurements
BATCH = 64
HELD_OUT = ("validation", "test")  # splits of a prepared set that are not trained on


class RealClips:
    """The real clips of one split, not varied, none twice.

    Args:
        settings: of the run; its `data`, sizes, and how files are cut into clips.
        split: "train"; "validation" or "test" of a prepared set; "held-out" of synthetic clips.
        folder: where decoded videos go, unless the settings name a place.

    Attributes:
        cut: settings that say how clips are cut from files.
        count: how many there are; infinite for synthetic clips.
        fingerprint: changes when the files do.
        held_out: whether no clip is of the files that runs are trained on.

    Raises:
        UserError: when there is no such split, or it cannot be read.
    """

    def __init__(self, settings: Settings, split: str, folder: Path):
        self.split, self.held_out = split, split != "train"
        self._folder = folder
        plain = {f.name: f.default for f in dataclasses.fields(Augmentation)}
        # Cut one after the other, clips of a file share no frame; one a batch, none is dropped.
        self._settings = self.cut = dataclasses.replace(settings, **plain)
        if settings.data in SYNTHETIC:
            if split not in ("train", "held-out"):
                raise UserError(f"--split {split}: synthetic clips are train or held-out")
            self.count, self.fingerprint = math.inf, synthetic_source(settings.data).fingerprint
            return
        data = Path(settings.data)
        if (split in HELD_OUT and not (data / PREPARED).is_file()) or split == "held-out":
            raise UserError(
                f"--split {split}: {data} is no set of vgan_fast.prepare with that split; use "
                "--split train"
            )
        if split in HELD_OUT:
            data = data / split
        self._settings = dataclasses.replace(self._settings, data=str(data), start="fixed")
        with closing(self._opened()) as clips:
            self.count, self.fingerprint = clips.batches_in_epoch, clips.fingerprint

    def batches(self, first: int, count: int) -> Iterator[dict[str, Tensor]]:
        """Clips number `first` and on, {"video": (N, 3, T, H, W) fp32 in [-1, 1]}.

        Synthetic ones of the split "train" are those of the run's seed.
        """
        with closing(self._opened(first)) as clips:
            for begin in range(0, count, BATCH):
                frames = [clips.next_batch() for _ in range(min(BATCH, count - begin))]
                yield {"video": normalise_frames(torch.cat(frames)).contiguous()}

    def _opened(self, position: int = 0):
        settings = self._settings
        if settings.data not in SYNTHETIC:
            return open_data(settings, self._folder, position, batch_size=1)
        return synthetic_source(settings.data)(
            frames=settings.frames,
            size=settings.size,
            batch_size=1,
            seed=HELD_OUT_SEED if self.held_out else settings.seed,
            device=settings.device,
            split="held-out" if self.held_out else "train",
            position=position,
        )


def choose_split(data: str) -> str:
    """Held-out clips where the data have some: "held-out", "test", "validation", else "train"."""
    if data in SYNTHETIC:
        return "held-out"
    for split in reversed(HELD_OUT):
        folder = Path(data) / split
        if (Path(data) / PREPARED).is_file() and folder.is_dir() and any(folder.iterdir()):
            return split
    return "train"
