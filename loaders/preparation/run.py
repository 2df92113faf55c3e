"""A set made of videos, from beginning to end, however often it is interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from vgan_fast.errors import UserError
from vgan_fast.files import explained, remove_unfinished, written_whole
from vgan_fast.foreign import MalformedError, read_json

from ..decoders import image_files
from ..search import PARTS, PREPARED, Source, find_sources
from . import engines
from .apart import Task
from .assembly import MANIFEST, SPLITS, Assembly, Packing, Video
from .video import Recipe, read_record

_DONE = ".preparing-done"  # the same, when all is packed
_LONGEST_LABEL = 200  # bytes: file systems take 255, readers of shards 200 characters
FORMAT = 1  # of preparation.json and of what it describes
# What decides pixels besides our own code.
_LIBRARIES = ("av", "opencv-python-headless", "pillow", "scenedetect-headless", "simplejpeg")


@dataclass(frozen=True, slots=True)
class Plan:
    """A set to be made."""

    out: Path
    root: Path  # folder that all videos' names are relative to
    videos: list[Video]  # in the order in which they are packed
    sources: list[Source]  # of the same order
    sizes: list[int]  # bytes, likewise
    recipe: Recipe
    packing: Packing

    @property
    def settings(self) -> dict:
        """All that decides the set, and where its videos are."""
        named = [
            (video.name, size, video.label)
            for video, size in zip(self.videos, self.sizes, strict=True)
        ]
        recipe = asdict(self.recipe)
        if recipe["scenes"]:  # by what is in them: paths differ between machines
            for name in ("model", "labels"):
                recipe["scenes"][name] = _digest(recipe["scenes"][name])
        return {
            "format": FORMAT,
            "root": str(self.root),
            "videos": len(named),
            "videos_sha256": hashlib.sha256(json.dumps(sorted(named)).encode()).hexdigest(),
            "recipe": recipe,
            "packing": asdict(self.packing),
            "libraries": {name: version(name) for name in _LIBRARIES},
        }


def plan(inputs: list[Path], out: Path, recipe: Recipe, packing: Packing) -> Plan:
    """Find the videos and put them in the set's order, which is drawn by the seed.

    Args:
        inputs: folders, lists and files, as `search.find_sources` takes them.
        out: the set's folder.
        recipe: what clips are made.
        packing: how they are shared out.

    Raises:
        UserError: an input is missing, holds no video, or holds what is prepared already.
    """
    sources: dict[Path, Source] = {}
    folders = []
    for data in inputs:
        found = find_sources(data, out)
        odd = next((s for s in found.sources if s.kind not in ("video", "images")), None)
        if odd:
            raise UserError(f"{odd.path}: is a strip or a shard already; name videos")
        if recipe.fps is not None:
            odd = next((s for s in found.sources if s.kind != "video"), None)
            if odd:
                raise UserError(f"--fps: {odd.path} has no time stamps; leave the option out")
        sources |= {source.path: source for source in found.sources}
        folders += [data.absolute()] if data.is_dir() else [s.path.parent for s in found.sources]
    root = Path(os.path.commonpath(folders))
    labels = {source.label for source in sources.values()}
    labelled = None not in labels and len(labels) > 1

    def drawn(source: Source) -> bytes:
        return hashlib.sha256(os.fsencode(f"{recipe.seed}/{_name(source, root)}")).digest()

    ordered = sorted(sources.values(), key=drawn)
    videos = []
    for source in ordered:
        name = _name(source, root)
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()
        part = out / PARTS / digest[:2] / digest[:32]
        videos.append(Video(name, _printable(source.label) if labelled else None, part))
    sizes = [_size(source) for source in ordered]
    return Plan(out, root, videos, ordered, sizes, recipe, packing)


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file, and of the weights that PyTorch writes beside a network."""
    digest = hashlib.sha256(path.read_bytes())
    weights = path.with_name(path.name + ".data")
    if weights.is_file():
        digest.update(weights.read_bytes())
    return digest.hexdigest()


def _name(source: Source, root: Path) -> str:
    return source.path.relative_to(root).as_posix()


def _printable(label: str) -> str:
    """Return a label that readers of shards accept, and that is the name of one folder.

    Names of folders may hold anything; those of lists may, too, lead elsewhere.
    """
    if not label.isprintable():
        label = label.encode("unicode_escape").decode()
    label = label.replace("/", "\\x2f")
    if label.startswith("."):  # hidden folders are not searched
        label = f"\\x2e{label[1:]}"
    if len(label.encode()) > _LONGEST_LABEL:
        digest = hashlib.sha256(label.encode()).hexdigest()[:16]
        kept = label.encode()[: _LONGEST_LABEL - 17].decode(errors="ignore")
        label = f"{kept}~{digest}"
    return label


def _size(source: Source) -> int:
    """Return the bytes of a video or of a folder's images; 0 where it cannot be read."""
    try:
        if source.kind == "images":
            return sum(image.stat().st_size for image in image_files(source.path))
        return source.path.stat().st_size
    except OSError:
        return 0


def run(plan: Plan, engine: engines.Name, workers: int) -> None:
    """Make the set, or go on with it where an earlier run stopped.

    Args:
        plan: what to make.
        engine: "local" for processes of this machine, "ray" for a cluster.
        workers: number of local processes.

    Raises:
        UserError: the folder holds something else or another run is at work there, it cannot be
            written, or the engine cannot be started.
    """
    with _exclusively(plan):
        if is_complete(plan.out):
            shutil.rmtree(plan.out / _DONE, ignore_errors=True)  # the last step may have been cut
            return
        _remove_unfinished(plan)
        assembly = Assembly(plan.out, plan.videos, plan.packing)
        tasks = [
            Task(source.path, source.kind, size, video.part, plan.recipe)
            for video, source, size in zip(plan.videos, plan.sources, plan.sizes, strict=True)
            if read_record(video.part) is None
        ]
        assembly.advance()  # after a run that was killed before it could
        if tasks:
            with contextlib.closing(engines.start(engine, workers)) as at_work:
                for _ in _shown(at_work.run(tasks), tasks):
                    assembly.advance()
        assembly.write_manifest()
        _remove_parts(plan.out)


def is_complete(out: Path) -> bool:
    """Return whether a folder holds a set whose making has ended."""
    return (out / MANIFEST).exists() and not (out / PARTS).exists()


def _remove_parts(out: Path) -> None:
    # Renamed first: what is left when this is interrupted must not pass for parts.
    with explained(out):
        os.replace(out / PARTS, out / _DONE)
        shutil.rmtree(out / _DONE)


@contextlib.contextmanager
def _exclusively(plan: Plan) -> Iterator[None]:
    """Claim the set's folder for this plan and this process."""
    settings, path = plan.settings, plan.out / PREPARED
    with explained(plan.out):
        plan.out.mkdir(parents=True, exist_ok=True)
        alien = any(not entry.name.startswith(".") for entry in plan.out.iterdir())
        if alien and not path.exists():
            raise UserError(f"{plan.out}: holds something else; choose another --out")
        _refuse_links(plan.out)
        lock = FileLock(plan.out / ".preparing.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{plan.out}: another run is at work there; wait for it") from None
    try:
        if path.exists():
            _refuse_difference(path, settings)
        with written_whole(path) as part:
            part.write_text(json.dumps(settings, indent=1) + "\n")
        if not (plan.out / MANIFEST).exists():
            (plan.out / PARTS).mkdir(exist_ok=True)
        yield
    finally:
        lock.release()


def _refuse_links(out: Path) -> None:
    """Refuse a folder with a symbolic link in it, through which a set would be written elsewhere.

    Raises:
        UserError: naming the link.
    """
    for root, folders, names in os.walk(out):
        for name in folders + names:
            path = Path(root, name)
            if path.is_symlink():
                raise UserError(f"{path}: is a symbolic link; remove it, or choose another --out")


def _refuse_difference(path: Path, settings: dict) -> None:
    try:
        before = read_json(path, dict)
    except (OSError, MalformedError):
        raise UserError(f"{path}: is damaged; choose another --out") from None
    now = json.loads(json.dumps(settings))
    for name in sorted(now.keys() - {"root"}):
        if before.get(name) != now[name]:
            what = "other videos" if name.startswith("videos") else f"another {name}"
            raise UserError(
                f"{path.parent}: was begun with {what}"
                f" ({_difference(before.get(name), now[name])}); choose another --out, or repeat"
                " the command that began it"
            )


def _difference(before, now) -> str:
    """Return the first figure that differs, as text."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name, value in now.items():
            if before.get(name) != value:
                return f"{name}: {_difference(before.get(name), value)}"
    return f"{before}, now {now}"


def _remove_unfinished(plan: Plan) -> None:
    """Remove what writing was killed over."""
    shards = (path for split in SPLITS for path in (plan.out / split).rglob("*"))
    folders = {plan.out, *(plan.out / split for split in SPLITS)}
    folders |= {path for path in shards if path.is_dir() and not path.name.startswith(".")}
    folders |= {video.part.parent for video in plan.videos}
    for folder in folders:
        remove_unfinished(folder, "*")


def _shown(done: Iterator[Task], tasks: list[Task]) -> Iterator[Task]:
    """Show progress: bytes of videos, which tell the time left, and clips a second."""
    clips = 0
    quiet = not sys.stderr.isatty()
    with tqdm(
        desc="preparing",
        total=sum(task.size for task in tasks),
        unit="B",
        unit_scale=True,
        mininterval=30 if quiet else 0.5,
    ) as bar:
        for task in done:
            clips += len(read_record(task.part).get("clips", ()))
            seconds = bar.format_dict["elapsed"]
            bar.set_postfix_str(f"{clips} clips, {clips / max(seconds, 1e-9):.3g}/s", False)
            bar.update(task.size)
            yield task
