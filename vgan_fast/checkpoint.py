"""Checkpoints: a folder of safetensors weights, optimiser and random state, and settings.

A checkpoint appears whole or not at all, carries the hash of each of its files, and is read
without running any code of its own.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from vgan_fast.errors import UserError
from vgan_fast.files import explained, remove_unfinished, written_whole
from vgan_fast.settings import Settings

WEIGHTS, STATE, SETTINGS, HASHES = "weights.safetensors", "state.pt", "settings.json", "sha256.json"
_NAME = re.compile(r"step-(\d{8})")


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
        hashes = {name: _sha256(folder / name) for name in (WEIGHTS, STATE, SETTINGS)}
        (folder / HASHES).write_bytes(_as_text(hashes))
    with explained(target.parent):
        for old in list_checkpoints(run)[: -settings.keep]:
            # Under a name that the next one removes: a kill must not leave half of a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f".{old.name}-dropped")))
    return target


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`, or the newest one of the run at `path`, checked to be whole.

    Raises:
        UserError: when there is none, or any of its bytes is missing or changed.
    """
    checkpoint = path
    if not is_checkpoint(path):
        found = list_checkpoints(path)
        if not found:
            raise UserError(
                f"{path}: holds no checkpoint; give the folder of a run of vgan_fast.train"
            )
        checkpoint = found[-1]
    _check(checkpoint)
    return checkpoint


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint's folder, not a run's."""
    return bool(_NAME.fullmatch(path.name))


def load_weights(path: Path, networks: dict[str, nn.Module]) -> None:
    """Fill `networks` from the checkpoint's weights of the same names.

    Raises:
        UserError: when its weights are no safetensors, or those of networks of another shape.
    """
    try:
        weights = safetensors.torch.load_file(path / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path / WEIGHTS}: cannot be read as safetensors ({error})") from error
    for name, network in networks.items():
        own = network.state_dict()
        stored = {
            key.removeprefix(f"{name}."): value
            for key, value in weights.items()
            if key.startswith(f"{name}.")
        }
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
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "step" not in state:
            raise ValueError("no step in it")
    # Whatever a file that somebody made can raise in the unpickler that runs no code.
    except Exception as error:
        reason = [type(error).__name__, *str(error).splitlines()][:2]
        raise UserError(
            f"{path / STATE}: is not the state of a run ({': '.join(reason)})"
        ) from error
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


def _broken(path: Path) -> str | None:
    """The first file of a checkpoint that is not as it was written."""
    found = {}
    for name in (WEIGHTS, STATE, SETTINGS):
        try:
            found[name] = _sha256(path / name)
        except OSError:
            return name
    try:
        stored = (path / HASHES).read_bytes()
        expected = json.loads(stored)
        changed = [name for name, digest in found.items() if expected[name] != digest]
    except (OSError, ValueError, KeyError, TypeError):
        return HASHES
    if not changed and stored != _as_text(found):
        changed = [HASHES]
    return next(iter(changed), None)


def _as_text(hashes: dict[str, str]) -> bytes:
    return json.dumps(hashes, indent=2).encode() + b"\n"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
