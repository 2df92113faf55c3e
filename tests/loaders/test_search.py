"""Which files --data names."""

from pathlib import Path

import pytest

from vgan_fast.errors import UserError
from vgan_fast.loaders.search import find_files


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(found, folder: Path) -> list[str]:
    return [str(file.relative_to(folder)) for file in found.files]


def test_folder_is_searched_in_order_and_other_files_are_counted(tmp_path):
    touch(tmp_path, "b.MP4", "a/z.webm", "a/b/c.Avi", "notes.txt", "a/x.png")
    touch(tmp_path, ".hidden.mp4", ".git/x.mp4", "cache/old.mp4")
    found = find_files(tmp_path, tmp_path / "cache")
    assert names(found, tmp_path) == ["a/b/c.Avi", "a/z.webm", "b.MP4"]
    assert not found.strips
    assert found.ignored == 2


def test_video_suffixes(tmp_path):
    suffixes = "mp4 mkv avi mov webm flv mpg mpeg m4v wmv ogv ts 3gp gif"
    for suffix in suffixes.split():
        touch(tmp_path, f"x.{suffix}", f"y.{suffix.upper()}")
    found = find_files(tmp_path, tmp_path / "cache")
    assert (len(found.files), found.ignored) == (28, 0)


def test_strips_are_recognised(tmp_path):
    touch(tmp_path, "a.jpg", "b.JPEG")
    found = find_files(tmp_path, tmp_path / "cache")
    assert found.strips
    assert len(found.files) == 2


def test_links_are_followed_once_and_never_in_a_circle(tmp_path):
    touch(tmp_path, "real/a.mp4")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "real/same.mp4").symlink_to(tmp_path / "real/a.mp4")
    touch(tmp_path, "data/b.mp4")
    (tmp_path / "data/link").symlink_to(tmp_path / "real")
    found = find_files(tmp_path / "data", tmp_path / "cache")
    assert names(found, tmp_path / "data") == ["b.mp4", "link/a.mp4"]


def test_single_video(tmp_path):
    touch(tmp_path, "a.mp4")
    assert names(find_files(tmp_path / "a.mp4", tmp_path / "cache"), tmp_path) == ["a.mp4"]


def test_list_with_labels_spaces_comments_and_absolute_paths(tmp_path):
    touch(tmp_path, "v/a.mp4", "v/two words.mp4", "v/ends in 7", "far/b.mp4", "v/no_suffix")
    lines = [
        "\ufeff# a comment",
        "",
        "  ../v/two words.mp4",
        "../v/two words.mp4",
        "../v/a.mp4 3",
        "../v/ends in 7",
        f"{tmp_path}/far/b.mp4\t1",
        "../v/no_suffix 12",
    ]
    touch(tmp_path, "lists/train.txt")
    (tmp_path / "lists/train.txt").write_text("\r\n".join(lines), encoding="utf-8")
    found = find_files(tmp_path / "lists/train.txt", tmp_path / "cache")
    assert [file.resolve() for file in found.files] == [
        tmp_path / name
        for name in ("v/two words.mp4", "v/a.mp4", "v/ends in 7", "far/b.mp4", "v/no_suffix")
    ]


def test_list_that_names_a_missing_file(tmp_path):
    touch(tmp_path, "a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4\n\nsub/gone.mp4 4\n")
    with pytest.raises(UserError, match=r"list\.txt, line 3: .*sub/gone\.mp4"):
        find_files(tmp_path / "list.txt", tmp_path / "cache")


@pytest.mark.parametrize("listed", [False, True], ids=["folder", "list"])
def test_videos_and_strips_together_are_refused(tmp_path, listed):
    touch(tmp_path, "a.mp4", "b.jpg", "c.jpg")
    (tmp_path / "list.txt").write_text("a.mp4\nb.jpg\nc.jpg\n")
    with pytest.raises(UserError, match=r"1 videos and 2 JPEG strips.*list file"):
        find_files(tmp_path / "list.txt" if listed else tmp_path, tmp_path / "cache")


def test_missing_data(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file or folder"):
        find_files(tmp_path / "nowhere", tmp_path / "cache")


def test_folder_with_nothing_usable(tmp_path):
    touch(tmp_path, "a.txt", "b.npy")
    with pytest.raises(UserError, match=r"no video and no JPEG strip among its 2 files"):
        find_files(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no file"),
        (b"# only a comment\n", "names no file"),
        (b"\x89PNG\xff\xfe\x00", "neither text nor a video"),
        (b"a\x00b\n", "line 1"),
        (b"x" * 5000, "line 1"),
    ],
    ids=["empty", "comment", "binary", "nul", "overlong"],
)
def test_bad_list(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        find_files(tmp_path / "list.txt", tmp_path / "cache")


def test_pictures_of_training_runs_are_no_data(tmp_path):
    wanted = tmp_path / "a.mp4"
    wanted.touch()
    pictures = tmp_path / "runs" / "mine-1" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "step-00000100.gif").touch()
    (pictures.parent / "events.out.tfevents.1.host.2.0").touch()
    assert find_files(tmp_path, tmp_path / "cache").files == [wanted]


def test_a_path_that_cannot_be_looked_at_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        find_files(tmp_path / ("x" * 300), tmp_path / "cache")
