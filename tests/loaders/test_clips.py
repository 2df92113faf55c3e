"""open_clips from end to end: right pixels, the same batches for the same seed, clear refusals."""

import logging
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from loader_media import frame, jpeg, numbers, write_strip, write_video

from vgan_fast.errors import UserError
from vgan_fast.loaders import clips
from vgan_fast.loaders.clips import open_clips

SETTINGS = dict(frames=8, size=32, batch_size=4, seed=0, device=torch.device("cpu"), workers=2)
CODECS = {
    "a.mp4": ("mpeg4", "yuv420p", 40),
    "sub/b.MKV": ("libx264", "yuv420p", 30),
    "c.avi": ("mjpeg", "yuvj420p", 20),
    "d.webm": ("libvpx-vp9", "yuv420p", 10),
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def folder(tmp_path_factory, cache) -> Path:
    """Four videos of 40, 30, 20 and 10 frames, each of another codec; already in the cache."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (codec, pix_fmt, count) in CODECS.items():
        write_video(folder / name, codec, count, pix_fmt=pix_fmt)
    open_clips(folder, cache=cache, **SETTINGS).close()
    return folder


def batches(data: Path, cache: Path, count: int, **changes) -> list[torch.Tensor]:
    with open_clips(data, cache=cache, **SETTINGS | changes) as loader:
        return [loader.next_batch() for _ in range(count)]


def test_clips_are_consecutive_frames_in_colour_and_upright(folder, cache):
    starts = set()
    with open_clips(folder, cache=cache, **SETTINGS) as loader:
        assert loader.summary == (
            f"{folder}: 4 videos, 100 frames, 11 clips of 8;"
            " 0 shorter and padded, 0 skipped, 0 other files ignored"
        )
        assert loader.skipped == {}
        for number in range(10):
            assert loader.position == number
            batch = loader.next_batch()
            assert batch.dtype == torch.uint8
            assert batch.shape == (4, 8, 32, 32, 3)
            assert batch.is_contiguous()
            for clip in batch.numpy():
                found = numbers(clip)
                start = round(found[0])
                starts.add(start)
                np.testing.assert_allclose(found, start + np.arange(8), atol=0.75)
                red = clip[:, 1:6, 1:6].mean((0, 1, 2))  # the mark is 8 pixels wide here
                assert red[0] > 180
                assert red[1:].max() < 80
    assert len(starts) > 15
    assert min(starts) < 4
    assert max(starts) > 24


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("height", "width"),
    [(60, 100), (100, 60), (40, 40), (20, 30), (90, 90)],
    ids=lambda side: str(side),
)
def test_scaling_and_cropping_match_opencv(tmp_path, height, width, device):
    """A colour gradient, lossless, against cv2.resize and a centre crop."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows * 255 // height, columns * 255 // width, 0 * rows + 60], -1)
    picture = picture.astype(np.uint8)
    source = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"FFV1"), 25, (width, height))
    for _ in range(3):
        writer.write(picture[..., ::-1])
    writer.release()
    batch, *_ = batches(
        source, tmp_path / "cache", 1, frames=3, batch_size=1, device=torch.device(device)
    )

    (stored,) = (tmp_path / "cache").glob("*.npy")
    assert min(np.load(stored).shape[1:3]) == min(64, height, width)
    scale = 32 / min(height, width)
    size = (round(width * scale), round(height * scale))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else 1)
    top, left = (size[1] - 32) // 2, (size[0] - 32) // 2
    expected = scaled[top : top + 32, left : left + 32]
    assert np.abs(batch[0, 1].cpu().numpy().astype(int) - expected).mean() < 2


def test_short_videos_repeat_their_last_frame(folder, cache):
    (batch,) = batches(folder / "d.webm", cache, 1, frames=16)
    for clip in batch.numpy():
        np.testing.assert_allclose(numbers(clip), np.minimum(np.arange(16), 9), atol=0.75)
    with open_clips(folder, cache=cache, **SETTINGS | dict(frames=25)) as loader:
        assert "2 shorter and padded, 0 skipped" in loader.summary


def test_videos_under_min_frames_are_skipped(folder, cache):
    with open_clips(folder, cache=cache, min_frames=25, **SETTINGS) as loader:
        assert {path.name for path in loader.skipped} == {"c.avi", "d.webm"}
        assert loader.skipped[folder / "c.avi"] == "20 frames: under --min-frames 25"
        assert "2 videos" in loader.summary
    with pytest.raises(UserError, match=r"lower --min-frames \(the longest has 40 frames\)"):
        open_clips(folder, cache=cache, min_frames=41, **SETTINGS)


def test_three_videos_fill_a_batch_of_32(folder, cache):
    (batch,) = batches(folder / "d.webm", cache, 1, batch_size=32)
    assert batch.shape[0] == 32
    assert len({round(numbers(clip)[0]) for clip in batch.numpy()}) == 3  # starts 0, 1, 2


def test_same_seed_same_batches_whatever_the_workers(folder, cache):
    first = batches(folder, cache, 6)
    again = batches(folder, cache, 6, workers=1)
    other = batches(folder, cache, 6, seed=1)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))


def test_batches_are_kept_when_more_are_drawn(folder, cache):
    with open_clips(folder, cache=cache, **SETTINGS) as loader:
        first = loader.next_batch()
        before = first.clone()
        for _ in range(8):
            loader.next_batch()
    assert torch.equal(first, before)


@pytest.mark.parametrize("position", [1, 2, 3, 7])  # an epoch has 2 batches
def test_resuming_equals_not_stopping(folder, cache, position):
    whole = batches(folder, cache, 9)
    with open_clips(folder, cache=cache, position=position, **SETTINGS) as loader:
        rest = [loader.next_batch() for _ in range(9 - position)]
        assert loader.position == 9
    assert all(map(torch.equal, whole[position:], rest))


def test_broken_videos_are_named_and_the_rest_is_used(folder, cache, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.avi").write_text("not a video")
    (tmp_path / "good.mp4").symlink_to(folder / "a.mp4")
    with open_clips(tmp_path, cache=cache, **SETTINGS) as loader:
        assert [path.name for path in loader.skipped] == ["empty.mp4", "text.avi"]
        assert "1 videos, 40 frames" in loader.summary
        assert "2 skipped" in loader.summary
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(UserError, match=r"none of its 2 files can be used: .*empty\.mp4: OpenCV"):
        open_clips(tmp_path, cache=cache, **SETTINGS)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("frames", 0, "--frames is 0; it must be 1 or more"),
        ("size", -3, "--size is -3"),
        ("batch_size", 0, "--batch-size is 0"),
        ("seed", -1, "--seed is -1; it must be 0 or more"),
        ("min_frames", 0, "--min-frames is 0"),
        ("position", -1, "position is -1"),
        ("workers", 0, "workers is 0"),
        ("device", torch.device("meta"), "--device is meta"),
    ],
)
def test_settings_out_of_range(tmp_path, setting, value, message):
    with pytest.raises(UserError, match=message):
        open_clips(tmp_path, cache=tmp_path, **SETTINGS | {setting: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(tmp_path):
    with pytest.raises(UserError, match="no GPU"):
        open_clips(tmp_path, cache=tmp_path, **SETTINGS | dict(device=torch.device("cuda")))


def test_missing_dali_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "vgan_fast.loaders.graph", raising=False)
    with pytest.raises(UserError, match="pip install nvidia-dali-cuda130"):
        open_clips(tmp_path, cache=tmp_path, **SETTINGS)


# Strips


def test_strips_give_their_first_frames_and_repeat_the_last(tmp_path):
    for count in (3, 8, 12):
        write_strip(tmp_path / f"{count}.jpg", count)
    with open_clips(tmp_path, cache=tmp_path / "cache", **SETTINGS | dict(batch_size=3)) as loader:
        assert "3 strips, 23 frames, 3 clips of 8; 1 shorter and padded" in loader.summary
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
    assert not (tmp_path / "cache").exists()


def test_strips_are_scaled(tmp_path):
    write_strip(tmp_path / "a.jpg", 8, side=128)
    (batch,) = batches(tmp_path, tmp_path / "cache", 1)
    expected = cv2.resize(frame(5, 128, 128), (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(batch[0, 5].numpy().astype(int) - expected).mean() < 2


def test_scaling_a_strip_averages(tmp_path):
    """Every fourth column is white: without a filter, scaling by 4 would see none of it."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::4] = 255
    (tmp_path / "a.jpg").write_bytes(jpeg(stripes))
    (batch,) = batches(tmp_path, tmp_path / "cache", 1)
    assert 50 < batch.float().mean() < 80


def test_a_rotation_tag_does_not_turn_a_strip(tmp_path):
    plain = write_strip(tmp_path / "a.jpg", 8).read_bytes()
    tag = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag
    (tmp_path / "a.jpg").write_bytes(plain[:2] + segment + plain[2:])
    (batch,) = batches(tmp_path, tmp_path / "cache", 1)
    np.testing.assert_allclose(numbers(batch[0].numpy()), np.arange(8), atol=0.75)


def undecodable(path: Path) -> None:
    """A strip whose header is right and whose pixels are missing."""
    whole = jpeg(np.concatenate([frame(number, 32, 32) for number in range(8)]))
    path.write_bytes(whole[: whole.index(b"\xff\xda")] + b"\xff\xd9")


def test_a_strip_that_fails_late_is_named_and_never_a_zero_clip(tmp_path, caplog):
    for number in range(6):
        write_strip(tmp_path / f"{number}.jpg", 8 + number)
    before = batches(tmp_path, tmp_path / "cache", 6, batch_size=3)
    undecodable(tmp_path / "1.jpg")
    undecodable(tmp_path / "2.jpg")
    with open_clips(tmp_path, cache=tmp_path / "cache", **SETTINGS | dict(batch_size=3)) as loader:
        assert loader.skipped == {}
        with caplog.at_level(logging.WARNING):
            after = [loader.next_batch() for _ in range(6)]
        assert {path.name for path in loader.skipped} == {"1.jpg", "2.jpg"}
        assert loader.position == 6
    assert caplog.text.count("1.jpg: skipped: its pixels cannot be decoded") == 1
    assert caplog.text.count("2.jpg: skipped") == 1
    # All strips begin alike: the substitute shows the same pixels, so nothing may have changed.
    assert all(map(torch.equal, before, after))
    resumed = batches(tmp_path, tmp_path / "cache", 3, batch_size=3, position=3)
    assert all(map(torch.equal, after[3:], resumed))


def test_a_strip_whose_pixels_stop_early_is_named_and_never_grey(tmp_path):
    """The decoder gives no error for it: it fills up with grey, end marker or not."""
    noise = np.random.default_rng(0).integers(0, 256, (8 * 32, 32, 3), np.uint8)
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(noise))
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 3] + b"\xff\xd9")
    with open_clips(tmp_path, cache=tmp_path / "c", **SETTINGS | dict(batch_size=3)) as loader:
        assert loader.skipped == {}
        batch = loader.next_batch()
        assert [path.name for path in loader.skipped] == ["1.jpg"]
    assert batch.float().std(dim=(2, 3, 4)).min() > 20


def test_the_fingerprint_tells_when_the_files_have_changed(tmp_path):
    def fingerprint():
        with open_clips(tmp_path, cache=tmp_path / "c", **SETTINGS) as loader:
            return loader.fingerprint

    write_strip(tmp_path / "a.jpg", 8)
    first = fingerprint()
    assert fingerprint() == first
    write_strip(tmp_path / "b.jpg", 8)
    second = fingerprint()
    write_strip(tmp_path / "b.jpg", 9)
    assert len({first, second, fingerprint()}) == 3


def test_a_substitute_is_the_next_good_strip_and_others_stay(tmp_path):
    for number in range(6):
        picture = np.full((8 * 32, 32, 3), 30 * number + 40, np.uint8)
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(picture))
    levels = [batch[:, 0, 0, 0, 0] for batch in batches(tmp_path, tmp_path / "c", 6, batch_size=3)]
    undecodable(tmp_path / "1.jpg")
    with open_clips(tmp_path, cache=tmp_path / "c", **SETTINGS | dict(batch_size=3)) as loader:
        (tmp_path / "4.jpg").unlink()  # gone after opening
        after = [loader.next_batch()[:, 0, 0, 0, 0] for _ in range(6)]
        assert {path.name for path in loader.skipped} == {"1.jpg", "4.jpg"}
    for old, new in zip(torch.cat(levels).tolist(), torch.cat(after).tolist(), strict=True):
        number = round((old - 40) / 30)
        assert abs(new - (40 + 30 * {1: 2, 4: 5}.get(number, number))) < 3


def test_a_broken_stand_in_costs_no_third_strip(tmp_path):
    for number in range(6):
        write_strip(tmp_path / f"{number}.jpg", 8)
    undecodable(tmp_path / "1.jpg")
    with open_clips(tmp_path, cache=tmp_path / "cache", **SETTINGS | dict(batch_size=6)) as loader:
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
        open_clips(tmp_path, cache=tmp_path / "cache", **SETTINGS) as loader,
        pytest.raises(UserError, match=r"every strip has turned out to be broken.*a\.jpg"),
    ):
        loader.next_batch()


def test_all_strips_broken_at_opening(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match=r"none of its 1 files.*a\.jpg: not a JPEG"):
        open_clips(tmp_path, cache=tmp_path / "cache", **SETTINGS)


def test_an_error_that_no_strip_causes_is_not_swallowed(folder, cache, monkeypatch):
    with open_clips(folder, cache=cache, **SETTINGS) as loader:
        monkeypatch.setattr(loader, "_pipeline", FailingPipeline())
        with pytest.raises(RuntimeError, match="out of memory"):
            loader.next_batch()


class FailingPipeline:
    def run(self, stream):
        raise RuntimeError("out of memory")


# Real clips

REAL = {  # frames that decode
    "static/bgslib_video02.avi": 748,
    "static/car-detection.mp4": 377,
    "static/flower.webm": 150,
    "handheld/mei_100_0306.AVI": 41,
    "handheld/mei_MVI_4823.AVI": 78,
    "handheld/libopenshot_run.mp4": 150,
    "texture/fire_pot0.avi": 260,
    "texture/Fontaine_chatelet.mp4": 104,
    "odd/dvrscan_traffic_camera_vfr.mp4": 576,
    "odd/decord_video_90.mov": 3,
    "odd/torchcodec_h265_video.mp4": 10,
}
REAL_BROKEN = {"odd/moviepy_test_video.mp4", "odd/streamio_broken.mp4", "odd/streamio_empty.flv"}


@pytest.mark.skipif("VGAN_FAST_TEST_VIDEOS" not in os.environ, reason="no folder of real clips")
def test_real_clips(tmp_path, monkeypatch):
    data = Path(os.environ["VGAN_FAST_TEST_VIDEOS"])
    decoded = {}

    def remember(*arguments, **settings):
        videos, skipped = decode_videos(*arguments, **settings)
        decoded.update({str(video.source.relative_to(data)): video.shape for video in videos})
        return videos, skipped

    decode_videos = clips.decode_videos
    monkeypatch.setattr(clips, "decode_videos", remember)
    with open_clips(data, cache=tmp_path, **SETTINGS) as loader:
        assert {str(path.relative_to(data)) for path in loader.skipped} == REAL_BROKEN
        assert loader.next_batch().float().std() > 10
    assert {name: decoded[name][0] for name in REAL} == REAL
    assert decoded["odd/decord_video_90.mov"][1:] == (114, 64, 3)  # stored lying, shown upright
