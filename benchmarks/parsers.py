"""Everything of vgan_fast that reads bytes of somebody else, with valid inputs to begin from.

A parser gets folders that hold one input each, and says of each whether it was accepted. What it
raises instead must be `UserError`: anything else is a defect.
"""

import contextlib
import functools
import hashlib
import io
import json
import re
import sqlite3
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.parse import unquote_to_bytes

import numpy as np
import simplejpeg
import torch
from PIL import Image
from safetensors.torch import save as safetensors_of

from benchmarks.mutations import Files, mutated
from vgan_fast import checkpoint as checkpoints
from vgan_fast.errors import UserError
from vgan_fast.evaluation.report import as_tables
from vgan_fast.evaluation.result import Number, Preference, Protocol, Result, Row
from vgan_fast.interchange import layout
from vgan_fast.interchange.torch7 import TorchObject, read_torch7
from vgan_fast.interchange.torch7_networks import import_torch7
from vgan_fast.loaders.cache import decode_videos, read_entry
from vgan_fast.loaders.preparation.outcome import read_outcome
from vgan_fast.loaders.preparation.scenes import read_labels
from vgan_fast.loaders.preparation.video import read_record
from vgan_fast.loaders.search import Source, find_sources
from vgan_fast.loaders.shards import open_npy, open_tar
from vgan_fast.loaders.strips import BrokenStripError, Strip, decode_strip, measure_strips
from vgan_fast.networks import build_generator
from vgan_fast.restoration.occlusions import read_mask
from vgan_fast.settings import Settings
from vgan_fast.shape import ClipShape
from vgan_fast.stgconvnet.layers import EXPERIMENTS, parse_layers, parse_rates
from vgan_fast.study.analysis import as_markdown
from vgan_fast.study.clips import Condition
from vgan_fast.study.server import Access, create_app
from vgan_fast.study.store import Options, Study, create

SIDE, FRAMES = 16, 4  # of the seeds' frames
_LONGEST = 2000  # characters of a message, that may name files
_ROWS = ("study", "condition", "rater", "trial", "vote")
_SECRET, _TOKEN, _KEY, _STUDY = "s" * 22, "t" * 22, "k" * 22, "0123abcd"


@dataclass(frozen=True)
class Parser:
    """One thing that is parsed.

    Attributes:
        name: of it, in a word or two.
        seeds: valid inputs.
        parse: of the folder of one input, whether it is accepted.
        parse_many: of several folders at once, in place of `parse`: what starts a process.
        repair: makes checksums right again after a change, so that what lies behind is reached.
    """

    name: str
    seeds: Callable[[], list[Files]]
    parse: Callable[[Path], bool] | None = None
    parse_many: Callable[[list[Path]], list[bool]] | None = None
    repair: Callable[[Files], Files] | None = None

    def input(self, random: Random) -> Files:
        """Draw an input."""
        files = mutated(self.made, random)
        if self.repair is not None and random.randrange(4):
            files = self.repair(files)
        return files

    @functools.cached_property
    def made(self) -> list[Files]:
        """The seeds, made once."""
        return self.seeds()

    def outcomes(self, inputs: list[Files], scratch: Path) -> list[bool]:
        """Whether each input is accepted.

        Raises:
            Exception: any but `UserError`: the defect that is looked for.
        """
        folders = []
        for number, files in enumerate(inputs):
            folders.append(scratch / str(number))
            for name, content in files.items():
                path = folders[-1] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        if self.parse_many is not None:
            return self.parse_many(folders)
        accepted = []
        for folder in folders:
            try:
                accepted.append(self.parse(folder))
            except UserError as error:
                if not 0 < len(str(error)) < _LONGEST:
                    raise AssertionError(f"nothing, or too much, is said: {error!r}") from error
                accepted.append(False)
        return accepted


# Clips and their encodings.


def _clip(frames: int = FRAMES) -> np.ndarray:
    """Frames uint8 (T, SIDE, SIDE, 3)."""
    return np.random.default_rng(0).integers(0, 256, (frames, SIDE, SIDE, 3), dtype=np.uint8)


def _jpeg() -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(_clip().reshape(-1, SIDE, 3)))


def _image(format: str, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_clip().reshape(-1, SIDE, 3)).convert(mode).save(file, format, **options)
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _tar(members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue().rstrip(b"\0") + bytes(1024 + 512)


def _video(codec: str, suffix: str) -> bytes:
    import av

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{suffix}")
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height = stream.width = 48
            stream.pix_fmt = "yuv420p"
            for pixels in _clip(8).repeat(3, axis=1).repeat(3, axis=2):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path.read_bytes()


def png_repaired(content: bytes) -> bytes:
    """A PNG with the right checksum after each of its chunks, as far as they can be told."""
    if not content.startswith(b"\x89PNG"):
        return content
    changed, place = bytearray(content), 8
    while place + 12 <= len(changed):
        length = int.from_bytes(changed[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(changed):
            break
        changed[end : end + 4] = zlib.crc32(changed[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(changed)


def tar_repaired(content: bytes) -> bytes:
    """A tar with the right checksum in whatever block looks like a header."""
    changed = bytearray(content)
    for place in range(0, len(changed) - 511, 512):
        block = changed[place : place + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            changed[place + 148 : place + 156] = b"%06o\0 " % sum(block)
    return bytes(changed)


# Lists and folders.

_LISTED = {"a.mp4": b"", "b.mp4": b"", "sub/c d.avi": b"", "sub/e 7.png": b"", "f/1.png": b""}


def _lists() -> list[Files]:
    still = io.BytesIO()
    Image.fromarray(_clip(1)[0]).save(still, "PNG")
    frames = {"f/1.png": still.getvalue(), "f/2.png": still.getvalue()}
    return [
        {**_LISTED, "list": b"a.mp4\nb.mp4\n"},
        {**_LISTED, **frames, "list": b"# clips\na.mp4 0\nsub/c d.avi 12\r\n\n./b.mp4 0\nf 3\n"},
        {**_LISTED, "list": "\ufeffsub/../sub/e 7.png\nf/1.png\n".encode()},
    ]


def _read_list(folder: Path) -> bool:
    return bool(find_sources(folder / "list", folder / "decoded").sources)


def _ucf101() -> list[Files]:
    videos = {f"UCF-101/{name}/v_{name}_g01.avi": b"" for name in ("Swing", "YoYo")}
    lines = b"".join(f"{name[8:]} {k}\n".encode() for k, name in enumerate(videos, start=1))
    index = b"1 Swing\n2 YoYo\n"
    return [
        {**videos, "trainlist01.txt": lines, "classInd.txt": index},
        {**videos, "trainlist01.txt": re.sub(rb" \d", b"", lines), "classInd.txt": index},
    ]


def _read_ucf101(folder: Path) -> bool:
    found = find_sources(folder / "trainlist01.txt", folder / "decoded")
    for source in found.sources:
        label = source.label or ""
        if "/" in label or label.startswith(".") or not label.isprintable() or len(label) > 200:
            raise AssertionError(f"a class named {label!r}")
    return True


# Strips, arrays and shards.


def _strip(folder: Path) -> bool:
    [file] = folder.iterdir()
    strips, _ = measure_strips([Source(file, "strip")])
    return all(map(_decodes, strips)) and bool(strips)


def _decodes(strip: Strip) -> bool:
    try:
        frames = decode_strip(strip, strip.read())
    except BrokenStripError:
        return False
    return frames.shape == (strip.length, strip.side, strip.side, 3)


def _jpegs() -> list[Files]:
    progressive = _image("JPEG", progressive=True)
    grey = _image("JPEG", mode="L")
    return [{"x.jpg": each} for each in (_jpeg(), progressive, grey)]


def _pngs() -> list[Files]:
    modes = ("RGB", "RGBA", "P", "L", "I;16", "1")
    return [{"x.png": _image("PNG", mode)} for mode in modes]


def _arrays() -> list[Files]:
    five = _npy(np.stack([_clip(), _clip()]))
    second = io.BytesIO()
    np.lib.format.write_array(second, _clip(), version=(2, 0))
    return [{"x.npy": each} for each in (five, _npy(_clip()), second.getvalue())]


def _array(folder: Path) -> bool:
    clips, skipped = open_npy(Source(folder / "x.npy", "npy"))
    for clip in clips:
        clip.read(clip.length - 1, 1)
    return not skipped


def _shards() -> list[Files]:
    members = {
        "a/0.jpg": _jpeg(),
        "a/0.cls": b"3",
        "1.png": _image("PNG"),
        "1.json": b'{"label": "surf", "key": "1"}',
    }
    long = {f"{'n' * 120}.jpg": _jpeg(), f"{'n' * 120}.cls": b"7\n"}
    formats = tarfile.GNU_FORMAT, tarfile.PAX_FORMAT
    whole = [_tar(members), *(_tar({**members, **long}, each) for each in formats)]
    return [{"x.tar": each} for each in whole]


def _indexed_shards() -> list[Files]:
    content = _tar({"0.jpg": _jpeg(), "0.cls": b"3", "1.jpg": _jpeg(), "1.json": b'{"label": 5}'})
    lines = []
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = [(m.name, m.offset_data, m.size) for m in archive]
    for pair in zip(found[::2], found[1::2], strict=True):
        fields = (f"{n.rpartition('.')[2]} {start} {size} {n}" for n, start, size in pair)
        lines.append(" ".join(fields))
    index = "\n".join([f"v1.2 {len(lines)}", *lines, ""]).encode()
    return [{"x.tar": content, "x.idx": index}]


def _shard(folder: Path) -> bool:
    strips, skipped = open_tar(Source(folder / "x.tar", "tar"))
    for strip in strips:
        _decodes(strip)
    return not skipped


def _tar_files(files: Files) -> Files:
    return {**files, "x.tar": tar_repaired(files["x.tar"])}


def _png_files(files: Files) -> Files:
    return {name: png_repaired(content) for name, content in files.items()}


# What preparation writes and reads back.

_TOLD = {
    **{"start": 2, "frames": 32, "frame_size": [128, 170], "crop": [21, 0, 128]},
    **{"transforms": [[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]], "motion": 1.5, "registration_error": 0.2},
    **{"error_before": 8.0, "error_after": 4.0, "sha256": "ab" * 32},
}


def _manifests() -> list[Files]:
    place = {
        **{"shard": "train/000000.tar", "position": 0, "key": f"{'ab' * 8}_0000002"},
        **{"source": "a.mp4", "source_sha256": "ab" * 32, "rate": 25.0},
    }
    clips = [place | _TOLD, place | _TOLD | {"source": "b.mp4", "label": "surf"}]
    rejected = [
        {"source": "a.mp4", "start": 0, "frames": 2, "reason": "scene", "detail": "beach"},
        {"source": "c.mp4", "reason": "it cannot be decoded", "detail": "PyAV: no"},
    ]
    lines = (b"".join(json.dumps(each).encode() + b"\n" for each in of) for of in (clips, rejected))
    return [dict(zip(("manifest.jsonl", "rejected.jsonl"), lines, strict=True))]


def _manifest(folder: Path) -> bool:
    outcome = read_outcome(folder)
    _ = outcome.failed, outcome.total.ratio, outcome.total.mean_motion
    return True


def _records() -> list[Files]:
    whole = {
        **{"sha256": "ab" * 32, "bytes": 100, "decoder": "PyAV", "frames": 40, "rate": 25.0},
        "clips": [_TOLD | {"offset": 0, "size": 100}],
        "rejected": [{"start": 0, "frames": 2, "reason": "first frames", "detail": ""}],
    }
    return [{"x.json": json.dumps(each).encode()} for each in (whole, {"failed": "PyAV: no"})]


def _record(folder: Path) -> bool:
    return read_record(folder / "x") is not None


def _scene_labels() -> list[Files]:
    return [
        {"x.txt": b"/a/airfield 0\n/b/beach_house 1\n"},
        {"x.txt": "\ufeffbeach\ntrain station\n".encode()},
    ]


def _read_labels(folder: Path) -> bool:
    return bool(read_labels(folder / "x.txt"))


# Decoded frames, and what is decoded in processes of its own.


def _entries() -> list[Files]:
    return [
        {"x.npy": _npy(_clip()), "x.json": b'{"rate": 25.0}'},
        {"x.npy": _npy(_clip(1)), "x.json": b'{"rate": null}'},
    ]


def _entry(folder: Path) -> bool:
    frames = read_entry(Source(folder / "x.mp4", "video"), folder / "x.npy")
    if frames is None:
        return False
    frames.read(frames.length - 1, 1)
    return True


def _videos() -> list[Files]:
    kinds = (("mpeg4", ".avi"), ("libvpx", ".webm"), ("libx264", ".mp4"), ("mpeg4", ".mkv"))
    return [{f"x{suffix}": _video(codec, suffix)} for codec, suffix in kinds]


def _decoded(folders: list[Path]) -> list[bool]:
    return _decoded_as([Source(next(folder.iterdir()), "video") for folder in folders])


def _images_decoded(folders: list[Path]) -> list[bool]:
    return _decoded_as([Source(folder, "images") for folder in folders])


def _decoded_as(sources: list[Source]) -> list[bool]:
    with tempfile.TemporaryDirectory() as cache:
        found, skipped = decode_videos(
            sources,
            Path(cache),
            short_side=32,
            fps=None,
            workers=1,
            limit=lambda size: 10,
            memory=1 << 30,
        )
        for frames in found:
            frames.read(0, 1)
        if len({frames.source for frames in found} | skipped.keys()) != len(sources):
            raise AssertionError("a source has neither frames nor a reason")
        return [source.path not in skipped for source in sources]


def _images() -> list[Files]:
    formats = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
    return [{f"x.{each.lower()}": _image(each)} for each in formats]


def _mask(folder: Path) -> bool:
    [file] = folder.iterdir()
    shape, filmed = (FRAMES, SIDE, SIDE), (FRAMES * SIDE, SIDE)
    mask = read_mask(file, shape=shape, filmed=filmed, start=0)
    return mask.shape == shape


# Checkpoints.

_SETTINGS = Settings(frames=4, size=8, width=2, latent=3, batch_size=2, backend="reference")


@functools.cache
def _whole_checkpoint() -> Files:
    network = build_generator(_SETTINGS)
    adam = torch.optim.Adam(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    adam.step()
    state = {
        "task": {"optimiser": adam.state_dict(), "random": torch.get_rng_state()[:64]},
        "position": 12,
        "data": "synthetic",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoints.save_checkpoint(
            Path(folder), 12, {"generator": network}, state, _SETTINGS
        )
        return {f"step-00000012/{file.name}": file.read_bytes() for file in path.iterdir()}


def _checkpoints() -> list[Files]:
    return [_whole_checkpoint()]


def _checkpoint(folder: Path) -> bool:
    path = checkpoints.find_checkpoint(folder / "step-00000012")
    settings = Settings.load(path / checkpoints.SETTINGS)
    network = build_generator(settings)
    checkpoints.load_weights(path, {"generator": network})
    checkpoints.load_state(path)
    return True


def _hashed(files: Files) -> Files:
    """With the right hash of every file, as somebody who means harm would give."""
    names = checkpoints.WEIGHTS, checkpoints.STATE, checkpoints.SETTINGS
    there = {name: files.get(f"step-00000012/{name}") for name in names}
    hashes = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in there.items()
        if content is not None
    }
    content = json.dumps(hashes, indent=2).encode() + b"\n"
    return {**files, f"step-00000012/{checkpoints.HASHES}": content}


def _file_of_checkpoint(name: str) -> list[Files]:
    return [{name: _whole_checkpoint()[f"step-00000012/{name}"]}]


def _weights() -> list[Files]:
    other = {"generator.x": torch.arange(6.0).reshape(2, 3), "y": torch.ones(2, dtype=torch.int8)}
    name = checkpoints.WEIGHTS
    return [*_file_of_checkpoint(name), {name: safetensors_of(other)}]


def _weights_apart() -> list[Files]:
    content = _whole_checkpoint()[f"step-00000012/{checkpoints.WEIGHTS}"]
    end = 8 + int.from_bytes(content[:8], "little")
    return [{"header": content[8:end].rstrip(), "data": content[end:]}]


def _load_weights_joined(folder: Path) -> bool:
    header = (folder / "header").read_bytes()
    header += b" " * (-len(header) % 8)
    length = len(header).to_bytes(8, "little")
    (folder / checkpoints.WEIGHTS).write_bytes(length + header + (folder / "data").read_bytes())
    return _load_weights(folder)


def _load_weights(folder: Path) -> bool:
    checkpoints.load_weights(folder, {"generator": build_generator(_SETTINGS)})
    return True


def _published() -> list[Files]:
    shape = {"frames": 8, "size": 16, "width": 8, "latent": 8}
    made = []
    for name, more in (("TwoStreamGenerator", {"mask_bias": -1.0}), ("Discriminator", {})):
        description = {"network": name, "shape": shape, **more}
        network = layout.KINDS[name].network(ClipShape(**shape), **more)
        made.append(
            {
                layout.CONFIG: json.dumps(description).encode(),
                layout.WEIGHTS: safetensors_of(network.state_dict()),
            }
        )
    return made


def _read_published(folder: Path) -> bool:
    layout.read_description(folder).settings()
    return True


def _states() -> list[Files]:
    return _file_of_checkpoint(checkpoints.STATE)


def _state_apart() -> list[Files]:
    content = _whole_checkpoint()[f"step-00000012/{checkpoints.STATE}"]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [{name: archive.read(name) for name in archive.namelist()}]


def _load_state_joined(folder: Path) -> bool:
    """With the members' checksums right, as a writer who means harm would have them."""
    members = [file for file in folder.rglob("*") if file.is_file()]
    with zipfile.ZipFile(folder / checkpoints.STATE, "w") as archive:
        for file in members:
            archive.write(file, file.relative_to(folder))
    return _load_state(folder)


def _load_state(folder: Path) -> bool:
    state = checkpoints.load_state(folder)
    torch.save(state, io.BytesIO())  # reads every number of it
    return True


def _settings() -> list[Files]:
    energy = Settings(model="stgconvnet", frames=24, size=16, layers="4@3/1", mask_penalty=0.0)
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for number, each in enumerate((_SETTINGS, energy)):
            each.save(Path(folder, str(number)))
            made.append({checkpoints.SETTINGS: Path(folder, str(number)).read_bytes()})
    return made


def _load_settings(folder: Path) -> bool:
    settings = Settings.load(folder / checkpoints.SETTINGS)
    if settings.model == "stgconvnet":
        settings.factors_of_rates(len(settings.network_layers()))
    settings.save(folder / "again")
    return Settings.load(folder / "again") == settings


def _results() -> list[Files]:
    number = Number(1.0, 0.5, 1.5, 0.0)
    row = Row(
        "ours",
        "run",
        12,
        number,
        number,
        {"motion": 0.1},
        {"pixels": {"median ratio": 1.5, "closer": 0.2}},
    )
    floor = Row("real", None, None, number, None, {}, {})
    protocol = Protocol(
        *("videos", "ab", "held-out", True, 4, 8, 1, None, 1, 64, 64, 0),
        *("random", "ab" * 32, 16, None, 10),
    )
    result = Result(protocol, [row, floor], [Preference("ours", "real", number)], {"command": "x"})
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder, "x.json"))
        return [{"x.json": Path(folder, "x.json").read_bytes()}]


def _result(folder: Path) -> bool:
    as_tables(Result.load(folder / "x.json"))
    return True


# Torch7.

_T7_STRING, _T7_TABLE, _T7_TORCH = 2, 3, 4


def _t7_binary() -> bytes:
    """A convolution with its weight, a table and a boolean, in the order of File.lua."""

    def text(value: bytes) -> bytes:
        return struct.pack("<i", len(value)) + value

    def torch7(index: int, name: bytes) -> bytes:
        return struct.pack("<ii", _T7_TORCH, index) + text(b"V 1") + text(name)

    storage = torch7(4, b"torch.FloatStorage") + struct.pack("<q6f", 6, *range(6))
    tensor = torch7(3, b"torch.FloatTensor") + struct.pack("<i2q2qq", 2, 2, 3, 3, 1, 1) + storage
    number, key = struct.Struct("<id"), struct.Struct("<i")
    fields = struct.pack("<iii", _T7_TABLE, 2, 4)
    fields += key.pack(_T7_STRING) + text(b"weight") + tensor
    fields += key.pack(_T7_STRING) + text(b"kW") + number.pack(1, 4)
    fields += key.pack(_T7_STRING) + text(b"train") + struct.pack("<ii", 5, 1)
    fields += number.pack(1, 1) + key.pack(0)  # nil
    return torch7(1, b"nn.SpatialConvolution") + fields


def _t7_ascii() -> bytes:
    tensor = b"4\n3\n3\nV 1\n17\ntorch.FloatTensor\n2\n2 3\n3 1\n1\n"
    storage = b"4\n4\n3\nV 1\n18\ntorch.FloatStorage\n6\n0 1 2 3 4 5\n"
    fields = b"3\n2\n2\n2\n6\nweight\n" + tensor + storage + b"2\n2\nkW\n1\n4\n"
    return b"4\n1\n3\nV 1\n21\nnn.SpatialConvolution\n" + fields


def _t7_files() -> list[Files]:
    return [{"x.t7": _t7_binary()}, {"x.t7": _t7_ascii()}]


def _t7(folder: Path) -> bool:
    read = read_torch7(folder / "x.t7")
    # Cycles are possible: what was seen is not looked into again.
    left, seen = [read], set()
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            value.clone()
        left += value.values() if isinstance(value, dict) else ()
        left += value.fields.values() if isinstance(value, TorchObject) else ()
    with contextlib.suppress(UserError):  # most hold no network of the original
        import_torch7(folder / "x.t7")
    return True


# Words of the command line.


def _layer_lists() -> list[Files]:
    return [{"x": text.encode()} for text in EXPERIMENTS.values()]


def _layers(folder: Path) -> bool:
    text = (folder / "x").read_bytes().decode("latin-1")
    for layer in parse_layers(text, (70, 150, 150)):
        if min(layer.made) < 1 or min(layer.kernel) < 1 or min(layer.stride) < 1:
            raise AssertionError(layer)
    return True


def _rate_lists() -> list[Files]:
    return [{"x": b"1,0.3,0.09"}, {"x": b"1e-3,1,2"}]


def _rates(folder: Path) -> bool:
    return all(0 < r < 1e400 for r in parse_rates((folder / "x").read_bytes().decode("latin-1"), 3))


# The study.


@functools.cache
def _study_file() -> bytes:
    """A study with one rater, whose secret, token and first key are known."""
    options = Options(("a=x", "real=y"), ("a",), 2, 3, 1, FRAMES, SIDE, 60, 0)
    kinds = {"a": "model", "static a": "static", "real": "real", "scramble": "foil"}
    conditions = [Condition(n, kind, n, np.stack([_clip(), _clip()])) for n, kind in kinds.items()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.db")
        create(path, options, conditions)
        Study(path).begin()
        with closing(sqlite3.connect(path)) as base:
            base.execute("UPDATE study SET id = ?, token = ?", (_STUDY, _TOKEN))
            base.execute("UPDATE rater SET secret = ?, began = 1", (_SECRET,))
            base.execute(
                "UPDATE trial SET key = ?, left_clip = 1, right_clip = 5 WHERE place = 1", (_KEY,)
            )
            base.execute(
                "UPDATE trial SET key = 'k' || place, left_clip = place,"
                " right_clip = 6 WHERE place > 1"
            )
            base.execute("UPDATE trial SET shown = 1 WHERE place = 1")
            base.execute("INSERT INTO vote VALUES (1, 'left', 4.5)")
            base.commit()
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            base.execute("VACUUM")
            base.execute("PRAGMA journal_mode = DELETE")
        return path.read_bytes()


def _studies() -> list[Files]:
    return [{"x.db": _study_file()}]


def _study_rows() -> list[Files]:
    with closing(sqlite3.connect(":memory:")) as base:
        base.deserialize(_study_file())
        return [
            {
                table: json.dumps(base.execute(f"SELECT * FROM {table}").fetchall()).encode()
                for table in _ROWS
            }
        ]


def _study_of_rows(folder: Path) -> bool:
    """A study whose rows are anything, as somebody would write them who minds no constraint."""
    (folder / "x.db").write_bytes(_study_file())
    with closing(sqlite3.connect(folder / "x.db", isolation_level=None)) as base:
        base.execute("PRAGMA ignore_check_constraints = ON")
        for table in _ROWS:
            base.execute(f"DELETE FROM {table}")
            try:
                for row in json.loads((folder / table).read_bytes()):
                    places = ", ".join("?" * len(row))
                    base.execute(f"INSERT INTO {table} VALUES ({places})", row)
            except (ValueError, TypeError, RecursionError, OverflowError, sqlite3.Error):
                return False  # not even rows
    return _study(folder)


def _study(folder: Path) -> bool:
    study = Study(folder / "x.db")
    app = create_app(study, Access.through("127.0.0.1"))
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.logger.disabled = True
    origin = {"Origin": "http://localhost"}
    with app.test_client() as rater:
        begun = rater.post("/begin", headers=origin, json={})
        answers = [begun, rater.get("/trial")]
        if key := begun.get_json().get("key"):
            answers.append(rater.get(f"/sheet/{key}"))
            answers.append(rater.post("/vote", headers=origin, json={"key": key, "side": "left"}))
        rater.set_cookie(f"rater-{_STUDY}", _SECRET)
        answers += [rater.get("/trial"), rater.get(f"/sheet/{_KEY}")]
    as_markdown(study.answers(), study.conditions, 0)
    # Each in words: anything that is not foreseen passes through the client.
    return all(answer.status_code < 500 for answer in answers)


def _requests() -> list[Files]:
    host, origin = b"Host: localhost:8000", b"Origin: http://localhost:8000"
    cookie = f"Cookie: token-{_STUDY}={_TOKEN}; rater-{_STUDY}={_SECRET}".encode()
    vote = json.dumps({"key": _KEY, "side": "left"}).encode()
    json_type = b"Content-Type: application/json"
    requests = [
        (b"GET / HTTP/1.1", host, cookie),
        (f"GET /?token={_TOKEN} HTTP/1.1".encode(), host),
        (b"GET /page/page.js HTTP/1.1", host, cookie),
        (b"GET /trial HTTP/1.1", host, cookie),
        (f"GET /sheet/{_KEY} HTTP/1.1".encode(), host, cookie),
        (b"POST /begin HTTP/1.1", host, cookie, origin, json_type, b"", b"{}"),
        (b"POST /vote HTTP/1.1", host, cookie, origin, json_type, b"", vote),
    ]
    return [{"request": b"\r\n".join([*lines, b""])} for lines in requests]


@functools.cache
def _server():
    """The application, opened to other machines, on a study that lasts as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="vgan_fast-fuzz-"))
    (folder / "x.db").write_bytes(_study_file())
    app = create_app(Study(folder / "x.db"), Access.through("0.0.0.0"))
    app.config["PROPAGATE_EXCEPTIONS"] = True
    return app


def _environment(request: bytes) -> dict:
    """What a WSGI server makes of a request, however odd."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, target = first.partition(" ")
    path, _, query = target.rpartition(" ")[0].partition("?")
    environment = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path.encode("latin-1")).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "CONTENT_LENGTH": str(len(body)),
    }
    for line in lines:
        name, _, value = line.partition(":")
        name = name.strip().upper().replace("-", "_")
        if name not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            name = f"HTTP_{name}"
        if name != "CONTENT_LENGTH":  # the server's own
            environment[name] = value.strip()
    return environment


def _request(folder: Path) -> bool:
    request = (folder / "request").read_bytes()
    answered: list[tuple[str, list[tuple[str, str]]]] = []
    answer = _server()(_environment(request), lambda *given: answered.append(given[:2]))
    try:
        content = b"".join(answer)
    finally:
        getattr(answer, "close", lambda: None)()
    status, headers = int(answered[0][0][:3]), dict(answered[0][1])
    if "default-src 'none'" not in headers.get("Content-Security-Policy", ""):
        raise AssertionError("an answer without its policy")
    if status >= 500:
        raise AssertionError(f"{status}: {content[:200]!r}")
    if status < 400 and _TOKEN.encode() not in request:
        raise AssertionError(f"{status} to a stranger")
    if b"source of" in content or b"scramble" in content:
        raise AssertionError("tells of the conditions")
    return status < 400


PARSERS = (
    Parser("list", _lists, _read_list),
    Parser("UCF101 split", _ucf101, _read_ucf101),
    Parser("JPEG strip", _jpegs, _strip),
    Parser("PNG strip", _pngs, _strip, repair=_png_files),
    Parser("array", _arrays, _array),
    Parser("shard", _shards, _shard, repair=_tar_files),
    Parser("shard with index", _indexed_shards, _shard, repair=_tar_files),
    Parser("decoded frames", _entries, _entry),
    Parser("video", _videos, parse_many=_decoded),
    Parser("frame image", _images, parse_many=_images_decoded, repair=_png_files),
    Parser("mask image", _images, _mask),
    Parser("manifest", _manifests, _manifest),
    Parser("preparation record", _records, _record),
    Parser("scene labels", _scene_labels, _read_labels),
    Parser("checkpoint", _checkpoints, _checkpoint, repair=_hashed),
    Parser("settings", _settings, _load_settings),
    Parser("weights", _weights, _load_weights),
    Parser("training state", _states, _load_state),
    Parser("weights, header apart", _weights_apart, _load_weights_joined),
    Parser("training state, members apart", _state_apart, _load_state_joined),
    Parser("Torch7 file", _t7_files, _t7),
    Parser("Hugging Face folder", _published, _read_published),
    Parser("evaluation result", _results, _result),
    Parser("layer list", _layer_lists, _layers),
    Parser("layer rates", _rate_lists, _rates),
    Parser("study file", _studies, _study),
    Parser("study rows", _study_rows, _study_of_rows),
    Parser("study request", _requests, _request),
)
