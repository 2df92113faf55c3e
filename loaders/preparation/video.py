"""One video to its part: the clips, encoded one after the other, and a record of them.

A part is two files beside each other, `NAME.clips` and then `NAME.json`: where the record is, the
part is whole. Both depend on the video's bytes and on the recipe alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import simplejpeg

from vgan_fast.errors import UserError
from vgan_fast.files import sha256_of, written_whole
from vgan_fast.foreign import MalformedError, read_json, typed

from ..decode import DecodedFrames
from ..decoders import Settings, UndecodableError, image_files
from ..search import Kind
from .records import Failed, Made
from .scenes import SceneClassifier, SceneFilter
from .stabilise import Clip, Cutting, Rejected, cut_clips

Format = Literal["tar", "npy"]
Record = dict[str, Any]

CLIPS, RECORD = ".clips", ".json"
_LARGEST_RECORD = 1 << 30  # bytes: a thousand for each of a million clips


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides, with a video's bytes, what its clips are."""

    cutting: Cutting
    fps: float | None = None  # frames a second that videos are resampled to; None takes all
    scenes: SceneFilter | None = None
    format: Format = "tar"
    quality: int = 95  # of JPEG
    seed: int = 0


def prepare_video(source: Path, kind: Kind, decoder: str, recipe: Recipe, part: Path) -> None:
    """Write the part of a video; `part` is its path without suffix.

    The record holds "sha256" and "bytes" of the video, "frames" decoded and their "rate", "clips"
    and "rejected"; see `_described` for what is told of a clip.

    Raises:
        UndecodableError: the video cannot be read, or the decoder yields no or absurd frames.
        UserError: the part cannot be written, or the scene classifier cannot be loaded.
    """
    try:
        digest, size = _digest(source, kind)
    except OSError as error:
        raise UndecodableError(f"cannot be read ({error.strerror})") from None
    classifier = _classifier(recipe.scenes) if recipe.scenes else None
    settings = Settings(recipe.cutting.short_side, recipe.fps)
    decoded = _Counted(DecodedFrames(source, decoder, settings))
    seed = f"{recipe.seed}:{digest}".encode()
    clips, rejected = [], []
    with written_whole(part.with_suffix(CLIPS)) as path, open(path, "wb") as payload:
        for piece in cut_clips(decoded, recipe.cutting, seed):
            if isinstance(piece, Rejected):
                rejected.append(asdict(piece))
                continue
            described = _described(piece)
            if classifier:
                scores = classifier.scores(piece.pixels[0])
                described["scenes"], reason = classifier.verdict(scores)
                if reason:
                    frames = len(piece.pixels)
                    rejected.append(asdict(Rejected(piece.start, frames, "scene", reason)))
                    continue
            clips.append(described | _append(payload, _encoded(piece, recipe)))
    record = {
        "sha256": digest,
        "bytes": size,
        "decoder": decoder,
        "frames": decoded.count,
        "rate": decoded.frames.rate,
        "clips": clips,
        "rejected": rejected,
    }
    write_record(part, record)


def write_record(part: Path, record: Record) -> None:
    """Write the record of a part, whole or not at all."""
    with written_whole(part.with_suffix(RECORD)) as path:
        path.write_text(json.dumps(record))


def read_record(part: Path) -> Record | None:
    """Return the record of a part, None where it is not made yet.

    Raises:
        UserError: it is damaged.
    """
    path = part.with_suffix(RECORD)
    try:
        record = read_json(path, dict, _LARGEST_RECORD)
        typed(record, Failed if "failed" in record else Made)
    except FileNotFoundError:
        return None
    except (OSError, MalformedError) as error:
        raise UserError(f"{path}: is damaged ({error}); remove it and repeat the command") from None
    return record


# A process prepares many videos by one network.
_classifier = functools.cache(SceneClassifier)


class _Counted:
    def __init__(self, frames: DecodedFrames):
        self.frames, self.count = frames, 0

    def __iter__(self):
        for frame in self.frames:
            self.count += 1
            yield frame


def _digest(source: Path, kind: Kind) -> tuple[str, int]:
    """Return the SHA-256 of a video's bytes, and their number; of a folder, of all its images."""
    if kind != "images":
        return sha256_of(source), source.stat().st_size
    total, size = hashlib.sha256(), 0
    for image in image_files(source):
        content = image.read_bytes()
        total.update(hashlib.sha256(content).digest())
        size += len(content)
    return total.hexdigest(), size


def _described(clip: Clip) -> Record:
    """Return what the manifest tells of a clip.

    A transform is the matrix from pixels of a frame, scaled to "frame_size" (height, width), to
    pixels of the first one: its first two rows, or all three where the last is not (0, 0, 1). What
    they give is cropped to "crop" (left, top, side) and scaled to the clip's size. Lengths are in
    pixels of the clip, errors before and after in grey levels from 0 to 255.
    """
    transforms = None
    if clip.stabilised:
        rows = 3 if (clip.matrices[:, 2] != (0, 0, 1)).any() else 2
        flat = clip.matrices[:, :rows].reshape(len(clip.matrices), -1)
        transforms = np.round(flat, 6).tolist()
    error = clip.registration_error
    return {
        "start": clip.start,
        "frames": len(clip.pixels),
        "frame_size": clip.frame_size,
        "crop": clip.crop,
        "transforms": transforms,
        "motion": round(clip.motion, 4),
        "registration_error": None if error is None else round(error, 4),
        "error_before": round(clip.error_before, 4),
        "error_after": round(clip.error_after, 4),
    }


def _encoded(clip: Clip, recipe: Recipe) -> bytes:
    frames, size = clip.pixels, recipe.cutting.size
    if recipe.format == "npy":  # all of one length: the last frame is repeated, as in training
        missing = recipe.cutting.frames - len(frames)
        return np.concatenate((frames, np.repeat(frames[-1:], missing, axis=0))).tobytes()
    strip = np.ascontiguousarray(frames).reshape(-1, size, 3)
    return simplejpeg.encode_jpeg(strip, quality=recipe.quality, colorsubsampling="420")


def _append(payload: BinaryIO, content: bytes) -> Record:
    offset = payload.tell()
    payload.write(content)
    digest = hashlib.sha256(content).hexdigest()
    return {"offset": offset, "size": len(content), "sha256": digest}
