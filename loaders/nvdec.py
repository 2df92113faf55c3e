"""The video decoder of an NVIDIA GPU, through DALI: quick, and tried before the others.

Whatever is amiss with it (no driver's library, a codec it lacks, wrong pictures) is an
UndecodableError: the other decoders read the file then.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .decoders import (
    Picture,
    Settings,
    UndecodableError,
    check_size,
    picture_by_pyav,
    quarter_turns,
    stored_size,
)

_SEQUENCE = 16  # frames that come back at a time
_DIFFERENCE = 6  # grey levels, the mean over the first frame, that are more than rounding


def is_there() -> bool:
    """Say whether DALI and the driver's library of NVDEC can be loaded; costs no GPU memory."""
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return False
    return importlib.util.find_spec("nvidia.dali") is not None


def frames_by_nvdec(source: Path, settings: Settings) -> Iterator[Picture]:
    """Yield the pictures of a video, upright and scaled to `settings.short_side` already.

    PyAV's first picture tells the rotation, the aspect and the rate, and the pixels have to agree
    with it. On `settings.device` "cpu", DALI decodes VP8, VP9 and MJPEG without a GPU.
    """
    try:
        yield from _frames(source, settings)
    except UndecodableError:
        raise
    except Exception as error:  # DALI raises RuntimeError, CUDA's errors among them
        cause = str(error).rpartition("encountered:")[2]  # after DALI's traceback
        raise UndecodableError(f"NVDEC: {' '.join(cause.split())}") from None


def _frames(source: Path, settings: Settings) -> Iterator[Picture]:
    import av
    import cv2
    from nvidia.dali import fn, pipeline_def

    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        check_size(stream.height, stream.width)
        first = next(container.decode(stream))
        expected, turns = picture_by_pyav(stream, first), quarter_turns(first)
    height, width = stored_size(expected.square, settings.short_side)
    # The decoder gives frames as they are stored, before they are turned.
    stored_height, stored_width = (width, height) if turns % 2 else (height, width)
    kind, _, device_id = settings.device.partition(":")

    on_gpu = kind == "cuda"

    @pipeline_def(batch_size=1, num_threads=1, device_id=int(device_id or 0) if on_gpu else None)
    def graph():
        sequence, index, seconds = fn.experimental.readers.video(
            name="reader",
            device="gpu" if on_gpu else "cpu",
            filenames=[str(source)],
            sequence_length=_SEQUENCE,
            pad_mode="constant",  # or the last sequence would be dropped where it is not full
            enable_frame_num="sequence",
            enable_timestamps=True,
        )
        return (
            fn.resize(sequence, size=[stored_height, stored_width], antialias=True),
            index,
            seconds,
        )

    pipeline = graph()
    pipeline.build()
    key = cv2.resize(expected.pixels, (width, height), interpolation=cv2.INTER_AREA)
    for number in range(pipeline.epoch_size("reader")):
        sequence, index, seconds = (np.asarray(output.as_cpu()[0]) for output in pipeline.run())
        upright = np.rot90(sequence, turns, axes=(1, 2))
        difference = np.abs(upright[0].astype(int) - key).mean()
        if number == 0 and difference > _DIFFERENCE:
            raise UndecodableError(f"NVDEC: {difference:.0f} grey levels from PyAV's first frame")
        there = index.ravel() >= 0  # padding has -1
        for pixels, time in zip(upright[there], seconds.ravel()[there], strict=True):
            yield Picture(np.ascontiguousarray(pixels), (height, width), float(time), expected.rate)
