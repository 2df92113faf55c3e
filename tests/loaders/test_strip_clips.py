"""Strips from end to end: cut right whichever way they lie, and broken ones never shown."""

import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from loader_media import frame, jpeg, numbers, undecodable, write_strip
from PIL import Image

from vgan_fast.errors import UserError
from vgan_fast.loaders.clips import open_clips

SETTINGS = dict(
    frames=8,
    size=32,
    batch_size=4,
    seed=0,
    device=torch.device("cpu"),
    workers=2,
    start="fixed",
    cache="none",
)


def batches(data: Path, decoded: Path, count: int, **changes) -> list[torch.Tensor]:
    with open_clips(data, decoded=decoded, **SETTINGS | changes) as loader:
        return [loader.next_batch() for _ in range(count)]


def test_strips_give_their_first_frames_and_repeat_the_last(tmp_path):
    for count in (3, 8, 12):
        write_strip(tmp_path / f"{count}.jpg", count)
    with open_clips(
        tmp_path, decoded=tmp_path / "decoded", **SETTINGS | dict(batch_size=3)
    ) as loader:
        assert "3 strips: 3 usable, 23 frames, 3 clips of 8, 1 shorter and padded" in loader.summary
        batch = loader.next_batch()
    assert batch.shape == (3, 8, 32, 32, 3)
    last = set()
    for clip in batch.numpy():
        found = numbers(clip)
        last.add(round(found[-1]))
        np.testing.assert_allclose(found, np.minimum(np.arange(8), round(found[-1])), atol=0.75)
        red = clip[:, 2:10, 2:10].mean((0, 1, 2))
        assert red[0] > 180
        assert red[1:].max() < 80
    assert last == {2, 7}
    assert not (tmp_path / "decoded").exists()


def test_frames_below_each_other_and_side_by_side_are_the_same_clip(tmp_path):
    stack = np.stack([frame(number, 32, 32) for number in range(10)])
    for folder, strip in (("v", stack.reshape(-1, 32, 3)), ("h", np.hstack(list(stack)))):
        for name, pixels in (("a.png", strip), ("b.png", strip)):
            path = tmp_path / folder / name
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), pixels[..., ::-1])
    below, beside = (
        batches(tmp_path / folder, tmp_path / "decoded", 3, start="random") for folder in "vh"
    )
    assert all(map(torch.equal, below, beside))
    assert {round(numbers(clip)[0]) for batch in below for clip in batch.numpy()} == {0, 1, 2}
    for clip in below[0].numpy():
        np.testing.assert_allclose(np.diff(numbers(clip)), 1, atol=0.3)


def test_a_long_strip_gives_more_clips(tmp_path):
    """As MoCoGAN's strips, which hold whole videos."""
    write_strip(tmp_path / "a.jpg", 50)
    with open_clips(tmp_path, decoded=tmp_path, **SETTINGS | dict(batch_size=6)) as loader:
        assert loader.batches_in_epoch == 1
        firsts = sorted(round(numbers(clip)[0]) for clip in loader.next_batch().numpy())
    assert firsts == [0, 8, 16, 24, 32, 40]


def test_strips_are_scaled(tmp_path):
    write_strip(tmp_path / "a.jpg", 8, side=128)
    (batch,) = batches(tmp_path, tmp_path / "decoded", 1)
    expected = cv2.resize(frame(5, 128, 128), (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(batch[0, 5].numpy().astype(int) - expected).mean() < 2


def test_scaling_a_strip_averages(tmp_path):
    """Every fourth column is white: without a filter, scaling by 4 would see none of it."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::4] = 255
    (tmp_path / "a.jpg").write_bytes(jpeg(stripes))
    (batch,) = batches(tmp_path, tmp_path / "decoded", 1)
    assert 50 < batch.float().mean() < 80


def test_a_rotation_tag_does_not_turn_a_strip(tmp_path):
    plain = write_strip(tmp_path / "a.jpg", 8).read_bytes()
    tag = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag
    (tmp_path / "a.jpg").write_bytes(plain[:2] + segment + plain[2:])
    (batch,) = batches(tmp_path, tmp_path / "decoded", 1)
    np.testing.assert_allclose(numbers(batch[0].numpy()), np.arange(8), atol=0.75)


def test_a_strip_that_fails_late_is_named_and_never_a_zero_clip(tmp_path, caplog):
    for number in range(6):
        write_strip(tmp_path / f"{number}.jpg", 8 + number)
    before = batches(tmp_path, tmp_path / "decoded", 6, batch_size=3)
    undecodable(tmp_path / "1.jpg")
    undecodable(tmp_path / "2.jpg")
    with open_clips(
        tmp_path, decoded=tmp_path / "decoded", **SETTINGS | dict(batch_size=3)
    ) as loader:
        with caplog.at_level(logging.WARNING):
            after = [loader.next_batch() for _ in range(6)]
        assert {path.name for path in loader.skipped} == {"1.jpg", "2.jpg"}
        assert loader.position == 6
    assert caplog.text.count("1.jpg: skipped: its pixels cannot be decoded") == 1
    assert caplog.text.count("2.jpg: skipped") == 1
    # All strips begin alike: the substitute shows the same pixels, so nothing may have changed.
    assert all(map(torch.equal, before, after))
    resumed = batches(tmp_path, tmp_path / "decoded", 3, batch_size=3, position=3)
    assert all(map(torch.equal, after[3:], resumed))


def test_a_strip_whose_pixels_stop_early_is_named_and_never_grey(tmp_path):
    """The decoder gives no error for it: it fills up with grey, end marker or not."""
    noise = np.random.default_rng(0).integers(0, 256, (8 * 32, 32, 3), np.uint8)
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(noise))
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 3] + b"\xff\xd9")
    with open_clips(
        tmp_path, decoded=tmp_path / "decoded", **SETTINGS | dict(batch_size=3)
    ) as loader:
        batch = loader.next_batch()
        assert [path.name for path in loader.skipped] == ["1.jpg"]
    assert batch.float().std(dim=(2, 3, 4)).min() > 20


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def encode(pixels: np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def cut(whole: bytes, share: float, end: bytes) -> bytes:
    return whole[: int(share * len(whole))] + end


DAMAGED = {
    "sideways": cut(encode(noise(32, 8 * 32), "JPEG"), 0.9, b"\xff\xd9"),
    "all colours": cut(encode(noise(8 * 32, 32), "JPEG", subsampling=0), 0.9, b"\xff\xd9"),
    "progressive": cut(encode(noise(8 * 32, 32), "JPEG", progressive=True), 0.8, b"\xff\xd9"),
    "zeros": cut(encode(noise(8 * 32, 32), "JPEG"), 0.5, bytes(3000) + b"\xff\xd9"),
    "png": cut(encode(noise(8 * 32, 32), "PNG"), 0.7, b"\0\0\0\0IEND\xaeB`\x82"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_noticed_in_every_kind_of_image(tmp_path, damage):
    suffix = "png" if damage == "png" else "jpg"
    (tmp_path / f"0.{suffix}").write_bytes(DAMAGED[damage])
    write_strip(tmp_path / "1.jpg", 8)
    with open_clips(tmp_path, decoded=tmp_path, **SETTINGS | dict(batch_size=2)) as loader:
        assert all(abs(numbers(clip)[0]) < 0.75 for clip in loader.next_batch().numpy())
        ((path, reason),) = loader.skipped.items()
    assert path.name == f"0.{suffix}"
    assert reason.startswith("its pixels cannot be decoded (")


def test_a_good_strip_may_be_grey(tmp_path):
    """Mid-grey is what decoders put where data are missing."""
    (tmp_path / "a.png").write_bytes(encode(np.full((8 * 32, 32, 3), 128, np.uint8), "PNG"))
    (tmp_path / "b.jpg").write_bytes(encode(np.full((8 * 32, 32, 3), 128, np.uint8), "JPEG"))
    with open_clips(tmp_path, decoded=tmp_path, **SETTINGS | dict(batch_size=2)) as loader:
        assert (loader.next_batch() == 128).all()
        assert loader.skipped == {}


def test_large_batches_with_broken_strips(tmp_path):
    """Many at once, in several threads."""
    for number in range(150):
        write_strip(tmp_path / f"{number}.jpg", 8)
    for number in range(0, 150, 25):
        undecodable(tmp_path / f"{number}.jpg")
    with open_clips(tmp_path, decoded=tmp_path, **SETTINGS | dict(batch_size=64)) as loader:
        for _ in range(4):
            loader.next_batch()
        assert len(loader.skipped) == 6


def test_a_substitute_is_the_next_good_strip_and_others_stay(tmp_path):
    for number in range(6):
        picture = np.full((8 * 32, 32, 3), 30 * number + 40, np.uint8)
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(picture))
    levels = [
        batch[:, 0, 0, 0, 0] for batch in batches(tmp_path, tmp_path / "decoded", 6, batch_size=3)
    ]
    for number in (1, 4):
        undecodable(tmp_path / f"{number}.jpg")
    with open_clips(
        tmp_path, decoded=tmp_path / "decoded", **SETTINGS | dict(batch_size=3)
    ) as loader:
        after = [loader.next_batch()[:, 0, 0, 0, 0] for _ in range(6)]
        assert {path.name for path in loader.skipped} == {"1.jpg", "4.jpg"}
    for old, new in zip(torch.cat(levels).tolist(), torch.cat(after).tolist(), strict=True):
        number = round((old - 40) / 30)
        assert abs(new - (40 + 30 * {1: 2, 4: 5}.get(number, number))) < 3


def test_a_shorter_stand_in_shows_its_own_clips(tmp_path):
    """Not its last frame where the longer strip would have had its third clip."""
    undecodable(tmp_path / "0.jpg", frames=40)
    write_strip(tmp_path / "1.jpg", 16)
    for cache in ("none", "host"):
        settings = dict(batch_size=7, cache=cache)  # five clips of the first, two of the second
        (batch,) = batches(tmp_path, tmp_path, 1, **settings)
        firsts = sorted(round(numbers(clip)[0]) for clip in batch.numpy())
        assert firsts == [0, 0, 0, 0, 8, 8, 8]


def test_a_cache_finds_broken_strips_when_it_is_filled(tmp_path):
    """Twenty strips are three batches of filling; the clips are those of no cache."""
    for number in range(20):
        picture = np.full((8 * 32, 32, 3), 10 * number + 40, np.uint8)
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(picture))
    for number in (0, 7, 8, 19):
        undecodable(tmp_path / f"{number}.jpg")
    settings = SETTINGS | dict(decoded=tmp_path, cache="host")
    with open_clips(tmp_path, **settings) as loader:
        assert {path.name for path in loader.skipped} == {"0.jpg", "7.jpg", "8.jpg", "19.jpg"}
        kept = [loader.next_batch() for _ in range(10)]
    streamed = batches(tmp_path, tmp_path, 10)
    assert all(map(torch.equal, kept, streamed))
    assert set(torch.cat(kept)[:, 0, 0, 0, 0].tolist()) == {
        10 * number + 40 for number in range(20) if number not in (0, 7, 8, 19)
    }


def test_a_broken_stand_in_costs_no_third_strip(tmp_path):
    for number in range(6):
        write_strip(tmp_path / f"{number}.jpg", 8)
    undecodable(tmp_path / "1.jpg")
    with open_clips(
        tmp_path, decoded=tmp_path / "decoded", **SETTINGS | dict(batch_size=6)
    ) as loader:
        loader.next_batch()
        assert {path.name for path in loader.skipped} == {"1.jpg"}
        undecodable(tmp_path / "2.jpg")  # which stands in for 1.jpg
        for _ in range(6):
            loader.next_batch()
        assert {path.name for path in loader.skipped} == {"1.jpg", "2.jpg"}


def test_all_strips_fail_late(tmp_path):
    undecodable(tmp_path / "a.jpg")
    undecodable(tmp_path / "b.jpg")
    with (
        open_clips(tmp_path, decoded=tmp_path / "decoded", **SETTINGS) as loader,
        pytest.raises(UserError, match=r"every file has turned out to be broken.*a\.jpg"),
    ):
        loader.next_batch()


def test_all_strips_broken_at_opening(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match=r"none of its 1 files.*a\.jpg: neither a JPEG nor a PNG"):
        open_clips(tmp_path, decoded=tmp_path / "decoded", **SETTINGS)
