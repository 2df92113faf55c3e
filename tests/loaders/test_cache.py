"""Videos decoded once, in processes that may crash, hang or find the disk full."""

import os
import subprocess
import sys
import textwrap

import loader_stubs
import numpy as np
import pytest
from loader_media import numbers, write_video

from vgan_fast.errors import UserError
from vgan_fast.loaders.cache import decode_videos


def decode(sources, cache, **settings):
    return decode_videos(sources, cache, short_side=64, workers=2, **settings)


def left_behind(cache) -> list[str]:
    """Everything in the cache that is not a finished file of frames."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".npy")


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
    assert not clip.flags.writeable
    np.testing.assert_allclose(numbers(clip), [3, 4, 5, 6], atol=0.75)
    assert left_behind(tmp_path / "cache") == [".lock"]


@pytest.mark.parametrize(
    ("stub", "reason"),
    [(loader_stubs.crashes, "crashed (SIGSEGV)"), (loader_stubs.hangs, "hung: stopped after 3 s")],
    ids=["crash", "hang"],
)
def test_a_decoder_that_dies_costs_its_file_only(tmp_path, stub, reason):
    names = ("bad1.mp4", "good1.mp4", "bad2.mp4", "good2.mp4")
    sources = [write_video(tmp_path / name, frames=5) for name in names]
    cache = tmp_path / "cache"
    videos, skipped = decode(sources, cache, decode=stub, limit=lambda size: 3)
    assert [video.source.name for video in videos] == ["good1.mp4", "good2.mp4"]
    assert [path.name for path in skipped] == ["bad1.mp4", "bad2.mp4"]
    assert all(reason in text for text in skipped.values())
    assert left_behind(cache) == [".lock"]
    assert len(list(cache.glob("*.npy"))) == 2


@pytest.mark.parametrize("stub", [loader_stubs.disk_full, loader_stubs.file_too_large])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, stub):
    sources = [write_video(tmp_path / name, frames=9) for name in ("a.mp4", "b.mp4")]
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"cache: .*stored.*free some space.*--out") as error:
        decode(sources, cache, decode=stub)
    assert "\n" not in str(error.value)
    assert left_behind(cache) == [".lock"]
    assert list(cache.glob("*.npy")) == []


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file/cache: .*--out"):
        decode([], tmp_path / "file" / "cache")


def test_second_opening_decodes_nothing(tmp_path):
    sources = [write_video(tmp_path / "a.mp4", frames=5)]
    first, _ = decode(sources, tmp_path / "cache")
    assert decode(sources, tmp_path / "cache", decode=loader_stubs.forbidden) == (first, {})


@pytest.mark.parametrize("change", ["content", "time", "size", "damaged"])
def test_what_has_changed_is_decoded_again(tmp_path, change):
    source = write_video(tmp_path / "a.mp4", frames=5)
    (first,), _ = decode([source], tmp_path / "cache")
    short_side, count = 64, 5
    if change == "content":
        write_video(source, frames=7)
        count = 7
    elif change == "time":
        os.utime(source, ns=(1, 1))
    elif change == "size":
        short_side = 32
    else:
        first.file.write_bytes(first.file.read_bytes()[:-1])
    with pytest.raises(AssertionError, match="must not be decoded again"):
        decode_videos(
            [source],
            tmp_path / "cache",
            short_side=short_side,
            workers=1,
            decode=loader_stubs.forbidden,
        )
    (again,), _ = decode_videos([source], tmp_path / "cache", short_side=short_side, workers=1)
    side = min(48, short_side)
    assert again.shape == (count, side, side, 3)
    assert (again.file == first.file) == (change == "damaged")


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    left = tmp_path / "cache/.decoding-abc"
    left.mkdir(parents=True)
    (left / "half.npy").write_bytes(b"half a file")
    decode([write_video(tmp_path / "a.mp4", frames=5)], tmp_path / "cache")
    assert left_behind(tmp_path / "cache") == [".lock"]


def test_two_openings_at_once_take_turns(tmp_path):
    """The second finds what the first has decoded."""
    source = write_video(tmp_path / "a.mp4", frames=5)
    script = tmp_path / "open.py"
    script.write_text(
        textwrap.dedent(f"""
        from pathlib import Path
        from vgan_fast.loaders.cache import decode_videos
        if __name__ == "__main__":
            data, cache = Path({str(source)!r}), Path({str(tmp_path / "cache")!r})
            print(decode_videos([data], cache, short_side=64, workers=1))
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
        data, cache = Path({str(source)!r}), Path({str(tmp_path / "cache")!r})
        decode_videos([data], cache, short_side=64, workers=1)
        """)
    )
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "under if __name__ == '__main__':" in ended.stderr.splitlines()[-1]
