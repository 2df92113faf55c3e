"""Labelled videos as clips in memory, and which of them train and which test."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vgan_fast.errors import UserError
from vgan_fast.loaders.search import natural_key
from vgan_fast.settings import Settings

BATCH = 16  # clips read at a time
SHARE = 0.7  # of the free memory that clips may take
POOL_SEED = 0  # of the synthetic labelled clips
_UCF101_LIST = re.compile(r"trainlist(\d\d)\.txt")
NO_CLASSES = (
    "has no classes: give a folder with one folder for each class, a list with a number at the end "
    "of each line, or a training list of UCF101 with classInd.txt beside it"
)


@dataclass(frozen=True)
class LabelledClips:
    """Videos of known classes.

    Attributes:
        clips: uint8 (V, K, T, H, W, 3), RGB: K clips of each of V videos, evenly from its
            beginning to its end.
        labels: int64 (V,), places in `classes`.
        classes: their names.
        names: what a person calls each video.
        in_shards: whether some are clips of shards, which do not tell whose they are.
    """

    clips: Tensor
    labels: np.ndarray
    classes: list[str]
    names: list[str]
    in_shards: bool = False


@dataclass(frozen=True)
class Experiment:
    """Videos and how they are divided.

    Attributes:
        name: the split, where there are several; else "".
        videos: all of them.
        divide: a seed to the numbers of the videos that train, and of those that test.
    """

    name: str
    videos: LabelledClips
    divide: Callable[[int], tuple[np.ndarray, np.ndarray]]


def find_splits(data: Path, test: Path | None, split: str | None) -> list[tuple[Path, Path | None]]:
    """The training and test set of each split that `data` names.

    Args:
        data: what the user names; a training list of UCF101, or the folder of its lists, brings
            the test lists along.
        test: a test set that the user names.
        split: "1", "2", "3" or "all", of UCF101.

    Raises:
        UserError: when there are no such splits.
    """
    named = _UCF101_LIST.fullmatch(data.name)
    folder = data.parent if named else data
    if test is not None and split is not None:
        raise UserError("--split: brings its own test list; leave out --test or --split")
    lists = (folder / "classInd.txt").is_file() and (named or (data / "trainlist01.txt").is_file())
    if split is not None and not lists:
        raise UserError(
            f"--split {split}: {data} is no training list of UCF101 (trainlist01.txt with "
            "classInd.txt beside it); leave the option out"
        )
    if test is not None or not lists:
        return [(data, test)]
    numbers = {"all": ["01", "02", "03"], None: [named[1] if named else "01"]}
    pairs = [
        tuple(folder / f"{part}list{number}.txt" for part in ("train", "test"))
        for number in numbers.get(split, [f"0{split}"])
    ]
    for path in (path for pair in pairs for path in pair):
        if not path.is_file():
            raise UserError(f"{path}: is not there; a split has a training and a test list")
    return pairs


def read_videos(data: Path, settings: Settings, clips: int, decoded: Path) -> LabelledClips:
    """Read `clips` clips of each video that `data` names.

    Args:
        data: a class-per-folder set or a list with labels; see `loaders.search.find_sources`.
        settings: of the run, whose sizes, rate and stride the clips get.
        clips: K.
        decoded: folder for decoded videos.

    Raises:
        UserError: when the data cannot be used, have no classes or do not fit into memory.
    """
    from vgan_fast.loaders.clips import open_clips
    from vgan_fast.loaders.resident import free_memory
    from vgan_fast.loaders.search import find_sources

    found = find_sources(data, decoded)
    # Shards may name classes inside; better said now than after decoding everything else.
    if not found.classes and {source.kind for source in found.sources} <= {"video", "images"}:
        raise UserError(f"{data}: {NO_CLASSES}")
    with open_clips(
        data,
        frames=settings.frames,
        size=settings.size,
        batch_size=BATCH,
        seed=0,
        device=torch.device("cpu"),
        decoded=decoded,
        fps=settings.fps,
        stride=settings.stride,
        spread=clips,
        cache="none",
        workers=settings.workers,
    ) as loader:
        print(loader.summary)
        for file, reason in loader.skipped.items():
            print(f"skipped {file}: {reason}")
        if not loader.classes:
            raise UserError(f"{data}: {NO_CLASSES}")
        shape = (len(loader.files), clips, settings.frames, settings.size, settings.size, 3)
        if np.prod(shape, dtype=float) > SHARE * free_memory():
            raise UserError(
                f"{data}: its {shape[0]} videos take {np.prod(shape, dtype=float) / 1e9:.1f} GB "
                "of memory, more than is free; lower --clips-per-video"
            )
        frames = torch.empty(shape, dtype=torch.uint8)
        whole = np.ones(len(loader.files), bool)
        flat = frames.view(-1, *shape[2:])
        for first in range(0, len(flat), BATCH):
            batch = loader.next_batch()[: len(flat) - first]
            flat[first : first + BATCH] = batch
            for i, file in enumerate(loader.shown[: len(batch)], start=first):
                # Another stands in for a video that has proved broken.
                whole[i // clips] &= file is loader.files[i // clips]
        files = [file for file, good in zip(loader.files, whole, strict=True) if good]
    if not whole.all():
        frames = frames[torch.from_numpy(whole)]
    labels = np.array([loader.classes.index(file.label) for file in files], np.int64)
    names = [str(file.source) for file in files]
    in_shards = any(source.kind in ("tar", "npy") for source in found.sources)
    return LabelledClips(frames, labels, loader.classes, names, in_shards)


def synthetic_experiment(settings: Settings, train: int, test: int) -> Experiment:
    """The first clips of the synthetic motions that no training of a GAN draws, train before test.

    Raises:
        UserError: when there are too few for every class.
    """
    from vgan_fast.loaders.synthetic_motions import SyntheticMotions

    source = SyntheticMotions(
        frames=settings.frames,
        size=settings.size,
        batch_size=train + test,
        seed=POOL_SEED,
        split="held-out",
    )
    clips, labels = source.next_batch_with_labels()
    names = [f"clip {i}" for i in range(train + test)]
    videos = LabelledClips(clips[:, None], labels.numpy(), source.classes, names)
    sides = np.split(np.arange(train + test), [train])
    for option, numbers in zip(("--videos", "--test-videos"), sides, strict=True):
        _refuse_empty(videos.classes, videos.labels[numbers], 1, f"among {option}")
    return Experiment("", videos, lambda seed: (sides[0], sides[1]))


def given_test(train: LabelledClips, test: LabelledClips, name: str = "") -> Experiment:
    """Train on one set and test on another, at every seed.

    Raises:
        UserError: when they share a video, or a class is on one side only.
    """
    shared = set(train.names) & set(test.names)
    if shared:
        raise UserError(
            f"{min(shared, key=natural_key)}: is in the training set and in the test set, with "
            f"{len(shared) - 1} others; take it out of one"
        )
    strange = [c for c in test.classes if c not in train.classes]
    if strange:
        raise UserError(f"--test: its class {strange[0]} is not among those of --data")
    labels = np.array([train.classes.index(test.classes[label]) for label in test.labels], np.int64)
    for side, of in (("training", train.labels), ("test", labels)):
        _refuse_empty(train.classes, of, 1, f"in the {side} set")
    videos = replace(
        train,
        clips=torch.cat([train.clips, test.clips]),
        labels=np.concatenate([train.labels, labels]),
        names=train.names + test.names,
    )
    parts = np.split(np.arange(len(videos.labels)), [len(train.labels)])
    return Experiment(name, videos, lambda seed: (parts[0], parts[1]))


def drawn_test(videos: LabelledClips, share: float) -> Experiment:
    """Hold `share` of each class's videos back to test, at least one, others for each seed.

    Raises:
        UserError: when a class has fewer than two videos, or some clips are those of shards, of
            which several may be of one video.
    """
    if videos.in_shards:
        raise UserError(
            "--data: several clips in shards may be of one video, which must not train and test; "
            "name other videos with --test"
        )
    _refuse_empty(videos.classes, videos.labels, 2, "to divide: one trains and one tests")

    def divide(seed: int) -> tuple[np.ndarray, np.ndarray]:
        train, test = [], []
        for members in _shuffled(videos.labels, np.arange(len(videos.labels)), seed):
            held = min(max(1, round(share * len(members))), len(members) - 1)
            test.append(members[:held])
            train.append(members[held:])
        return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))

    return Experiment("", videos, divide)


def labelled_part(labels: np.ndarray, train: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Numbers of the training videos whose labels are known at `fraction` of them.

    Of every class that fraction, rounded, and at least one; a smaller fraction's are among a
    larger one's of the same seed.
    """
    parts = [
        members[: max(1, round(fraction * len(members)))]
        for members in _shuffled(labels, train, seed + 1_000_003)  # not the order that divided
    ]
    return np.sort(np.concatenate(parts))


def _shuffled(labels: np.ndarray, numbers: np.ndarray, seed: int) -> list[np.ndarray]:
    """`numbers` by class, each class in an order of the seed's."""
    return [
        np.random.default_rng([seed, int(label)]).permutation(numbers[labels[numbers] == label])
        for label in np.unique(labels[numbers])
    ]


def _refuse_empty(classes: list[str], labels: np.ndarray, least: int, purpose: str) -> None:
    for label, name in enumerate(classes):
        count = int((labels == label).sum())
        if count < least:
            raise UserError(
                f"class {name}: has {count} videos {purpose}; add some or leave the class out"
            )
