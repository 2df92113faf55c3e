"""What became of each video of a set, from its manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vgan_fast.errors import UserError
from vgan_fast.foreign import MalformedError, parse_json, typed

from .assembly import MANIFEST, REJECTED
from .records import Line, Rejected
from .video import Record

_LONGEST_LINE = 1 << 24  # bytes; a hundred for the matrix of each frame


def read_manifest(out: Path) -> Iterator[Record]:
    """Yield the clips of a set, in order: see `video` and `assembly` for what is told of them."""
    return _lines(out / MANIFEST, Line)


def read_rejected(out: Path) -> Iterator[Record]:
    """Yield what is in no clip: "source", "reason" and "detail", with "start" and "frames".

    The last two are absent where a whole video was left out.
    """
    return _lines(out / REJECTED, Rejected)


def _lines(path: Path, kind: type) -> Iterator[Record]:
    """Yield the lines of a file.

    Raises:
        UserError: it cannot be read, or a line is damaged.
    """
    number = 0
    try:
        with open(path, "rb") as file:
            while line := file.readline(_LONGEST_LINE):
                number += 1
                record = parse_json(line, dict)
                typed(record, kind)
                yield record
    except (OSError, MalformedError) as error:
        raise UserError(
            f"{path}, line {number}: is damaged ({error}); prepare the set anew in another folder"
        ) from None


@dataclass(slots=True)
class VideoOutcome:
    """Sums over the clips of a video, or of several."""

    clips: int = 0
    frames: int = 0  # in clips
    lost: int = 0  # frames in none
    later_frames: int = 0  # in clips, but not their first
    before: float = 0.0  # sum of differences to the first frame, grey levels
    after: float = 0.0
    motion: float = 0.0  # sum over frames, pixels of the clip
    failed: str | None = None  # why there is nothing of it

    def add_clip(self, clip: Record) -> None:
        """Count a clip."""
        later = clip["frames"] - 1
        self.clips += 1
        self.frames += clip["frames"]
        self.later_frames += later
        self.before += clip["error_before"] * later
        self.after += clip["error_after"] * later
        self.motion += clip["motion"] * clip["frames"]

    @property
    def mean_before(self) -> float:
        """Mean difference between a clip's first frame and the others, as filmed: grey levels."""
        return self.before / max(1, self.later_frames)

    @property
    def mean_after(self) -> float:
        """The same of the clips as they are."""
        return self.after / max(1, self.later_frames)

    @property
    def ratio(self) -> float:
        """What stabilising left of the difference."""
        return self.after / self.before if self.before else 1.0

    @property
    def mean_motion(self) -> float:
        """Mean distance of the camera from where a clip began, pixels of the clip."""
        return self.motion / max(1, self.frames)


@dataclass(slots=True)
class Outcome:
    """What became of a set."""

    videos: dict[str, VideoOutcome] = field(default_factory=dict)
    total: VideoOutcome = field(default_factory=VideoOutcome)
    splits: Counter[str] = field(default_factory=Counter)  # clips
    labels: Counter[str] = field(default_factory=Counter)  # clips
    reasons: Counter[str] = field(default_factory=Counter)  # stretches and videos

    @property
    def failed(self) -> dict[str, str]:
        """The videos that were left out as a whole, and why."""
        return {name: video.failed for name, video in self.videos.items() if video.failed}


def read_outcome(out: Path) -> Outcome:
    """Sum up the manifest of a set that is complete."""
    outcome = Outcome()
    for clip in read_manifest(out):
        for sums in (outcome.videos.setdefault(clip["source"], VideoOutcome()), outcome.total):
            sums.add_clip(clip)
        outcome.splits[clip["shard"].partition("/")[0]] += 1
        if "label" in clip:
            outcome.labels[clip["label"]] += 1
    for stretch in read_rejected(out):
        video = outcome.videos.setdefault(stretch["source"], VideoOutcome())
        outcome.reasons[stretch["reason"]] += 1
        if "frames" in stretch:
            video.lost += stretch["frames"]
            outcome.total.lost += stretch["frames"]
        else:
            video.failed = f"{stretch['reason']} ({stretch['detail']})"
    return outcome
