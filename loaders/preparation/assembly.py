"""From parts to shards: which clip goes where is settled by the videos alone, in a fixed order."""

import hashlib
import io
import json
import tarfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vgan_fast.errors import UserError
from vgan_fast.files import written_whole

from .video import CLIPS, Format, Record, read_record

SPLITS = ("train", "validation", "test")
MANIFEST, REJECTED = "manifest.jsonl", "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class Video:
    """A video to be prepared, and its part."""

    name: str  # path relative to the folder that all have in common
    label: str | None
    part: Path


@dataclass(frozen=True, slots=True)
class Packing:
    """How clips are shared out."""

    format: Format
    shard_clips: int  # in a shard, at most
    validation: float  # share of the videos, 0 to 1
    test: float
    seed: int
    clip_shape: tuple[int, int, int, int]  # (T, H, W, 3)

    def split(self, digest: str) -> str:
        """Return the split of a video by the SHA-256 of its bytes: equal files stay together."""
        drawn = hashlib.sha256(f"{self.seed}:{digest}".encode()).digest()
        place = int.from_bytes(drawn[:8], "big") / 2**64
        if place < self.validation:
            return "validation"
        return "test" if place < self.validation + self.test else "train"


class Placed(NamedTuple):
    """A clip and its place."""

    video: Video
    clip: Record  # what the part's record tells of it and of its video
    shard: str  # path below the set's folder
    position: int  # in the shard, from 0
    key: str  # of its members in a tar

    @property
    def line(self) -> Record:
        """What the manifest tells of it."""
        place = {"shard": self.shard, "position": self.position, "key": self.key}
        told = {name: value for name, value in self.clip.items() if name not in ("offset", "size")}
        return place | told


class Places:
    """Gives each clip its place, video by video in the set's order."""

    def __init__(self, packing: Packing):
        self._packing = packing
        self._clips: Counter[str] = Counter()  # placed so far, by folder
        self._seen: dict[str, str] = {}  # names of videos, by their bytes

    def of(self, video: Video, record: Record) -> tuple[list[Placed], list[Record]]:
        """Return the clips of the next video, and what of it is in no clip, with the reasons."""
        source = {"source": video.name}
        if "failed" in record:
            return [], [source | {"reason": "it cannot be decoded", "detail": record["failed"]}]
        digest = record["sha256"]
        twin = self._seen.setdefault(digest, video.name)
        if twin != video.name:
            return [], [source | {"reason": "the same bytes as another", "detail": twin}]
        folder = self._packing.split(digest)
        if video.label is not None:
            source["label"] = video.label
            if self._packing.format == "npy":  # an array has no room for labels
                folder += f"/{video.label}"
        source |= {"source_sha256": digest, "rate": record["rate"]}
        placed = []
        for clip in record["clips"]:
            shard, position = divmod(self._clips[folder], self._packing.shard_clips)
            self._clips[folder] += 1
            name = f"{folder}/{shard:06d}.{self._packing.format}"
            key = f"{digest[:16]}_{clip['start']:07d}"
            placed.append(Placed(video, source | clip, name, position, key))
        return placed, [source | rejected for rejected in record["rejected"]]


class Assembly:
    """Writes the shards of a set, each as soon as the parts of all its clips are there.

    The videos' order is given, and a clip's shard and position follow from the records before it,
    so that a set comes out the same however often its making was interrupted. A part's clips are
    removed when the last of them is in a shard.
    """

    def __init__(self, out: Path, videos: list[Video], packing: Packing):
        self._out, self._videos, self._packing = out, videos, packing
        self._places = Places(packing)
        self._next = 0  # of `videos`
        self._open: defaultdict[str, list[Placed]] = defaultdict(list)  # by shard
        self._unwritten: Counter[Path] = Counter()  # clips, by part

    def advance(self) -> None:
        """Write what has become complete: full shards, and with the last part everything.

        Raises:
            UserError: the disk is full, or a shard is gone that had been written.
        """
        while self._next < len(self._videos):
            video = self._videos[self._next]
            record = read_record(video.part)
            if record is None:
                return
            self._next += 1
            placed, _ = self._places.of(video, record)
            self._unwritten[video.part] = len(placed)
            if not placed:
                self._remove(video.part)
            for clip in placed:
                clips = self._open[clip.shard]
                clips.append(clip)
                if len(clips) == self._packing.shard_clips:
                    self._write(clip.shard)
        for shard in sorted(self._open):
            self._write(shard)

    def write_manifest(self) -> tuple[int, int]:
        """Write what became of every frame: a line for each clip, and for each rejected stretch.

        Returns:
            the numbers of clips and of rejected stretches.
        """
        places = Places(self._packing)
        clips = stretches = 0
        with (
            written_whole(self._out / MANIFEST) as manifest_path,
            written_whole(self._out / REJECTED) as rejected_path,
            open(manifest_path, "w") as manifest,
            open(rejected_path, "w") as rejected,
        ):
            for video in self._videos:
                placed, left_out = places.of(video, read_record(video.part))
                clips += len(placed)
                stretches += len(left_out)
                manifest.writelines(json.dumps(clip.line) + "\n" for clip in placed)
                rejected.writelines(json.dumps(line) + "\n" for line in left_out)
        return clips, stretches

    def _write(self, shard: str) -> None:
        clips = self._open.pop(shard)
        path = self._out / shard
        # Names are made safe where they are read; this is where one that is not would do harm.
        if not path.resolve().is_relative_to(self._out.resolve()):
            raise UserError(f"{path}: is not below {self._out}; choose another --out")
        if not path.exists():
            parts = (clip.video.part.with_suffix(CLIPS) for clip in clips)
            gone = next((part for part in parts if not part.exists()), None)
            if gone:
                raise UserError(
                    f"{path}: is gone, and so are its clips ({gone}); remove {self._out} and start"
                    " anew"
                )
            write = _write_tar if self._packing.format == "tar" else self._write_npy
            write(path, clips)
        for clip in clips:
            self._unwritten[clip.video.part] -= 1
            if not self._unwritten[clip.video.part]:
                self._remove(clip.video.part)

    def _remove(self, part: Path) -> None:
        del self._unwritten[part]
        part.with_suffix(CLIPS).unlink(missing_ok=True)

    def _write_npy(self, path: Path, clips: list[Placed]) -> None:
        shape = (len(clips), *self._packing.clip_shape)
        with written_whole(path) as part, open(part, "wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for clip in clips:
                file.write(_encoded(clip))


def _encoded(placed: Placed) -> bytes:
    with open(placed.video.part.with_suffix(CLIPS), "rb") as file:
        file.seek(placed.clip["offset"])
        return file.read(placed.clip["size"])


def _write_tar(path: Path, clips: list[Placed]) -> None:
    """Write a WebDataset shard, and before it its index as `wds2idx` would write it."""
    lines = [f"v1.2 {len(clips)}"]
    with written_whole(path) as part:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
            for clip in clips:
                told = json.dumps({"key": clip.key, **clip.line}).encode()
                spans = []
                for extension, content in (("jpg", _encoded(clip)), ("json", told)):
                    member = tarfile.TarInfo(f"{clip.key}.{extension}")  # times and owners are 0
                    member.size = len(content)
                    spans.append((extension, archive.offset + tarfile.BLOCKSIZE, member))
                    archive.addfile(member, io.BytesIO(content))
                lines.append(
                    " ".join(
                        f"{kind} {start} {member.size} {member.name}"
                        for kind, start, member in spans
                    )
                )
        with written_whole(path.with_suffix(".idx")) as index:
            index.write_text("\n".join(lines) + "\n")
