"""Strips: square frames side by side in one JPEG or PNG, stacked or in a row.

The original project stacks them from top to bottom, MoCoGAN sets them from left to right.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .pixels import as_rgb
from .stalls import reading

if TYPE_CHECKING:
    from .search import Source

# Baseline, extended and progressive Huffman: the kinds that image decoders read.
_FRAME_MARKERS = (0xC0, 0xC1, 0xC2)
_OTHER_FRAME_MARKERS = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"
_END_WITHIN = 4096  # bytes; some writers append padding or notes after the end marker
_SEGMENTS = 10_000  # before a JPEG's frame header; real ones have a few, or hundreds with notes
MIN_SIDE = 8  # pixels
MAX_PIXELS = 2**26  # of a strip: 192 MiB decoded
MAX_BYTES = 2**28  # of a strip's file: what those pixels take uncompressed


class BrokenStripError(Exception):
    """The file cannot be read as a strip; the message says why."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One strip: an encoded image of `length` frames of `side` by `side` pixels."""

    source: Path  # what a person calls it: the image, or the shard and its member
    file: Path
    offset: int  # bytes before the image
    size: int  # bytes of the image
    length: int
    side: int  # pixels
    horizontal: bool  # frames from left to right, not from top to bottom
    label: str | None = None  # name of its class

    def read(self) -> np.ndarray:
        """Return the encoded image: uint8 (size,).

        Raises:
            OSError: the file is gone, or now shorter.
        """
        image = np.fromfile(self.file, np.uint8, count=self.size, offset=self.offset)
        if len(image) < self.size:
            raise OSError(errno.EIO, "shorter than it was")
        return image


def measure_strips(sources: Iterable[Source]) -> tuple[list[Strip], dict[Path, str]]:
    """Return the strips in order, and each broken file with the reason.

    Only headers and last bytes are read: damage between them shows when the strip is decoded.
    """
    strips, skipped = [], {}
    for source in sources:
        reading(source.path)
        try:
            with open(source.path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                frames = measure_image(file.fileno(), 0, size)
        except OSError as error:
            skipped[source.path] = f"cannot be read ({error.strerror})"
        except BrokenStripError as error:
            skipped[source.path] = str(error)
        else:
            strips.append(Strip(source.path, source.path, 0, size, *frames, source.label))
    return strips, skipped


def measure_image(file: int, offset: int, size: int) -> tuple[int, int, bool]:
    """Return (frames, side in pixels, horizontal) of the strip in `size` bytes from `offset`.

    Args:
        file: descriptor of an open file.

    Raises:
        BrokenStripError: neither JPEG nor PNG, cut off, of an unusual kind, no row of squares, or
            too large.
    """
    if size > MAX_BYTES:
        raise BrokenStripError(f"{size} bytes: over {MAX_BYTES}")
    height, width, end = _header(file, offset, size)
    tail = min(size, _END_WITHIN)
    if end not in os.pread(file, tail, offset + size - tail):
        raise BrokenStripError("cut off: the image has no end mark")
    side, long = sorted((height, width))
    if side < MIN_SIDE:
        raise BrokenStripError(f"{width}x{height} pixels: under {MIN_SIDE} a side")
    if width * height > MAX_PIXELS:
        raise BrokenStripError(f"{width}x{height} pixels: over {MAX_PIXELS} in all")
    if long % side:
        raise BrokenStripError(
            f"{width}x{height} pixels: no row of square frames"
            " (the long side is no multiple of the short one)"
        )
    return long // side, side, width > height


def image_size(file: Path) -> tuple[int, int]:
    """Return (height, width) of a JPEG or PNG file from its header; both are at least 1.

    Raises:
        BrokenStripError: the header cannot be read.
    """
    try:
        with open(file, "rb", buffering=0) as stream:
            return _header(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)[:2]
    except OSError as error:
        raise BrokenStripError(f"cannot be read ({error.strerror})") from None


def _header(file: int, offset: int, size: int) -> tuple[int, int, bytes]:
    """Return the height, the width and the mark that ends an image of this kind."""
    start = os.pread(file, min(size, 33), offset)
    if start.startswith(_JPEG_START):
        height, width = _jpeg_size(file, offset, size)
        end = _JPEG_END
    elif start.startswith(_PNG_START):
        height, width = _png_size(start)
        end = _PNG_END
    else:
        raise BrokenStripError("neither a JPEG nor a PNG")
    if not height or not width:
        raise BrokenStripError(f"{width}x{height} pixels: the image's header is damaged")
    return height, width, end


def _png_size(start: bytes) -> tuple[int, int]:
    """Return (height, width) from the signature and the first chunk (PNG specification, 11.2.1).

    Whatever the colours and their depth, DALI's decoder makes 8-bit RGB of them.
    """
    width, height, checksum = struct.unpack(">16xII5xI", start.ljust(33, b"\0"))
    if zlib.crc32(start[12:29]) != checksum:
        raise BrokenStripError("the PNG's header is damaged")
    return height, width


def _jpeg_size(file: int, offset: int, size: int) -> tuple[int, int]:
    """Return (height, width), walking the segments up to the frame header (ISO 10918-1, B.1)."""
    position = len(_JPEG_START)
    for _ in range(_SEGMENTS):
        head = os.pread(file, max(0, min(10, size - position)), offset + position)
        if len(head) < 4 or head[0] != 0xFF:
            break
        marker = head[1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in _OTHER_FRAME_MARKERS:
            raise BrokenStripError("a lossless, hierarchical or arithmetic JPEG; save it as usual")
        length = int.from_bytes(head[2:4], "big")
        if marker in _FRAME_MARKERS:
            if len(head) < 10:
                break
            precision, height, width, components = struct.unpack(">BHHB", head[4:])
            if precision != 8 or components not in (1, 3):
                raise BrokenStripError(
                    f"{components} components of {precision} bits; save it as 8-bit RGB or grey"
                )
            return height, width
        position += 2 + length
    raise BrokenStripError("the JPEG's header is damaged")


def decode_strip(strip: Strip, image: np.ndarray) -> np.ndarray:
    """Return the frames of a strip from its bytes: uint8 (F, side, side, 3), RGB.

    Args:
        strip: what was measured.
        image: the bytes that `Strip.read` gives, uint8 (size,).

    Raises:
        BrokenStripError: the pixels are damaged or end early, or the image has another size now.
    """
    import simplejpeg
    from PIL import Image

    try:
        # In a file that is made for it a decoder finds another size, for which it takes memory.
        if image[:2].tobytes() == _JPEG_START:
            _refuse_changed(strip, *simplejpeg.decode_jpeg_header(image)[:2])
            pixels = simplejpeg.decode_jpeg(image)
        else:
            with Image.open(io.BytesIO(image), formats=("PNG",)) as png:
                _refuse_changed(strip, png.height, png.width)
                pixels = as_rgb(png)
    except BrokenStripError:
        raise
    except Exception as error:  # damaged images raise whatever their format does
        raise BrokenStripError(f"its pixels cannot be decoded ({error})") from None
    across = strip.length if strip.horizontal else 1
    down = strip.length // across
    grid = pixels.reshape(down, strip.side, across, strip.side, 3)
    return grid.swapaxes(1, 2).reshape(strip.length, strip.side, strip.side, 3)


def _refuse_changed(strip: Strip, height: int, width: int) -> None:
    across = strip.length if strip.horizontal else 1
    if (height, width) != (strip.length // across * strip.side, across * strip.side):
        raise BrokenStripError("it has changed since it was measured")
