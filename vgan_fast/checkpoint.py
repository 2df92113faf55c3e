"""Checkpoints: a folder of safetensors weights, optimiser and random state, and settings.

A checkpoint appears whole or not at all, carries the hash of each of its files, and is read
without running any code of its own.
"""

import json
import pickletools
import re
import shutil
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from vgan_fast.errors import UserError
from vgan_fast.files import explained, remove_unfinished, sha256_of, written_whole
from vgan_fast.foreign import MalformedError, read_json
from vgan_fast.interchange.layout import is_published, read_description, read_weights
from vgan_fast.settings import Settings

WEIGHTS, STATE, SETTINGS, HASHES = "weights.safetensors", "state.pt", "settings.json", "sha256.json"
_NAME = re.compile(r"step-(\d{8})")
_MODEST = 1 << 30  # bytes of a network that may be built before its weights are looked at
# What a training state is made of, beside plain values. PyTorch allows more, some of which takes
# memory that no byte of the file stands for.
_PARTS_OF_STATE = re.compile(
    r"torch\._utils _rebuild_tensor_v2|collections OrderedDict|torch [A-Za-z0-9]+Storage"
)
_LARGEST_PICKLE = 1 << 28  # bytes


def save_checkpoint(
    run: Path, step: int, networks: dict[str, nn.Module], state: dict, settings: Settings
) -> Path:
    """Write `run/checkpoints/step-…` and drop all but the newest `settings.keep`.

    Args:
        run: folder of the training run.
        step: number of finished training steps.
        networks: by name; their parameters and buffers are stored as `name.key`.
        state: tensors and plain values only.
        settings: how the networks were built.

    Raises:
        UserError: when it cannot be written; older checkpoints are then untouched.
    """
    target = run / "checkpoints" / f"step-{step:08d}"
    remove_unfinished(target.parent, "step-*")
    if target.exists():  # A run resumed at its last step; what is there was checked on reading.
        return target
    with written_whole(target, folder=True) as folder:
        weights = {
            f"{name}.{key}": value.contiguous().cpu()
            for name, network in networks.items()
            for key, value in network.state_dict().items()
        }
        # Not save_file: it reports a full disk as an error of its own, without the error number.
        (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights))
        with (folder / STATE).open("wb") as file:
            torch.save({**state, "step": step}, file)
        settings.save(folder / SETTINGS)
        hashes = {name: sha256_of(folder / name) for name in (WEIGHTS, STATE, SETTINGS)}
        (folder / HASHES).write_bytes(_as_text(hashes))
    with explained(target.parent):
        for old in list_checkpoints(run)[: -settings.keep]:
            # Out of sight first: a run that is killed here leaves no half of a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}-dropped")))
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`, or the newest one of the run at `path`, checked to be whole.

    Raises:
        UserError: when there is none, any of its bytes is missing or changed, or its settings
            describe networks far larger than its weights.
    """
    checkpoint = path
    if not is_checkpoint(path):
        found = list_checkpoints(path)
        if not found:
            inside = sorted(p.name for p in path.glob("*") if is_published(p))
            what = f"its folder {inside[0]}" if inside else "the folder of a run of vgan_fast.train"
            raise UserError(f"{path}: holds no checkpoint; give {what}")
        checkpoint = found[-1]
    _check(checkpoint)
    _refuse_oversized(checkpoint)
    return checkpoint


def open_weights(path: Path) -> tuple[Path, Settings]:
    """Where the weights at `path` are, and settings that build their networks.

    Args:
        path: a run, a checkpoint, or one network in the layout of Hugging Face
            (`vgan_fast.interchange.layout`).

    Raises:
        UserError: when there are none, or they are broken.
    """
    if is_published(path):
        return path, read_description(path).settings()
    checkpoint = find_checkpoint(path)
    return checkpoint, Settings.load(checkpoint / SETTINGS)


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint's folder, not a run's."""
    return bool(_NAME.fullmatch(path.name))


def step_of(path: Path) -> int | None:
    """Finished training steps of a checkpoint's folder; None of a folder of another kind."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def load_weights(path: Path, networks: dict[str, nn.Module]) -> None:
    """Fill `networks` from the weights of the same names in a folder (`open_weights`).

    Raises:
        UserError: when its weights are no safetensors, or those of networks of another shape.
    """
    if is_published(path):
        weights = read_weights(path, set(networks))
    else:
        try:
            weights = safetensors.torch.load_file(path / WEIGHTS)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(
                f"{path / WEIGHTS}: cannot be read as safetensors ({str(error)[:200]})"
            ) from error
    for name, network in networks.items():
        own = network.state_dict()
        stored = {
            key.removeprefix(f"{name}."): value
            for key, value in weights.items()
            if key.startswith(f"{name}.")
        }
        if not stored:
            there = ", ".join(sorted({key.partition(".")[0] for key in weights}))
            raise UserError(f"{path}: holds no {name}, but {there[:200] or 'nothing'}")
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in stored.items()}:
            raise UserError(
                f"{path}: holds no {name} of this shape; use the sizes in its {SETTINGS}"
            )
        network.load_state_dict(stored)


def load_state(path: Path) -> dict:
    """The state given to `save_checkpoint`, with `step`; tensors and plain values, no code.

    Raises:
        UserError: when it is not the state of a run.
    """
    try:
        _refuse_strange(path / STATE)
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "step" not in state:
            raise ValueError("no step in it")
        _refuse_stretched(state)
    # Whatever a file that somebody made can raise in the unpickler that runs no code.
    except Exception as error:
        reason = ": ".join([type(error).__name__, *str(error).splitlines()][:2])
        raise UserError(f"{path / STATE}: is not the state of a run ({reason[:200]})") from error
    return state


def _check(path: Path) -> None:
    """Refuse a checkpoint any byte of which is missing or changed."""
    broken = _broken(path)
    if broken is None:
        return
    remedy, worse = "there is no earlier one that is whole", [path.name]
    earlier = [p for p in list_checkpoints(path.parent.parent) if p.name < path.name]
    for other in reversed(earlier):
        if _broken(other) is None:
            remedy = f"remove {' and '.join(worse)} to go on from {other.name}"
            break
        worse.append(other.name)
    raise UserError(f"{path / broken}: is missing, truncated or corrupt; {remedy}")


def is_whole(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written.

    Raises:
        UserError: when a file that is there cannot be read.
    """
    return _broken(path) is None


def _broken(path: Path) -> str | None:
    """The first file of a checkpoint that is not as it was written."""
    found = {}
    for name in (WEIGHTS, STATE, SETTINGS):
        try:
            found[name] = sha256_of(path / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return name
        except OSError as error:  # which says nothing of what is there
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"{path / name}: cannot be read ({reason}); try again") from error
    try:
        expected = read_json(path / HASHES, dict[str, str])
        changed = [name for name, digest in found.items() if expected[name] != digest]
        if not changed and (path / HASHES).read_bytes() != _as_text(found):
            changed = [HASHES]
    except (OSError, MalformedError, KeyError):
        return HASHES
    return next(iter(changed), None)


def _as_text(hashes: dict[str, str]) -> bytes:
    return json.dumps(hashes, indent=2).encode() + b"\n"


def _refuse_oversized(path: Path) -> None:
    """Refuse settings whose networks would take memory that the checkpoint's weights do not."""
    needed = 4 * Settings.load(path / SETTINGS).least_weights
    stored = (path / WEIGHTS).stat().st_size
    if needed > max(stored, _MODEST):
        raise UserError(
            f"{path / SETTINGS}: describes networks of {needed / 2**30:.1f} GiB at least, but "
            f"{WEIGHTS} has {stored / 2**30:.1f}: they are not of one run"
        )


def _refuse_strange(state: Path) -> None:
    """Raise for a state that would take more memory than it has bytes, or is made of odd parts."""
    with zipfile.ZipFile(state) as archive:
        members = archive.infolist()
        # PyTorch reads a file that begins with anything else as another format.
        if min(member.header_offset for member in members) or not _begins_as_zip(state):
            raise ValueError("something before its first part")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("compressed")
        if sum(member.file_size for member in members) > state.stat().st_size:
            raise ValueError("its parts are larger than the file")
        [pickled] = (m for m in members if m.filename.rpartition("/")[2] == "data.pkl")
        if pickled.file_size > _LARGEST_PICKLE:
            raise ValueError("too many parts")
        for code, argument, _ in pickletools.genops(archive.read(pickled)):
            if code.name == "GLOBAL" and not _PARTS_OF_STATE.fullmatch(argument):
                raise ValueError(f"made of {argument[:80]!r}")
            if code.name in ("STACK_GLOBAL", "INST", "OBJ"):
                raise ValueError(f"made of {code.name}")


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _refuse_stretched(state: dict) -> None:
    """Raise for tensors that are larger than what is stored of them."""
    left, seen = [state], set()  # a value may stand in many places
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu":
                raise ValueError("an odd tensor")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("a tensor larger than what is stored of it")
        elif isinstance(value, dict):
            left += value.values()
        elif isinstance(value, (list, tuple)):
            left += value
