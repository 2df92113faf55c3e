"""What --data names: kinds, order, classes, and one line where nothing can go on."""

import os
from collections import Counter
from pathlib import Path

import pytest
from shard_media import image, mutations, write

from vgan_fast.errors import UserError
from vgan_fast.loaders.search import find_sources, natural_key

FRAME, STRIP = image(16, 12), image(16, 64)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        write(folder / name)


def find(data: Path):
    return find_sources(data, data.parent / "cache")


def named(data: Path, below: Path | None = None) -> list[tuple[str, str, str | None]]:
    return [
        (str(source.path.relative_to(below or data)), source.kind, source.label)
        for source in find(data).sources
    ]


def listed(folder: Path, *lines: str, name: str = "list.txt") -> Path:
    return write(folder / name, "\n".join(lines).encode())


def test_numbers_in_names_sort_by_value():
    names = ["a", "frame2", "frame010", "frame11", "frame11b", "frame" + "9" * 5000]
    assert sorted(reversed(names), key=natural_key) == names
    assert natural_key("frame01") != natural_key("frame1")


def test_folder_is_searched_in_natural_order_and_other_files_are_counted(tmp_path):
    data = tmp_path / "data"
    touch(data, "b10.MP4", "b9.mp4", "a/z.webm", "a/b/c.Avi", "notes.txt", "a/x.TXT", "README")
    touch(data, ".hidden.mp4", ".git/x.mp4", "cache/old.mp4", "cache/old.npy", "a/b/d.npy")
    found = find_sources(data, data / "cache")
    assert [str(source.path.relative_to(data)) for source in found.sources] == [
        *("a/b/c.Avi", "a/b/d.npy", "a/z.webm", "b9.mp4", "b10.MP4"),
    ]
    assert all(source.path.is_absolute() for source in found.sources)
    assert found.ignored == Counter({".txt": 2, "": 1})


def test_video_suffixes(tmp_path):
    suffixes = "mp4 mkv avi mov webm flv mpg mpeg m4v wmv ogv ts 3gp gif"
    for suffix in suffixes.split():
        touch(tmp_path, f"x.{suffix}", f"y.{suffix.upper()}")
    found = find(tmp_path)
    assert [source.kind for source in found.sources] == ["video"] * 28
    assert not found.ignored


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.mp4", "video"), ("a.JPG", "strip"), ("a.png", "strip"), ("a.webp", "strip")),
        *(("a.tar", "tar"), ("a.npy", "npy")),
    ],
)
def test_single_file(tmp_path, name, kind):
    touch(tmp_path, name, "b.mp4")
    assert named(tmp_path / name, tmp_path) == [(name, kind, None)]


def test_strips_and_shards_of_strips_go_together(tmp_path):
    write(tmp_path / "a.jpg", STRIP)
    write(tmp_path / "b.jpeg", STRIP)
    touch(tmp_path, "c.tar", "c.idx")
    found = find(tmp_path)
    assert [source.kind for source in found.sources] == ["strip", "strip", "tar"]
    assert found.ignored == Counter({".idx": 1})


def test_videos_frames_and_arrays_go_together(tmp_path):
    touch(tmp_path, "a.mp4", "b.npy")
    write(tmp_path / "c/1.jpg", FRAME)
    write(tmp_path / "c/2.jpg", FRAME)
    assert [source.kind for source in find(tmp_path).sources] == ["video", "npy", "images"]
    assert find(tmp_path).described == "1 video, 1 folder of frames, 1 .npy array"


FOLDERS = {
    "frames": ({"1.jpg": FRAME, "2.png": image(16, 12, kind="PNG")}, "images"),
    "strips": ({"1.jpg": FRAME, "2.jpg": STRIP}, "strip"),
    "rows": ({"1.png": image(64, 16, kind="PNG"), "2.png": FRAME}, "strip"),
    "three to one is a frame": ({"1.jpg": image(48, 16), "2.jpg": FRAME}, "images"),
    "no multiple": ({"1.jpg": image(16, 65), "2.jpg": FRAME}, "images"),
    "square frames": ({"1.jpg": image(16, 16), "2.jpg": image(16, 16)}, "images"),
    "tenth in natural order": (
        {f"f{k}.jpg": STRIP if k == 10 else FRAME for k in range(1, 12)},
        "images",
    ),
    "ninth in natural order": (
        {f"f{k}.jpg": STRIP if k == 9 else FRAME for k in range(1, 12)},
        "strip",
    ),
    "one readable frame": ({"1.jpg": b"", "2.jpg": FRAME}, "images"),
    "none readable": ({"1.jpg": b"", "2.png": b"?"}, "strip"),
    "other formats": ({"1.bmp": b"", "2.webp": b"", "3.tif": b"", "4.TIFF": b""}, "images"),
    "one image": ({"1.jpg": FRAME}, "strip"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder_of_images_holds_frames_or_strips(tmp_path, case):
    files, kind = FOLDERS[case]
    for name, content in files.items():
        write(tmp_path / "clip" / name, content)
    touch(tmp_path / "clip", "notes.txt")
    found = find(tmp_path)
    assert {source.kind for source in found.sources} == {kind}
    assert len(found.sources) == (1 if kind == "images" else len(files))
    assert found.ignored == Counter({".txt": 1})


def test_pictures_beside_a_video_are_not_its_frames(tmp_path):
    touch(tmp_path, "a.mp4")
    write(tmp_path / "1.jpg", FRAME)
    write(tmp_path / "2.jpg", FRAME)
    with pytest.raises(UserError, match="1 video and 2 strips"):
        find(tmp_path)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "0.jpg")
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    write(tmp_path / "1.jpg", FRAME)
    write(tmp_path / "2.jpg", FRAME)
    # Held open, so that a search that did open them fails instead of waiting for ever.
    pipes = [os.open(tmp_path / name, os.O_RDWR) for name in ("0.jpg", "a.mp4")]
    found = find(tmp_path)
    for pipe in pipes:
        os.close(pipe)
    assert [(source.path, source.kind) for source in found.sources] == [(tmp_path, "images")]
    assert found.ignored == Counter({".mp4": 2, ".jpg": 1})
    with pytest.raises(UserError, match="no such file"):
        find(tmp_path / "a.mp4")


def test_links_are_followed_once_and_never_in_a_circle(tmp_path):
    touch(tmp_path, "real/a.mp4")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "real/same.mp4").symlink_to(tmp_path / "real/a.mp4")
    touch(tmp_path, "data/b.mp4")
    (tmp_path / "data/link").symlink_to(tmp_path / "real")
    assert [path for path, _, _ in named(tmp_path / "data")] == ["b.mp4", "link/a.mp4"]


def test_decoded_frames_are_no_arrays_of_their_own(tmp_path):
    touch(tmp_path, "a.mp4", "killed-run/frames/0123.npy", "killed-run/frames/.decoded")
    assert [source.path.name for source in find(tmp_path).sources] == ["a.mp4"]


def test_pictures_of_training_runs_are_no_data(tmp_path):
    touch(tmp_path, "a.mp4", "runs/1/pictures/100.gif", "runs/1/events.out.tfevents.1.host.2.0")
    assert named(tmp_path) == [("a.mp4", "video", None)]


def test_first_folder_below_data_is_the_class(tmp_path):
    for folder in ("walk/clip1", "walk/clip2", "run10/far/clip1", "run9/clip1"):
        write(tmp_path / folder / "1.jpg", FRAME)
        write(tmp_path / folder / "2.jpg", FRAME)
    assert named(tmp_path) == [
        ("run9/clip1", "images", "run9"),
        ("run10/far/clip1", "images", "run10"),
        ("walk/clip1", "images", "walk"),
        ("walk/clip2", "images", "walk"),
    ]
    assert find(tmp_path).classes == ["run9", "run10", "walk"]


def test_a_source_straight_in_data_has_no_class_and_then_there_are_none(tmp_path):
    touch(tmp_path, "walk/a.mp4", "run/a.mp4")
    assert find(tmp_path).classes == ["run", "walk"]
    write(tmp_path / "clip1/1.jpg", FRAME)
    write(tmp_path / "clip1/2.jpg", FRAME)
    assert ("clip1", "images", None) in named(tmp_path)
    assert find(tmp_path).classes == []


def test_one_class_is_none(tmp_path):
    touch(tmp_path, "walk/a.mp4", "walk/b.mp4")
    assert find(tmp_path).classes == []


def test_strips_in_folders_by_class(tmp_path):
    write(tmp_path / "smile/1.jpg", image(64, 16))
    write(tmp_path / "anger/1.jpg", image(64, 16))
    assert named(tmp_path) == [("anger/1.jpg", "strip", "anger"), ("smile/1.jpg", "strip", "smile")]


def test_list_with_spaces_comments_labels_and_absolute_paths(tmp_path):
    touch(tmp_path, "v/a.mp4", "v/two words.mp4", "v/ends in 7", "far/b.mp4", "v/no_suffix")
    lines = [
        "\ufeff# a comment",
        "",
        "  ../v/two words.mp4 10",
        "../v/two words.mp4\t10",
        "../v/a.mp4 3",
        "../v/ends in 7 3",
        f"{tmp_path}/far/b.mp4\t03",
        "../v/no_suffix 12",
    ]
    data = listed(tmp_path / "lists", *(line + "\r" for line in lines))
    assert named(data, tmp_path) == [
        ("v/two words.mp4", "video", "10"),
        ("v/a.mp4", "video", "3"),
        ("v/ends in 7", "video", "3"),
        ("far/b.mp4", "video", "3"),
        ("v/no_suffix", "video", "12"),
    ]
    assert find(data).classes == ["3", "10", "12"]


def test_a_name_that_ends_in_a_number_is_not_a_label(tmp_path):
    touch(tmp_path, "a 7", "b 8", "b")
    assert named(listed(tmp_path, "a 7", "b 8"), tmp_path) == [
        ("a 7", "video", None),
        ("b 8", "video", None),
    ]


def test_list_without_labels_has_the_files_folders_as_classes(tmp_path):
    touch(tmp_path, "x/run/a.mp4", "y/walk/b.npy", "y/walk/c.mp4")
    data = listed(tmp_path, "y/walk/b.npy", "x/run/a.mp4")
    assert named(data, tmp_path) == [
        ("y/walk/b.npy", "npy", "walk"),
        ("x/run/a.mp4", "video", "run"),
    ]
    assert find(data).classes == ["run", "walk"]
    assert named(listed(tmp_path, "y/walk/b.npy", "y/walk/c.mp4"), tmp_path)[0][2] is None


def test_list_that_labels_some_lines_only(tmp_path):
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    with pytest.raises(UserError, match=r"list\.txt, line 3: .*line 1 has.*every line or none"):
        find(listed(tmp_path, "a.mp4 1", "", "b.mp4", "c.mp4"))


def test_folder_of_frames_in_a_list(tmp_path):
    for name in ("clip/1.jpg", "clip/2.jpg"):
        write(tmp_path / name, FRAME)
    touch(tmp_path, "b.mp4")
    assert named(listed(tmp_path, "clip 2", "b.mp4 1"), tmp_path) == [
        ("clip", "images", "2"),
        ("b.mp4", "video", "1"),
    ]


@pytest.mark.parametrize("content", [None, STRIP], ids=["no image", "strips"])
def test_other_folders_in_a_list_are_refused(tmp_path, content):
    touch(tmp_path, "clip/x.txt")
    if content:
        write(tmp_path / "clip/1.jpg", content)
    with pytest.raises(UserError, match=r"line 1: .*clip is neither a file nor a folder"):
        find(listed(tmp_path, "clip"))


def test_pipe_in_a_list_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=r"line 1: .*a.mp4 is neither"):
        find(listed(tmp_path, "a.mp4"))


def test_list_that_names_a_missing_file(tmp_path):
    touch(tmp_path, "a.mp4")
    with pytest.raises(UserError, match=r"list\.txt, line 3: .*sub/gone\.mp4.*; correct"):
        find(listed(tmp_path, "a.mp4", "", "sub/gone.mp4 4"))


def test_list_that_names_many_missing_files_says_how_many(tmp_path):
    touch(tmp_path, "a.mp4")
    with pytest.raises(UserError, match=r"line 2: .*gone1, the first of 3 missing among 4;"):
        find(listed(tmp_path, "a.mp4", "gone1", "gone2", "gone3"))


def ucf101(folder: Path, videos: str, *lists: str) -> None:
    for label in ("Archery", "Biking", "Yo Yo"):
        for clip in (1, 2):
            touch(folder / videos, f"{label}/v_{clip}.avi")
    listed(folder / "splits", "1 Archery", "2 Biking", "3 Yo Yo", "", name="classInd.txt")
    for name, *lines in lists:
        listed(folder / "splits", *lines, name=name)


TRAIN = ("train.txt", "Yo Yo/v_1.avi 3", "Archery/v_1.avi 1")
TEST = ("test.txt", "Yo Yo/v_2.avi", "Biking/v_2.avi")
INDEXED = ["Archery", "Biking", "Yo Yo"]


@pytest.mark.parametrize("videos", ["splits", ".", "UCF-101", "splits/UCF101", "videos"])
def test_ucf101_split(tmp_path, videos):
    ucf101(tmp_path, videos, TRAIN, TEST)
    below = (tmp_path / videos).resolve()
    train, test = tmp_path / "splits/train.txt", tmp_path / "splits/test.txt"
    assert named(train, below) == [
        ("Yo Yo/v_1.avi", "video", "Yo Yo"),
        ("Archery/v_1.avi", "video", "Archery"),
    ]
    assert named(test, below) == [
        ("Yo Yo/v_2.avi", "video", "Yo Yo"),
        ("Biking/v_2.avi", "video", "Biking"),
    ]
    assert find(train).classes == find(test).classes == INDEXED


def test_ucf101_split_with_one_class_keeps_its_number(tmp_path):
    ucf101(tmp_path, "videos", ("test.txt", "Biking/v_2.avi"))
    assert find(tmp_path / "splits/test.txt").classes == INDEXED


def test_ucf101_number_names_the_class_of_a_file_elsewhere(tmp_path):
    ucf101(tmp_path, "videos", ("train.txt", "other/v.avi 2"))
    touch(tmp_path, "videos/other/v.avi")
    assert named(tmp_path / "splits/train.txt", tmp_path / "videos") == [
        ("other/v.avi", "video", "Biking")
    ]


@pytest.mark.parametrize(
    "line", ["Biking/v_1.avi 1", "Biking/v_1.avi 4", "other/v.avi"], ids=["other", "none", "bare"]
)
def test_ucf101_line_without_one_class(tmp_path, line):
    ucf101(tmp_path, "videos", ("train.txt", "Archery/v_1.avi 1", line))
    touch(tmp_path, "videos/other/v.avi")
    with pytest.raises(UserError, match=r"train\.txt, line 2: .* do not name one class"):
        find(tmp_path / "splits/train.txt")


@pytest.mark.parametrize("line", ["4", "Archery 4", "3 Biking", "4 Yo Yo"])
def test_bad_class_index(tmp_path, line):
    ucf101(tmp_path, "videos", TRAIN)
    listed(tmp_path / "splits", "1 Archery", "3 Yo Yo", line, name="classInd.txt")
    with pytest.raises(UserError, match=r"classInd\.txt, line 3"):
        find(tmp_path / "splits/train.txt")


@pytest.mark.parametrize("as_list", [False, True], ids=["folder", "list"])
def test_frames_and_strips_together_are_refused(tmp_path, as_list):
    touch(tmp_path, "a.mp4", "b.npy", "c.jpg", "d.jpg", "e.tar")
    data = listed(tmp_path, "a.mp4", "b.npy", "c.jpg", "d.jpg", "e.tar") if as_list else tmp_path
    message = r"1 video, 1 \.npy array and 2 strips, 1 \.tar shard of strips;.*list file"
    with pytest.raises(UserError, match=message):
        find(data)


def test_missing_data(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file or folder"):
        find(tmp_path / "nowhere")


def test_folder_with_nothing_usable(tmp_path):
    touch(tmp_path, "a.txt", "b.idx")
    with pytest.raises(UserError, match=r"no video, strip.* among its 2 files"):
        find(tmp_path)


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
    with pytest.raises(UserError, match=message):
        find(write(tmp_path / "list.txt", content))


def test_huge_file_is_not_read_as_a_list(tmp_path):
    write(tmp_path / "model.bin")
    os.truncate(tmp_path / "model.bin", 2**40)
    with pytest.raises(UserError, match="too large for a list"):
        find(tmp_path / "model.bin")


def test_a_path_that_cannot_be_looked_at_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        find(tmp_path / ("x" * 300))


def test_mutated_lists_give_sources_or_one_line(tmp_path):
    ucf101(tmp_path, "videos")
    comment = b"# so long that many a mutation leaves the lines below it whole" * 20 + b"\n"
    content = comment + b"Archery/v_1.avi 1\nBiking/v_1.avi 2\nYo Yo/v_1.avi 3\n"
    index = comment + b"1 Archery\n2 Biking\n3 Yo Yo\n"
    refused = 0
    for text, classes in zip(mutations(content, 200, 0), mutations(index, 200, 1), strict=True):
        data = write(tmp_path / "splits/train.txt", text)
        write(tmp_path / "splits/classInd.txt", classes)
        try:
            assert find(data).sources
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 0 < refused < 200
