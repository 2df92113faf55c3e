"""Decode one source into one `.npy` file of frames; runs in a process that a bad file may kill.

This module imports neither torch nor DALI: it is loaded anew in every worker process.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .decoders import (
    Picture,
    Settings,
    UndecodableError,
    check_size,
    frames_by_opencv,
    frames_by_pillow,
    frames_by_pyav,
    stored_size,
)
from .nvdec import frames_by_nvdec

MAX_FRAMES = 1 << 20  # from one source: ten hours at 29 frames a second
# Seconds from one frame to the next. A longer gap is a damaged time stamp more often than a still
# picture, and filling it could fill the disk.
MAX_GAP = 10
_MOMENT = 1e-6  # seconds that time stamps may be off by their rounding

DECODERS = {
    "NVDEC": frames_by_nvdec,
    "OpenCV": frames_by_opencv,
    "PyAV": frames_by_pyav,
    "Pillow": frames_by_pillow,
}


def decode_source(
    source: Path,
    target: Path,
    decoder: str,
    settings: Settings,
    start: int = 0,
    most: int | None = None,
) -> float | None:
    """Write the frames of `source` to `target`: a `.npy` of uint8 (F, H, W, 3), RGB.

    Two frames are held at a time; see `DecodedFrames` for what they are. They are written from
    `start` on, the first being 0, and up to `most` of them.

    Returns:
        The frames a second of what is stored; None where neither time stamps nor header tell.

    Raises:
        UndecodableError: the decoder yields no frame `start`, too many, or absurd ones.
        OSError: `target` cannot be written.
    """
    decoded = DecodedFrames(source, decoder, settings)
    count = height = width = 0
    with open(target, "wb") as file:
        for pixels in itertools.islice(decoded, start, None if most is None else start + most):
            if count == 0:
                height, width = pixels.shape[:2]
                _write_header(file, count, height, width)
            count += 1
            file.write(pixels)
        if count == 0:
            raise UndecodableError(f"it ends before frame {start} (the first is 0)")
        file.seek(0)
        _write_header(file, count, height, width)
    return decoded.rate


class DecodedFrames:
    """The frames of a source, one after the other: uint8 (H, W, 3), RGB, upright.

    They have square pixels and one size. Those whose short side exceeds `settings.short_side` are
    scaled down to it, aspect kept; smaller ones are not enlarged. With `settings.fps`, they are
    those nearest in time to each of the moments 0, 1/fps, 2/fps, … after the first frame; otherwise
    all that decode, in decode order: headers lie, and time stamps may step back.
    """

    def __init__(self, source: Path, decoder: str, settings: Settings):
        """Open `source` by one of `DECODERS`.

        Raises:
            UndecodableError: as iterating does, if the decoder yields no frame or absurd ones.
        """
        # Broken files are reported by name; complaints of OpenCV and its FFmpeg would repeat it.
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        import cv2

        cv2.setNumThreads(settings.threads)
        self._settings = settings
        self._timed = _Timed(DECODERS[decoder](source, settings))

    def __iter__(self) -> Iterator[np.ndarray]:
        chosen = ((picture, 1) for picture, _ in self._timed)
        if self._settings.fps is not None:
            chosen = _at_rate(self._timed, self._settings.fps)
        size, count = None, 0
        for picture, copies in chosen:
            count += copies
            if count > MAX_FRAMES:
                raise UndecodableError(
                    f"over {MAX_FRAMES} frames: cut it into shorter files, or give a lower --fps"
                )
            if size is None:
                check_size(*picture.square)  # the container's figures may have lied
                size = stored_size(picture.square, self._settings.short_side)
            # A stream that changes size midway keeps its first.
            pixels = scaled(picture.pixels, *size)
            for _ in range(copies):
                yield pixels
        if size is None:
            raise UndecodableError("it opens, but no frame decodes")

    @property
    def rate(self) -> float | None:
        """Frames a second of the frames so far; None where neither stamps nor header tell."""
        return self._settings.fps or self._timed.rate


class _Timed:
    """Pictures and their seconds since the first one, None where nothing tells.

    They are the time stamps' as long as these advance by up to MAX_GAP. From the first that is
    missing, does not advance or leaps, decode order and the claimed rate stand in.
    """

    def __init__(self, pictures: Iterator[Picture]):
        self._pictures = pictures
        self._count = 0
        self._seconds: float | None = 0.0
        self._claimed: float | None = None

    def __iter__(self) -> Iterator[tuple[Picture, float | None]]:
        trusted, before = True, None
        for picture in self._pictures:
            if self._count:
                trusted = (
                    trusted
                    and None not in (before, picture.time)
                    and before < picture.time <= before + MAX_GAP
                )
                if trusted:
                    self._seconds += picture.time - before
                elif picture.rate is None:
                    self._seconds = None
                elif self._seconds is not None:
                    self._seconds += 1 / picture.rate
            before, self._claimed = picture.time, picture.rate
            self._count += 1
            yield picture, self._seconds

    @property
    def rate(self) -> float | None:
        """Frames a second of the pictures so far: the claimed rate if it is right within 1 %."""
        if not self._seconds:
            return self._claimed
        measured = (self._count - 1) / self._seconds
        if self._claimed and abs(measured / self._claimed - 1) < 0.01:
            return self._claimed
        return measured


def _at_rate(
    timed: Iterable[tuple[Picture, float | None]], fps: float
) -> Iterator[tuple[Picture, int]]:
    """Yield pictures and the number of moments 0, 1/fps, 2/fps, … that each is nearest to.

    The last one counts for as long after it as half the gap before it.
    """
    stored = 0  # moments that are dealt with
    last: Picture | None = None
    at = gap = 0.0
    for picture, seconds in timed:
        if seconds is None:
            raise UndecodableError("neither time stamps nor a frame rate: leave out --fps")
        if last is not None:
            gap = seconds - at
            upto = 1 + math.floor(((at + seconds) / 2 + _MOMENT) * fps)
            if upto > stored:
                yield last, upto - stored
            stored = max(stored, upto)
        last, at = picture, seconds
    if last is not None:
        upto = max(1, math.ceil((at + gap / 2 - _MOMENT) * fps))
        if upto > stored:
            yield last, upto - stored


def scaled(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the pixels (H, W, 3) or (H, W) averaged down to that size."""
    import cv2

    if pixels.shape[:2] == (height, width):
        return pixels
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _write_header(file: BinaryIO, count: int, height: int, width: int) -> None:
    # The format leaves room for the first axis to grow, so both headers have the same length.
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, 3)}
    np.lib.format.write_array_header_1_0(file, header)
