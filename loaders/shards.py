"""Shards, many clips in one file: WebDataset `.tar` of strips, `.npy` arrays of frames."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import tarfile
from pathlib import Path

from .frames import BrokenArrayError, Frames, read_header
from .search import Source
from .stalls import reading
from .strips import MIN_SIDE, BrokenStripError, Strip, measure_image

_log = logging.getLogger(__name__)

_IMAGES = ("jpg", "jpeg", "png")
_LABELS = ("cls", "json")  # the first of them that a sample has
_BLOCK = 512  # bytes; tar headers and members begin at multiples of it
_REGULAR = (b"0", b"\0")  # what a header says of a plain file
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_MEMBER_HEADER = 2**16  # bytes of all headers of one member: a few for its name, more for notes
_LONGEST_LABEL_FILE = 2**20  # bytes
_MOST_CLIPS = 2**20  # of an array; a file with a hole in it may claim any number

_Span = tuple[int, int]  # offset and size of a member's data


def _padded(size: int) -> int:
    """Return the bytes that data of a size takes in a tar."""
    return -(-size // _BLOCK) * _BLOCK


class _BadIndexError(Exception):
    """The index does not describe its tar; the message says why."""


class _TarHeaders(io.FileIO):
    """A tar file that gives tarfile no more than one member's headers.

    A damaged header may announce a name of gigabytes, for which memory would be taken.
    """

    left = _MEMBER_HEADER

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise tarfile.ReadError("a header's size is out of range")
        self.left -= size
        return super().read(size)


def open_tar(source: Source) -> tuple[list[Strip], dict[Path, str]]:
    """Return the strips of a WebDataset shard in order, and each broken one with the reason.

    A member `key.jpg`, `.jpeg` or `.png` is a strip. Its label is the integer or the word in
    `key.cls`, or else under "label" in `key.json`, or else the shard's own. Of a damaged shard the
    whole members are used and the shard is named too. An index beside the shard, as `wds2idx`
    writes it, saves time; one that does not fit is ignored, with a warning in the log.
    """
    strips = []
    reading(source.path)
    try:
        with _TarHeaders(source.path) as tar:
            members, skipped = _members(source.path, tar)
            labels = {
                _split(name): (name, span)
                for name, span in members.items()
                if name.lower().endswith(_LABELS)
            }
            for name, (offset, size) in members.items():
                key, extension = _split(name)
                if extension not in _IMAGES:
                    continue
                member = Path(f"{source.path}:{name}")
                reading(member)
                try:
                    label = _label(tar.fileno(), key, labels) or source.label
                    frames = measure_image(tar.fileno(), offset, size)
                except BrokenStripError as error:
                    skipped[member] = str(error)
                else:
                    strips.append(Strip(member, source.path, offset, size, *frames, label))
    except OSError as error:
        return [], {source.path: f"cannot be read ({error.strerror})"}
    if not strips and not skipped:
        skipped[source.path] = "no .jpg, .jpeg or .png among its members"
    return strips, skipped


def _members(path: Path, tar: _TarHeaders) -> tuple[dict[str, _Span], dict[Path, str]]:
    """Return the regular members of a tar, from its index if that fits, and what is damaged."""
    if os.pread(tar.fileno(), 8, 0).startswith(_COMPRESSED):
        return {}, {path: "compressed: cannot be read in place; unpack it to a plain .tar"}
    index = path.with_suffix(".idx")
    if os.path.isfile(index):
        try:
            return _indexed(index, tar), {}
        except (_BadIndexError, OSError, ValueError) as error:
            _log.warning("%s: ignored, its shard is searched instead: %s", index, error)
    return _scanned(path, tar)


def _indexed(index: Path, tar: _TarHeaders) -> dict[str, _Span]:
    """Return the members that an index of version 1.2 names, each checked against its header."""
    tar_bytes = os.fstat(tar.fileno()).st_size
    if index.stat().st_size > tar_bytes:
        raise _BadIndexError("larger than the shard")
    first, *lines = index.read_text("utf-8", "backslashreplace").rstrip("\n").split("\n")
    if first != f"v1.2 {len(lines)}":
        raise _BadIndexError(f"its first line is {first[:40]!r}, not 'v1.2 {len(lines)}'")
    members = {}
    end = 0
    for number, line in enumerate(lines, start=2):
        reading(index)
        fields = line.split(" ")
        if len(fields) % 4:  # a name with a space, or an older version
            raise _BadIndexError(f"line {number}: not an extension, offset, size and name each")
        for start, length, name in zip(fields[1::4], fields[2::4], fields[3::4], strict=True):
            offset, size = int(start), int(length)
            # Folders and the notes of some writers stand between members, in no index.
            while end < min(offset, tar_bytes) - _BLOCK:
                header = os.pread(tar.fileno(), _BLOCK, end)
                if header[156:157] in _REGULAR:
                    break
                end += _BLOCK + _padded(max(0, int(header[124:136].strip(b"\0 "), 8)))
            header = os.pread(tar.fileno(), _BLOCK, end)
            # A name too long for the header does not match either.
            if (
                offset != end + _BLOCK
                or size < 0
                or size > tar_bytes - offset
                or header[:100].rstrip(b"\0") != name.encode()
                or header[124:136].rstrip(b"\0 ") != b"%011o" % size
                or header[156:157] not in _REGULAR
            ):
                raise _BadIndexError(
                    f"line {number}: the next member is not {name} of {size} bytes"
                )
            members[name] = (offset, size)
            end = offset + _padded(size)
    if any(os.pread(tar.fileno(), _BLOCK, end)):
        raise _BadIndexError("the shard has more members")
    return members


def _scanned(path: Path, tar: _TarHeaders) -> tuple[dict[str, _Span], dict[Path, str]]:
    """Return the regular members that are whole, and what is damaged."""
    tar_bytes = os.fstat(tar.fileno()).st_size
    members: dict[str, _Span] = {}
    skipped: dict[Path, str] = {}
    end = 0
    try:
        with tarfile.open(
            fileobj=tar, mode="r:", encoding="utf-8", errors="backslashreplace"
        ) as archive:
            while member := archive.next():
                reading(path)
                archive.members.clear()  # or it would keep them all
                tar.left = _MEMBER_HEADER
                # A negative size would lead back, and round in a circle.
                if archive.offset <= end:
                    raise tarfile.ReadError("a header's size is out of range")
                end = archive.offset
                if member.issparse():
                    skipped[Path(f"{path}:{member.name}")] = "stored in pieces, as a sparse file"
                elif member.offset_data + member.size > tar_bytes:
                    raise tarfile.ReadError("unexpected end of data")
                elif member.isreg():
                    members[member.name] = (member.offset_data, member.size)
        if os.pread(tar.fileno(), _BLOCK, end) != bytes(_BLOCK):
            raise tarfile.ReadError("no header and no end mark follow")
    # Not only tarfile's own errors pass through it when a header is damaged.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, OSError) as error:
        skipped[path] = f"damaged, or cut off, after {len(members)} members ({error})"
    return members, skipped


def _split(name: str) -> tuple[str, str]:
    """Return the key of the sample that a member belongs to, and its extension in lower case."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    # Hidden files, such as macOS adds for each member, belong to no sample.
    return (folder + slash + key, extension.lower()) if key else (name, "")


def _label(tar: int, key: str, members: dict[tuple[str, str], tuple[str, _Span]]) -> str | None:
    """Return the label of a sample, None without one.

    Raises:
        BrokenStripError: what holds the label is damaged.
    """
    for extension in _LABELS:
        if (key, extension) not in members:
            continue
        name, (offset, size) = members[key, extension]
        if size > _LONGEST_LABEL_FILE:
            raise BrokenStripError(f"its label, {name}, has {size} bytes")
        content = os.pread(tar, size, offset)
        try:
            label = content.decode() if extension == "cls" else _json_label(content)
        except (ValueError, RecursionError):
            raise BrokenStripError(f"its label, {name}, cannot be read") from None
        if label is None:
            continue
        label = label.strip()
        if not label or len(label) > 200 or not label.isprintable():
            raise BrokenStripError(f"its label, {name}, is no integer or word")
        return str(int(label)) if re.fullmatch("[0-9]{1,9}", label) else label
    return None


def _json_label(content: bytes) -> str | None:
    fields = json.loads(content)
    label = fields.get("label") if isinstance(fields, dict) else None
    if label is not None and type(label) not in (int, str):
        raise ValueError
    return None if label is None else str(label)


def open_npy(source: Source) -> tuple[list[Frames], dict[Path, str]]:
    """Return the clips of a uint8 array (clips, T, H, W, 3), or (F, H, W, 3) of one video, RGB.

    Nothing but the header is read. An array that cannot be used is returned with the reason.
    """
    reading(source.path)
    try:
        offset, shape = read_header(source.path, MIN_SIDE)
    except OSError as error:
        return [], {source.path: f"cannot be read ({error.strerror})"}
    except BrokenArrayError as error:
        return [], {source.path: str(error)}
    if len(shape) == 5 and shape[0] > _MOST_CLIPS:
        return [], {source.path: f"{shape[0]} clips: over {_MOST_CLIPS}; save it as several"}
    if len(shape) == 4:
        names = [source.path]
    else:
        names = [Path(f"{source.path}:{clip}") for clip in range(shape[0])]
    clip_shape = shape[-4:]
    clip_bytes = math.prod(clip_shape)
    return [
        Frames(name, source.path, offset + clip * clip_bytes, clip_shape, label=source.label)
        for clip, name in enumerate(names)
    ], {}
