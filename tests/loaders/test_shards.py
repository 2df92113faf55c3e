"""Shards: which members and clips they hold, and what is said of damaged ones."""

import io
import os
import re
import subprocess
import sys
import tarfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from shard_media import image, mutations, write, write_tar

from vgan_fast.loaders.search import Source
from vgan_fast.loaders.shards import open_npy, open_tar

STACK, ROW, PNG = image(16, 64), image(48, 16), image(16, 32, kind="PNG")
MEMBERS = {
    "a/1.jpg": STACK,
    "a/1.cls": b"7\n",
    "a/1.txt": b"a caption",
    "a/2.jpeg": ROW,
    "b.PNG": PNG,
    "b.json": b'{"label": "walk", "url": "?"}',
}


def tar(path: Path, label: str | None = None):
    return open_tar(Source(path, "tar", label))


def npy(path: Path, label: str | None = None):
    return open_npy(Source(path, "npy", label))


def write_index(path: Path) -> Path:
    """The index that DALI's own tool writes."""
    index = path.with_suffix(".idx")
    tool = [sys.executable, "-c", "import wds2idx; wds2idx.main()", path, index]
    subprocess.run(tool, check=True, stdout=subprocess.DEVNULL)
    return index


def labels(path: Path) -> dict[str, str | None]:
    strips, skipped = tar(path)
    assert not skipped
    return {str(strip.source).partition(".tar:")[2]: strip.label for strip in strips}


@pytest.mark.parametrize("indexed", [False, True], ids=["searched", "indexed"])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_strips_of_a_shard(tmp_path, format, indexed, caplog):
    path = write_tar(tmp_path / "shard-0.tar", MEMBERS, format)
    if indexed:
        write_index(path)
    strips, skipped = tar(path)
    assert not skipped
    assert not caplog.messages
    assert [(str(strip.source), strip.label) for strip in strips] == [
        (f"{path}:a/1.jpg", "7"),
        (f"{path}:a/2.jpeg", None),
        (f"{path}:b.PNG", "walk"),
    ]
    assert [(strip.length, strip.side, strip.horizontal) for strip in strips] == [
        (4, 16, False),
        (3, 16, True),
        (2, 16, False),
    ]
    assert [strip.read().tobytes() for strip in strips] == [STACK, ROW, PNG]
    assert all(strip.file == path for strip in strips)


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_index_is_used(tmp_path, monkeypatch, format):
    """Also of a tar with folders, and with notes before each member, which it does not name."""
    for name, content in MEMBERS.items():
        write(tmp_path / "data" / name, content)
    path = tmp_path / "a.tar"
    subprocess.run(["tar", "-cf", path, f"--format={format}", "data"], cwd=tmp_path, check=True)
    write_index(path)
    monkeypatch.setattr(tarfile, "open", None)
    assert len(tar(path)[0]) == 3


def test_search_of_many_members_keeps_no_headers(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{number}.txt": b"" for number in range(3000)})
    tracemalloc.start()
    assert "no .jpg" in tar(path)[1][path]
    assert tracemalloc.get_traced_memory()[1] < 300 * 3000
    tracemalloc.stop()


def test_label_of_the_shard_where_members_have_none(tmp_path):
    strips, _ = tar(write_tar(tmp_path / "a.tar", MEMBERS), "run")
    assert [strip.label for strip in strips] == ["7", "run", "walk"]


def test_long_names_and_names_that_an_index_cannot_hold(tmp_path, caplog):
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = ["d" * 90 + "/" + "n" * 150 + ".jpg", "two words.jpg", "ü.jpg"]
        path = write_tar(tmp_path / "a.tar", dict.fromkeys(names, STACK), format)
        write_index(path)
        assert list(labels(path)) == names
        assert "a.idx: ignored" in caplog.text


def test_name_in_another_encoding(tmp_path):
    ustar = tarfile.USTAR_FORMAT
    with tarfile.open(tmp_path / "a.tar", "w", format=ustar, encoding="latin-1") as archive:
        member = tarfile.TarInfo("ü.jpg")
        member.size = len(STACK)
        archive.addfile(member, io.BytesIO(STACK))
    (name,) = labels(tmp_path / "a.tar")
    assert name == "\\xfc.jpg"


LABELS = {
    "number": ({"a.cls": b"003"}, "3"),
    "word": ({"a.cls": b" brush hair \n"}, "brush hair"),
    "json number": ({"a.json": b'{"label": 0}'}, "0"),
    "json without": ({"a.json": b'{"text": 0}'}, None),
    "json null": ({"a.json": b'{"label": null}'}, None),
    "json list": ({"a.json": b"[1]"}, None),
    "both": ({"a.json": b'{"label": 4}', "a.cls": b"5"}, "5"),
    "of another sample": ({"b.cls": b"5", "a.b.cls": b"6", "c/a.cls": b"7"}, None),
}


@pytest.mark.parametrize("case", LABELS)
def test_label(tmp_path, case):
    members, label = LABELS[case]
    assert labels(write_tar(tmp_path / "x.tar", {"a.jpg": STACK, **members})) == {"a.jpg": label}


BAD_LABELS = {
    "empty": {"a.cls": b"\n"},
    "binary": {"a.cls": b"\x80\x02}."},
    "array": {"a.cls": b"\x93NUMPY\x01".replace(b"\x93", b"\0")},
    "text": {"a.cls": b"word " * 100},
    "no json": {"a.json": b"{"},
    "deep json": {"a.json": b"[" * 100_000},
    "long number": {"a.json": b'{"label": ' + b"9" * 5000 + b"}"},
    "fraction": {"a.json": b'{"label": 1.5}'},
    "truth": {"a.json": b'{"label": true}'},
    "huge": {"a.json": b'{"label": 1}' + b" " * 2**20},
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_strip_with_a_damaged_label_is_named(tmp_path, case):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": STACK, "b.jpg": ROW, **BAD_LABELS[case]})
    strips, skipped = tar(path)
    assert [str(strip.source) for strip in strips] == [f"{path}:b.jpg"]
    assert "its label, a." in skipped[Path(f"{path}:a.jpg")]


def test_broken_members_are_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": STACK[:-50], "b.jpg": ROW, "c.jpg": b""})
    strips, skipped = tar(path)
    assert [str(strip.source) for strip in strips] == [f"{path}:b.jpg"]
    assert "cut off" in skipped[Path(f"{path}:a.jpg")]
    assert "neither a JPEG nor" in skipped[Path(f"{path}:c.jpg")]


def test_a_member_is_not_read_into_its_neighbours(tmp_path):
    """Cut so that the header's walk, and the search of the end mark, would reach the next one."""
    half = STACK.index(b"\xff\xc0") + 4
    path = write_tar(tmp_path / "x.tar", {"a.jpg": STACK[:half], "b.jpg": STACK})
    strips, skipped = tar(path)
    assert len(strips) == 1
    assert "header is damaged" in skipped[Path(f"{path}:a.jpg")]


def test_only_regular_members_that_are_not_hidden_count(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("folder.jpg", tarfile.DIRTYPE),
            ("device.jpg", tarfile.CHRTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        for name in ("../up.jpg", "._a.jpg", "b/.jpg", "a.jpg", "a.seg.png"):
            member = tarfile.TarInfo(name)
            member.size = len(STACK)
            archive.addfile(member, io.BytesIO(STACK))
    assert list(labels(path)) == ["../up.jpg", "a.jpg"]
    write_index(path)
    assert list(labels(path)) == ["../up.jpg", "a.jpg"]
    assert sorted(os.listdir(tmp_path)) == ["x.idx", "x.tar"]


def test_later_member_of_one_name_counts(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": STACK, "b.jpg": STACK})
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.size = len(ROW)
        archive.addfile(member, io.BytesIO(ROW))
    strips, _ = tar(path)
    assert [strip.length for strip in strips] == [3, 4]


def test_sparse_members_are_left_out(tmp_path):
    hole = write(tmp_path / "a.jpg")
    os.truncate(hole, 2**20)
    write(tmp_path / "b.jpg", STACK)
    for format in ("gnu", "posix"):
        subprocess.run(
            ["tar", "-cSf", "x.tar", f"--format={format}", "a.jpg", "b.jpg"],
            cwd=tmp_path,
            check=True,
        )
        strips, skipped = tar(tmp_path / "x.tar")
        assert [strip.source.name for strip in strips] == ["x.tar:b.jpg"]
        assert "sparse" in skipped[Path(f"{tmp_path}/x.tar:a.jpg")]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_compressed_shard(tmp_path, suffix):
    with tarfile.open(tmp_path / "x.tar", f"w:{suffix}") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    assert "unpack it" in tar(tmp_path / "x.tar")[1][tmp_path / "x.tar"]


@pytest.mark.parametrize("content", [b"", b"not a tar" * 1000, b"short"])
def test_no_tar_at_all(tmp_path, content):
    path = write(tmp_path / "x.tar", content)
    strips, skipped = tar(path)
    assert not strips
    assert "damaged, or cut off, after 0 members" in skipped[path]


def test_shard_without_strips_or_gone(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.txt": b""})
    assert "no .jpg" in tar(path)[1][path]
    assert "No such file" in tar(tmp_path / "gone.tar")[1][tmp_path / "gone.tar"]


@pytest.mark.parametrize(
    ("cut", "whole"),
    [(1024, 1), (1024 + 100, 1), (1024 + 512 + 9, 1), (2048, 2), (100, 0)],
    ids=["at a member", "in a header", "in data", "before the end mark", "at once"],
)
def test_whole_members_of_a_shard_that_is_cut_off_are_used(tmp_path, cut, whole):
    small = image(8, 8, "L", kind="PNG")
    assert len(small) < 512
    path = write_tar(tmp_path / "x.tar", {"a.png": small, "b.png": small})
    os.truncate(path, cut)
    strips, skipped = tar(path)
    assert len(strips) == whole
    assert f"cut off, after {whole} members" in skipped[path]


def test_index_of_a_shard_that_is_cut_off_is_ignored(tmp_path, caplog):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": STACK, "b.jpg": STACK})
    write_index(path)
    os.truncate(path, path.read_bytes().rindex(STACK) + len(STACK) - 1)
    strips, skipped = tar(path)
    assert len(strips) == 1
    assert "cut off, after 1 members" in skipped[path]
    assert "x.idx: ignored" in caplog.text


def test_damage_between_members_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": STACK, "b.jpg": STACK})
    content = bytearray(path.read_bytes())
    content[content.index(b"b.jpg")] ^= 1
    strips, skipped = tar(write(path, bytes(content)))
    assert len(strips) == 1
    assert "after 1 members" in skipped[path]


def checksummed(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def test_name_of_gigabytes_is_not_read(tmp_path):
    """The file really is that long, so that only the limit stands before the memory."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**33
    path = write(tmp_path / "x.tar", header.tobuf(tarfile.GNU_FORMAT))
    os.truncate(path, 2**34)
    tracemalloc.start()
    assert "out of range" in tar(path)[1][path]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_endless_chain_of_headers_ends(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    path = write(tmp_path / "x.tar", (header.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 2000)
    assert "out of range" in tar(path)[1][path]


def test_negative_size_does_not_lead_round_in_a_circle(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": STACK, "b.jpg": STACK})
    content = bytearray(path.read_bytes())
    at = content.index(b"b.jpg")
    content[at + 124 : at + 136] = (-at - 512).to_bytes(12, "big", signed=True)
    content[at : at + 512] = checksummed(bytes(content[at : at + 512]))
    strips, skipped = tar(write(path, bytes(content)))
    assert len(strips) == 1
    assert "out of range" in skipped[path]


def edit(old: str, new: str):
    return lambda text: text.replace(old, new, 1)


SPOILED = {
    "another count": edit("v1.2 3", "v1.2 4"),
    "older version": edit("v1.2", "v1.1"),
    "newer version": edit("v1.2", "v1.3"),
    "empty": lambda text: "",
    "a field less": edit(" a/1.jpg", ""),
    "a field more": lambda text: text.rstrip() + " jpg\n",
    "no number": edit("512 ", "5l2 "),
    "negative offset": edit(" 512 ", " -512 "),
    "offset zero": edit(" 512 ", " 0 "),
    "offset in a member": edit(" 512 ", " 1024 "),
    "last offset": lambda text: re.sub(r" (\d+)( \d+ b.json)", " 7168\\2", text),
    "offset beyond the end": edit(" 512 ", f" {2**70} "),
    "another size": edit(f" {len(STACK)} ", f" {len(STACK) + 1} "),
    "size beyond the end": edit(f" {len(STACK)} ", f" {2**70} "),
    "negative size": edit(f" {len(STACK)} ", " -1 "),
    "last sample left out": lambda text: "\n".join(
        text.replace("v1.2 3", "v1.2 2").split("\n")[:3]
    ),
    "middle sample left out": lambda text: "".join(
        text.replace("v1.2 3", "v1.2 2").splitlines(keepends=True)[k] for k in (0, 1, 3)
    ),
    "out of order": lambda text: "\n".join(
        line for line in (text.split("\n")[0], *reversed(text.rstrip().split("\n")[1:]))
    ),
    "long": lambda text: text + "\n" * 2**20,
}


@pytest.mark.parametrize("case", SPOILED)
def test_index_that_does_not_fit_is_ignored_with_a_warning(tmp_path, case, caplog):
    path = write_tar(tmp_path / "x.tar", MEMBERS)
    index = write_index(path)
    index.write_text(SPOILED[case](index.read_text()))
    assert list(labels(path).values()) == ["7", None, "walk"]
    assert "x.idx: ignored" in caplog.text


def test_index_of_another_shard_is_ignored(tmp_path, caplog):
    path = write_tar(tmp_path / "x.tar", MEMBERS)
    write_index(path)
    write_tar(path, {"b.jpg": ROW, **MEMBERS})
    assert len(labels(path)) == 4
    assert "the next member is not a/1.jpg of" in caplog.text


def test_index_with_other_names_is_ignored(tmp_path, caplog):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": STACK, "a.cls": b"1", "b.jpg": STACK})
    write_index(path)
    write_tar(path, {"a.jpg": STACK, "b.cls": b"1", "b.jpg": STACK})
    assert labels(path) == {"a.jpg": None, "b.jpg": "1"}
    assert "the next member is not a.cls of" in caplog.text


def test_index_does_not_lead_past_the_end(tmp_path, caplog):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": STACK})
    index = write_index(path)
    index.write_text(index.read_text().rstrip() + f" png {2**60} 5 a.png\n")
    os.truncate(path, 512 * 3)  # no end mark
    assert len(tar(path)[0]) == 1
    assert "the next member is not a.png" in caplog.text


def test_index_does_not_lead_back_from_a_folder_of_negative_size(tmp_path, caplog):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("b.jpg"))
        for name in ("c", "d"):
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        member = tarfile.TarInfo("a.jpg")
        member.size = len(STACK)
        archive.addfile(member, io.BytesIO(STACK))
    write_index(path)
    content = path.read_bytes()
    folder = checksummed(content[1024:1148] + b"-0000001000\0" + content[1160:1536])
    write(path, content[:1024] + folder + content[1536:])
    assert [strip.source.name for strip in tar(path)[0]] == ["x.tar:a.jpg"]


def test_index_to_a_link_is_ignored(tmp_path, caplog):
    path = write_tar(tmp_path / "x.tar", MEMBERS)
    write_index(path)
    content = path.read_bytes()
    path.write_bytes(checksummed(content[:156] + b"2" + content[157:512]) + content[512:])
    assert len(tar(path)[0]) < 3
    assert "the next member is not a/1.jpg of" in caplog.text


def test_mutated_shards_give_strips_or_reasons(tmp_path):
    first = write_tar(tmp_path / "x.tar", MEMBERS, tarfile.PAX_FORMAT)
    index = write_index(first)
    second = write_tar(tmp_path / "y.tar", {"n" * 150 + ".jpg": STACK, **MEMBERS})
    tracemalloc.start()
    whole = 0
    for path, content in ((first, first.read_bytes()), (second, second.read_bytes())):
        for mutated in mutations(content, 150, 0):
            strips, skipped = tar(write(path, mutated))
            assert strips or skipped
            whole += not skipped
            assert all("\n" not in reason for reason in skipped.values())
            for strip in strips:
                assert len(strip.read()) == strip.size
        path.write_bytes(content)
    for mutated in mutations(index.read_bytes(), 100, 1):
        index.write_bytes(mutated)
        tar(first)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert 0 < whole < 300


CLIPS = np.random.default_rng(0).integers(0, 256, (3, 4, 9, 8, 3), dtype=np.uint8)


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_clips_of_an_array(tmp_path):
    path = saved(tmp_path / "x.npy", CLIPS)
    clips, skipped = npy(path, "walk")
    assert not skipped
    assert [str(clip.source) for clip in clips] == [f"{path}:{k}" for k in range(3)]
    assert {(clip.shape, clip.label, clip.rate) for clip in clips} == {((4, 9, 8, 3), "walk", None)}
    for clip, right in zip(clips, CLIPS, strict=True):
        np.testing.assert_array_equal(clip.read(1, 2), right[1:3])


def test_array_of_one_video(tmp_path):
    path = saved(tmp_path / "x.npy", CLIPS[1])
    (video,), _ = npy(path)
    assert video.source == path
    np.testing.assert_array_equal(video.read(0, 4), CLIPS[1])


def test_array_of_the_second_header_version(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(file, CLIPS, version=(2, 0))
    clips, _ = npy(tmp_path / "x.npy")
    np.testing.assert_array_equal(clips[2].read(0, 4), CLIPS[2])


WHOLE = io.BytesIO()
np.save(WHOLE, CLIPS)
BAD_ARRAYS = {
    "floats": (CLIPS.astype(np.float32), r"float32 of shape (3, 4, 9, 8, 3); save it as uint8"),
    "signed": (CLIPS.astype(np.int8), "int8 of shape"),
    "three axes": (CLIPS[0, 0], "uint8 of shape (9, 8, 3); save it as"),
    "six axes": (CLIPS[None], "save it as"),
    "grey": (CLIPS[..., :1], "save it as"),
    "number": (np.array(np.uint8(3)), "save it as"),
    "objects": (np.array([{}], object), "save it as"),
    "channels first": (CLIPS.transpose(0, 1, 4, 2, 3), "save it as"),
    "no clips": (CLIPS[:0], "holds no frames"),
    "no frames": (CLIPS[:, :0], "holds no frames"),
    "small": (CLIPS[:, :, :, :7], "under 8 pixels"),
    "low": (CLIPS[:, :, :7], "under 8 pixels"),
    "fortran": (np.asfortranarray(CLIPS), "in Fortran order; save it"),
    "cut off": (WHOLE.getvalue()[:-1], "cut off: shape"),
    "cut in header": (WHOLE.getvalue()[:50], "header is damaged"),
    "empty": (b"", "header is damaged"),
    "no array": (b"x" * 500, "not a .npy array"),
    "version 3": (WHOLE.getvalue().replace(b"NUMPY\1", b"NUMPY\3"), "header is damaged ((3, 0))"),
    "deep header": (b"\x93NUMPY\1\0" + b"\x90\x26" + b"(" * 9872, "header is damaged"),
    "long header": (b"\x93NUMPY\2\0" + b"\xff\xff\xff\xff" + b" " * 2**20, "header is damaged"),
    "negative": (WHOLE.getvalue().replace(b"(3, 4,", b"(-3,4,"), "holds no frames"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_array_is_named_with_its_reason(tmp_path, case):
    content, reason = BAD_ARRAYS[case]
    path = tmp_path / "x.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    clips, skipped = npy(path)
    assert not clips
    assert reason in skipped[path]
    assert "\n" not in skipped[path]


def test_array_that_is_gone(tmp_path):
    assert "No such file" in npy(tmp_path / "x.npy")[1][tmp_path / "x.npy"]


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.save(tmp_path / "x.npy", np.array([Trap()], object), allow_pickle=True)
    assert not npy(tmp_path / "x.npy")[0]
    assert not (tmp_path / "sprung").exists()


def test_header_of_gigabytes_is_not_read(tmp_path):
    path = write(tmp_path / "x.npy", b"\x93NUMPY\2\0\xff\xff\xff\x7f")
    os.truncate(path, 2**32)
    tracemalloc.start()
    assert not npy(path)[0]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_claimed_clips_cost_no_memory(tmp_path):
    """Millions of clips are believed only of a file that has their bytes."""
    with open(tmp_path / "x.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 4, 9, 8, 3)}
        )
    tracemalloc.start()
    assert "cut off" in npy(tmp_path / "x.npy")[1][tmp_path / "x.npy"]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_mutated_arrays_give_clips_or_a_reason(tmp_path):
    path = tmp_path / "x.npy"
    whole = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mutated in mutations(WHOLE.getvalue()[:140], 400, 0):
            clips, skipped = npy(write(path, mutated + bytes(CLIPS.nbytes)))
            assert bool(clips) != bool(skipped)
            assert all("\n" not in reason for reason in skipped.values())
            for clip in clips:
                assert clip.read(0, clip.length).shape == clip.shape
            whole += bool(clips)
    assert 0 < whole < 400
