"""Preparation on one core: our clips against those of the original's stabiliser.

    python -m benchmarks.preparation VIDEOS... --out FILE.md

VIDEOS are folders, lists or files, as `vgan_fast.train --data` takes them. Both methods decode the
first frames of each video by PyAV and cut them into clips, in turns; nothing is encoded or written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import click
import cv2
import numpy as np
import torch

from benchmarks.machine import describe, versions
from benchmarks.measure import Contender, Contest, Device, Prepared, race
from benchmarks.original_stabiliser import original_clips, scaled
from vgan_fast.cli import Program
from vgan_fast.errors import UserError
from vgan_fast.files import written_whole
from vgan_fast.loaders.decode import DecodedFrames
from vgan_fast.loaders.decoders import Settings, UndecodableError
from vgan_fast.loaders.preparation.stabilise import Clip, Cutting, cut_clips
from vgan_fast.loaders.search import find_sources

ORIGINAL, OURS = METHODS = ("original", "ours")
CUTTING = Cutting()
LEAST_FRAMES = CUTTING.skip + CUTTING.min_frames  # of a video, for one clip
FULL_SIZE = 1 << 16  # pixels: no frame's short side is longer
SMALL = (320, 240)  # width and height of the videos that have an estimate of their own
HOURS, RATE = 5000, 25  # of the paper's video; frames a second, assumed
ABOUT = f"""\
One process on one core. "Original": SIFT at full size, a homography from frame to frame, multiplied
up (`original_stabiliser.py`). "Ours": `cut_clips` with its defaults, the search for cuts included;
frames whose short side is over {CUTTING.short_side} pixels are scaled down to that first. Both
decode by PyAV; encoding and writing are left out of both. Frames a second are decoded frames by
wall-clock seconds, of the fastest of a video's rounds; "all" is the sum of frames by the sum of
seconds."""
ABOUT_CLIPS = f"""\
Up to {CUTTING.frames} frames each. "Kept" is the share of a video's frames that are in clips.
"Moved" is how far a method moves the corners of the clip's square at most, on average over the
four, in pixels of the clip. "After / before" is the mean difference between a clip's first frame
and the others at {CUTTING.size}x{CUTTING.size}, stabilised, by that of the same frames as they
came, scaled as the method does it. It falls, too, where an object is brought to rest in
place of the background, and where a motion drifts off and old pixels stay: read it together with
"moved". "Same clips" hold the same frames with both methods."""


@dataclass(frozen=True)
class Piece:
    """What is told of a clip."""

    start: int
    frames: int
    before: float  # grey levels, mean difference to the first frame
    after: float
    moved: float  # pixels of the clip, of the corners of the frame that is furthest off

    @property
    def window(self) -> tuple[int, int]:
        """Which frames it holds."""
        return self.start, self.frames


@dataclass
class Video:
    """What was measured of a video."""

    name: str
    frames: int
    size: tuple[int, int]  # width, height
    seconds: dict[str, float] = field(default_factory=dict)  # by method
    pieces: dict[str, list[Piece]] = field(default_factory=lambda: {name: [] for name in METHODS})

    @property
    def same(self) -> dict[str, list[Piece]]:
        """The clips that both methods have, by method."""
        windows = [{piece.window for piece in pieces} for pieces in self.pieces.values()]
        both = set.intersection(*windows)
        return {
            name: [piece for piece in pieces if piece.window in both]
            for name, pieces in self.pieces.items()
        }


class Speed:
    """Frames a second over videos, by method."""

    def __init__(self, videos: list[Video]):
        self.frames = sum(video.frames for video in videos)
        seconds = {name: sum(video.seconds[name] for video in videos) for name in METHODS}
        self.rates = {name: self.frames / seconds[name] for name in METHODS}

    @property
    def cells(self) -> str:
        """Frames, rates and their ratio, as cells of a table."""
        original, ours = self.rates[ORIGINAL], self.rates[OURS]
        return f"{self.frames} | {original:.2f} | {ours:.1f} | {ours / original:.1f}"


def frames_of(path: Path, short_side: int, count: int) -> Iterator[np.ndarray]:
    """The first frames of a video, with a short side of up to that."""
    return islice(DecodedFrames(path, "PyAV", Settings(short_side, None)), count)


def by_original(path: Path, count: int) -> list:
    """Clips by the original's method."""
    cv2.setRNGSeed(0)
    return list(original_clips(frames_of(path, FULL_SIZE, count)))


def by_ours(path: Path, count: int) -> list:
    """Clips by ours, without what was rejected."""
    pieces = cut_clips(frames_of(path, CUTTING.short_side, count), CUTTING, b"benchmark")
    return [piece for piece in pieces if isinstance(piece, Clip)]


def measured(path: Path, name: str, count: int, rounds: int) -> Video:
    """Race both methods over the beginning of a video.

    Raises:
        UndecodableError: it cannot be decoded, or is too short for a clip.
        UserError: a method failed.
    """
    raw, height, width = [], 0, 0
    for frame in frames_of(path, FULL_SIZE, count):
        height, width = frame.shape[:2]
        raw.append(scaled(frame))
    if len(raw) < LEAST_FRAMES:
        raise UndecodableError(f"{len(raw)} frames are too few for a clip")
    made: dict[str, list] = {}

    def contender(method: str, clips: Callable[[Path, int], list]) -> Contender:
        def work() -> None:
            made[method] = clips(path, count)

        return Contender(method, lambda _: Prepared(work))

    contenders = [contender(ORIGINAL, by_original), contender(OURS, by_ours)]
    contest = Contest("preparation", name, contenders, rounds, warm_up=0, inspected=False)
    video = Video(name, len(raw), (width, height))
    for method, result in race(contest, Device(torch.device("cpu"))).items():
        if result.failed:
            raise UserError(f"{path}: {method} failed: {result.failed}")
        video.seconds[method] = min(result.seconds)
    for clip in made[ORIGINAL]:
        before = _unrest(raw[clip.start : clip.start + len(clip.pixels)])
        moved = _moved(clip.matrices, (height, width))
        piece = Piece(clip.start, len(clip.pixels), before, _unrest(clip.pixels), moved)
        video.pieces[ORIGINAL].append(piece)
    for clip in made[OURS]:
        moved = _moved(clip.matrices, clip.frame_size)
        piece = Piece(clip.start, len(clip.pixels), clip.error_before, clip.error_after, moved)
        video.pieces[OURS].append(piece)
    return video


def _unrest(clip: Sequence[np.ndarray]) -> float:
    return float(np.mean([cv2.absdiff(frame, clip[0]).mean() for frame in clip[1:]]))


def _moved(matrices: np.ndarray, frame_size: tuple[int, int]) -> float:
    height, width = frame_size
    side = min(frame_size)
    corner = np.array([(width - side) / 2, (height - side) / 2])
    corners = corner + side * np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
    put = np.stack([cv2.perspectiveTransform(corners[None], matrix)[0] for matrix in matrices])
    distances = np.linalg.norm(put - corners, axis=2).mean(1)
    return float(distances.max() * CUTTING.size / side)


def ratio(pieces: list[Piece]) -> str:
    """After by before, over the frames of those clips."""
    before, after = (
        sum(getattr(piece, name) * (piece.frames - 1) for piece in pieces)
        for name in ("before", "after")
    )
    return f"{after / before:.3f}" if before else "-"


def speed_lines(videos: list[Video]) -> list[str]:
    """The table of speeds, and what they mean for the paper's video."""
    lines = [
        "| video | size | frames | original, frames/s | ours, frames/s | ours / original |",
        "|---|---|---|---|---|---|",
    ]
    for video in videos:
        width, height = video.size
        lines.append(f"| {video.name} | {width}x{height} | {Speed([video]).cells} |")
    lines += [f"| **all** | | {Speed(videos).cells} |", ""]
    small = [video for video in videos if video.size == SMALL]
    kinds = {"all": videos, f"{SMALL[0]}x{SMALL[1]}": small}
    lines += [
        f"Core-hours for the paper's {HOURS:,} hours of video, assumed to have {RATE} frames a"
        " second and to be like these clips:",
        "",
        "| clips | original | ours |",
        "|---|---|---|",
    ]
    for kind, of in kinds.items():
        if of:
            hours = [f"{HOURS * RATE / Speed(of).rates[name]:,.0f}" for name in METHODS]
            lines.append(f"| {kind} | {' | '.join(hours)} |")
    return lines


def clip_lines(videos: list[Video]) -> list[str]:
    """The table of what the clips are like."""
    lines = [
        "| video | kept, original | ours | moved, original | ours | after / before, original | ours"
        " | same clips | after / before, original | ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, of in [*((video.name, [video]) for video in videos), ("**all**", videos)]:
        frames = sum(video.frames for video in of)
        pieces = [list(chain(*(video.pieces[method] for video in of))) for method in METHODS]
        same = [list(chain(*(video.same[method] for video in of))) for method in METHODS]
        cells = [
            *(f"{sum(piece.frames for piece in clips) / frames:.0%}" for clips in pieces),
            *(f"{max(piece.moved for piece in clips):.1f}" if clips else "-" for clips in pieces),
            *map(ratio, pieces),
            str(len(same[0])),
            *map(ratio, same),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def page(
    videos: list[Video], left_out: dict[str, str], count: int, rounds: int, machine: str
) -> str:
    """The results in Markdown."""
    command = f"python -m benchmarks.preparation VIDEOS --frames {count} --rounds {rounds}"
    lines = [
        "# Preparation on one core, against the original's stabiliser",
        "",
        f"`{command} --out FILE`  ",
        machine,
        "",
        f"Videos: {len(videos)}, of each the first {count} frames or what there is. Rounds, in"
        f" turns: {rounds}.",
        ABOUT,
        "",
        *speed_lines(videos),
        "",
        "## The clips",
        "",
        ABOUT_CLIPS,
        "",
        *clip_lines(videos),
    ]
    if left_out:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        lines += ["", f"Left out: {reasons}."]
    return "\n".join(lines) + "\n"


@click.command(cls=Program, context_settings={"show_default": True})
@click.argument("videos", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--frames", type=click.IntRange(LEAST_FRAMES), default=200, help="of each video, at most"
)
@click.option("--rounds", type=click.IntRange(1), default=2, help="of both methods on each video")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
def main(videos: tuple[Path, ...], frames: int, rounds: int, out: Path) -> int:
    """Measure preparation of VIDEOS and write FILE in Markdown."""
    # Libraries' threads that nobody counts then share the one core.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    paths = {
        source.path: None
        for data in videos
        for source in find_sources(data, passed_over=out).sources
        if source.kind == "video"
    }
    if not paths:
        raise UserError(f"{videos[0]}: holds no video")
    above = os.path.commonpath([path.parent for path in paths])
    machine = f"{describe()}; {versions()}"  # as it is now: the code may change on disk meanwhile
    results, left_out = [], {}
    for path in paths:
        name = path.relative_to(above).as_posix()
        try:
            video = measured(path, name, frames, rounds)
        except UndecodableError as error:
            left_out[name] = str(error)
            continue
        results.append(video)
        print(name, Speed([video]).cells, flush=True)
    if not results:
        raise UserError(f"{videos[0]}: holds no video that is long enough for a clip")
    with written_whole(out) as part:
        part.write_text(page(results, left_out, frames, rounds, machine), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
