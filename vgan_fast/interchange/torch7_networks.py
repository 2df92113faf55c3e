"""The original's networks, from trees of Torch7 modules to the networks of `vgan_fast.models`.

The trees are those of videogan's main.lua and main_conditional.lua, of `nn` or `cudnn` modules. A
tree is laid out as a list of layers, each described in words, and so is the network that it should
be: the first layer whose words differ is named. What must agree is all in the words.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vgan_fast.errors import UserError
from vgan_fast.interchange.torch7 import DIMENSIONS, TorchObject, read_torch7
from vgan_fast.models import (
    CONVOLUTIONS,
    Discriminator,
    FutureGenerator,
    OneStreamGenerator,
    TwoStreamGenerator,
)
from vgan_fast.settings import Settings
from vgan_fast.shape import ClipShape

NESTED = 32  # most modules inside each other
UNKNOWN_DATA = "unknown"  # the settings' data: a .t7 file does not say what it was trained on

# What hands on its input as it is.
_TRANSPARENT = "Identity", "Copy", "Contiguous", "L1Penalty"
_END = "the end of the branch"
_CLASSES = {
    nn.Conv2d: "SpatialConvolution",
    nn.Conv3d: "VolumetricConvolution",
    nn.ConvTranspose2d: "SpatialFullConvolution",
    nn.ConvTranspose3d: "VolumetricFullConvolution",
    nn.BatchNorm2d: "SpatialBatchNormalization",
    nn.BatchNorm3d: "VolumetricBatchNormalization",
    nn.ReLU: "ReLU",
    nn.LeakyReLU: "LeakyReLU",
}


@dataclass(frozen=True)
class Torch7Networks:
    """Networks out of `.t7` files.

    Attributes:
        networks: "generator", "discriminator" or both: those of `vgan_fast.models`, fp32, on the
            CPU, in evaluation mode.
        settings: their sizes, and what the original trained with; `data` is `UNKNOWN_DATA`.
    """

    networks: dict[str, nn.Module]
    settings: Settings


def import_torch7(file: Path, *others: Path) -> Torch7Networks:
    """The networks in one `.t7` file, or a generator's and its discriminator's.

    Generators: two streams (main.lua), two streams behind an encoder of frames
    (main_conditional.lua: `--model future`), and the foreground of the first alone (one stream).
    Discriminators: those of the same programs, of two outputs, whose order is turned to this
    project's: generated, real. Older files are told by what they hold: inverse standard deviations
    in place of variances; weights of `nn.VolumetricFullConvolution` with outputs first. Without
    bias, or affine map of a norm, the layer has zeros, and ones.

    Raises:
        UserError: when a file cannot be read (`read_torch7`), or holds another network: the first
            layer that differs is named; or when two files do not go together.
    """
    networks: dict[str, nn.Module] = {}
    settings = None
    for path in (file, *others):
        role, network, own = _network(path, read_torch7(path))
        if role in networks:
            raise UserError(f"{path}: holds a {role}, as the file before it does")
        networks[role] = network
        if settings and settings.shape != replace(own.shape, latent=settings.shape.latent):
            raise UserError(f"{path}: is of other sizes than the network before it")
        if settings is None or role == "generator":
            settings = own
    return Torch7Networks(networks, settings)


def _network(file: Path, tree: Any) -> tuple[str, nn.Module, Settings]:
    """The role, network and settings of a tree of modules."""
    layers = list(_layers(file, tree))
    readers = {
        "ConcatTable": _two_stream,
        "VolumetricFullConvolution": _one_stream,
        "SpatialConvolution": _future,
        "VolumetricConvolution": _discriminator,
    }
    first = next((layer for layer in layers if layer.kind != "View"), None)
    if first is None or first.kind not in readers:
        begins = f"begins with {first.place}" if first else "has no layer"
        raise UserError(f"{file}: holds no network of VGAN: it {begins}")
    role, network, settings, wanted = readers[first.kind](_Found(file, layers))
    parts = defaultdict(list)
    for i, (words, key) in enumerate(wanted):
        if i == len(layers):
            raise UserError(f"{file}: ends where {words} is expected")
        if layers[i].words != words:
            raise UserError(
                f"{file}: {layers[i].place} is {layers[i].words}; expected {words} there"
            )
        if key is not None:
            for name, value in layers[i].weights().items():
                parts[f"{key}.{name}"].append(value)
    if len(layers) > len(wanted):
        raise UserError(f"{file}: {layers[len(wanted)].place} is expected not to be there")
    if role == "discriminator":  # The original's are real, generated.
        last = f"layers.{len(network.layers) - 1}"
        for name in ("weight", "bias"):
            parts[f"{last}.{name}"] = [parts[f"{last}.{name}"][0].flip(0)]
    # The layers of a generator's head, foreground and mask, are one here.
    weights = {
        key: torch.cat(values, dim=min(values[0].dim() - 1, 1)) if len(values) > 1 else values[0]
        for key, values in parts.items()
    }
    network.load_state_dict(weights, assign=True)
    return role, network.eval(), settings


def _two_stream(found: "_Found"):
    latent, settings = found.upsampler("two-stream")
    network = _unfilled(TwoStreamGenerator, settings.shape)
    views = [_view(-1, latent, 1, 1, 1)], [_view(-1, latent, 1, 1)]
    return "generator", network, settings, _two_streams(network, *views)


def _one_stream(found: "_Found"):
    latent, settings = found.upsampler("one-stream")
    network = _unfilled(OneStreamGenerator, settings.shape)
    wanted = [
        _view(-1, latent, 1, 1, 1),
        *_of(network.foreground, "foreground"),
        (_words(network.head), "head"),
        ("Tanh", None),
    ]
    return "generator", network, settings, wanted


def _future(found: "_Found"):
    width, channels, *_ = found.weight("SpatialConvolution").shape
    depth = found.weight("VolumetricFullConvolution").shape[2]
    levels = found.count("VolumetricBatchNormalization")
    if channels % 3 or width % 2:
        raise found.error(f"its encoder begins with {channels} -> {width} channels")
    settings = found.settings("future", levels, depth, width // 2, condition=channels // 3)
    network = _unfilled(FutureGenerator, settings.shape, condition=settings.condition)
    widest = settings.shape.widths[0]
    streams = _two_streams(network, [_view(-1, widest, 1, 4, 4)], [])
    return "generator", network, settings, [*_of(network.encoder, "encoder"), *streams]


def _discriminator(found: "_Found"):
    width = found.weight("VolumetricConvolution").shape[0]
    depth = found.weight("VolumetricConvolution", which=-1).shape[2]
    levels = found.count("VolumetricBatchNormalization") + 1
    settings = found.settings("two-stream", levels, depth, width)
    network = _unfilled(Discriminator, settings.shape, outputs=int(settings.logits))
    wanted = [*_of(network.layers, "layers"), _view(int(settings.logits))]
    return "discriminator", network, settings, wanted


def _two_streams(network: TwoStreamGenerator, foreground_view: list, background_view: list) -> list:
    """Layers of both streams and of what blends them."""
    end = (_END, None)
    square = ("Squeeze 2", None)
    fork = ("ConcatTable of 2", None)
    repeated = ("Replicate 3 along 2", None)  # for the colours
    return [
        *(fork, *foreground_view, *_of(network.foreground, "foreground")),
        *(fork, (_words(network.head, outputs=3), "head"), ("Tanh", None), end),
        *((_words(network.head, outputs=1), "head"), ("Sigmoid", None), end, end),
        *(*background_view, *_of(network.background, "background")),
        *((_words(network.background_head), "background_head"), ("Tanh", None), end),
        ("FlattenTable", None),
        fork,
        *(fork, ("SelectTable 1", None), end),
        *(("SelectTable 2", None), square, repeated, end, ("CMulTable", None), end),
        *(fork, ("SelectTable 3", None), (f"Replicate {network.shape.frames} along 3", None), end),
        *(("SelectTable 2", None), square, ("MulConstant -1", None), ("AddConstant 1", None)),
        *(repeated, end, ("CMulTable", None), end),
        ("CAddTable", None),
    ]


def _of(network: nn.Sequential, key: str) -> list[tuple[str, str | None]]:
    """Words and key of each layer; those without weights have no key."""
    return [
        (_words(layer), f"{key}.{name}" if layer.state_dict() else None)
        for name, layer in network.named_children()
    ]


def _words(layer: nn.Module, outputs: int | None = None) -> str:
    name = _CLASSES[type(layer)]
    if isinstance(layer, CONVOLUTIONS):
        outputs = outputs or layer.out_channels
        geometry = layer.kernel_size, layer.stride, layer.padding, layer.output_padding
        return _convolution_words(name, layer.in_channels, outputs, *geometry)
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
        return f"{name} of {layer.num_features}, eps {layer.eps:g}"
    return f"{name} {layer.negative_slope:g}" if isinstance(layer, nn.LeakyReLU) else name


def _convolution_words(name, inputs, outputs, kernel, stride, padding, extra) -> str:
    parts = {"kernel": kernel, "stride": stride, "padding": padding, "adj": extra}
    shown = ", ".join(f"{part} {'x'.join(f'{n:g}' for n in of)}" for part, of in parts.items())
    return f"{name} {inputs} -> {outputs}, {shown}"


def _view(*sizes: int) -> tuple[str, None]:
    return f"View {'x'.join(map(str, sizes))}", None


def _unfilled(network: type, shape: ClipShape, **options) -> nn.Module:
    """A network whose weights take no memory, and are still to be given."""
    with torch.device("meta"), _NoDraws():
        return network(shape, **options)


class _NoDraws(TorchFunctionMode):
    """Leaves out the draws of initial weights: without memory they load PyTorch's compiler, 3 s."""

    def __torch_function__(self, function, types, given=(), options=None):
        if function is nn.init.normal_:
            return None
        return function(*given, **(options or {}))


class _Layer:
    """A module that holds no others, a ConcatTable, or the end of one of its branches.

    Attributes:
        kind: its class, of `nn` or `cudnn`.
        place: its number, as Torch prints nested ones, and its class in full.
    """

    def __init__(self, file: Path, number: str, module: TorchObject):
        self.kind = module.name.removeprefix("nn.").removeprefix("cudnn.")
        self.place = f"layer {number} ({module.name})"
        self._file, self._fields = file, module.fields

    @property
    def words(self) -> str:
        """What it does, all of it."""
        kind = self.kind
        if kind in _CLASSES.values() and kind.endswith("Convolution"):
            return self._convolution()
        if kind in _CLASSES.values() and kind.endswith("BatchNormalization"):
            return f"{kind} of {self._tensor('running_mean').numel()}, eps {self._number('eps'):g}"
        if kind == "ConcatTable":
            return f"{kind} of {len(self.children())}"
        if kind == "LeakyReLU":
            return f"{kind} {self._number('negval'):g}"
        if kind == "SelectTable":
            return f"{kind} {self._number('index'):g}"
        if kind == "Replicate":
            return f"{kind} {self._number('nfeatures'):g} along {self._number('dim'):g}"
        if kind in ("MulConstant", "AddConstant"):
            return f"{kind} {self._number('constant_scalar'):g}"
        if kind == "Squeeze":
            # The mask's one channel, also where all of size one are meant.
            dim = 2 if self._fields.get("dim") is None else self._number("dim")
            return f"{kind} {dim:g}"
        if kind == "View":
            sizes = self._tensor("size").flatten()[:DIMENSIONS].tolist()
            return f"{kind} {'x'.join(map(str, sizes))}"
        return kind

    def children(self) -> list[Any]:
        """The modules of a container, in order."""
        modules = self._fields.get("modules")
        if not isinstance(modules, dict) or not all(i + 1 in modules for i in range(len(modules))):
            raise UserError(f"{self._file}: {self.place} has no list of modules")
        return [modules[i + 1] for i in range(len(modules))]

    def weights(self) -> dict[str, Tensor]:
        """Its weights by the names, and in the shapes, of PyTorch's layer."""
        if self.kind.endswith("Convolution"):
            weight = self.weight()
            outputs = weight.shape[1 if "Full" in self.kind else 0]
            return {
                "weight": self._checked("weight", weight),
                "bias": self._vector("bias", outputs, missing=0.0),
            }
        size = self._tensor("running_mean").numel()
        return {
            "weight": self._vector("weight", size, missing=1.0),
            "bias": self._vector("bias", size, missing=0.0),
            "running_mean": self._vector("running_mean", size),
            "running_var": self._variance(size),
            "num_batches_tracked": torch.tensor(0),
        }

    def weight(self) -> Tensor:
        """A convolution's weights, laid out as PyTorch's, as they are in the file."""
        weight = self._tensor("weight")
        if weight.dim() != (4 if "Spatial" in self.kind else 5):
            raise UserError(
                f"{self._file}: {self.place} has weights of shape {list(weight.shape)}, which are "
                "those of no such layer"
            )
        # As the module itself does with what an older version saved.
        older = self.kind == "VolumetricFullConvolution" and "adjW" not in self._fields
        return weight.transpose(0, 1) if older else weight

    def _convolution(self) -> str:
        axes = "HW" if "Spatial" in self.kind else "THW"
        weight = self.weight()
        inputs, outputs = weight.shape[:2]
        if "Full" not in self.kind:
            inputs, outputs = outputs, inputs
        stride = [self._number(f"d{axis}", 1) for axis in axes]
        padding = [
            self._number(f"pad{axis}", self._number(f"p{axis}", 0))  # older
            for axis in axes
        ]
        extra = [self._number(f"adj{axis}", 0) for axis in axes]
        kernel = weight.shape[2:]
        return _convolution_words(self.kind, inputs, outputs, kernel, stride, padding, extra)

    def _variance(self, size: int) -> Tensor:
        if "running_var" in self._fields:
            variance = self._vector("running_var", size)
            if (variance < 0).any():
                raise UserError(f"{self._file}: {self.place} has a negative running_var")
            return variance
        # Older versions kept what they multiplied by: 1 / sqrt(variance + eps).
        deviation = self._vector("running_std", size).double()
        if (deviation <= 0).any():
            raise UserError(f"{self._file}: {self.place} has a running_std that is not positive")
        return (deviation**-2 - self._number("eps")).clamp(min=0).float()

    def _vector(self, name: str, size: int, missing: float | None = None) -> Tensor:
        if missing is not None and self._fields.get(name) is None:
            return torch.full((size,), missing)
        value = self._tensor(name)
        if value.shape != (size,):
            raise UserError(
                f"{self._file}: {self.place} has a {name} of shape {list(value.shape)}, not {size}"
            )
        return self._checked(name, value)

    def _checked(self, name: str, value: Tensor) -> Tensor:
        """In fp32, in memory of its own."""
        if not value.is_floating_point():
            raise UserError(f"{self._file}: {self.place} has a {name} of {value.dtype}")
        # Not a view: of all parameters Torch7 makes one storage.
        value = value.to(torch.float32, copy=True).contiguous()
        if not value.isfinite().all():
            raise UserError(f"{self._file}: {self.place} has a {name} that is not finite")
        return value

    def _tensor(self, name: str) -> Tensor:
        value = self._fields.get(name)
        if not isinstance(value, Tensor):
            raise UserError(f"{self._file}: {self.place} has no {name}")
        return value

    def _number(self, name: str, missing: float | None = None) -> float:
        value = self._fields.get(name, missing)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self._file}: {self.place} has no number {name}")
        return value


class _Found:
    """The layers of a file, asked for sizes before it is known what they must be."""

    def __init__(self, file: Path, layers: list[_Layer]):
        self._file, self._layers = file, layers

    def error(self, why: str) -> UserError:
        return UserError(f"{self._file}: holds no network of VGAN: {why}")

    def weight(self, kind: str, which: int = 0) -> Tensor:
        """Weights of the first, or `which`, layer of that kind."""
        found = [layer for layer in self._layers if layer.kind == kind]
        if not found:
            raise self.error(f"it has no nn.{kind}")
        return found[which].weight()

    def count(self, kind: str) -> int:
        """How many layers of that kind there are."""
        return sum(layer.kind == kind for layer in self._layers)

    def upsampler(self, model: str) -> tuple[int, Settings]:
        """Size of the latent, and settings, of layers that begin with one."""
        latent, widest, depth, *_ = self.weight("VolumetricFullConvolution").shape
        levels = self.count("VolumetricBatchNormalization")
        width = widest >> max(levels - 1, 0)
        return latent, self.settings(model, levels, depth, width, latent=latent)

    def settings(self, model: str, levels: int, depth: int, width: int, **sizes) -> Settings:
        """Settings of the original's training, of networks with so many stride-2 layers."""
        levels = min(levels, 16)  # beyond what any has
        sizes |= {"frames": depth << levels, "size": 4 << levels, "width": width}
        given = {"model": model, "data": UNKNOWN_DATA, "logits": "2", **sizes}
        try:
            return Settings.chosen("paper", given)
        except UserError as error:
            raise self.error(f"{error}") from error


def _layers(
    file: Path, module: Any, number: str = "", seen: set[int] | None = None
) -> Iterator[_Layer]:
    """The layers in the order of the tree, sequences in sequences as one.

    A ConcatTable is followed by the layers of each branch, and each branch by its end.
    """
    seen = set() if seen is None else seen
    if not isinstance(module, TorchObject):
        raise UserError(f"{file}: holds no network of Torch7{f' at layer {number}' * bool(number)}")
    if id(module) in seen or number.count(".") >= NESTED:
        raise UserError(f"{file}: layer {number} stands in two places, or too deep in others")
    seen.add(id(module))
    layer = _Layer(file, number or "0", module)
    if layer.kind not in ("Sequential", "ConcatTable"):
        if layer.kind not in _TRANSPARENT:
            yield layer
        return
    if layer.kind == "ConcatTable":
        yield layer
    for i, child in enumerate(layer.children(), start=1):
        inner = f"{number}.{i}" if number else str(i)
        yield from _layers(file, child, inner, seen)
        if layer.kind == "ConcatTable":
            yield _Layer(file, inner, TorchObject(_END, {}))
