"""JPEG strips are measured from their headers; what cannot be a strip is named with its reason."""

import io

import numpy as np
import pytest
from loader_media import jpeg, write_strip
from PIL import Image

from vgan_fast.loaders.strips import Strip, measure_strips


def encoded(size, mode="RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        encoded((16, 48)),
        encoded((16, 48), "L"),
        encoded((16, 48), progressive=True),
        encoded((16, 48), exif=b"Exif\0\0" + bytes(30_000), comment=b"\xff\xd9\xff\xda"),
        encoded((16, 48)) + b"\0" * 100,
        encoded((16, 48)).replace(b"\xff\xc0", b"\xff\xff\xff\xc0"),
    ],
    ids=["rgb", "grey", "progressive", "long header", "padded", "fill bytes"],
)
def test_strip_is_measured(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    assert measure_strips([tmp_path / "a.jpg"]) == ([Strip(tmp_path / "a.jpg", 3, 16)], {})


WHOLE = jpeg(np.random.default_rng(0).integers(0, 255, (96, 32, 3), dtype=np.uint8))
BROKEN = {
    "empty": (b"", "not a JPEG"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "not a JPEG"),
    "cut off": (WHOLE[: len(WHOLE) // 2], "cut off"),
    "cut in header": (WHOLE[:30], "header is damaged"),
    "damaged header": (WHOLE[:2] + b"\0" * 200 + WHOLE[-2:], "header is damaged"),
    "wide": (encoded((48, 16)), "48x16 pixels: no stack"),
    "no multiple": (encoded((16, 40)), "16x40 pixels: no stack"),
    "tiny": (encoded((1, 4)), "1x4 pixels: under 8"),
    "cmyk": (encoded((16, 48), "CMYK"), "4 components"),
    "lossless": (WHOLE.replace(b"\xff\xc0", b"\xff\xc3"), "lossless"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_strip_is_named_with_its_reason(tmp_path, case):
    content, reason = BROKEN[case]
    (tmp_path / "broken.jpg").write_bytes(content)
    good = write_strip(tmp_path / "good.jpg", 3)
    strips, skipped = measure_strips([tmp_path / "broken.jpg", good])
    assert strips == [Strip(good, 3, 32)]
    assert list(skipped) == [tmp_path / "broken.jpg"]
    assert reason in skipped[tmp_path / "broken.jpg"]


def test_strip_that_is_gone(tmp_path):
    _, skipped = measure_strips([tmp_path / "gone.jpg"])
    assert "No such file" in skipped[tmp_path / "gone.jpg"]
