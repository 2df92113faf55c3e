"""What the clips come from: `--data FOLDER|LIST|FILE` to sources of known kinds and classes."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vgan_fast.errors import UserError

from .stalls import attended, reading
from .strips import BrokenStripError, image_size

Kind = Literal["video", "images", "strip", "tar", "npy"]

VIDEO_SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm"),
        *(".wmv", ".y4m"),
    )
)
STRIP_SUFFIXES = frozenset((".jpg", ".jpeg", ".png"))
IMAGE_SUFFIXES = STRIP_SUFFIXES | {".bmp", ".tif", ".tiff", ".webp"}
KINDS: dict[str, Kind] = {
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    **dict.fromkeys(STRIP_SUFFIXES, "strip"),
    ".tar": "tar",
    ".npy": "npy",
}
# In the words of a message; the first three are read as frames, the others as strips.
_NAMES: dict[Kind, tuple[str, str]] = {
    "video": ("video", "videos"),
    "images": ("folder of frames", "folders of frames"),
    "npy": (".npy array", ".npy arrays"),
    "strip": ("strip", "strips"),
    "tar": (".tar shard of strips", ".tar shards of strips"),
}
_STRIP_KINDS = ("strip", "tar")
DECODED = ".decoded"  # in a folder of decoded frames, which is no source of its own
PREPARED = "preparation.json"  # in a prepared set, whose shards for training are in "train"
PARTS = ".preparing"  # in it too, as long as its making has not ended
_EVENTS = "events.out.tfevents."
_FIRST_IMAGES = 9  # looked at to tell frames from strips
_LEAST_FRAMES = 4  # that an image must have room for to be taken for a strip
_LONGEST_LIST = 2**28  # bytes
_LONGEST_CLASS = 200  # characters of its name, which becomes that of a folder
_UCF101_FOLDERS = ("", "UCF-101", "UCF101", "videos")


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one folder of frame images, that clips come from."""

    path: Path  # absolute
    kind: Kind
    label: str | None = None  # name of its class


@dataclass(frozen=True, slots=True)
class Found:
    """What `--data` names, without repeats: sources of frames, or sources of strips."""

    sources: list[Source]  # a folder's in natural order, a list's in its order
    classes: list[str]  # in label order; empty unless every source has one and there are two
    ignored: Counter[str]  # other files of a folder, by suffix in lower case

    @property
    def described(self) -> str:
        """The sources, counted by kind."""
        return _described(self.sources)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of a list whose file is there."""

    number: int
    path: Path
    label: int | None


def natural_key(text: str) -> tuple:
    """Return a key that sorts numbers in names by value: frame2, frame10."""
    pieces: list[str | tuple[int, str]] = list(re.split("([0-9]+)", text))
    # Not int(), which refuses thousands of digits.
    pieces[1::2] = [(len(digits), digits) for digits in (p.lstrip("0") for p in pieces[1::2])]
    return pieces, text


def find_sources(data: Path, passed_over: Path) -> Found:
    """Return the sources that `data` names, with their classes.

    A folder is searched recursively; hidden files, training runs, folders of decoded frames,
    prepared sets and the folder `passed_over` are left out. The first folder below `data` names the
    class. A folder of JPEG or PNG images holds strips if one of its first nine has a long side of
    exactly 4, 5, … short sides, or if none of them can be read. Otherwise two or more images, with
    no video or array beside them, are the frames of one video.

    A file is a video, a strip, a shard or an array by its suffix; any other is read as a list: one
    path a line, relative to the list's folder, and an integer label at the end of every line or
    of none. Without labels the files' folders are the classes, if there are two. A list with
    `classInd.txt` beside it is a split of UCF101: its classes are those of that file. Of a set that
    `vgan_fast.prepare` made, the shards for training are taken.

    Raises:
        UserError: `data` is missing, holds nothing usable, holds frames and strips together, or
            is a list with a line that cannot be followed; or a folder or file is stuck.
    """
    return attended(lambda: _found(data, passed_over))


def _found(data: Path, passed_over: Path) -> Found:
    ignored: Counter[str] = Counter()
    order: list[str] | None = None
    reading(data)
    # os.path, unlike Path, answers "no" for what may not be looked at or is too long a name.
    if os.path.isfile(data / PREPARED):
        if os.path.isdir(data / PARTS) or not os.path.isdir(data / "train"):
            raise UserError(
                f"{data}: is a set whose making has not ended, or without clips for training; run"
                " the same vgan_fast.prepare again, or look into its rejected.jsonl"
            )
        data = data / "train"
    if os.path.isdir(data):
        sources = _search(data, passed_over, ignored)
        if not sources:
            raise UserError(
                f"{data}: no video, strip, frames, .tar or .npy among its {ignored.total()} files;"
                " name a folder with videos, or a list file"
            )
    elif not os.path.isfile(data):
        raise UserError(f"{data}: no such file or folder; name a folder of videos or a list file")
    elif kind := _kind_of_file(data):
        sources = [Source(data, kind)]
    else:
        sources, order = _read_list(data)
    _refuse_two_families(data, sources)
    sources = _without_repeats(sources)
    labels = {source.label for source in sources}
    if order is None:
        order = sorted((label for label in labels if label is not None), key=natural_key)
    return Found(sources, [] if None in labels or len(order) < 2 else order, ignored)


def _kind_of_file(file: Path) -> Kind | None:
    suffix = file.suffix.lower()
    return "strip" if suffix in IMAGE_SUFFIXES else KINDS.get(suffix)


def _described(sources: Iterable[Source]) -> str:
    counts = Counter(source.kind for source in sources)
    return ", ".join(
        f"{counts[kind]} {names[counts[kind] > 1]}"
        for kind, names in _NAMES.items()
        if kind in counts
    )


def _refuse_two_families(data: Path, sources: list[Source]) -> None:
    families = [
        _described(source for source in sources if (source.kind in _STRIP_KINDS) == strips)
        for strips in (False, True)
    ]
    if all(families):
        strips = [source for source in sources if source.kind in _STRIP_KINDS]
        frames = [source for source in sources if source.kind not in _STRIP_KINDS]
        odd = min(frames, strips, key=len)[0].path
        raise UserError(
            f"{data}: holds {families[0]} and {families[1]}; name those of one kind in a list"
            " file and give that (images beside other files count as strips); the first of the"
            f" fewer is {odd}"
        )


def _without_repeats(sources: Iterable[Source]) -> list[Source]:
    """Return the sources under absolute paths; one that two links lead to counts once."""
    once: dict[str, Source] = {}
    for source in sources:
        path = Path(os.path.abspath(source.path))
        once.setdefault(os.path.realpath(path), Source(path, source.kind, source.label))
    return list(once.values())


def _search(data: Path, passed_over: Path, ignored: Counter[str]) -> list[Source]:
    """Return the sources below a folder in natural order; count the other files in `ignored`."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be searched ({error.strerror}); mend its rights")

    sources = []
    entered = {passed_over.resolve()}
    for root, folders, names in os.walk(data, onerror=refuse, followlinks=True):
        reading(Path(root))
        entered.add(Path(root).resolve())
        # A training run, by TensorBoard's file in it: its own pictures are no data. Nor are what is
        # made of other files.
        if any(name in (DECODED, PREPARED) or name.startswith(_EVENTS) for name in names):
            folders.clear()
            continue
        # Through links, but never in a circle.
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and Path(root, name).resolve() not in entered
        ]
        files, others = [], []
        for name in names:
            if not name.startswith("."):
                # A pipe or a device would block whoever opens it.
                regular = os.path.isfile(os.path.join(root, name))
                (files if regular else others).append(Path(root, name))
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        kinds = {KINDS.get(file.suffix.lower()) for file in files} - {"strip", None}
        if len(images) > 1 and not kinds and not _are_strips(images):
            sources.append(_labelled(data, Path(root), "images"))
            files = [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
        for file in files:
            if kind := KINDS.get(file.suffix.lower()):
                sources.append(_labelled(data, file, kind))
            else:
                others.append(file)
        ignored.update(file.suffix.lower() for file in others)
    return sorted(sources, key=lambda source: natural_key(str(source.path)))


def _labelled(data: Path, path: Path, kind: Kind) -> Source:
    below = path.relative_to(data).parts
    return Source(path, kind, below[0] if len(below) > 1 else None)


def _are_strips(images: list[Path]) -> bool:
    first = sorted(images, key=lambda file: natural_key(file.name))[:_FIRST_IMAGES]
    headers = [file for file in first if file.suffix.lower() in STRIP_SUFFIXES]
    sizes = []
    for file in headers:
        with suppress(BrokenStripError):
            sizes.append(sorted(image_size(file)))
    if not sizes:
        return bool(headers)
    return any(long % short == 0 and long >= _LEAST_FRAMES * short for short, long in sizes)


def _read_list(data: Path) -> tuple[list[Source], list[str] | None]:
    """Return the sources that a list names, and the order of its classes where that is given.

    Paths may hold spaces, so the whole line is tried before a label is taken off its end. What is
    no image, shard or array counts as a video, whatever its suffix: somebody named it on purpose.
    """
    index = data.parent / "classInd.txt"
    ucf101 = os.path.isfile(index)
    bases = [data.parent]
    if ucf101:
        bases = [
            near / name for near in (data.parent, data.parent.parent) for name in _UCF101_FOLDERS
        ]
    entries, missing, first_missing = [], 0, ""
    for number, line in _lines(data):
        reading(data)
        labelled = re.fullmatch(r"(.*\S)\s+([0-9]{1,9})", line)
        readings = [(line, None)]
        if labelled:
            readings.append((labelled[1], int(labelled[2])))
        entry = next(
            (
                _Entry(number, base / text, label)
                for base in bases
                for text, label in readings
                if os.path.exists(base / text)
            ),
            None,
        )
        if entry is None:
            missing += 1
            first_missing = (
                first_missing or f"line {number}: there is no file {data.parent / line[:200]}"
            )
        else:
            entries.append(entry)
    if missing > 1:
        first_missing += f", the first of {missing} missing among {missing + len(entries)}"
    if missing:
        raise UserError(
            f"{data}, {first_missing};"
            " correct or remove the line (paths are relative to the list's folder)"
        )
    if not entries:
        raise UserError(f"{data}: the list names no file; write one path a line")
    order: list[str] | None = None
    if ucf101:
        classes = _read_class_index(index)
        labels = [_ucf101_label(data, entry, classes) for entry in entries]
        order = list(classes.values())
    else:
        labels = _labels(data, entries)
    sources = [
        Source(entry.path, _kind_in_list(data, entry), label)
        for entry, label in zip(entries, labels, strict=True)
    ]
    return sources, order


def _lines(data: Path) -> Iterable[tuple[int, str]]:
    """Return the lines of a text file that say something, each with its number."""
    try:
        if data.stat().st_size > _LONGEST_LIST:
            raise UserError(f"{data}: too large for a list; name a folder, a video or a list")
        text = data.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"{data}: neither text nor a video by its suffix; name a folder, a video or a list"
        ) from None
    except OSError as error:
        raise UserError(f"{data}: cannot be read ({error.strerror}); mend its rights") from None
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if line and not line.startswith("#"):
            yield number, line


def _kind_in_list(data: Path, entry: _Entry) -> Kind:
    if os.path.isfile(entry.path):
        return _kind_of_file(entry.path) or "video"
    images: list[Path] = []
    if os.path.isdir(entry.path):
        try:
            images = [
                file
                for file in entry.path.iterdir()
                if file.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(file)
            ]
        except OSError as error:
            raise UserError(
                f"{data}, line {entry.number}: {entry.path} cannot be read ({error.strerror})"
            ) from None
    if not images or _are_strips(images):
        raise UserError(
            f"{data}, line {entry.number}: {entry.path} is neither a file nor a folder whose"
            " images are the frames of one video; name its files one by one"
        )
    return "images"


def _labels(data: Path, entries: list[_Entry]) -> list[str | None]:
    """Return the label of every line, or else the name of every file's folder."""
    labelled = [entry for entry in entries if entry.label is not None]
    bare = [entry for entry in entries if entry.label is None]
    if labelled and bare:
        raise UserError(
            f"{data}, line {bare[0].number}: has no integer label at its end, as line"
            f" {labelled[0].number} has; label every line or none"
        )
    if labelled:
        return [str(entry.label) for entry in entries]
    folders = [Path(os.path.abspath(entry.path)).parent.name for entry in entries]
    return [*folders] if len(set(folders)) > 1 else [None] * len(entries)


def _read_class_index(index: Path) -> dict[int, str]:
    classes: dict[int, str] = {}
    named: set[str] = set()
    for number, line in _lines(index):
        fields = re.fullmatch(r"([0-9]{1,9})\s+(\S.*)", line)
        name = fields[2] if fields else ""
        if "/" in name or name.startswith(".") or not name.isprintable():
            fields = None  # it would name another place than a folder of its own
        if not fields or int(fields[1]) in classes or name in named or len(name) > _LONGEST_CLASS:
            raise UserError(
                f"{index}, line {number}: not a new number and a new class name; correct the line,"
                " or move the file away to have no classes from it"
            )
        classes[int(fields[1])] = name
        named.add(name)
    return classes


def _ucf101_label(data: Path, entry: _Entry, classes: dict[int, str]) -> str:
    folder = entry.path.parent.name
    named = folder if folder in classes.values() else None
    label = named if entry.label is None else classes.get(entry.label)
    if label is None or named not in (None, label):
        said = "no number" if entry.label is None else f"number {entry.label}"
        raise UserError(
            f"{data}, line {entry.number}: {said} and folder {folder} do not name one class of"
            " classInd.txt; correct the line, or move classInd.txt away"
        )
    return label
