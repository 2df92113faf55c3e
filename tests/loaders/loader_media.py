"""Small videos and strips whose right decoding is known."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

MARK = 12  # side of the red corner mark, pixels
FIRST, STEP = 20, 4  # grey level of frame k: FIRST + STEP * k


def frame(number: int, height: int = 48, width: int = 48) -> np.ndarray:
    """Grey of a level that tells the frame's number; the top left corner is red. RGB."""
    pixels = np.full((height, width, 3), FIRST + STEP * number, np.uint8)
    pixels[:MARK, :MARK] = (230, 20, 20)
    return pixels


def numbers(clip: np.ndarray) -> np.ndarray:
    """The frame numbers of a clip (T, H, W, 3), read from the grey of its centre."""
    height, width = clip.shape[1:3]
    centre = clip[:, height // 2 :, width // 2 :].astype(float)
    return (centre.mean((1, 2, 3)) - FIRST) / STEP


def write_video(
    path: Path,
    codec: str = "mpeg4",
    frames: int = 40,
    size: tuple[int, int] = (48, 48),
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    times: Sequence[int] | None = None,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames 0, 1, … of (height, width) `size`; `rotation` and `aspect` only set the tag.

    `times` are the frames' time stamps in milliseconds; without them they are 40 apart. `options`
    are the encoder's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.bit_rate = 2_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames if times is None else len(times)):
            picture = av.VideoFrame.from_ndarray(frame(number, *size), format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_strip(path: Path, frames: int, side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    stack = np.concatenate([frame(number, side, side) for number in range(frames)])
    path.write_bytes(jpeg(stack))
    return path


def jpeg(pixels: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def undecodable(path: Path, frames: int = 8) -> None:
    """A strip whose header is right and whose pixels are missing."""
    whole = jpeg(np.concatenate([frame(number, 32, 32) for number in range(frames)]))
    path.write_bytes(whole[: whole.index(b"\xff\xda")] + b"\xff\xd9")
