"""Encoded strips, tar shards and their mutations."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def image(width: int, height: int, mode: str = "RGB", kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, kind, **options)
    return stream.getvalue()


def write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def mutations(content: bytes, count: int, seed: int):
    """Yield `content` with bytes changed, runs removed, repeated or cut off: seeded."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        mutated = bytearray(content)
        for _ in range(draw.integers(1, 6)):
            at = int(draw.integers(len(mutated))) if mutated else 0
            match draw.integers(6):
                case 0 | 1 | 2:
                    mutated[at : at + 1] = draw.bytes(1)
                case 3:
                    mutated[at : at + 4] = bytes((255, 255, 255, 255))
                case 4:
                    del mutated[at : at + int(draw.integers(40))]
                case 5:
                    mutated[at:at] = mutated[at : at + int(draw.integers(700))]
        yield bytes(
            mutated[: int(draw.integers(len(mutated) + 1))] if draw.random() < 0.1 else mutated
        )
