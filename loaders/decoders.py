"""Decoders of one source each: OpenCV's and PyAV's of videos, Pillow's of folders of images.

All give the same: pictures upright, in RGB by the matrix and the range that the stream names
(BT.601, limited range where it names none, which is FFmpeg's rule; OpenCV before 4.13 knows BT.601
only), with the time stamps as they stand. Files may crash or hang these libraries: call them where
that costs no more than the file.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .frames import MAX_PIXELS
from .pixels import FORMATS, as_rgb
from .search import IMAGE_SUFFIXES, natural_key

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.stream import VideoStream

MIN_SIDE = 8  # pixels; anything smaller is a test card or an accident
MAX_RATE = 1000  # frames a second; headers that claim more tell a time base, not a rate
PIXEL_ASPECTS = (0.1, 10.0)  # width by height; what claims more is an accident
# SWS_BICUBIC | SWS_ACCURATE_RND | SWS_FULL_CHR_H_INT. From 10 bits PyAV's default is 2 levels too
# dark; from 8 bits it is OpenCV's, bit for bit.
_ACCURATE = 0x4 | 0x40000 | 0x2000

_log = logging.getLogger(__name__)


class UndecodableError(Exception):
    """The source yields no usable frames; the message says why."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How sources are decoded."""

    short_side: int  # frames whose short side is longer are scaled down to it
    fps: float | None  # frames a second that are stored; None stores every frame
    threads: int = 1  # of a decoder
    device: str = "cpu"  # of NVDEC, "cuda" or "cuda:1"; "cpu" lets DALI decode without it


class Picture(NamedTuple):
    """One decoded frame, upright."""

    pixels: np.ndarray  # uint8 (H, W, 3), RGB
    square: tuple[int, int]  # (height, width) that give it square pixels
    time: float | None  # seconds from any moment, as the file has it: may be missing or wrong
    rate: float | None  # frames a second that the file claims


def frames_by_opencv(source: Path, settings: Settings) -> Iterator[Picture]:
    """Yield the pictures of a video, turned upright by OpenCV itself."""
    try:
        str(source).encode()
    except UnicodeEncodeError:
        # A name that is no UTF-8 would kill OpenCV's process; PyAV reads it.
        raise UndecodableError("OpenCV cannot open a file of this name") from None
    import cv2

    # Naming the backend keeps OpenCV from reading "clip_0001" as the first of many images.
    capture = cv2.VideoCapture(
        str(source), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, settings.threads]
    )
    try:
        if not capture.isOpened():
            raise UndecodableError("OpenCV cannot open it")
        check_size(
            *(
                int(capture.get(side))
                for side in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
            )
        )
        rate = usable_rate(capture.get(cv2.CAP_PROP_FPS))
        denominator = capture.get(cv2.CAP_PROP_SAR_DEN)
        aspect = capture.get(cv2.CAP_PROP_SAR_NUM) / denominator if denominator else 0
        turned = capture.get(cv2.CAP_PROP_ORIENTATION_META) % 180 == 90
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield Picture(
                cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, dst=frame),
                square_size(frame.shape[:2], aspect, turned),
                # 0 where there is none, as for the last frames of an AVI with B-frames.
                capture.get(cv2.CAP_PROP_POS_MSEC) / 1000,
                rate,
            )
    except cv2.error as error:
        raise UndecodableError(f"OpenCV: {error.err}") from None
    finally:
        capture.release()


def frames_by_pyav(source: Path, settings: Settings) -> Iterator[Picture]:
    """Yield the pictures of a video, turned upright by the rotation each one carries."""
    import av

    yielded = False
    try:
        with av.open(str(source)) as container:
            if not container.streams.video:
                raise UndecodableError("no video stream")
            stream = container.streams.video[0]
            check_size(stream.height, stream.width)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = settings.threads
            timeless = container.format.name == "avi"  # where B-frames are, its stamps are guesses
            for frame in container.decode(stream):
                picture = picture_by_pyav(stream, frame)
                yield picture._replace(time=None) if timeless else picture
                yielded = True
    except (UndecodableError, MemoryError):
        raise
    # Broken metadata raises UnicodeDecodeError, broken streams whatever their codec does; the
    # frames before it are good.
    except Exception as error:
        if not yielded:
            raise UndecodableError(f"PyAV: {getattr(error, 'strerror', None) or error}") from None


def picture_by_pyav(stream: "VideoStream", frame: "VideoFrame") -> Picture:
    """Return a frame that PyAV decoded, turned upright."""
    turns = quarter_turns(frame)
    flags = _ACCURATE if frame.format.components[0].bits > 8 else None
    pixels = frame.to_ndarray(format="rgb24", interpolation=flags, threads=1)
    upright = np.ascontiguousarray(np.rot90(pixels, turns))
    return Picture(
        upright,
        square_size(upright.shape[:2], float(stream.sample_aspect_ratio or 0), turns % 2 == 1),
        frame.time,
        usable_rate(float(stream.average_rate or stream.guessed_rate or 0)),
    )


def quarter_turns(frame: "VideoFrame") -> int:
    """Return the counter-clockwise quarter turns that bring a frame of PyAV's upright."""
    return round(frame.rotation / 90)


def frames_by_pillow(folder: Path, settings: Settings) -> Iterator[Picture]:
    """Yield the images of a folder in natural order; broken ones are left out and logged."""
    if settings.fps is not None:
        raise UndecodableError("images have no time stamps: leave out --fps and use --stride")
    try:
        files = image_files(folder)
    except OSError as error:
        raise UndecodableError(f"cannot be read ({error.strerror})") from None
    broken = []
    for file in files:
        try:
            pixels = upright_image(file)
        except MemoryError:
            raise
        except Exception as error:  # damaged images raise whatever their format does
            broken.append(f"{file.name}: {error}")
        else:
            yield Picture(pixels, pixels.shape[:2], None, None)
    if len(broken) == len(files):
        raise UndecodableError(broken[0] if broken else "it holds no image")
    if broken:
        left_out = f"{len(broken)} of {len(files)} images cannot be read and are left out"
        _log.warning("%s: %s, the first is %s", folder, left_out, " ".join(broken[0].split()))


def upright_image(file: Path) -> np.ndarray:
    """Return the pixels of an image file as its camera was held: uint8 (H, W, 3), RGB.

    Raises:
        UndecodableError: its size is absurd.
        Exception: whatever its format raises where it is damaged.
    """
    from PIL import Image, ImageOps

    Image.MAX_IMAGE_PIXELS = None  # check_size is as strict, and needs no warning on top
    with Image.open(file, formats=FORMATS) as image:
        check_size(image.height, image.width)
        return as_rgb(ImageOps.exif_transpose(image))


def image_files(folder: Path) -> list[Path]:
    """Return the images directly in a folder, in natural order."""
    files = (
        Path(entry)
        for entry in os.scandir(folder)
        if Path(entry).suffix.lower() in IMAGE_SUFFIXES
        and not entry.name.startswith(".")
        and entry.is_file()
    )
    return sorted(files, key=lambda file: natural_key(file.name))


def check_size(height: int, width: int) -> None:
    """Raise UndecodableError for frames that are absurdly small or too large to be held."""
    if min(height, width) < MIN_SIDE:
        raise UndecodableError(f"{width}x{height} pixels: under {MIN_SIDE} a side")
    if height * width > MAX_PIXELS:
        raise UndecodableError(f"{width}x{height} pixels: over {MAX_PIXELS} a frame")


def square_size(upright: tuple[int, int], aspect: float, turned: bool) -> tuple[int, int]:
    """Return the (height, width) at which an upright frame has square pixels.

    `aspect` is the width of a pixel by its height before the frame was turned upright, `turned`
    whether that swapped its sides. The side that was the width is stretched.
    """
    height, width = upright
    if not PIXEL_ASPECTS[0] <= aspect <= PIXEL_ASPECTS[1]:
        return height, width
    return (round(height * aspect), width) if turned else (height, round(width * aspect))


def stored_size(square: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Return the (height, width) that frames are scaled down to: aspect kept, never enlarged."""
    scale = min(1.0, short_side / min(square))
    return round(square[0] * scale), round(square[1] * scale)


def usable_rate(rate: float) -> float | None:
    """Return a claimed rate in frames a second, or None for one that cannot be."""
    return rate if 0 < rate <= MAX_RATE else None
