"""Strips are measured from their headers; what cannot be a strip is named with its reason."""

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from loader_media import write_strip
from nvidia.dali import fn, pipeline_def, types
from PIL import Image
from shard_media import image, mutations, write

from vgan_fast.loaders import strips as module
from vgan_fast.loaders.search import Source
from vgan_fast.loaders.strips import (
    BrokenStripError,
    decode_strip,
    image_size,
    measure_strips,
)


def measure(path: Path, label: str | None = None):
    return measure_strips([Source(path, "strip", label)])


def picture(pixels: np.ndarray, kind: str, mode: str = "RGB") -> bytes:
    return saved(Image.fromarray(pixels).convert(mode), kind)


def saved(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


NOISE = np.random.default_rng(0).integers(0, 255, (96, 32, 3), dtype=np.uint8)
WHOLE, WHOLE_PNG = picture(NOISE, "JPEG"), picture(NOISE, "PNG")
FRAME_HEADER = WHOLE.index(b"\xff\xc0")


def with_size(width: int, height: int) -> bytes:
    """A JPEG whose header claims a size."""
    at = FRAME_HEADER + 5
    return WHOLE[:at] + struct.pack(">HH", height, width) + WHOLE[at + 4 :]


def png_with_size(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">II", width, height) + WHOLE_PNG[24:29]
    return WHOLE_PNG[:12] + header + struct.pack(">I", zlib.crc32(header)) + WHOLE_PNG[33:]


@pytest.mark.parametrize(
    "content",
    [
        image(16, 48),
        image(16, 48, "L"),
        image(16, 48, progressive=True),
        image(16, 48, exif=b"Exif\0\0" + bytes(30_000), comment=b"\xff\xd9\xff\xda"),
        image(16, 48) + b"\0" * 100,
        image(16, 48).replace(b"\xff\xc0", b"\xff\xff\xff\xc0"),
        image(16, 48, kind="PNG"),
        image(16, 48, kind="PNG") + b"\0" * 100,
    ],
    ids=["rgb", "grey", "progressive", "long header", "padded", "fill bytes", "png", "padded png"],
)
def test_strip_is_measured(tmp_path, content):
    path = write(tmp_path / "a.jpg", content)
    (strip,), skipped = measure(path, "walk")
    assert not skipped
    assert (strip.source, strip.file, strip.offset, strip.size) == (path, path, 0, len(content))
    assert (strip.length, strip.side, strip.horizontal, strip.label) == (3, 16, False, "walk")
    assert strip.read().dtype == np.uint8
    assert strip.read().tobytes() == content


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("width", "height", "length", "horizontal"),
    [(64, 16, 4, True), (16, 64, 4, False), (16, 16, 1, False), (32, 16, 2, True)],
)
def test_rows_and_stacks(tmp_path, width, height, length, horizontal, kind):
    (strip,), _ = measure(write(tmp_path / "a.jpg", image(width, height, kind=kind)))
    assert (strip.length, strip.side, strip.horizontal) == (length, 16, horizontal)


BROKEN = {
    "empty": (b"", "neither a JPEG nor a PNG"),
    "gif": (b"GIF89a" + bytes(99), "neither a JPEG nor a PNG"),
    "cut off": (WHOLE[: len(WHOLE) // 2], "cut off"),
    "cut off png": (WHOLE_PNG[: len(WHOLE_PNG) // 2] + b"\xff\xd9", "cut off"),
    "cut in header": (WHOLE[:30], "JPEG's header is damaged"),
    "cut in frame header": (WHOLE[: FRAME_HEADER + 9], "JPEG's header is damaged"),
    "damaged header": (WHOLE[:2] + b"\0" * 200 + WHOLE[-2:], "JPEG's header is damaged"),
    "segment of no length": (WHOLE[:2] + b"\xff\xe0\0\1" * 9 + WHOLE[2:], "header is damaged"),
    "cut in png header": (WHOLE_PNG[:32], "PNG's header is damaged"),
    "damaged png header": (WHOLE_PNG[:18] + b"\1" + WHOLE_PNG[19:], "PNG's header is damaged"),
    "png without size": (png_with_size(0, 32), "0x32 pixels: the image's header is damaged"),
    "jpeg without size": (with_size(32, 0), "32x0 pixels: the image's header is damaged"),
    "wide": (image(40, 16), "40x16 pixels: no row"),
    "tall": (image(16, 40, kind="PNG"), "16x40 pixels: no row"),
    "tiny": (image(7, 70), "7x70 pixels: under 8"),
    "tiny row": (image(70, 7), "70x7 pixels: under 8"),
    "huge": (with_size(2**13 + 1, 2**13 + 1), "8193x8193 pixels: over 67108864"),
    "huge png": (png_with_size(8, 2**31 - 8), "8x2147483640 pixels: over 67108864"),
    "cmyk": (image(16, 48, "CMYK"), "4 components"),
    "12 bits": (WHOLE[: FRAME_HEADER + 4] + b"\x0c" + WHOLE[FRAME_HEADER + 5 :], "of 12 bits"),
    "lossless": (WHOLE.replace(b"\xff\xc0", b"\xff\xc3"), "lossless"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_strip_is_named_with_its_reason(tmp_path, case):
    content, reason = BROKEN[case]
    broken = write(tmp_path / "broken.jpg", content)
    good = write(tmp_path / "good.jpg", WHOLE)
    strips, skipped = measure_strips([Source(broken, "strip"), Source(good, "strip")])
    assert [strip.source for strip in strips] == [good]
    assert list(skipped) == [broken]
    assert reason in skipped[broken]


def test_largest_strip(tmp_path):
    (strip,), _ = measure(write(tmp_path / "a.jpg", with_size(2**13, 2**13)))
    assert strip.side == 2**13


def test_strip_that_is_gone(tmp_path):
    _, skipped = measure(tmp_path / "gone.jpg")
    assert "No such file" in skipped[tmp_path / "gone.jpg"]


def test_strip_that_has_shrunk_since(tmp_path):
    (strip,), _ = measure(write(tmp_path / "a.jpg", WHOLE))
    os.truncate(tmp_path / "a.jpg", 100)
    with pytest.raises(OSError, match="shorter than it was"):
        strip.read()


def test_file_of_gigabytes_is_no_strip(tmp_path):
    path = write(tmp_path / "a.jpg", WHOLE)
    os.truncate(path, 2**40)
    assert "bytes: over" in measure(path)[1][path]


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\xe0\0\2"], ids=["fill bytes", "segments"])
def test_endless_header_is_given_up(tmp_path, filler, monkeypatch):
    path = write(tmp_path / "a.jpg", WHOLE[:2] + filler * 100_000 + WHOLE[2:])
    reads = []
    pread = os.pread
    monkeypatch.setattr(module.os, "pread", lambda *a: reads.append(a) or pread(*a))
    assert "header is damaged" in measure(path)[1][path]
    assert len(reads) < 20_000


def test_image_size_needs_the_header_only(tmp_path):
    assert image_size(write(tmp_path / "a.jpg", image(30, 20)[:-9])) == (20, 30)
    assert image_size(write(tmp_path / "a.png", image(30, 20, kind="PNG")[:-9])) == (20, 30)
    with pytest.raises(BrokenStripError, match="No such file"):
        image_size(tmp_path / "gone.jpg")


def test_header_cut_off_anywhere(tmp_path):
    for whole, needed in ((WHOLE, FRAME_HEADER + 10), (WHOLE_PNG, 33)):
        for cut in range(needed):
            with pytest.raises(BrokenStripError):
                image_size(write(tmp_path / "a.jpg", whole[:cut]))
        assert image_size(write(tmp_path / "a.jpg", whole[:needed])) == (96, 32)


def ramp(depth: int = 8) -> np.ndarray:
    """Grey (48, 16) from the least to the largest value of `depth` bits."""
    return np.linspace(0, 2**depth - 1, 48 * 16).round().astype(np.uint16).reshape(48, 16)


def interlaced(pixels: np.ndarray) -> bytes:
    """An Adam7 PNG of uint8 (H, W, 3); the libraries at hand write none."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    lines = b"".join(
        b"\0" + line.tobytes()
        for top, left, down, across in (*passes, (1, 0, 2, 1))
        for line in pixels[top::down, left::across]
    )
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def test_decoder_makes_rgb_of_every_kind_of_png(tmp_path):
    """The header's colours are not looked at because the decoder takes them all."""
    colour = NOISE[:48, :16]
    grey = ramp().astype(np.uint8)
    alpha = grey[::-1, :, None]
    few = Image.fromarray(colour).quantize(10)
    many = Image.fromarray(colour).quantize(200)
    as_rgb = np.repeat(grey[..., None], 3, 2)
    black = np.where(grey[..., None] < 128, 0, 255).repeat(3, 2)
    kinds = [
        (picture(colour, "PNG"), colour),
        (picture(grey, "PNG", "L"), as_rgb),
        (picture(black.astype(np.uint8), "PNG", "1"), black),
        (picture(np.dstack([colour, alpha]), "PNG", "RGBA"), colour),
        (cv2.imencode(".png", colour[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), colour),
        (cv2.imencode(".png", ramp(16))[1].tobytes(), as_rgb),
        (saved(few, bits=4), np.asarray(few.convert("RGB"))),
        (saved(many, transparency=bytes(range(200))), np.asarray(many.convert("RGB"))),
        (interlaced(colour), colour),
    ]
    paths = [write(tmp_path / f"{k}.png", content) for k, (content, _) in enumerate(kinds)]
    strips, skipped = measure_strips([Source(path, "strip") for path in paths])
    assert not skipped

    @pipeline_def(batch_size=len(strips), num_threads=1, device_id=None)
    def decode():
        encoded = fn.external_source(
            lambda: [strip.read() for strip in strips], dtype=types.UINT8, ndim=1
        )
        return fn.decoders.image(encoded, adjust_orientation=False)

    pipeline = decode()
    (decoded,) = pipeline.run()
    for k, (_, right) in enumerate(kinds):
        off = np.abs(np.asarray(decoded.at(k)).astype(int) - right)
        assert off.max() <= 1, k


def test_mutated_strips_are_measured_or_named(tmp_path):
    skipped = {}
    tracemalloc.start()
    for content in (WHOLE, WHOLE_PNG, image(16, 48, "L", progressive=True)):
        for mutated in mutations(content, 200, 0):
            path = write(tmp_path / f"{len(skipped)}.jpg", mutated)
            skipped |= measure(path)[1]
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert 100 < len(skipped) < 600
    assert all("\n" not in reason for reason in skipped.values())


def test_a_strip_that_is_another_now_is_not_cut(tmp_path):
    write_strip(tmp_path / "a.jpg", 8)
    ((strip,), _) = measure_strips([Source(tmp_path / "a.jpg", "strip")])
    write_strip(tmp_path / "a.jpg", 4)
    image = np.fromfile(tmp_path / "a.jpg", np.uint8)
    with pytest.raises(BrokenStripError, match="changed since it was measured"):
        decode_strip(strip, image)
