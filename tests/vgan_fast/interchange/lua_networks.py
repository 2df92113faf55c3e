"""The networks of videogan's main.lua and main_conditional.lua as trees of modules, and their run.

Weights are random; sizes are small unless others are given, in the original's proportions. `run`
is what Torch7 computes, module by module, in evaluation mode.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch7_writer import Empty, Obj, Storage, View

LATENT, WIDTH, DEPTH, SIZE, FRAMES = 6, 4, 2, 16, 8


class Lua:
    """Makes modules as Lua's constructors do, of one package, with weights of one seed.

    The original has levels=4, width=64, latent=100.
    """

    def __init__(self, seed=0, package="nn", levels=2, width=WIDTH, latent=LATENT, depth=DEPTH):
        self.random = np.random.default_rng(seed)
        self.package, self.latent, self.depth = package, latent, depth
        self.widths = [width << level for level in range(levels)]
        self.frames = depth << levels

    def module(self, name, package="nn", version=1, **fields):
        state = {"gradInput": Empty(), "output": Empty(), "_type": "torch.FloatTensor"}
        return Obj(f"{package}.{name}", version, train=False, **state, **fields)

    def sequential(self, *modules):
        return self.module("Sequential", modules=list(modules))

    def fork(self, *modules):
        return self.module("ConcatTable", modules=list(modules))

    def convolution(self, name, inputs, outputs, kernel, stride=1, padding=0):
        """`nn.<name>`; kernels (T,) H, W, of one number each or of all."""
        axes = "THW" if name.startswith("Volumetric") else "HW"
        kernel = kernel if isinstance(kernel, tuple) else (kernel,) * len(axes)
        first = (inputs, outputs) if "Full" in name else (outputs, inputs)
        fan = inputs * np.prod(kernel) / stride ** len(axes)
        weight = self.random.normal(0, 1.5 / np.sqrt(fan), (*first, *kernel)).astype("f4")
        bias = self.random.normal(0, 0.3, outputs).astype("f4")
        sizes = {"nInputPlane": inputs, "nOutputPlane": outputs}
        for axis, extent in zip(axes, kernel, strict=True):
            sizes |= {f"k{axis}": extent, f"d{axis}": stride, f"pad{axis}": padding}
            if "Full" in name:
                sizes[f"adj{axis}"] = 0
        grad = {"gradWeight": np.zeros_like(weight), "gradBias": np.zeros_like(bias)}
        return self.module(name, self.package, weight=weight, bias=bias, **sizes, **grad)

    def norm(self, kind, channels, eps=1e-5):
        draw = self.random
        return self.module(
            f"{kind}BatchNormalization",
            self.package,
            version=2,
            affine=True,
            eps=eps,
            momentum=0.1,
            running_mean=draw.normal(0, 0.3, channels).astype("f4"),
            running_var=draw.uniform(0.5, 2, channels).astype("f4"),
            weight=draw.normal(1, 0.2, channels).astype("f4"),
            bias=draw.normal(0, 0.2, channels).astype("f4"),
        )

    def relu(self):
        return self.module("ReLU", self.package, inplace=True, threshold=0, val=0)

    def leaky(self):
        return self.module("LeakyReLU", inplace=True, negval=0.2)

    def view(self, *sizes, **fields):
        size = Storage(np.array(sizes, "i8"))
        return self.module("View", size=size, numElements=abs(int(np.prod(sizes))), **fields)

    def select(self, index):
        return self.module("SelectTable", index=index)

    def replicate(self, times, dim):
        return self.module("Replicate", nfeatures=times, dim=dim)

    def times(self, value):
        return self.module("MulConstant", constant_scalar=value, inplace=False)

    def plus(self, value):
        return self.module("AddConstant", constant_scalar=value, inplace=False)

    def up(self, kind, widths):
        layers = []
        for inputs, outputs in itertools.pairwise(widths[::-1]):
            layers += [
                self.convolution(f"{kind}FullConvolution", inputs, outputs, 4, 2, 1),
                *(self.norm(kind, outputs), self.relu()),
            ]
        return layers

    def down(self, kind, channels, widths, activation):
        layers = [self.convolution(f"{kind}Convolution", channels, widths[0], 4, 2, 1)]
        layers += [activation()]
        for inputs, outputs in itertools.pairwise(widths):
            layers += [
                self.convolution(f"{kind}Convolution", inputs, outputs, 4, 2, 1),
                *(self.norm(kind, outputs, 1e-3), activation()),
            ]
        return layers

    # main.lua

    def background(self):
        return self.sequential(
            self.view(-1, self.latent, 1, 1),
            self.convolution("SpatialFullConvolution", self.latent, self.widths[-1], 4),
            *(self.norm("Spatial", self.widths[-1]), self.relu()),
            *self.up("Spatial", self.widths),
            self.convolution("SpatialFullConvolution", self.widths[0], 3, 4, 2, 1),
            self.module("Tanh", self.package),
        )

    def foreground(self):
        return [
            self.view(-1, self.latent, 1, 1, 1),
            self.convolution(
                "VolumetricFullConvolution", self.latent, self.widths[-1], (self.depth, 4, 4)
            ),
            *(self.norm("Volumetric", self.widths[-1]), self.relu()),
            *self.up("Volumetric", self.widths),
        ]

    def colours(self, width):
        return [
            self.convolution("VolumetricFullConvolution", width, 3, 4, 2, 1),
            self.module("Tanh", self.package),
        ]

    def heads(self, width, penalty=()):
        mask = self.convolution("VolumetricFullConvolution", width, 1, 4, 2, 1)
        mask = self.sequential(mask, self.module("Sigmoid", self.package), *penalty)
        return self.fork(self.sequential(*self.colours(width)), mask)

    def blend(self):
        moving = self.sequential(
            self.fork(
                self.select(1),
                self.sequential(self.select(2), self.module("Squeeze"), self.replicate(3, 2)),
            ),
            self.module("CMulTable"),
        )
        still = self.sequential(
            self.fork(
                self.sequential(self.select(3), self.replicate(self.frames, 3)),
                self.sequential(
                    self.select(2),
                    self.module("Squeeze"),
                    *(self.times(-1), self.plus(1), self.replicate(3, 2)),
                ),
            ),
            self.module("CMulTable"),
        )
        return [self.fork(moving, still), self.module("CAddTable", inplace=False)]

    def two_stream(self):
        penalty = self.module("L1Penalty", l1weight=0.1, sizeAverage=True, provideOutput=True)
        moving = self.sequential(*self.foreground(), self.heads(self.widths[0], [penalty]))
        streams = self.fork(moving, self.background())
        return self.sequential(streams, self.module("FlattenTable"), *self.blend())

    def one_stream(self):
        return self.sequential(*self.foreground(), *self.colours(self.widths[0]))

    def discriminator(self, times=1):
        widths = [times * width for width in self.widths]
        return self.sequential(
            *self.down("Volumetric", 3, widths, self.leaky),
            self.convolution("VolumetricConvolution", widths[-1], 2, (self.depth, 4, 4)),
            self.view(2, numInputDims=4),
        )

    # main_conditional.lua: twice the width

    def conditional(self, given=1):
        widths = [2 * width for width in self.widths]
        wide, widest = widths[0], widths[-1]
        encoder = self.sequential(*self.down("Spatial", 3 * given, widths, self.relu))
        moving = self.sequential(
            self.view(-1, widest, 1, 4, 4),
            self.convolution("VolumetricFullConvolution", widest, widest, (self.depth, 1, 1)),
            *(self.norm("Volumetric", widest), self.relu()),
            *self.up("Volumetric", widths),
            self.heads(wide),
        )
        still = self.sequential(
            *self.up("Spatial", widths),
            self.convolution("SpatialFullConvolution", wide, 3, 4, 2, 1),
            self.module("Tanh", self.package),
        )
        flat = self.module("FlattenTable")
        return self.sequential(encoder, self.fork(moving, still), flat, *self.blend())


def modules_of(tree):
    """Every module of a tree."""
    yield tree
    for child in tree.fields.get("modules", []):
        yield from modules_of(child)


def dense(value):
    """The elements of a tensor in fp32, whatever they are a view of."""
    if isinstance(value, View):
        values, size = value.storage.values, value.storage.values.itemsize
        strides = [stride * size for stride in value.strides]
        value = np.lib.stride_tricks.as_strided(values[value.offset :], value.sizes, strides)
    return torch.from_numpy(np.ascontiguousarray(value, "f4"))


def run(module, given):
    """What Torch7 makes of `given` in evaluation mode; tables are lists."""
    fields = module.fields
    name = module.name.split(".")[1]
    if name == "Sequential":
        for child in fields["modules"]:
            given = run(child, given)
        return given
    if name == "ConcatTable":
        return [run(child, given) for child in fields["modules"]]
    if name == "FlattenTable":
        return [*given[0], given[1]]
    if name == "SelectTable":
        return given[fields["index"] - 1]
    if name == "CMulTable":
        return given[0] * given[1]
    if name == "CAddTable":
        return given[0] + given[1]
    if name.endswith("Convolution"):
        operations = {
            "SpatialConvolution": F.conv2d,
            "VolumetricConvolution": F.conv3d,
            "SpatialFullConvolution": F.conv_transpose2d,
            "VolumetricFullConvolution": F.conv_transpose3d,
        }
        bias = dense(fields["bias"]) if "bias" in fields else None
        stride, padding = fields["dW"], fields["padW"]
        return operations[name](given, dense(fields["weight"]), bias, stride, padding)
    if name.endswith("BatchNormalization"):
        mean, variance = dense(fields["running_mean"]), dense(fields["running_var"])
        affine = [dense(fields[key]) if key in fields else None for key in ("weight", "bias")]
        return F.batch_norm(given, mean, variance, *affine, eps=fields["eps"])
    simple = {
        "View": lambda: given.reshape([-1, 2] if fields.get("numInputDims") else sizes(module)),
        "ReLU": lambda: given.relu(),
        "LeakyReLU": lambda: F.leaky_relu(given, fields["negval"]),
        "Tanh": lambda: given.tanh(),
        "Sigmoid": lambda: given.sigmoid(),
        "L1Penalty": lambda: given,
        "Squeeze": lambda: given.squeeze(),
        "Replicate": lambda: torch.stack([given] * fields["nfeatures"], fields["dim"] - 1),
        "MulConstant": lambda: given * fields["constant_scalar"],
        "AddConstant": lambda: given + fields["constant_scalar"],
    }
    return simple[name]()


def sizes(view):
    """The sizes of an nn.View."""
    return view.fields["size"].values.tolist()
