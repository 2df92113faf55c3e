"""open_clips from end to end: right pixels, the same batches for the same seed, clear refusals."""

import gc
import io
import sys
import tarfile
import threading
import time
import weakref
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from loader_media import frame, jpeg, numbers, undecodable, write_strip, write_video

from vgan_fast.errors import UserError
from vgan_fast.loaders.augment import Augmentation
from vgan_fast.loaders.clips import open_clips

SETTINGS = dict(
    frames=8,
    size=32,
    batch_size=4,
    seed=0,
    device=torch.device("cpu"),
    workers=2,
    cache="none",
)
CODECS = {
    "a.mp4": ("mpeg4", "yuv420p", 40),
    "sub/b.MKV": ("libx264", "yuv420p", 30),
    "c.avi": ("mjpeg", "yuvj420p", 20),
    "d.webm": ("libvpx-vp9", "yuv420p", 10),
}


@pytest.fixture(scope="session")
def decoded(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture(scope="session")
def folder(tmp_path_factory, decoded) -> Path:
    """Four videos of 40, 30, 20 and 10 frames, each of another codec; already decoded."""
    folder = tmp_path_factory.mktemp("videos")
    for name, (codec, pix_fmt, count) in CODECS.items():
        write_video(folder / name, codec, count, pix_fmt=pix_fmt)
    open_clips(folder, decoded=decoded, **SETTINGS).close()
    return folder


def batches(data: Path, decoded: Path, count: int, **changes) -> list[torch.Tensor]:
    with open_clips(data, decoded=decoded, **SETTINGS | changes) as loader:
        return [loader.next_batch() for _ in range(count)]


def test_clips_are_consecutive_frames_in_colour_and_upright(folder, decoded):
    starts = set()
    with open_clips(folder, decoded=decoded, **SETTINGS) as loader:
        assert loader.summary == (
            f"{folder}: 4 videos: 4 usable, 100 frames, 11 clips of 8, 0 shorter and padded,"
            " 0 skipped"
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
        source, tmp_path / "decoded", 1, frames=3, batch_size=1, device=torch.device(device)
    )

    (stored,) = (tmp_path / "decoded").glob("*.npy")
    assert min(np.load(stored).shape[1:3]) == min(64, height, width)
    scale = 32 / min(height, width)
    size = (round(width * scale), round(height * scale))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else 1)
    top, left = (size[1] - 32) // 2, (size[0] - 32) // 2
    expected = scaled[top : top + 32, left : left + 32]
    assert np.abs(batch[0, 1].cpu().numpy().astype(int) - expected).mean() < 2


def test_short_videos_repeat_their_last_frame(folder, decoded):
    (batch,) = batches(folder / "d.webm", decoded, 1, frames=16)
    for clip in batch.numpy():
        np.testing.assert_allclose(numbers(clip), np.minimum(np.arange(16), 9), atol=0.75)
    with open_clips(folder, decoded=decoded, **SETTINGS | dict(frames=25)) as loader:
        assert "2 shorter and padded, 0 skipped" in loader.summary


def test_videos_under_min_frames_are_skipped(folder, decoded):
    with open_clips(folder, decoded=decoded, min_frames=25, **SETTINGS) as loader:
        assert {path.name for path in loader.skipped} == {"c.avi", "d.webm"}
        assert loader.skipped[folder / "c.avi"] == "20 frames: under --min-frames 25"
        assert "4 videos: 2 usable" in loader.summary
    with pytest.raises(UserError, match=r"lower --min-frames \(the longest has 40 frames\)"):
        open_clips(folder, decoded=decoded, min_frames=41, **SETTINGS)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_interlaced_frames_are_frames(tmp_path, codec):
    """OpenCV gives memory that nobody wrote for them."""
    source = tmp_path / "data/a.mkv"
    source.parent.mkdir()
    with av.open(str(source), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        stream.options = {"flags": "+ilme+ildct", "x264-params": "interlaced=1:tff=1"}
        for number in range(8):
            picture = av.VideoFrame.from_ndarray(frame(number, 64, 64), format="rgb24")
            picture = picture.reformat(format="yuv420p")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    with av.open(str(source)) as container:
        assert next(container.decode(video=0)).interlaced_frame  # or this test has no subject
    for clip in batches(source.parent, tmp_path / "decoded", 1)[0].numpy():
        np.testing.assert_allclose(numbers(clip), np.arange(8), atol=0.75)


def test_three_videos_fill_a_batch_of_32(folder, decoded):
    (batch,) = batches(folder / "d.webm", decoded, 1, batch_size=32)
    assert batch.shape[0] == 32
    assert len({round(numbers(clip)[0]) for clip in batch.numpy()}) == 3  # starts 0, 1, 2


@pytest.fixture(scope="session")
def kinds(tmp_path_factory, folder) -> dict[str, Path]:
    """The same kind of frames as every kind of source; 100 to 120 frames each, in 3 or 4 files."""
    root = tmp_path_factory.mktemp("kinds")
    for number, count in enumerate((40, 30, 30)):
        write_strip(root / "strips" / f"{number}.jpg", count)
        for k in range(count):
            path = root / "images" / f"clip{number}" / f"frame{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), frame(k, 40, 50)[..., ::-1])
    (root / "shards").mkdir()
    with tarfile.open(root / "shards/0.tar", "w") as tar:
        for path in sorted((root / "strips").iterdir()):
            tar.add(path, path.name)
    (root / "arrays").mkdir()
    clips = np.stack([np.stack([frame(k) for k in range(20)])] * 6)
    np.save(root / "arrays/0.npy", clips[:4])
    np.save(root / "arrays/1.npy", clips[4:])
    return {"videos": folder, **{path.name: path for path in root.iterdir()}}


KINDS = ("videos", "images", "arrays", "strips", "shards")
VARIED = Augmentation(crop=0.6, flip=True, brightness=0.2, contrast=0.2, saturation=0.2, hue=20)


@pytest.mark.parametrize("varied", [None, VARIED], ids=["plain", "augmented"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_batches_whatever_the_workers_and_the_cache(kinds, decoded, kind, varied):
    settings = dict(data=kinds[kind], decoded=decoded, count=6, augmentation=varied)
    first = batches(**settings)
    for workers in (1, 2, 4):
        for cache in ("none", "host"):
            again = batches(**settings, workers=workers, cache=cache)
            assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, batches(**settings, seed=1)))
    assert not any(map(torch.equal, first[:-1], first[1:]))


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("kind", KINDS)
def test_resuming_at_any_batch_equals_not_stopping(kinds, decoded, kind, cache):
    settings = dict(decoded=decoded, cache=cache, augmentation=VARIED)
    whole = batches(kinds[kind], count=8, **settings)
    for position in range(1, 8):  # an epoch has 2 or 3 batches
        with open_clips(kinds[kind], position=position, **SETTINGS | settings) as loader:
            assert loader.position == position
            rest = [loader.next_batch() for _ in range(8 - position)]
            assert loader.position == 8
        assert all(map(torch.equal, whole[position:], rest))


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_every_kind_are_frames_in_a_row(kinds, decoded, kind):
    with open_clips(kinds[kind], decoded=decoded, **SETTINGS) as loader:
        clips = torch.cat([loader.next_batch() for _ in range(6)]).numpy()
    starts = {round(numbers(clip)[0]) for clip in clips}
    for clip in clips:
        found = numbers(clip)
        np.testing.assert_allclose(found, round(found[0]) + np.arange(8), atol=0.75)
        red = clip[:, 2:5, 2:5].mean((0, 1, 2))
        assert red[0] > 170
        assert red[1:].max() < 90
    assert len(starts) > 8


def test_stride_takes_every_third_frame(kinds, decoded):
    for kind in KINDS[1:]:
        for clip in batches(kinds[kind], decoded, 1, stride=3, frames=5)[0].numpy():
            found = numbers(clip)
            np.testing.assert_allclose(found, round(found[0]) + 3 * np.arange(5), atol=0.75)


@pytest.mark.parametrize("cache", ["none", "host"])
def test_a_fixed_start_cuts_files_into_clips_one_after_the_other(kinds, decoded, cache):
    with open_clips(
        kinds["arrays"],
        decoded=decoded,
        start="fixed",
        **SETTINGS | dict(cache=cache, batch_size=6),
    ) as loader:
        assert loader.batches_in_epoch == 2  # six files of 20 frames give two clips of 8 each
        clips = torch.cat([loader.next_batch(), loader.next_batch()]).numpy()
    firsts = sorted(round(numbers(clip)[0]) for clip in clips)
    assert firsts == [0] * 6 + [8] * 6


def test_a_fixed_start_and_a_stride_cut_without_overlap(kinds, decoded):
    """20 frames at stride 2 are two clips of 5."""
    settings = SETTINGS | dict(frames=5, stride=2, start="fixed", batch_size=12)
    with open_clips(kinds["arrays"], decoded=decoded, **settings) as loader:
        assert loader.batches_in_epoch == 1
        clips = loader.next_batch().numpy()
    firsts = sorted(round(numbers(clip)[0]) for clip in clips)
    assert firsts == [0] * 6 + [10] * 6
    assert all(abs(numbers(clip)[-1] - numbers(clip)[0] - 8) < 0.5 for clip in clips)


@pytest.mark.parametrize("cache", ["none", "host"])
def test_two_ranks_partition_an_epoch(tmp_path, cache):
    """Twelve clips, each of a grey level of its own."""
    levels = np.arange(12, dtype=np.uint8) * 20
    np.save(
        tmp_path / "a.npy", np.broadcast_to(levels[:, None, None, None, None], (12, 8, 32, 32, 3))
    )
    seen = []
    for rank in range(2):
        settings = SETTINGS | dict(cache=cache, batch_size=2)
        with open_clips(tmp_path, decoded=tmp_path, rank=rank, ranks=2, **settings) as loader:
            assert loader.batches_in_epoch == 3
            batch = torch.cat([loader.next_batch() for _ in range(3)])
            seen += batch[:, 0, 0, 0, 0].tolist()
    assert sorted(seen) == levels.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", ["none", "host"])
def test_batches_of_two_ranks_are_halves_of_one(kinds, decoded, kind, cache):
    """Random starts and augmentation included, and from the middle of an epoch."""
    given = dict(cache=cache, position=1, augmentation=Augmentation(flip=True))
    whole = torch.stack(batches(kinds[kind], decoded, 2, **given))
    halves = [
        torch.stack(batches(kinds[kind], decoded, 2, batch_size=2, rank=rank, ranks=2, **given))
        for rank in range(2)
    ]
    assert torch.equal(torch.cat(halves, 1), whole)


def test_labels_follow_the_clips(tmp_path):
    """Each class has a grey level of its own, and class 10 comes after class 9."""
    for name, level in (("9", 50), ("10", 90), ("walk", 130)):
        for number in range(3):
            path = tmp_path / name / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(jpeg(np.full((8 * 32, 32, 3), level, np.uint8)))
    undecodable(tmp_path / "9" / "2.jpg")  # a strip of the next class stands in
    for cache, varied in (("none", None), ("host", None), ("host", Augmentation(flip=True))):
        settings = SETTINGS | dict(cache=cache, batch_size=3, augmentation=varied)
        with open_clips(tmp_path, decoded=tmp_path, **settings) as loader:
            assert loader.classes == ["9", "10", "walk"]
            assert "3 classes" in loader.summary
            for _ in range(6):
                clips, labels = loader.next_batch_with_labels()
                assert labels.dtype == torch.int64
                levels = (clips[:, 0, 0, 0, 0].float() - 50) / 40
                assert levels.round().long().tolist() == labels.tolist()
            assert len(loader.skipped) == 1


def test_labels_of_shards_come_from_their_members(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for label, level in ((10, 90), (9, 50), (11, 130)):
            strip = jpeg(np.full((8 * 32, 32, 3), level, np.uint8))
            for name, content in ((f"{label}.jpg", strip), (f"{label}.cls", b"%d" % label)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with open_clips(tmp_path, decoded=tmp_path, **SETTINGS | dict(batch_size=3)) as loader:
        assert loader.classes == ["9", "10", "11"]
        clips, labels = loader.next_batch_with_labels()
    assert ((clips[:, 0, 0, 0, 0].float() - 50) / 40).round().long().tolist() == labels.tolist()


def test_no_classes_where_a_file_has_none(tmp_path):
    for name in ("run/a.jpg", "walk/b.jpg", "c.jpg"):
        write_strip(tmp_path / name, 8)
    with open_clips(tmp_path, decoded=tmp_path, **SETTINGS) as loader:
        assert loader.classes == []


def test_long_files_are_the_same_clips_from_memory(tmp_path):
    """More frames than are read at once, and as many of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 32, 32, 3), np.uint8)
    for name, frames in (("a", noise), ("b", noise[:70, ::-1])):
        np.save(tmp_path / f"{name}.npy", frames)
    streamed, kept = (batches(tmp_path, tmp_path, 12, cache=cache) for cache in ("none", "host"))
    assert all(map(torch.equal, streamed, kept))


def test_data_without_classes_say_so(kinds, decoded):
    with open_clips(kinds["strips"], decoded=decoded, **SETTINGS) as loader:
        assert loader.classes == []
        with pytest.raises(UserError, match="no classes: give a folder with one folder for each"):
            loader.next_batch_with_labels()


@pytest.mark.parametrize("kind", ["images", "arrays", "strips", "shards"])
def test_a_rate_needs_time_stamps(kinds, decoded, kind):
    with pytest.raises(UserError, match=r"--fps 10: .* has no time stamps; .*--stride"):
        open_clips(kinds[kind], decoded=decoded, fps=10.0, **SETTINGS)


def test_a_rate_resamples_videos(folder, decoded):
    """40 frames at 25 a second, at 12.5 a second."""
    (batch,) = batches(folder / "a.mp4", decoded, 1, fps=12.5)
    for clip in batch.numpy():
        found = numbers(clip)
        np.testing.assert_allclose(found, found[0] + 2 * np.arange(8), atol=0.9)


def test_an_array_cut_short_while_in_use_is_skipped(tmp_path):
    for name, level in (("a", 50), ("b", 150)):
        np.save(tmp_path / f"{name}.npy", np.full((4, 8, 32, 32, 3), level, np.uint8))
    with open_clips(tmp_path, decoded=tmp_path, **SETTINGS) as loader:
        (tmp_path / "a.npy").write_bytes(b"short")
        levels = {int(level) for _ in range(8) for level in loader.next_batch()[:, 0, 0, 0, 0]}
        assert levels <= {50, 150}
        assert {path.name for path in loader.skipped} == {"a.npy"}
    assert batches(tmp_path / "b.npy", tmp_path, 1)[0].float().mean() == 150


def test_a_large_shard_that_is_lost_is_skipped_at_once(tmp_path, caplog):
    """Not clip by clip: each search for a stand-in would pass over all those before it."""
    np.save(tmp_path / "a.npy", np.full((50_000, 1, 8, 8, 3), 50, np.uint8))
    np.save(tmp_path / "b.npy", np.full((2, 1, 8, 8, 3), 150, np.uint8))
    settings = SETTINGS | dict(frames=1, size=8, batch_size=64)
    with open_clips(tmp_path, decoded=tmp_path, **settings) as loader:
        (tmp_path / "a.npy").write_bytes(b"short")
        before = time.monotonic()
        later = [loader.next_batch() for _ in range(8)][-1]
        assert time.monotonic() - before < 10
        assert int(later.min()) == 150
        assert list(loader.skipped) == [tmp_path / "a.npy"]
    assert caplog.text.count("skipped") == 1


@pytest.mark.parametrize("count", [6, 8, 10])
def test_a_stride_pads_short_files_alike_with_and_without_a_cache(tmp_path, count):
    """A file of T frames too, of which a clip at stride 2 spans all."""
    np.save(tmp_path / "a.npy", np.stack([np.stack([frame(k) for k in range(count)])] * 4))
    for cache in ("none", "host"):
        (batch,) = batches(tmp_path, tmp_path, 1, stride=2, cache=cache)
        expected = np.minimum(2 * np.arange(8), count - 1)
        for clip in batch.numpy():
            np.testing.assert_allclose(numbers(clip), expected, atol=0.75)


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("kind", ["videos", "arrays", "strips"])
def test_closing_ends_the_threads_and_frees_the_set(kinds, decoded, kind, cache):
    def threads() -> int:
        return sum(thread.is_alive() for thread in threading.enumerate())

    before = threads()
    for _ in range(5):
        loader = open_clips(kinds[kind], decoded=decoded, **SETTINGS | dict(cache=cache))
        loader.next_batch()
        batches_made = weakref.ref(loader._batches)
        loader.close()
        del loader
    gc.collect()
    assert batches_made() is None
    deadline = time.monotonic() + 5
    while threads() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before


def test_an_error_that_no_file_causes_is_passed_on(kinds, decoded, monkeypatch):
    with open_clips(kinds["strips"], decoded=decoded, **SETTINGS) as loader:
        monkeypatch.setattr(loader._batches._feed, "_pipeline", FailingPipeline())
        with pytest.raises(RuntimeError, match="out of memory"):
            loader.next_batch()
        assert loader.skipped == {}


class FailingPipeline:
    def run(self, stream):
        raise RuntimeError("out of memory")


def test_the_fingerprint_tells_when_the_files_have_changed(tmp_path):
    def fingerprint():
        with open_clips(tmp_path, decoded=tmp_path / "decoded", **SETTINGS) as loader:
            return loader.fingerprint

    write_strip(tmp_path / "a.jpg", 8)
    first = fingerprint()
    assert fingerprint() == first
    write_strip(tmp_path / "b.jpg", 8)
    second = fingerprint()
    write_strip(tmp_path / "b.jpg", 9)
    assert len({first, second, fingerprint()}) == 3


def test_batches_are_kept_when_more_are_drawn(folder, decoded):
    with open_clips(folder, decoded=decoded, **SETTINGS) as loader:
        first = loader.next_batch()
        before = first.clone()
        for _ in range(8):
            loader.next_batch()
    assert torch.equal(first, before)


def test_broken_videos_are_named_and_the_rest_is_used(folder, decoded, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.avi").write_text("not a video")
    (tmp_path / "good.mp4").symlink_to(folder / "a.mp4")
    with open_clips(tmp_path, decoded=decoded, **SETTINGS) as loader:
        assert [path.name for path in loader.skipped] == ["empty.mp4", "text.avi"]
        assert "3 videos: 1 usable, 40 frames" in loader.summary
        assert "2 skipped" in loader.summary
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(UserError, match=r"none of its 2 files can be used: .*empty\.mp4: PyAV"):
        open_clips(tmp_path, decoded=decoded, **SETTINGS)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("frames", 0, "--frames is 0; it must be 1 or more"),
        ("size", -3, "--size is -3"),
        ("batch_size", 0, "--batch-size is 0"),
        ("seed", -1, "--seed is -1; it must be 0 or more"),
        ("min_frames", 0, "--min-frames is 0"),
        ("position", -1, "position is -1"),
        ("workers", 0, "--workers is 0"),
        ("stride", 0, "--stride is 0"),
        ("device", torch.device("meta"), "--device is meta"),
        ("start", "middle", "--start middle: must be one of random, fixed"),
        ("cache", "ram", "--cache ram: must be one of auto, gpu, host, none"),
        ("rank", 1, "rank is 1 of 1"),
        ("ranks", 0, "rank is 0 of 0"),
        ("rank", -1, "rank is -1 of 1"),
    ],
)
def test_settings_out_of_range(tmp_path, setting, value, message):
    with pytest.raises(UserError, match=message):
        open_clips(tmp_path, decoded=tmp_path, **SETTINGS | {setting: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(tmp_path):
    with pytest.raises(UserError, match="no GPU"):
        open_clips(tmp_path, decoded=tmp_path, **SETTINGS | dict(device=torch.device("cuda")))


def test_missing_dali_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "vgan_fast.loaders.graph", raising=False)
    with pytest.raises(UserError, match="pip install nvidia-dali-cuda130"):
        open_clips(tmp_path, decoded=tmp_path, **SETTINGS)
