"""What preparation tells in JSON and reads back: of which types, and within which bounds.

These files lie in the set's folder for as long as it does, where anybody may have put them: a
shard's name must not lead out of the set, nor a digest into a name that is no digest.
"""

from typing import Annotated, TypedDict

from msgspec import Meta

from ..decode import MAX_FRAMES

Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]  # SHA-256
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Frames = Annotated[int, Meta(ge=1, le=MAX_FRAMES)]
Shard = Annotated[
    str, Meta(pattern=r"\A(train|validation|test)(/[^/.][^/]*)?/[0-9]{6,9}\.(tar|npy)\Z")
]
Key = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}_[0-9]{7,9}\Z")]


class _Scenes(TypedDict, total=False):
    scenes: dict[str, float]


class _Clip(_Scenes):
    start: Count
    frames: Frames
    frame_size: tuple[Count, Count]
    crop: tuple[float, float, float]
    transforms: list[list[float]] | None
    motion: float
    registration_error: float | None
    error_before: float
    error_after: float
    sha256: Digest


class _Stored(_Clip):
    offset: Count
    size: Count


class _Stretch(TypedDict):
    start: Count
    frames: Count
    reason: str
    detail: str


class Made(TypedDict):
    """The record of a video that was prepared; see `video`."""

    sha256: Digest
    bytes: Count
    decoder: str
    frames: Count
    rate: float | None
    clips: list[_Stored]
    rejected: list[_Stretch]


class Failed(TypedDict):
    """The record of a video that no decoder reads."""

    failed: str


class _Label(TypedDict, total=False):
    label: str


class Line(_Clip, _Label):
    """A line of the manifest."""

    shard: Shard
    position: Count
    key: Key
    source: str
    source_sha256: Digest
    rate: float | None


class _WhereOfVideo(TypedDict, total=False):
    start: Count
    frames: Count


class Rejected(_WhereOfVideo):
    """A line of what is in no clip."""

    source: str
    reason: str
    detail: str
