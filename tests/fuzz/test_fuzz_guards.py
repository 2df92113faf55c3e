"""One case for each thing that a file of somebody else could otherwise do."""

import io
import json
import os
import pickle
import sqlite3
import struct
import zipfile
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from benchmarks import parsers
from vgan_fast import checkpoint as checkpoints
from vgan_fast.cli import Program
from vgan_fast.errors import UserError
from vgan_fast.evaluation.result import Result
from vgan_fast.foreign import MalformedError, parse_json, read_bytes, read_json
from vgan_fast.loaders.cache import read_entry
from vgan_fast.loaders.decoders import upright_image
from vgan_fast.loaders.preparation import run as preparing
from vgan_fast.loaders.preparation.assembly import Assembly, Packing, Video
from vgan_fast.loaders.preparation.outcome import read_manifest
from vgan_fast.loaders.preparation.stabilise import Cutting
from vgan_fast.loaders.preparation.video import Recipe, read_record, write_record
from vgan_fast.loaders.search import Source, find_sources
from vgan_fast.loaders.shards import open_npy, open_tar
from vgan_fast.loaders.strips import BrokenStripError, decode_strip, measure_strips
from vgan_fast.settings import Settings
from vgan_fast.stgconvnet.layers import parse_layers
from vgan_fast.study import store
from vgan_fast.study.server import Access, create_app
from vgan_fast.study.store import Study

FOLDER = "step-00000012"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# JSON.


def test_json_of_another_type_or_depth_or_size_is_malformed(tmp_path):
    for content, reason in (
        (b"[" * 10**5, "nested too deep"),
        (b"\xff\xfe[\0]\0", "no text"),
        (b'{"\\ud800": 1}', "no text"),
        (b'{"trials": "x"}', r"Expected `int`, got `str` - at `\$\.trials`"),
        (b"1" * 5000, "limit"),
    ):
        with pytest.raises(MalformedError, match=reason):
            parse_json(content, store.Options)
    (tmp_path / "x").write_bytes(b"[]" + b" " * 100)
    assert read_json(tmp_path / "x", list, 102) == []
    with pytest.raises(MalformedError, match="102 bytes: over 101"):
        read_bytes(tmp_path / "x", 101)


def test_what_may_be_read_is_not_taken_from_memory_before(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    assert read_bytes(tmp_path / "x", 1 << 60) == b"1"


def test_a_result_without_rows_is_none(tmp_path):
    [files] = parsers._results()
    result = json.loads(files["x.json"])
    (tmp_path / "x.json").write_text(json.dumps(result | {"rows": []}))
    with pytest.raises(UserError, match="is no result"):
        Result.load(tmp_path / "x.json")


# Checkpoints.


def checkpoint(folder: Path, **changes: bytes) -> Path:
    """A checkpoint with other files and the right hashes."""
    files = parsers._whole_checkpoint()
    files = files | {f"{FOLDER}/{name.replace('_', '.')}": of for name, of in changes.items()}
    return write(folder, parsers._hashed(files)) / FOLDER


def test_settings_of_absurd_networks_are_refused_before_they_are_built(tmp_path):
    whole = json.loads(parsers._whole_checkpoint()[f"{FOLDER}/settings.json"])
    assert checkpoints.find_checkpoint(checkpoint(tmp_path / "good")).is_dir()
    wide = json.dumps(whole | {"width": 1024, "size": 1024, "frames": 1024}).encode()
    with pytest.raises(UserError, match=r"settings\.json: describes networks of 2048\.0 GiB"):
        checkpoints.find_checkpoint(checkpoint(tmp_path / "wide", settings_json=wide))
    layers = {"model": "stgconvnet", "mask_penalty": 0.0, "width": 64, "latent": 100}
    layers |= {"frames": 4000, "size": 4000, "layers": "4096@9 4096@400", "backend": "auto"}
    energy = json.dumps(whole | layers).encode()
    with pytest.raises(UserError, match=r"settings\.json: describes networks of"):
        checkpoints.find_checkpoint(checkpoint(tmp_path / "energy", settings_json=energy))


@pytest.mark.parametrize(
    "change",
    [{"steps": "9"}, {"graph": []}, {"layers": 3}, {"fps": "x"}, {"lr": True}, {"x": 1}],
)
def test_settings_of_another_type_are_refused(tmp_path, change):
    [files, _] = parsers._settings()
    whole = json.loads(files["settings.json"])
    (tmp_path / "settings.json").write_text(json.dumps(whole | change))
    with pytest.raises(UserError, match=r"settings\.json: (cannot be read|does not hold)"):
        Settings.load(tmp_path / "settings.json")


def state_of(pickled: bytes, compression: int = zipfile.ZIP_STORED, **others: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for name, content in others.items():
            archive.writestr(f"archive/data/{name}", content)
    return file.getvalue()


class _Bytes:
    def __reduce__(self):
        return bytearray, (100,)


class _Code:
    def __reduce__(self):
        return os.system, ("exit 1",)


def saved(value) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_a_state_is_no_more_than_its_bytes(tmp_path):
    plain = {"step": 1, "x": {"y": [1, 2.5, "z", None]}}
    stretched = torch.zeros(1).expand(10**12)
    legacy = io.BytesIO()
    torch.save(plain, legacy, _use_new_zipfile_serialization=False)
    cases = {
        "compressed": state_of(pickle.dumps(plain, 2), zipfile.ZIP_DEFLATED),
        "builtin": state_of(pickle.dumps({"step": 1, "x": _Bytes()}, 2)),
        "STACK_GLOBAL": state_of(pickle.dumps({"step": 1, "x": _Bytes()}, 4)),
        "system": state_of(pickle.dumps({"step": 1, "x": _Code()}, 2)),
        "larger than what is stored": saved({"step": 1, "x": [stretched]}),
        "zip": legacy.getvalue(),
        "no step": saved({"x": 1}),
    }
    (tmp_path / "state.pt").write_bytes(state_of(pickle.dumps(plain, 2)))
    assert checkpoints.load_state(tmp_path) == plain
    for reason, content in cases.items():
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(UserError, match=rf"state\.pt: is not the state of a run \(.*{reason}"):
            checkpoints.load_state(tmp_path)


def test_parts_of_a_state_do_not_overlap(tmp_path):
    """As in a bomb, where all of them are the same bytes."""
    content = state_of(pickle.dumps({"step": 1}, 2), a=bytes(5000))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entry = archive.getinfo("archive/data/a")
        directory = content[archive.start_dir :]
    entries = directory[: directory.index(b"PK\5\6")]
    place = entries.index(b"archive/data/a") - 46
    one = entries[place : place + 46 + len(entry.filename)]
    end = struct.pack(
        "<4s4H2IH", b"PK\5\6", 0, 0, 103, 103, len(entries) + 99 * len(one), archive.start_dir, 0
    )
    bomb = content[: archive.start_dir] + entries + 99 * one + end
    (tmp_path / "state.pt").write_bytes(bomb)
    with pytest.raises(UserError, match="larger than the file"):
        checkpoints.load_state(tmp_path)


# Arrays, shards and strips.


def array(folder: Path, shape: str, size: int = 0) -> Path:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    file = folder / "x.npy"
    file.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    if size:
        os.truncate(file, size)  # a hole, which takes no room
    return file


@pytest.mark.parametrize(
    ("shape", "size", "reason"),
    [
        (f"(0x{'f' * 5000}, 8, 8, 3)", 0, "its shape cannot be"),
        (f"(1, 8, 8, -0x{'f' * 5000})", 0, "its shape cannot be"),
        ("(1, 20000, 20000, 3)", 1 << 31, "over 67108864 pixels a frame"),
        ("(2000000, 1, 8, 8, 3)", 1 << 30, "2000000 clips: over 1048576"),
    ],
)
def test_arrays_of_absurd_shape_are_refused(tmp_path, shape, size, reason):
    file = array(tmp_path, shape, size)
    clips, skipped = open_npy(Source(file, "npy"))
    assert not clips
    assert reason in skipped[file]


def test_an_entry_of_decoded_frames_that_is_empty_or_an_archive_is_decoded_again(tmp_path):
    source, entry = Source(tmp_path / "x.mp4", "video"), tmp_path / "x.npy"
    (tmp_path / "x.json").write_text('{"rate": 25.0}')
    for content in (b"", b"PK\3\4" + bytes(100), b"PK\5\6" + bytes(18), b"\x80\4}."):
        entry.write_bytes(content)
        assert read_entry(source, entry) is None
    np.save(entry, np.zeros((2, 8, 8, 3), np.uint8))
    assert read_entry(source, entry).length == 2
    for notes in ("[" * 10**5, "{}", '{"rate": "x"}', '{"rate": -1.0}', "\udcff"):
        (tmp_path / "x.json").write_text(notes, errors="surrogateescape")
        assert read_entry(source, entry) is None


def test_an_index_with_a_negative_size_is_not_believed(tmp_path, caplog):
    [files] = parsers._indexed_shards()
    tar = bytearray(files["x.tar"])
    tar[124:136] = b"-0000000001\0"
    write(tmp_path, {"x.tar": bytes(tar), "x.idx": b"v1.2 1\njpg 512 -1 0.jpg\n"})
    open_tar(Source(tmp_path / "x.tar", "tar"))
    assert "the next member is not 0.jpg of -1 bytes" in caplog.text


def test_a_jpeg_of_two_sizes_is_not_decoded(tmp_path, monkeypatch):
    """Its header is measured behind a marker that has no length to a decoder, and one to us."""
    real = simplejpeg.encode_jpeg(np.zeros((64, 16, 3), np.uint8))
    body = real[2:-2]
    small = b"\xff\xc0\0\x11\x08" + struct.pack(">HH", 32, 16) + b"\3\1\x22\0\2\x11\1\3\x11\1"
    # What follows that marker is the next one, 0xFFE0, or a length of as many bytes.
    hidden = (b"\xff\x01" + body + b"\xff\xd9").ljust(2 + 0xFFE0, b"\0")
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8" + hidden + small + b"\xff\xd9")
    [strip], _ = measure_strips([Source(tmp_path / "x.jpg", "strip")])
    assert (strip.length, strip.side) == (2, 16)
    assert simplejpeg.decode_jpeg(strip.read()).shape == (64, 16, 3)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BrokenStripError, match="changed since it was measured"):
        decode_strip(strip, strip.read())


def test_a_png_that_grew_since_it_was_measured_is_not_decoded(tmp_path, monkeypatch):
    [small, *_] = parsers._pngs()
    (tmp_path / "x.png").write_bytes(small["x.png"])
    [strip], _ = measure_strips([Source(tmp_path / "x.png", "strip")])
    large = bytearray(small["x.png"])
    large[16:24] = struct.pack(">II", 8000, 8000)
    large[29:33] = struct.pack(">I", zlib.crc32(large[12:29]))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BrokenStripError, match="changed since it was measured"):
        decode_strip(strip, np.frombuffer(bytes(large), np.uint8))


def test_an_image_is_no_program_whatever_its_name(tmp_path, monkeypatch):
    """PostScript would be handed to Ghostscript."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("Ghostscript runs"))
    lines = ("%!PS-Adobe-3.0 EPSF-3.0", "%%BoundingBox: 0 0 64 16", "%%EndComments", "showpage")
    (tmp_path / "x.png").write_text("\n".join([*lines, ""]))
    with pytest.raises(OSError, match="cannot identify"):
        upright_image(tmp_path / "x.png")


# Names.


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", ".hidden", "..", "a\0b", "a" * 201])
def test_a_class_of_a_list_is_the_name_of_one_folder(tmp_path, name):
    lists = {"classInd.txt": f"1 {name}\n".encode(), "trainlist01.txt": b"a.avi 1\n", "a.avi": b""}
    write(tmp_path, lists)
    with pytest.raises(UserError, match=r"classInd\.txt, line 1"):
        find_sources(tmp_path / "trainlist01.txt", tmp_path / "none")


def test_a_set_is_not_written_through_a_link(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing.engines, "start", lambda *_: pytest.fail("begun"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/.keep-me").mkdir()
    out = tmp_path / "set"
    write(tmp_path, {"videos/a.avi": b""})
    packing = Packing("tar", 5, 0.0, 0.0, 0, (32, 64, 64, 3))
    plan = preparing.plan([tmp_path / "videos"], out, Recipe(Cutting()), packing)
    write(out, {"preparation.json": json.dumps(plan.settings).encode()})
    for name in ("train", ".preparing", "train/surf"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="is a symbolic link"):
            preparing.run(plan, "local", 1)
        (out / name).unlink()
    assert (tmp_path / "elsewhere/.keep-me").is_dir()


RECORD = {
    **{"sha256": "ab" * 32, "bytes": 1, "decoder": "PyAV", "frames": 9, "rate": None},
    "clips": [parsers._TOLD | {"offset": 0, "size": 3}],
    "rejected": [],
}


def test_no_label_leads_a_shard_out_of_its_set(tmp_path):
    out = tmp_path / "set"
    video = Video("a.avi", "../../../elsewhere", out / ".preparing/ab")
    packing = Packing("npy", 5, 0.0, 0.0, 0, (1, 1, 1, 3))
    video.part.parent.mkdir(parents=True)
    write_record(video.part, RECORD)
    video.part.with_suffix(".clips").write_bytes(b"abc")
    with pytest.raises(UserError, match="is not below"):
        Assembly(out, [video], packing).advance()
    assert not list(tmp_path.rglob("*elsewhere*"))
    inside = Video(video.name, "surf", video.part)
    Assembly(out, [inside], packing).advance()
    assert (out / "train/surf/000000.npy").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "../../../../x"},
        {"sha256": "ab" * 32 + "\n"},
        {"clips": [{**RECORD["clips"][0], "size": -1}]},
        {"clips": [{**RECORD["clips"][0], "frames": 1 << 40}]},
        {"rejected": {}},
    ],
)
def test_a_record_of_preparation_is_what_it_claims(tmp_path, change):
    write_record(tmp_path / "x", RECORD)
    assert read_record(tmp_path / "x") == RECORD
    write_record(tmp_path / "x", RECORD | change)
    with pytest.raises(UserError, match=r"x\.json: is damaged"):
        read_record(tmp_path / "x")


@pytest.mark.parametrize(
    "change",
    [
        {"shard": "../../x/000000.tar"},
        {"shard": "train/../000000.tar"},
        {"shard": "/train/000000.tar"},
        {"shard": "train/a/b/000000.tar"},
        {"key": "../x"},
        {"frames": 0},
    ],
)
def test_a_manifest_names_shards_of_its_set_only(tmp_path, change):
    [files] = parsers._manifests()
    line = json.loads(files["manifest.jsonl"].splitlines()[0])
    for shard in (line["shard"], "validation/..x y/000000.npy".replace("..", "")):
        (tmp_path / "manifest.jsonl").write_text(json.dumps(line | {"shard": shard}))
        assert len(list(read_manifest(tmp_path))) == 1
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line | change))
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 1: is damaged"):
        list(read_manifest(tmp_path))


def test_a_message_is_one_line_that_a_terminal_does_not_obey(capsys):
    def fail():
        raise UserError("a\nb\x1b[2J\udcff: é; mend it")

    with pytest.raises(SystemExit):
        Program("x", callback=fail).main([])
    assert capsys.readouterr().err == "error: a\\nb\\x1b[2J\\udcff: é; mend it\n"


def test_a_layer_of_thousands_of_digits_is_no_layer():
    with pytest.raises(UserError, match="is no layer"):
        parse_layers(f"{'9' * 5000}@3", (8, 8, 8))


# The study.


def study(folder: Path, *statements: str) -> Path:
    """A study that somebody changed."""
    (folder / "x.db").write_bytes(parsers._study_file())
    with closing(sqlite3.connect(folder / "x.db", isolation_level=None)) as base:
        base.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            base.execute(statement)
    return folder / "x.db"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON vote BEGIN DELETE FROM vote; END",
        "CREATE VIEW v AS SELECT 1",
        "UPDATE study SET token = ''",
        "UPDATE study SET id = 'a; Domain=x'",
        "UPDATE study SET options = '{}'",
        "UPDATE study SET options = json_set(options, '$.trials', 100000000)",
        "UPDATE study SET options = json_set(options, '$.fps', 0)",
        "INSERT INTO study VALUES ('0123abcd', 'x', '{}')",
        "DELETE FROM study",
        "DELETE FROM condition",
        "DELETE FROM condition WHERE kind = 'foil'",
        "UPDATE condition SET name = 'a | b' WHERE id = 1",
        "UPDATE condition SET name = char(27) || '[2J' WHERE id = 1",
        "UPDATE condition SET kind = 'x' WHERE id = 1",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200)"
        " INSERT INTO condition SELECT 100 + i, 'n' || i, 'real', 'x' FROM n",
    ],
)
def test_a_study_that_is_not_as_it_was_made_is_refused(tmp_path, statement):
    Study(study(tmp_path))
    with pytest.raises(UserError, match=r"x\.db: cannot be read as a study"):
        Study(study(tmp_path, statement))


@pytest.mark.parametrize("change", ["side = 'up'", "at = 'x'", "at = 1e999", "at = -5.0"])
def test_damaged_votes_are_not_counted(tmp_path, change):
    assert len(Study(study(tmp_path)).answers()) == 1
    with pytest.raises(UserError, match="cannot be read as a study"):
        Study(study(tmp_path, f"UPDATE vote SET {change}")).answers()


def strip_of(width: int, height: int, mode: str) -> str:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return file.getvalue().hex()


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE clip SET strip = x'{strip_of(4000, 4000, 'RGB')}'",
        f"UPDATE clip SET strip = x'{strip_of(16, 64, 'RGBA')}'",
        "UPDATE clip SET strip = 'text'",
        "UPDATE trial SET shown = 'never'",
    ],
)
def test_a_damaged_clip_is_told_of_and_nothing_more(tmp_path, statement, monkeypatch):
    app = create_app(Study(study(tmp_path, statement)), Access.through("127.0.0.1"))
    app.logger.disabled = True
    app.config["PROPAGATE_EXCEPTIONS"] = True
    client = app.test_client()
    client.set_cookie(f"rater-{parsers._STUDY}", parsers._SECRET)
    answer = client.get(f"/sheet/{parsers._KEY}")
    assert (answer.status_code, answer.json) == (500, {"error": "the study's file is damaged"})


@pytest.fixture
def rater(tmp_path):
    app = create_app(Study(study(tmp_path)), Access.through("127.0.0.1"))
    app.config["PROPAGATE_EXCEPTIONS"] = True
    client = app.test_client()
    client.set_cookie(f"rater-{parsers._STUDY}", parsers._SECRET)
    return client


@pytest.mark.parametrize(
    ("body", "type", "status"),
    [
        ('{"key": "\\ud800", "side": "left"}', "application/json", 400),
        ("[" * 4000, "application/json", 400),
        ('{"key": 1, "side": "left"}', "application/json", 400),
        ('{"key": "x", "side": "up"}', "application/json", 400),
        ("9" * 4090, "application/json", 400),
        ('{"key": "x", "side": "left"}', "text/plain", 415),
        (" " * 5000, "application/json", 413),
        ('{"key": "x", "side": "left"}', "application/json", 404),
    ],
)
def test_odd_votes_are_refused(rater, body, type, status):
    origin = {"Origin": "http://localhost"}
    assert rater.post("/vote", headers=origin, data=body, content_type=type).status_code == status


def test_an_address_that_is_no_text_is_refused(tmp_path):
    app = create_app(Study(study(tmp_path)), Access.through("0.0.0.0"))
    app.config["PROPAGATE_EXCEPTIONS"] = True
    answer = app.test_client().get("/", environ_overrides={"QUERY_STRING": "token=\xff"})
    assert answer.status_code == 400


def test_a_study_takes_so_many_raters_and_no_more(rater, monkeypatch):
    monkeypatch.setattr(store, "MOST_RATERS", 2)
    answers = []
    for _ in range(3):
        rater.delete_cookie(f"rater-{parsers._STUDY}")
        answers.append(rater.post("/begin", headers={"Origin": "http://localhost"}).status_code)
    assert answers == [200, 403, 403]


def test_the_server_itself_takes_no_large_request(tmp_path, monkeypatch):
    import waitress

    from vgan_fast.study import server

    taken = {}

    def create_server(app, **options):
        taken.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(waitress, "create_server", create_server)
    with pytest.raises(KeyboardInterrupt):
        server.serve(Study(study(tmp_path)), "127.0.0.1", 0)
    assert taken["max_request_body_size"] == server.BODY < 2**16
    assert taken["max_request_header_size"] == server.HEADER < 2**16
