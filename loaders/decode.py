"""Decode one video into one `.npy` file of frames; runs in a process that a bad file may kill.

This module imports neither torch nor DALI: it is loaded anew in every worker process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

MIN_SIDE = 8  # pixels; anything smaller is a test card or an accident
MAX_PIXELS = 1 << 26  # per frame, 8192x8192: 192 MiB as RGB, the bound on a worker's memory


class UndecodableError(Exception):
    """The file yields no usable frames; the message says why."""


def decode_video(source: Path, target: Path, short_side: int) -> None:
    """Write the frames of `source` to `target`: a `.npy` of uint8 (F, H, W, 3), RGB, upright.

    Frames whose short side exceeds `short_side` are scaled down to it, aspect kept; smaller ones
    stay as they are. F counts the frames that decode, in decode order: headers lie, and time
    stamps may step back. One frame is held at a time. OpenCV decodes; PyAV does where OpenCV
    cannot open the file or gets nothing from it.

    Raises:
        UndecodableError: neither decoder yields a frame, or the frames are absurd.
        OSError: `target` cannot be written.
    """
    reasons = []
    for frames in (frames_by_opencv, frames_by_pyav):
        try:
            _write(frames(source), target, short_side)
            return
        except UndecodableError as error:
            reasons.append(str(error))
    raise UndecodableError(" ".join("; ".join(dict.fromkeys(reasons)).split()))  # one line


def frames_by_opencv(source: Path) -> Iterator[np.ndarray]:
    """Yield the frames, uint8 (H, W, 3), RGB, turned upright by OpenCV itself."""
    try:
        str(source).encode()
    except UnicodeEncodeError:
        # A name that is no UTF-8 would kill OpenCV's process; PyAV reads it.
        raise UndecodableError("OpenCV cannot open a file of this name") from None
    # Broken files are reported by name; FFmpeg's own complaints would only repeat it.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # Naming the backend keeps OpenCV from reading "clip_0001" as the first of many images.
    capture = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise UndecodableError("OpenCV cannot open it")
        height, width = (
            int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
        )
        _check_size(height, width)
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=frame)
    except cv2.error as error:
        raise UndecodableError(f"OpenCV: {error.err}") from None
    finally:
        capture.release()


def frames_by_pyav(source: Path) -> Iterator[np.ndarray]:
    """Yield the frames, uint8 (H, W, 3), RGB, turned upright by the rotation each one carries."""
    import av

    yielded = False
    try:
        with av.open(str(source)) as container:
            if not container.streams.video:
                raise UndecodableError("no video stream")
            _check_size(container.streams.video[0].height, container.streams.video[0].width)
            for frame in container.decode(video=0):
                # `rotation` counts degrees counter-clockwise, as rot90 counts quarter turns.
                turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield np.ascontiguousarray(turned)
                yielded = True
    except UndecodableError:
        raise
    # Broken metadata raises UnicodeDecodeError, broken streams whatever their codec does; the
    # frames before it are good.
    except Exception as error:
        if not yielded:
            raise UndecodableError(f"PyAV: {getattr(error, 'strerror', None) or error}") from None


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise UndecodableError(f"{width}x{height} pixels: under {MIN_SIDE} a side")
    if height * width > MAX_PIXELS:
        raise UndecodableError(f"{width}x{height} pixels: over {MAX_PIXELS} a frame")


def _write(frames: Iterator[np.ndarray], target: Path, short_side: int) -> None:
    """Scale the frames and append them to `target`, then write the count into its header."""
    import cv2

    count = height = width = 0
    with open(target, "wb") as file:
        for frame in frames:
            if count == 0:
                height, width = frame.shape[:2]
                _check_size(height, width)  # the container's figures may have lied
                scale = min(1.0, short_side / min(height, width))
                height, width = round(height * scale), round(width * scale)
                _write_header(file, count, height, width)
            # A stream that changes size midway keeps its first size.
            if frame.shape[:2] != (height, width):
                frame = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
            file.write(frame)
            count += 1
        if count == 0:
            raise UndecodableError("it opens, but no frame decodes")
        file.seek(0)
        _write_header(file, count, height, width)


def _write_header(file: BinaryIO, count: int, height: int, width: int) -> None:
    # The format leaves room for the first axis to grow, so both headers have the same length.
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, height, width, 3)}
    np.lib.format.write_array_header_1_0(file, header)
