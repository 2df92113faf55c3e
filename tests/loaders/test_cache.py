"""Videos decoded once, in processes that may crash, hang or find the disk full."""

import errno
import os
import subprocess
import sys
import textwrap
import time

import loader_stubs
import numpy as np
import pytest
from loader_media import frame, numbers, write_video
from PIL import Image

from vgan_fast.errors import UserError
from vgan_fast.loaders import nvdec
from vgan_fast.loaders.cache import decode_videos
from vgan_fast.loaders.search import Source


def decode(paths, cache, **settings):
    """Decode these videos, and these folders of images."""
    sources = [Source(path, "images" if path.is_dir() else "video") for path in paths]
    defaults = {"short_side": 64, "fps": None, "workers": 2}
    return decode_videos(sources, cache, **defaults | settings)


def left_behind(cache) -> list[str]:
    """Everything in the cache that is not an entry: frames, and notes on them."""
    assert all(path.with_suffix(".json").exists() for path in cache.glob("*.npy"))
    return sorted(path.name for path in cache.iterdir() if path.suffix not in (".npy", ".json"))


def write_images(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(frame(number)).save(folder / f"frame{number}.png")
    return folder


def test_frames_of_each_video_in_the_order_given(tmp_path):
    sources = [
        write_video(tmp_path / name, codec, count, pix_fmt=pix_fmt)
        for name, codec, count, pix_fmt in (
            ("c.mp4", "mpeg4", 12, "yuv420p"),
            ("a.webm", "libvpx-vp9", 5, "yuv420p"),
            ("b.avi", "mjpeg", 8, "yuvj420p"),
        )
    ]
    videos, skipped = decode(sources, tmp_path / "cache")
    assert skipped == {}
    assert [video.source for video in videos] == sources
    assert [video.shape for video in videos] == [(count, 48, 48, 3) for count in (12, 5, 8)]
    clip = videos[0].read(3, 4)
    np.testing.assert_allclose(numbers(clip), [3, 4, 5, 6], atol=0.75)
    assert left_behind(tmp_path / "cache") == [".decoded"]


def test_labels_and_rates_are_kept(tmp_path):
    video, images = write_video(tmp_path / "a.mp4", frames=5), write_images(tmp_path / "b", 3)
    sources = [Source(video, "video", "waving"), Source(images, "images", "running")]
    for _ in "12":  # decoded, then found
        opened, skipped = decode_videos(
            sources, tmp_path / "cache", short_side=64, fps=None, workers=2
        )
        assert skipped == {}
        assert [frames.source for frames in opened] == [video, images]
        assert [frames.label for frames in opened] == ["waving", "running"]
        assert [frames.rate for frames in opened] == [25, None]
        assert [frames.shape for frames in opened] == [(5, 48, 48, 3), (3, 48, 48, 3)]
        np.testing.assert_allclose(numbers(opened[1].read(0, 3)), [0, 1, 2])


def test_fps_and_short_side_reach_the_decoder(tmp_path):
    paths = [write_video(tmp_path / "a.mp4", frames=20), write_images(tmp_path / "b", 3)]
    (opened,), skipped = decode(paths, tmp_path / "cache", fps=5, short_side=24)
    assert (opened.shape, opened.rate) == ((4, 24, 24, 3), 5)
    assert "--stride" in skipped[paths[1]]


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        (loader_stubs.crashes, "PyAV crashed (SIGSEGV); OpenCV crashed (SIGSEGV)"),
        (loader_stubs.hangs, "PyAV hung: stopped after 3 s; OpenCV hung: stopped after 3 s"),
        (
            loader_stubs.takes_all_memory,
            "PyAV needs over 2 GiB of memory; OpenCV needs over 2 GiB of memory",
        ),
        (
            loader_stubs.never_ends,
            "over 1000 frames: cut it into shorter files, or give a lower --fps",
        ),
    ],
    ids=["crash", "hang", "memory", "endless"],
)
def test_a_decoder_that_dies_costs_its_file_only(tmp_path, stub, reason):
    """And where the next decoder reads it, not even that."""
    names = ("bad1.mp4", "good1.mp4", "half.mp4", "bad2.mp4", "good2.mp4")
    paths = [write_video(tmp_path / name, frames=5) for name in names]
    cache = tmp_path / "cache"
    videos, skipped = decode(
        paths, cache, workers=3, decode=stub, limit=lambda size: 3, memory=2 << 30
    )
    assert [video.source.name for video in videos] == ["good1.mp4", "half.mp4", "good2.mp4"]
    np.testing.assert_allclose(numbers(videos[1].read(0, 5)), np.arange(5), atol=0.75)
    assert {path.name: text for path, text in skipped.items()} == {
        "bad1.mp4": reason,
        "bad2.mp4": reason,
    }
    assert left_behind(cache) == [".decoded"]
    assert len(list(cache.glob("*.npy"))) == 3


def test_a_decoder_killed_from_outside_tries_the_file_again(tmp_path):
    """The same one: another might give other pixels, and images have no other."""
    sources = [write_images(tmp_path / "images", 3), write_video(tmp_path / "a.mp4", frames=5)]
    sources.append(write_video(tmp_path / "bad.mp4", frames=5))
    cache, whole = tmp_path / "cache", tmp_path / "whole"
    found, skipped = decode(sources, cache, decode=loader_stubs.killed_once)
    assert {path.name: text for path, text in skipped.items()} == {
        "bad.mp4": "PyAV crashed (SIGKILL); OpenCV crashed (SIGKILL)"
    }
    expected, _ = decode(sources[:2], whole)
    for frames, others in zip(found, expected, strict=True):
        assert np.array_equal(frames.read(0, frames.length), others.read(0, others.length))
    assert left_behind(cache) == [".decoded"]


def test_pyav_takes_over_where_opencv_gets_nothing(tmp_path):
    path = write_video(tmp_path / "a.mkv", "libsvtav1", 12, (64, 64))
    (video,), _ = decode([path], tmp_path / "cache")
    np.testing.assert_allclose(numbers(video.read(0, 12)), np.arange(12), atol=0.75)


@pytest.mark.parametrize(("workers", "threads"), [(1, 16), (2, 16), (4, 10), (40, 10)])
def test_processes_share_the_cores(tmp_path, monkeypatch, workers, threads):
    """Forty cores here; a decoder of more than sixteen threads holds too many frames."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(40)))
    paths = [write_video(tmp_path / f"{number}.mp4", frames=2) for number in range(4)]
    decode(paths, tmp_path / "cache", workers=workers, decode=loader_stubs.notes_threads)
    noted = [path.with_suffix(".threads").read_text() for path in paths]
    assert noted == [f"{threads};"] * 4


def test_a_pipe_is_no_video(tmp_path):
    """Opening one would wait for whoever writes to it."""
    os.mkfifo(tmp_path / "a.mp4")
    paths = [tmp_path / "a.mp4", tmp_path / "none.mp4"]
    _, skipped = decode(paths, tmp_path / "cache", limit=lambda size: 3)
    assert skipped[tmp_path / "a.mp4"] == "not a regular file"
    assert "No such file" in skipped[tmp_path / "none.mp4"]


@pytest.mark.parametrize("is_there", [True, False], ids=["NVDEC", "no NVDEC"])
def test_nvdec_is_given_up_where_it_fails(tmp_path, monkeypatch, is_there):
    """Three failures are enough; whatever it has not read, OpenCV does, and images are as ever."""
    monkeypatch.setattr(nvdec, "is_there", lambda: is_there)
    paths = [write_video(tmp_path / f"{number}.mp4", frames=2) for number in range(9)]
    paths.append(write_images(tmp_path / "images", 2))
    videos, skipped = decode(
        paths, tmp_path / "cache", decode=loader_stubs.lacks_nvdec, device="cuda", workers=1
    )
    assert skipped == {}
    assert [video.source for video in videos] == paths
    tried = len(list(tmp_path.glob("*.tried")))
    assert 3 <= tried <= 5 if is_there else tried == 0


def test_nvdec_goes_on_where_it_succeeds(tmp_path, monkeypatch):
    monkeypatch.setattr(nvdec, "is_there", lambda: True)
    names = [f"{number}{name}" for number in range(3) for name in ("a", "b", "c")]
    paths = [
        write_video(tmp_path / f"{'' if name[1] == 'a' else 'nvdec'}{name}.mp4", frames=2)
        for name in names
    ]
    videos, _ = decode(
        paths, tmp_path / "cache", decode=loader_stubs.lacks_nvdec, device="cuda:1", workers=1
    )
    assert [video.source for video in videos] == paths
    assert len(list(tmp_path.glob("*.tried"))) == 9


def test_nvdec_that_hangs_is_given_up_soon(tmp_path, monkeypatch):
    """After a tenth of what the others may take."""
    monkeypatch.setattr(nvdec, "is_there", lambda: True)
    path = write_video(tmp_path / "a.mp4", frames=2)
    start = time.monotonic()
    (video,), _ = decode(
        [path],
        tmp_path / "cache",
        decode=loader_stubs.hangs_on_nvdec,
        device="cuda",
        limit=lambda size: 20,
    )
    assert video.length == 2
    assert time.monotonic() - start < 15


def test_nothing_asks_for_a_gpu_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(nvdec, "is_there", lambda: pytest.fail("NVDEC was looked for"))
    decode([write_video(tmp_path / "a.mp4", frames=2)], tmp_path / "cache", device="cpu")


@pytest.mark.parametrize("stub", [loader_stubs.disk_full, loader_stubs.file_too_large])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, stub):
    sources = [write_video(tmp_path / name, frames=9) for name in ("a.mp4", "b.mp4")]
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"cache: .*stored.*free some space.*--decoded") as error:
        decode(sources, cache, decode=stub)
    assert "\n" not in str(error.value)
    assert left_behind(cache) == [".decoded"]
    assert list(cache.glob("*.npy")) == []


def test_frames_appear_last(tmp_path, monkeypatch):
    """What is to be known about them is there before them."""
    real = os.replace

    def full(source, target):
        if target.suffix == ".json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="free some space"):
        decode([write_video(tmp_path / "a.mp4", frames=2)], tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".decoded"]


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/cache: .*--decoded"):
        decode([], tmp_path / "file" / "cache")


def test_second_opening_decodes_nothing(tmp_path):
    sources = [write_video(tmp_path / "a.mp4", frames=5)]
    first, _ = decode(sources, tmp_path / "cache")
    assert decode(sources, tmp_path / "cache", decode=loader_stubs.forbidden) == (first, {})


CHANGES = ["content", "time", "size", "fps", "damaged", "no notes", "damaged notes", "no rate"]


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_decoded_again(tmp_path, change):
    source, cache = write_video(tmp_path / "a.mp4", frames=5), tmp_path / "cache"
    (first,), _ = decode([source], cache)
    notes = first.file.with_suffix(".json")
    settings, count = {"short_side": 64, "fps": None}, 5
    if change == "content":
        write_video(source, frames=7)
        count = 7
    elif change == "time":
        os.utime(source, ns=(1, 1))
    elif change == "size":
        settings["short_side"] = 32
    elif change == "fps":
        settings["fps"], count = 50, 9
    elif change == "damaged":
        first.file.write_bytes(first.file.read_bytes()[:-1])
    elif change == "no notes":
        notes.unlink()
    else:
        notes.write_text({"damaged notes": '{"rate": 25', "no rate": '{"rate": -25}'}[change])
    with pytest.raises(AssertionError, match="must not be decoded again"):
        decode([source], cache, decode=loader_stubs.forbidden, **settings)
    (again,), _ = decode([source], cache, **settings)
    side = min(48, settings["short_side"])
    assert again.shape == (count, side, side, 3)
    assert again.rate == settings["fps"] or 25
    changed_source = change in ("content", "time", "size", "fps")
    assert (again.file != first.file) == changed_source


@pytest.mark.parametrize("change", ["content", "time", "name", "more"])
def test_a_folder_that_has_changed_is_decoded_again(tmp_path, change):
    folder, cache = write_images(tmp_path / "a", 3), tmp_path / "cache"
    decode([folder], cache)
    decode([folder], cache, decode=loader_stubs.forbidden)
    (folder / "notes.txt").write_text("no image")
    decode([folder], cache, decode=loader_stubs.forbidden)
    image = folder / "frame1.png"
    if change == "content":
        Image.fromarray(frame(40)).save(image, compress_level=0)
    elif change == "time":
        os.utime(image, ns=(1, 1))
    elif change == "name":
        image.rename(folder / "frame9.png")
    else:
        Image.fromarray(frame(3)).save(folder / "frame3.png")
    with pytest.raises(AssertionError, match="must not be decoded again"):
        decode([folder], cache, decode=loader_stubs.forbidden)


def test_one_file_of_two_classes_is_decoded_once(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=5)
    sources = [Source(path, "video", label) for label in ("waving", "running")]
    opened, _ = decode_videos(
        sources,
        tmp_path / "cache",
        short_side=64,
        fps=None,
        workers=2,
        decode=loader_stubs.notes_threads,
    )
    assert [frames.label for frames in opened] == ["waving", "running"]
    assert path.with_suffix(".threads").read_text().count(";") == 1


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    left = tmp_path / "cache/.decoding-abc"
    left.mkdir(parents=True)
    (left / "half.npy").write_bytes(b"half a file")
    decode([write_video(tmp_path / "a.mp4", frames=5)], tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == [".decoded"]


def test_two_openings_at_once_take_turns(tmp_path):
    """The second finds what the first has decoded."""
    source = write_video(tmp_path / "a.mp4", frames=5)
    script = tmp_path / "open.py"
    script.write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        from vgan_fast.loaders.cache import decode_videos
        from vgan_fast.loaders.search import Source
        if __name__ == "__main__":
            data, cache = Path({str(source)!r}), Path({str(tmp_path / "cache")!r})
            print(decode_videos([Source(data, 'video')], cache, short_side=64, fps=None, workers=1))
        """)
    )
    both = [subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) for _ in "12"]
    first, second = (process.communicate(timeout=60)[0] for process in both)
    assert first == second
    assert b"(5, 48, 48, 3)" in first


def test_a_script_without_main_guard_is_told_so(tmp_path):
    source = write_video(tmp_path / "a.mp4", frames=5)
    script = tmp_path / "open.py"
    script.write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        from vgan_fast.loaders.cache import decode_videos
        from vgan_fast.loaders.search import Source
        data, cache = Path({str(source)!r}), Path({str(tmp_path / "cache")!r})
        decode_videos([Source(data, 'video')], cache, short_side=64, fps=None, workers=1)
        """)
    )
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "under if __name__ == '__main__':" in ended.stderr.splitlines()[-1]
