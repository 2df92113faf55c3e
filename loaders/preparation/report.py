"""A page about a set, with pictures: what was filmed, what clips hold of it, what is in none.

What was filmed is decoded from the sources once more, by what the manifest tells of a clip.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from tqdm import tqdm

from vgan_fast.errors import UserError
from vgan_fast.files import explained, remove_unfinished, written_whole

from ..cache import DECODER_ORDER, MEMORY, limit_memory
from ..decode import DecodedFrames
from ..decoders import Settings, UndecodableError
from ..frames import Frames
from ..processes import HungError, ProcessDiedError, Processes
from ..search import Source
from ..shards import open_npy, open_tar
from ..strips import BrokenStripError, Strip, decode_strip
from .outcome import VideoOutcome, read_manifest, read_outcome, read_rejected
from .run import Plan
from .video import Recipe, Record

REPORT, PAGE = "report", "index.html"

_SIDE = 128  # pixels of a frame in a picture, at most
_SHOWN = 8  # frames in a film strip
_STRIPS = 12  # clips shown as filmed and as stored
_EACH = 2  # of them of one video, where others have as many
_STILL = 3  # of them with less motion than the next
_MOVED = 0.25  # pixels of a clip
_SHEET = 100  # clips on the contact sheet
_EXAMPLES = 3  # of each reason
_STRETCH = 32  # frames of a rejected stretch that its strip is spread over
_LISTED = 200  # rows of a table
_GAP = 12  # pixels between clips, in the picture of all that are shown
# What comes later in a video is shown only where nothing else is: all before it must be decoded.
_EARLY = 300
_SECONDS = 120  # that a decoder may take for one source
# Upper bounds of the bins of histograms.
_MOTIONS = (0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)  # pixels of a clip
_RATIOS = tuple(tenth / 10 for tenth in range(1, 10))


@dataclass(slots=True)
class _Film:
    """Frames of a source that are to be shown, of a clip or of what is in none."""

    told: Record  # its line in the manifest, or among what was rejected
    places: np.ndarray  # int (N,), frames from the first of it
    filmed: np.ndarray | None = None  # uint8 (N, side, side, 3)
    missing: str = ""  # why it is not there
    picture: str | None = None  # file
    difference: float = 0.0  # of its first frame from the stored one, grey levels

    @property
    def numbers(self) -> list[int]:
        """The frames' numbers in the source."""
        return (self.told.get("start", 0) + self.places).tolist()


@dataclass(slots=True)
class _Reason:
    """What was rejected for one reason."""

    stretches: int = 0
    frames: int = 0
    by_video: dict[str, Record] = field(default_factory=dict)  # the best example of each
    examples: list[_Film] = field(default_factory=list)


@dataclass(slots=True)
class _Survey:
    """What is shown of all clips."""

    motions: list[float] = field(default_factory=list)  # pixels
    ratios: list[float] = field(default_factory=list)  # of those that were stabilised
    scenes: Counter[str] = field(default_factory=Counter)  # clips, by their best scene
    early: list[Record] = field(default_factory=list)  # what film strips are chosen from
    sheet: list[Record] = field(default_factory=list)  # what is on the contact sheet


def write_report(plan: Plan) -> Path:
    """Draw the report of a set that is complete, in place of an earlier one; return its page.

    A source that is gone or cannot be decoded costs its pictures, and the page says so.

    Raises:
        UserError: the report cannot be written, or a shard cannot be read.
    """
    outcome = read_outcome(plan.out)
    survey = _survey(plan.out, outcome.total.clips)
    reasons = _reasons(plan.out)
    clips = [_Film(clip, _spread(clip["frames"])) for clip in _instructive(survey.early)]
    stretches = [film for reason in reasons.values() for film in reason.examples]
    _decode([*clips, *stretches], plan)
    report = plan.out / REPORT
    remove_unfinished(plan.out, REPORT)
    with explained(report):
        if report.exists():
            shutil.rmtree(report)
    with written_whole(report, folder=True) as folder:
        _draw(folder, clips, stretches, survey.sheet, _Shards(plan))
        page = _template().render(
            plan=plan,
            outcome=outcome,
            videos=sorted((name, v) for name, v in outcome.videos.items() if not v.failed),
            survey=survey,
            motions=_bars(survey.motions, _MOTIONS, ("0", *_spans(_MOTIONS), f"> {_MOTIONS[-1]}")),
            ratios=_bars(survey.ratios, _RATIOS, _spans((0, *_RATIOS, 1))),
            reasons=reasons,
            clips=clips,
            listed=_LISTED,
        )
        # A file's name may be no UTF-8.
        (folder / PAGE).write_bytes(page.encode(errors="backslashreplace"))
    return report / PAGE


def _draw(
    folder: Path,
    clips: list[_Film],
    stretches: list[_Film],
    sheet: list[Record],
    shards: _Shards,
) -> None:
    """Write the pictures, and set "picture" of each film that has frames."""
    # It imports torch, which the process that decodes has no use for.
    from vgan_fast.pictures import animated_grid, film_strip, write_picture

    pairs = []
    for number, film in enumerate(clips, 1):
        if film.filmed is not None:
            stored = shards.frames(film.told, film.places)
            film.difference = float(cv2.absdiff(film.filmed[0], stored[0]).mean())
            pairs.append(film_strip(np.stack((film.filmed, stored))))
            film.picture = f"clip_{number:02}.png"
            write_picture(folder / film.picture, pairs[-1])
    for number, film in enumerate(stretches, 1):
        if film.filmed is not None:
            film.picture = f"rejected_{number:02}.png"
            write_picture(folder / film.picture, film_strip(film.filmed[None]))
    if pairs:
        write_picture(folder / "before_after.png", _stacked(pairs))
    if sheet:
        middles = [shards.frames(clip, [clip["frames"] // 2]) for clip in sheet]
        write_picture(folder / "contact_sheet.png", animated_grid(np.stack(middles))[0])


def _template() -> Template:
    # Names and labels come from whoever made the files.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _survey(out: Path, clips: int) -> _Survey:
    """Go through the manifest, of that many clips."""
    survey = _Survey()
    on_sheet = set(np.linspace(0, clips - 1, min(clips, _SHEET)).round().astype(int).tolist())
    source = None
    for number, clip in enumerate(read_manifest(out)):
        survey.motions.append(clip["motion"])
        if clip.pop("transforms") is not None:
            sums = VideoOutcome()
            sums.add_clip(clip)
            survey.ratios.append(sums.ratio)
        if clip.get("scenes"):
            survey.scenes[next(iter(clip["scenes"]))] += 1
        if clip["start"] < _EARLY or clip["source"] != source:
            survey.early.append(clip)
        if number in on_sheet:
            survey.sheet.append(clip)
        source = clip["source"]
    return survey


def _instructive(clips: list[Record]) -> list[Record]:
    """Choose clips to show, from the most moved to the least, of as many videos as there are."""
    moved = [clip for clip in clips if clip["motion"] >= _MOVED]
    still = [clip for clip in clips if clip["motion"] < _MOVED]
    few = min(_STILL, len(still))
    videos = {clip["source"] for clip in clips}
    room = Counter(dict.fromkeys(videos, max(_EACH, _STRIPS // max(1, len(videos)))))
    return _chosen(moved, _STRIPS - few, room) + _chosen(still, few, room)


def _chosen(clips: list[Record], count: int, room: Counter[str]) -> list[Record]:
    """Choose up to so many clips, and take their places from the room that each video has."""
    ranked = sorted(clips, key=lambda clip: -clip["motion"])
    chosen: set[int] = set()
    # Closer to each other where there is more motion.
    for place in (len(ranked) - 1) * np.linspace(0, 1, min(count, len(ranked))) ** 2:
        free = [
            (-room[clip["source"]], abs(rank - place), rank)
            for rank, clip in enumerate(ranked)
            if room[clip["source"]] and rank not in chosen
        ]
        if free:
            rank = min(free)[-1]
            chosen.add(rank)
            room[ranked[rank]["source"]] -= 1
    return [ranked[rank] for rank in sorted(chosen)]


def _reasons(out: Path) -> dict[str, _Reason]:
    """Return what was rejected by reason, the commonest first, with examples of several videos."""
    reasons: defaultdict[str, _Reason] = defaultdict(_Reason)
    for told in read_rejected(out):
        reason = reasons[told["reason"]]
        reason.stretches += 1
        reason.frames += told.get("frames", 0)
        best = reason.by_video.setdefault(told["source"], told)
        reason.by_video[told["source"]] = min(best, told, key=_preferred)
    for reason in reasons.values():
        for told in sorted(reason.by_video.values(), key=_preferred)[:_EXAMPLES]:
            places = _spread(min(told.get("frames", 0), _STRETCH))
            reason.examples.append(_Film(told, places))
    return dict(sorted(reasons.items(), key=lambda item: -item[1].stretches))


def _preferred(stretch: Record) -> tuple[int, int]:
    """Return a key that puts the long before the short, and what is early before either."""
    return stretch.get("start", 0) // _EARLY, -stretch.get("frames", 0)


def _spread(frames: int) -> np.ndarray:
    """Return the places of frames to show, evenly spaced: int (N,), all where they are few."""
    return np.linspace(0, frames - 1, min(frames, _SHOWN)).round().astype(int)


def _decode(films: list[_Film], plan: Plan) -> None:
    """Set "filmed" of each film that has frames, or "missing"."""
    sources = {v.name: source for v, source in zip(plan.videos, plan.sources, strict=True)}
    by_source: defaultdict[Source, list[_Film]] = defaultdict(list)
    for film in films:
        if len(film.places):
            name = film.told["source"]
            if name in sources:
                by_source[sources[name]].append(film)
            else:
                film.missing = f"{name} is none of the set's videos"
    with closing(Processes(1, limit_memory)) as processes:
        # disable=None: no bar where stderr is not a terminal
        for source, of_it in tqdm(by_source.items(), "decoding again", disable=None, unit="file"):
            numbers = {number for film in of_it for number in film.numbers}
            reasons = []
            for decoder in DECODER_ORDER[source.kind]:
                arguments = (source.path, decoder, plan.recipe, numbers)
                processes.submit(source, _filmed, arguments, _SECONDS)
                try:
                    frames = processes.next()[1].result()
                    for film in of_it:
                        film.filmed = np.stack([frames[number] for number in film.numbers])
                    break
                except UndecodableError as error:
                    reasons.append(str(error))
                except HungError:
                    reasons.append(f"{decoder} takes over {_SECONDS} s")
                except ProcessDiedError as error:
                    reasons.append(f"{decoder} crashed ({error})")
            for film in of_it:
                film.missing = "; ".join(dict.fromkeys(reasons))


def _filmed(source: Path, decoder: str, recipe: Recipe, numbers: set[int]) -> dict[int, np.ndarray]:
    """Return frames of a source by their numbers, as a clip that is not stabilised has them.

    Raises:
        UndecodableError: not all of them decode.
    """
    size, frames = recipe.cutting.size, {}
    try:
        decoded = DecodedFrames(source, decoder, Settings(recipe.cutting.short_side, recipe.fps))
        for number, frame in enumerate(decoded):
            if number in numbers:
                height, width = frame.shape[:2]
                side = min(height, width)
                left, top = (width - side) // 2, (height - side) // 2
                square = frame[top : top + side, left : left + side]
                square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
                frames[number] = _reduced(square)
                if len(frames) == len(numbers):
                    return frames
        reason = f"{decoder} gives {number + 1} frames, not {max(numbers) + 1}"
    except (MemoryError, ImportError):  # the second where a library finds no room
        reason = f"{decoder} needs over {MEMORY / 2**30:.3g} GiB of memory"
    raise UndecodableError(reason)


def _reduced(frame: np.ndarray) -> np.ndarray:
    side = min(len(frame), _SIDE)
    return cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA)


class _Shards:
    """The clips of a set, as training reads them."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._open: dict[str, dict[Path, Strip | Frames]] = {}

    def frames(self, clip: Record, places: Iterable[int]) -> np.ndarray:
        """Return frames of a clip: uint8 (N, side, side, 3).

        Raises:
            UserError: the shard is gone or damaged.
        """
        shard = self._plan.out / clip["shard"]
        tar = self._plan.packing.format == "tar"
        if clip["shard"] not in self._open:
            entries, _ = (open_tar if tar else open_npy)(Source(shard, "tar" if tar else "npy"))
            self._open[clip["shard"]] = {entry.source: entry for entry in entries}
        name = Path(f"{shard}:{clip['key']}.jpg" if tar else f"{shard}:{clip['position']}")
        try:
            entry = self._open[clip["shard"]][name]
            if entry.length < clip["frames"]:
                raise BrokenStripError
            pixels = decode_strip(entry, entry.read()) if tar else entry.read(0, clip["frames"])
        except (KeyError, OSError, BrokenStripError):
            raise UserError(
                f"{name}: cannot be read; remove {self._plan.out} and prepare it anew"
            ) from None
        return np.stack([_reduced(pixels[place]) for place in places])


def _stacked(pictures: list[np.ndarray]) -> np.ndarray:
    """Return pictures (H, W, 3) below each other, on white."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(p, ((0, _GAP), (0, width - p.shape[1]), (0, 0)), constant_values=255)
        for p in pictures
    ]
    return np.concatenate(padded)


def _bars(
    values: list[float], bounds: Sequence[float], labels: Sequence[str]
) -> list[tuple[str, int]]:
    """Count values between bounds; one that is a bound belongs to the bin below it."""
    bins = np.searchsorted(bounds, values)
    counts = np.bincount(bins, minlength=len(bounds) + 1).tolist()
    return list(zip(labels, counts, strict=True))


def _spans(bounds: Sequence[float]) -> list[str]:
    return [f"{low:g}–{high:g}" for low, high in pairwise(bounds)]
