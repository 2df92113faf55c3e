"""JPEG strips: square frames stacked from top to bottom, the format of the original project."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# Baseline, extended and progressive Huffman: the kinds that image decoders read.
_FRAME_MARKERS = (0xC0, 0xC1, 0xC2)
_OTHER_FRAME_MARKERS = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_END = b"\xff\xd9"
_END_WITHIN = 4096  # bytes; some writers append padding or notes after the end marker
MIN_SIDE = 8  # pixels


class BrokenStripError(Exception):
    """The file cannot be read as a strip; the message says why."""


@dataclass(frozen=True)
class Strip:
    """One strip: `length` frames of `side` by `side` pixels."""

    source: Path
    length: int
    side: int


def measure_strips(files: Iterable[Path]) -> tuple[list[Strip], dict[Path, str]]:
    """Return the strips in order, and each broken file with the reason.

    Only headers and last bytes are read: damage between them shows when the strip is decoded.
    """
    strips, skipped = [], {}
    for file in files:
        try:
            length, side = measure_strip(file)
            strips.append(Strip(file, length, side))
        except BrokenStripError as error:
            skipped[file] = str(error)
    return strips, skipped


def measure_strip(file: Path) -> tuple[int, int]:
    """Return (frames, side in pixels) of a strip from its header and its last bytes.

    Raises:
        BrokenStripError: not a JPEG, cut off, of an unusual kind, or not a stack of squares.
    """
    try:
        with open(file, "rb") as stream:
            height, width = _jpeg_size(stream)
            stream.seek(max(0, stream.seek(0, 2) - _END_WITHIN))
            if _END not in stream.read():
                raise BrokenStripError("cut off: the JPEG has no end marker")
    except OSError as error:
        raise BrokenStripError(f"cannot be read ({error.strerror})") from None
    if width < MIN_SIDE:
        raise BrokenStripError(f"{width}x{height} pixels: under {MIN_SIDE} a side")
    if height == 0 or height % width:
        raise BrokenStripError(
            f"{width}x{height} pixels: no stack of square frames (height is no multiple of width)"
        )
    return height // width, width


def _jpeg_size(stream: BinaryIO) -> tuple[int, int]:
    """Return (height, width), walking the segments up to the frame header (ISO 10918-1, B.1)."""
    if stream.read(2) != b"\xff\xd8":
        raise BrokenStripError("not a JPEG")
    while True:
        start = stream.read(1)
        marker = stream.read(1)
        while marker == b"\xff":  # fill bytes
            marker = stream.read(1)
        if start != b"\xff" or marker in (b"", b"\xda"):  # 0xda: pixels begin
            raise BrokenStripError("the JPEG's header is damaged")
        if marker[0] in _OTHER_FRAME_MARKERS:
            raise BrokenStripError("a lossless, hierarchical or arithmetic JPEG; save it as usual")
        segment = stream.read(2)
        length = int.from_bytes(segment, "big") - 2
        if len(segment) < 2 or length < 0:
            raise BrokenStripError("the JPEG's header is damaged")
        if marker[0] in _FRAME_MARKERS:
            fields = stream.read(6)
            if len(fields) < 6:
                raise BrokenStripError("the JPEG's header is damaged")
            precision, height, width, components = struct.unpack(">BHHB", fields)
            if precision != 8 or components not in (1, 3):
                raise BrokenStripError(
                    f"{components} components of {precision} bits; save it as 8-bit RGB or grey"
                )
            return height, width
        stream.seek(length, 1)
