"""From `NAME=SOURCE` to the clips of a study's conditions, all of one length and size."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from vgan_fast.checkpoint import is_checkpoint, open_weights
from vgan_fast.errors import UserError
from vgan_fast.interchange.layout import is_published
from vgan_fast.pictures import as_frames
from vgan_fast.sampling import Sampler

from .sheets import freeze, scramble

FRAMES, SIZE = 32, 64  # where no run says otherwise
SYNTHETIC = "synthetic"
SCRAMBLE = "scramble"  # name of the condition that catch trials show beside a real clip

Kind = Literal["model", "real", "static", "foil"]


@dataclass(frozen=True)
class Condition:
    """What raters compare with others."""

    name: str
    kind: Kind  # "foil" is shown in catch trials only
    source: str  # as the user named it
    clips: np.ndarray  # uint8 (N, T, H, W, 3)


class Cut(NamedTuple):
    """How clips are cut from their source."""

    frames: int
    size: int  # pixels a side
    stride: int  # frames of a file from one of a clip to the next
    fps: float | None  # that videos are resampled to; None takes every frame


class Clips:
    """Clips of every source of a study; sources are checked here and read when iterated.

    Args:
        sources: pairs of a condition's name and its source: the folder of a run of
            `vgan_fast.train`, "synthetic", or whatever of videos `loaders.clips.open_clips` reads.
        static: names among them that get a condition more, "static NAME": their first frames.
        foil: whether to add a condition for catch trials: scrambled stills of the first real
            source's clips.
        count: clips of each condition.
        seed: of latents and of what is cut from files.
        frames: of a clip; None takes those of the runs, or 32 where there is none.
        size: pixels a side; None as for `frames`, or 64.
        device: where models compute.

    Attributes:
        frames, size: of every clip.

    Raises:
        UserError: a source is missing or unusable, or they do not go together.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, str]],
        static: Sequence[str],
        *,
        foil: bool,
        count: int,
        seed: int,
        frames: int | None,
        size: int | None,
        device: torch.device,
    ):
        self._sources, self._static, self._foil = sources, static, foil
        self._count, self._seed, self._device = count, seed, device
        for name in static:
            if name not in dict(sources):
                raise UserError(f"--static {name}: is no name in --clips; give one of those")
        names = [name for name, _ in sources] + [_static_name(name) for name in static]
        for name in {*names, SCRAMBLE}:
            if [*names, SCRAMBLE].count(name) > 1:
                raise UserError(f"--clips {name}: the name is taken; choose another")
        if foil and all(map(_is_run, dict(sources).values())):
            raise UserError(
                "--catch: catch trials need real clips and --clips names models only; add"
                " NAME=VIDEOS, or give --catch 0"
            )
        self._cut = _common_cut(dict(sources), frames, size)
        self.frames, self.size = self._cut[:2]

    def __iter__(self) -> Iterator[Condition]:
        """Give the conditions in the order of the sources, a source's static one behind it."""
        foil = self._foil
        for place, (name, source) in enumerate(self._sources):
            kind: Kind = "model" if _is_run(source) else "real"
            # By place: the same source under two names shall not give the same clips.
            clips = self._read(source, self._seed + place)
            yield Condition(name, kind, source, clips)
            if name in self._static:
                frozen = np.stack([freeze(clip) for clip in clips])
                yield Condition(_static_name(name), "static", source, frozen)
            if foil and kind == "real":
                foil = False
                random = np.random.default_rng(self._seed)
                noise = np.stack([scramble(clip, random) for clip in clips])
                yield Condition(SCRAMBLE, "foil", source, noise)

    def _read(self, source: str, seed: int) -> np.ndarray:
        if source == SYNTHETIC:
            return _synthetic(self._cut, self._count, seed)
        if _is_run(source):
            return _generated(Path(source), self._count, seed, self._device)
        return _cut_from_files(Path(source), self._cut, self._count, seed)


def _static_name(name: str) -> str:
    return f"static {name}"


def _is_run(source: str) -> bool:
    path = Path(source)
    return is_checkpoint(path) or (path / "checkpoints").is_dir() or is_published(path)


def _common_cut(sources: dict[str, str], frames: int | None, size: int | None) -> Cut:
    """How all clips are cut: as the runs' own were.

    Raises:
        UserError: where runs differ from each other or from what was asked for, or a source is
            missing.
    """
    cuts = {}
    for name, source in sources.items():
        if _is_run(source):
            _, settings = open_weights(Path(source))
            cuts[name] = Cut(settings.frames, settings.size, settings.stride, settings.fps)
        elif source != SYNTHETIC and not Path(source).exists():
            raise UserError(
                f"--clips {name}={source}: no such file or folder; give a run of vgan_fast.train,"
                " videos or 'synthetic'"
            )
    if not cuts:
        return Cut(frames or FRAMES, size or SIZE, 1, None)
    first, cut = next(iter(cuts.items()))
    for name, other in cuts.items():
        if other[:2] != cut[:2]:
            raise UserError(
                f"--clips: {first} makes {_described(cut)}, {name} {_described(other)}; compare"
                " runs of the same --frames and --size"
            )
        if other != cut:
            raise UserError(
                f"--clips: {first} was trained with --stride {cut.stride} and --fps {cut.fps},"
                f" {name} with {other.stride} and {other.fps}; compare runs that agree in them"
            )
    if (frames or cut.frames, size or cut.size) != cut[:2]:
        raise UserError(
            f"--frames and --size: {first} makes {_described(cut)}; leave both options out"
        )
    return cut


def _described(cut: Cut) -> str:
    return f"{cut.frames} frames of {cut.size}x{cut.size}"


def _generated(run: Path, count: int, seed: int, device: torch.device) -> np.ndarray:
    sampler = Sampler(run, device)
    made = sampler.batches(sampler.codes(count, seed), streams=False)
    return np.concatenate([as_frames(clips["video"]) for clips in made])


def _synthetic(cut: Cut, count: int, seed: int) -> np.ndarray:
    from vgan_fast.loaders.synthetic import SyntheticClips

    clips = SyntheticClips(
        frames=cut.frames, size=cut.size, batch_size=count, seed=seed, split="held-out"
    )
    return clips.next_batch().numpy()


def _cut_from_files(data: Path, cut: Cut, count: int, seed: int) -> np.ndarray:
    from vgan_fast.loaders.clips import open_clips

    with (
        tempfile.TemporaryDirectory() as scratch,
        open_clips(
            data,
            frames=cut.frames,
            size=cut.size,
            stride=cut.stride,
            fps=cut.fps,
            batch_size=count,  # one batch: no clip comes twice while there are others
            seed=seed,
            device=torch.device("cpu"),
            decoded=Path(scratch),
            cache="none",
        ) as loader,
    ):
        clips = loader.next_batch().numpy()
        print(loader.summary)
    return clips
