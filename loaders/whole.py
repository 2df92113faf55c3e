"""Videos at their own shape: a stretch of frames, the aspect kept, nothing cut off."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .cache import decode_videos
from .decode import decode_source, scaled
from .decoders import MAX_PIXELS, stored_size
from .frames import Frames
from .search import Source

AS_FILMED = MAX_PIXELS  # a short side that no frame exceeds


@dataclass(frozen=True, slots=True)
class Clip:
    """Consecutive frames of a video: uint8 (T, H, W, 3), RGB, upright, of square pixels."""

    source: Path
    frames: np.ndarray
    filmed: tuple[int, int]  # (height, width) before they were scaled down


def read_clips(
    files: Sequence[Path], *, start: int, frames: int, short_side: int, workers: int
) -> tuple[list[Clip], dict[Path, str]]:
    """Read a stretch of frames of every video.

    Videos are decoded in processes of their own, so a script must call this under
    `if __name__ == "__main__":`.

    Args:
        files: videos.
        start: the first frame, from 0.
        frames: T; a video that ends before that counts as broken.
        short_side: pixels that the short side is scaled down to, the aspect kept; shorter ones are
            not enlarged.
        workers: decoding processes.

    Returns:
        What could be read, in order, and each broken file with the reason.

    Raises:
        UserError: decoded frames cannot be stored for the time being.
    """
    clips = []
    with decoded(files, start=start, most=frames, least=frames, workers=workers) as found:
        videos, broken = found
        for file, video in videos.items():
            filmed = video.shape[1:3]
            size = stored_size(filmed, short_side)
            # One after the other: as they were filmed all of them may be too many for the memory.
            pixels = [scaled(video.read(number, 1)[0], *size) for number in range(frames)]
            clips.append(Clip(file, np.stack(pixels), filmed))
    return clips, broken


@contextmanager
def decoded(
    files: Sequence[Path],
    *,
    start: int = 0,
    most: int,
    least: int = 1,
    short_side: int = AS_FILMED,
    workers: int,
) -> Iterator[tuple[dict[Path, Frames], dict[Path, str]]]:
    """Decode a stretch of frames of every video, which can be read as long as the block lasts.

    Videos are decoded in processes of their own; see `read_clips`.

    Args:
        files: videos.
        start: the first frame, from 0.
        most: frames from there on.
        least: of them that there must be; a video with fewer counts as broken.
        short_side: pixels that the short side is scaled down to, the aspect kept.
        workers: decoding processes.

    Yields:
        The frames of every video that could be read, in order, and the reason for every other one.

    Raises:
        UserError: the frames cannot be stored for the time being.
    """
    sources = {file: Source(Path(os.path.abspath(file)), "video") for file in files}
    with tempfile.TemporaryDirectory(prefix="vgan_fast-") as folder:
        found, skipped = decode_videos(
            list(dict.fromkeys(sources.values())),
            Path(folder),
            short_side=short_side,
            fps=None,
            workers=workers,
            decode=partial(decode_source, start=start, most=most),
        )
        whole = {frames.source: frames for frames in found if frames.length >= least}
        for frames in found:
            if frames.length < least:
                skipped[frames.source] = (
                    f"has {start + frames.length} frames, too few for {least} from frame {start} on"
                )
        yield (
            {file: whole[of.path] for file, of in sources.items() if of.path in whole},
            {file: skipped[of.path] for file, of in sources.items() if of.path in skipped},
        )
