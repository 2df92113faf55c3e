"""Which files the clips come from: `--data FOLDER|LIST|FILE` to a list of videos or of strips."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vgan_fast.errors import UserError

Kind = Literal["video", "images", "strip", "tar", "npy"]

VIDEO_SUFFIXES = frozenset(
    (
        *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm"),
        *(".wmv", ".y4m"),
    )
)
STRIP_SUFFIXES = frozenset((".jpg", ".jpeg"))


@dataclass(frozen=True, slots=True)
class Source:
    """One file, or one folder of frame images, that clips come from."""

    path: Path
    kind: Kind
    label: str | None = None  # name of its class


@dataclass(frozen=True)
class Found:
    """What `--data` names: files of one kind, without repeats."""

    files: list[Path]  # absolute; a folder's are sorted, a list's stand in its order
    strips: bool  # JPEG strips if true, videos if false
    ignored: int  # files of a folder that are neither


def find_files(data: Path, cache: Path) -> Found:
    """Return the videos or the strips that `data` names.

    A folder is searched recursively; hidden files and the folder `cache` are passed over, other
    kinds of file are counted. A file with a video's or a JPEG's suffix stands for itself; any
    other file is read as a list. Nothing is opened except the list.

    Raises:
        UserError: `data` is missing, holds nothing usable, or holds videos and strips together.
    """
    ignored = 0
    # os.path, unlike Path, answers "no" for what may not be looked at or is too long a name.
    if os.path.isdir(data):
        everything = _walk(data, cache)
        files = [file for file in everything if _is_video(file) or _is_strip(file)]
        ignored = len(everything) - len(files)
        if not files:
            raise UserError(
                f"{data}: no video and no JPEG strip among its {ignored} files;"
                " name a folder with videos, or a list file"
            )
    elif not os.path.isfile(data):
        raise UserError(f"{data}: no such file or folder; name a folder of videos or a list file")
    elif _is_video(data) or _is_strip(data):
        files = [data]
    else:
        files = _read_list(data)
    strips = [file for file in files if _is_strip(file)]
    if strips and len(strips) < len(files):
        raise UserError(
            f"{data}: holds {len(files) - len(strips)} videos and {len(strips)} JPEG strips;"
            " name the files of one kind in a list file and give that"
        )
    once: dict[Path, Path] = {}  # a file that two links lead to counts once
    for file in files:
        once.setdefault(file.resolve(), Path(os.path.abspath(file)))
    return Found(list(once.values()), bool(strips), ignored)


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES


def _is_strip(file: Path) -> bool:
    return file.suffix.lower() in STRIP_SUFFIXES


def _walk(folder: Path, cache: Path) -> list[Path]:
    """Return every file below `folder` in sorted order, through links but never in a circle."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be searched ({error.strerror}); mend its rights")

    files = []
    entered = {cache.resolve()}
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        entered.add(Path(root).resolve())
        # A training run, by TensorBoard's file in it: its own pictures are no data.
        if any(name.startswith("events.out.tfevents.") for name in names):
            folders.clear()
            continue
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and Path(root, name).resolve() not in entered
        ]
        files += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _read_list(data: Path) -> list[Path]:
    """Return the files that a list names, one a line, relative to the list's own folder.

    A line may end in a label, as the original project's lists do. Paths may hold spaces, so the
    whole line is tried first. In a list everything that is not a JPEG counts as a video, whatever
    its suffix: somebody named it on purpose.
    """
    try:
        lines = data.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(
            f"{data}: neither text nor a video by its suffix; name a folder, a video or a list"
        ) from None
    except OSError as error:
        raise UserError(f"{data}: cannot be read ({error.strerror}); mend its rights") from None
    files = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        readings = (data.parent / text for text in (line, line.rsplit(None, 1)[0]))
        file = next(filter(os.path.isfile, readings), None)
        if file is None:
            raise UserError(
                f"{data}, line {number}: there is no file {data.parent / line};"
                " correct or remove the line (paths are relative to the list's folder)"
            )
        files.append(file)
    if not files:
        raise UserError(f"{data}: the list names no file; write one path a line")
    return files
