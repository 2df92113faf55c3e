"""The folder layout of Hugging Face: one network's config.json and model.safetensors.

Such a folder comes from anybody. Nothing in it is executed, and no memory is taken for a network
before both files are known to describe the same one.
"""

import inspect
import json
from dataclasses import dataclass, fields
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vgan_fast import models
from vgan_fast.errors import UserError
from vgan_fast.settings import UNKNOWN_DATA, Settings
from vgan_fast.shape import ClipShape

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_LARGEST = 2**14  # bytes of a config.json
_TYPES = {torch.float32: "F32", torch.int64: "I64"}  # as safetensors names them


@dataclass(frozen=True)
class Kind:
    """What a network is for.

    Attributes:
        network: its plain form.
        role: its name among the networks of a run.
        model: a `Settings.model` that has it.
    """

    network: type[nn.Module]
    role: str
    model: str


KINDS = {
    "OneStreamGenerator": Kind(models.OneStreamGenerator, "generator", "one-stream"),
    "TwoStreamGenerator": Kind(models.TwoStreamGenerator, "generator", "two-stream"),
    "FutureGenerator": Kind(models.FutureGenerator, "generator", "future"),
    "Discriminator": Kind(models.Discriminator, "discriminator", "two-stream"),
    # Of an autoencoder, whose codes are not N(0, 1): no generator, though it has the layers of one.
    "Encoder": Kind(models.Discriminator, "encoder", "autoencoder"),
    "Decoder": Kind(models.TwoStreamGenerator, "decoder", "autoencoder"),
}


@dataclass(frozen=True)
class Description:
    """A network by name, a key of `KINDS`, and the arguments of its constructor."""

    name: str
    arguments: dict

    @property
    def kind(self) -> Kind:
        """What it is for."""
        return KINDS[self.name]

    def build(self) -> nn.Module:
        """The plain network, freshly initialised, on the CPU."""
        return self.kind.network(**self.arguments)

    def settings(self) -> Settings:
        """Settings that build this network; it is fp32, and was trained on nobody says what.

        Raises:
            UserError: when no settings do: those of a discriminator of more than two outputs.
        """
        shape, model = self.arguments["shape"], self.kind.model
        width, of_model = shape.width, {}
        if model == "future":
            of_model = {name: self.arguments[name] for name in ("condition", "encoder")}
            if of_model["encoder"] == "spatial" and width % 2:
                raise UserError(f"{CONFIG}: a FutureGenerator's width must be even, not {width}")
            width //= 1 + (of_model["encoder"] == "spatial")
        if self.name == "Discriminator":
            outputs = self.arguments["outputs"]
            if outputs not in (1, 2):
                raise UserError(
                    f"{CONFIG}: a Discriminator of {outputs} outputs tells classes apart; programs "
                    "take one of 1 or 2"
                )
            of_model = {"logits": str(outputs)}
        return Settings(
            model=model,
            data=UNKNOWN_DATA,
            frames=shape.frames,
            size=shape.size,
            width=width,
            latent=shape.latent,
            mask_penalty=0.0,
            precision="fp32",
            **of_model,
        )


def is_published(folder: Path) -> bool:
    """Whether there is a network in this layout."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read_description(folder: Path) -> Description:
    """Which network is in a folder; its weights are there, of the right shapes and types.

    Raises:
        UserError: when a file cannot be read, or holds anything else.
    """
    described = _described(folder / CONFIG)
    try:
        with torch.device("meta"):
            expected = described.build().state_dict()
    except (TypeError, RuntimeError) as error:  # sizes whose product is none any more
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / CONFIG}: describes no network ({reason})") from error
    expected = {name: (tuple(value.shape), _TYPES[value.dtype]) for name, value in expected.items()}
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            stored = {name: (tuple(of.get_shape()), of.get_dtype()) for name, of in slices.items()}
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read as safetensors ({error})") from error
    if stored != expected:
        names = [n for n in {**expected, **stored} if stored.get(n) != expected.get(n)]
        raise UserError(
            f"{folder / WEIGHTS}: does not hold the network in {CONFIG}: {names[0][:80]!r} is "
            f"{_shown(stored.get(names[0]))}, not {_shown(expected.get(names[0]))}"
        )
    return described


def read_weights(folder: Path, roles: set[str]) -> dict[str, Tensor]:
    """Weights by `role.key`, as a run's checkpoint has them.

    Args:
        folder: one that `read_description` accepts.
        roles: what networks are looked for.

    Raises:
        UserError: when they cannot be read, or are not those of these networks.
    """
    described = _described(folder / CONFIG)
    role = described.kind.role
    if roles != {role}:
        raise UserError(f"{folder}: holds {_a(described.name)}, no {' or '.join(sorted(roles))}")
    try:
        weights = safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read as safetensors ({error})") from error
    return {f"{role}.{key}": value for key, value in weights.items()}


def _described(file: Path) -> Description:
    try:
        with file.open("rb") as stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise UserError(f"{file}: is longer than {_LARGEST} bytes; it is no network's")
        values = json.loads(content)
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({type(error).__name__})") from error
    if not isinstance(values, dict) or values.get("network") not in list(KINDS):
        raise UserError(f'{file}: its "network" must be one of {", ".join(KINDS)}')
    name = values.pop("network")
    known = inspect.signature(KINDS[name].network).parameters
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UserError(f"{file}: {unknown[0][:80]!r} is no argument of {name}")
    try:
        arguments = {key: _CHECKS[key](value) for key, value in values.items()}
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    for key, parameter in known.items():
        if key not in arguments and parameter.default is parameter.empty:
            raise UserError(f"{file}: lacks {key!r}, which {name} needs")
        arguments.setdefault(key, parameter.default)
    return Description(name, arguments)


def _shape(value) -> ClipShape:
    names = {field.name for field in fields(ClipShape)}
    if not isinstance(value, dict) or set(value) != names:
        raise UserError(f"'shape' must give {', '.join(sorted(names))}")
    return ClipShape(**{key: _whole(1, 2**16)(size, key) for key, size in value.items()})


def _whole(least: int, most: int):
    def check(value, name: str = "a number") -> int:
        if type(value) is not int or not least <= value <= most:  # True is an int as well
            raise UserError(f"{name} must be a whole number from {least} to {most}")
        return value

    return check


def _number(name: str, least: float, most: float):
    def check(value) -> float:
        if type(value) not in (int, float) or not least <= value <= most:
            raise UserError(f"{name!r} must be a number from {least} to {most}")
        return float(value)

    return check


def _encoder(value) -> str:
    if value not in ("spatial", "latent"):
        raise UserError("'encoder' must be spatial or latent")
    return value


_CHECKS = {
    "shape": _shape,
    "mask_bias": _number("mask_bias", -100, 100),
    "condition": lambda value: _whole(1, 1024)(value, "'condition'"),
    "encoder": _encoder,
    "outputs": lambda value: _whole(1, 2**16)(value, "'outputs'"),
    "dropout": _number("dropout", 0, 1),
}


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "EO" else f"a {name}"


def _shown(tensor: tuple | None) -> str:
    return "missing" if tensor is None else f"{tensor[1]} of {list(tensor[0])}"
