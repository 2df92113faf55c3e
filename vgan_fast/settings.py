"""Every setting of a training run, in one frozen dataclass with presets."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from vgan_fast.errors import UserError
from vgan_fast.foreign import MalformedError, read_json
from vgan_fast.loaders.augment import Augmentation
from vgan_fast.shape import ClipShape
from vgan_fast.stgconvnet.layers import EXPERIMENTS, Layer, Sizes, parse_layers, parse_rates

SYNTHETIC = ("synthetic", "synthetic-motions")  # sets that are drawn, not read
UNKNOWN_DATA = "unknown"  # of networks from elsewhere: nobody says what they were trained on


# Of a layer's learning rate to that of the layer below it, in the experiments where the paper's are
# smaller for higher layers. By how much is not known here.
LAYER_RATE = 0.3


def _option(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """What to train, on what and how.

    Raises:
        UserError: for a value out of range, or values that do not go together.
    """

    data: str = _option(
        "synthetic",
        "videos, frame images, strips, WebDataset or .npy shards: a folder, a list or one file; or "
        "'synthetic', or 'synthetic-motions', whose classes are motions",
    )
    model: Literal["two-stream", "one-stream", "future", "autoencoder", "stgconvnet"] = _option(
        "two-stream",
        "generator architecture; future: goes on from the first frames of a clip; autoencoder: the "
        "paper's baseline; stgconvnet: no generator but an energy, sampled by Langevin dynamics",
    )
    steps: int = _option(100_000, "total training steps, those before --resume included")
    batch_size: int = _option(64, "clips in a batch; incomplete batches are dropped")
    frames: int = _option(32, "frames of a clip, a power of two; any number for --model stgconvnet")
    size: int = _option(64, "height and width of a clip in pixels, likewise")
    width: int = _option(64, "channels of the layer next to the pixels; the others double inwards")
    latent: int = _option(100, "entries of the latent code")
    loss: Literal["cross-entropy", "hinge"] = _option("cross-entropy", "adversarial loss")
    logits: Literal["1", "2"] = _option(
        "1", "discriminator outputs: one log odds, or the original's softmax pair"
    )
    schedule: Literal["fresh", "original"] = _option(
        "fresh",
        "generator step through a new pass of the updated discriminator, or as the original "
        "through its stale activations (needs --backend reference)",
    )
    optimizer: Literal["adam", "sgd"] = _option("adam", "Adam (beta1 0.5), or SGD (momentum 0.9)")
    lr: float = _option(2e-4, "learning rate of both networks")
    lr_d: float | None = _option(None, "learning rate of the discriminator  [default: --lr]")
    mask_penalty: float = _option(0.1, "weight of the mask's mean in the generator's loss")
    mask_bias: float = _option(0.0, "initial bias of the mask's logit; negative starts transparent")
    encoder: Literal["spatial", "latent"] = _option(
        "spatial",
        "how --model future begins: with a grid of twice --width's channels, as the original's "
        "code does (the discriminator's are doubled as well), or with a latent, as the paper says",
    )
    condition: int = _option(1, "frames that --model future goes on from")
    reconstruction: Literal["l1", "l2"] = _option(
        "l1", "distance of the first frames in the loss of --model future: absolute or squared"
    )
    reconstruction_weight: float = _option(10.0, "weight of that distance")
    experiment: Literal["1", "2", "2b", "3", "4", "5"] = _option(
        "1",
        "layers, sizes and rates of --model stgconvnet by the paper's experiment: 1 textures "
        "stationary in space and time, 2 in time only (2b: its code's variant for fire), 3 aligned "
        "actions, 4 incomplete clips, 5 a background (both of vgan_fast.restore)",
    )
    layers: str | None = _option(
        None,
        "layers of --model stgconvnet as FILTERS@KERNEL/STRIDE, for instance '120@15/7 40@7/3 "
        "20@2x3x3/1x2x2'; a kernel of * covers what the layer sees  [default: the experiment's]",
    )
    layer_rates: str | None = _option(
        None, "factors of --lr, one a layer, parted by commas  [default: the experiment's]"
    )
    growth: Literal["auto", "together", "layers"] = _option(
        "auto",
        "learn all layers from the start, or put one more on top after each equal share of the "
        "steps; auto: layers in experiment 1",
    )
    chains: int = _option(3, "clips that --model stgconvnet draws side by side, and keeps")
    langevin_steps: int = _option(20, "Langevin steps of the chains in each training step")
    step_size: float = _option(0.3, "size of a Langevin step, in grey levels")
    reference: Literal["gaussian", "uniform"] = _option(
        "gaussian", "density that the energy refers to: normal, or flat between 0 and 255"
    )
    sigma: float = _option(1.0, "standard deviation of the normal one, in grey levels")
    temperature: float = _option(1.0, "of the Langevin steps' noise; 0 goes down the energy")
    metropolis: bool = _option(False, "accept Langevin steps by Metropolis-Hastings")
    average: float = _option(
        0.0, "decay per step of the moving average of the generator used for samples; 0 is off"
    )
    min_frames: int = _option(1, "shortest usable file; shorter than a clip is padded by its end")
    fps: float | None = _option(
        None, "resample videos to this rate by their time stamps  [default: every frame]"
    )
    stride: int = _option(1, "frames of a file from one frame of a clip to the next")
    start: Literal["random", "fixed"] = _option(
        "random", "clips from anywhere in a file, or one after the other from its beginning"
    )
    crop: float = _option(1.0, "least share of the area that random resized crops keep; 1 is off")
    flip: bool = _option(False, "mirror half of the clips")
    brightness: float = _option(0.0, "largest relative change of a clip's brightness")
    contrast: float = _option(0.0, "largest relative change of a clip's contrast")
    saturation: float = _option(0.0, "largest relative change of a clip's saturation")
    hue: float = _option(0.0, "largest turn of a clip's hue, in degrees")
    cache: Literal["auto", "gpu", "host", "none"] = _option(
        "auto",
        "memory that keeps the whole set, scaled; auto: GPU or host, where it fits half of what is "
        "free",
    )
    decoded: str | None = _option(
        None, "folder of decoded videos; runs may share one  [default: OUT/frames]"
    )
    workers: int | None = _option(
        None,
        "decoding processes, and threads that prepare batches, of each process of torchrun  "
        "[default: one a CPU in all]",
    )
    device: Literal["auto", "cpu", "cuda"] = _option("auto", "where to train")
    backend: Literal["auto", "fused", "library", "reference"] = _option(
        "auto",
        "auto: on a GPU for each layer the faster of this project's kernels and the library, on a "
        "CPU the library; fused: the kernels throughout; library: PyTorch's layers throughout; "
        "reference: the plain loop",
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = _option(
        "auto",
        "activations and products (tf32: products only; fp16: scaled gradients); statistics, "
        "losses and weights are always fp32",
    )
    batch_norm: Literal["local", "synchronised"] = _option(
        "local",
        "statistics under torchrun: of each process's own clips, or of the whole batch",
    )
    graph: bool | None = _option(
        None,
        "run each step as one CUDA graph  [default: on a GPU, but for --backend reference and "
        "--precision fp16]",
    )
    on_nan: Literal["stop", "skip"] = _option(
        "stop",
        "a loss that is not finite stops the run, or its step is skipped: weights, moments and "
        "statistics stay as they were (takes memory for a copy of them)",
    )
    skip_limit: int = _option(
        10, "steps that --on-nan skip passes over one after the other before it stops all the same"
    )
    seed: int = _option(0, "seed of weights, latents and data order")
    sample_every: int = _option(500, "steps between pictures")
    checkpoint_every: int = _option(500, "steps between checkpoints")
    keep: int = _option(3, "newest checkpoints kept")
    deterministic: bool = _option(False, "refuse operations that are not repeatable bit for bit")

    def __post_init__(self):
        _ = self.augmentation, None if self._is_energy else self.shape  # which check their values
        for name, annotation in typing.get_type_hints(type(self)).items():
            choices, value = typing.get_args(annotation), getattr(self, name)
            if typing.get_origin(annotation) is Literal and value not in choices:
                raise UserError(f"{_flag(name)} {value}: must be one of {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{_flag(name)} {value}: must be a number")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UserError(f"{_flag(name)} {value}: must lie between {least} and {most}")
        for name in ("lr", "lr_d"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{_flag(name)} {value}: must be positive")
        for name in ("fps", "workers"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1000:
                raise UserError(f"{_flag(name)} {value}: must lie between 1 and 1000")
        if self.data in SYNTHETIC:
            for name in _OF_FILES:
                if getattr(self, name) != getattr(type(self), name):
                    raise UserError(f"{_flag(name)} is for files: name some with --data")
        if not 0 <= self.average < 1:
            raise UserError(f"--average {self.average}: must lie in [0, 1)")
        if self.loss == "hinge" and self.logits != "1":
            raise UserError("--loss hinge needs --logits 1: a margin is defined on one logit")
        for model, names in _OF_MODELS.items():
            for name in names:
                if self.model != model and getattr(self, name) != getattr(type(self), name):
                    raise UserError(f"{_flag(name)} is for --model {model}")
        if self.model == "future" and self.condition >= self.frames:
            raise UserError(
                f"--condition {self.condition}: must leave some of the {self.frames} --frames"
            )
        if self.batch_size < 2 and not self._is_energy:
            raise UserError(f"--batch-size {self.batch_size}: must be 2 or more: batch norm")
        if self.average and self.model in ("future", "autoencoder", "stgconvnet"):
            raise UserError(f"--average: not with --model {self.model}; leave it at 0")
        if self.model in ("autoencoder", "stgconvnet"):
            for name in ("loss", "logits", "schedule", "lr_d"):
                if getattr(self, name) != getattr(type(self), name):
                    raise UserError(f"{_flag(name)}: --model {self.model} has no discriminator")
            if self.mask_penalty:
                raise UserError(f"--mask-penalty: not with --model {self.model}; leave it at 0")
        if self._is_energy:
            self._check_energy()
        if self.model == "one-stream" and (self.mask_bias or self.mask_penalty):
            raise UserError(
                "--model one-stream has no mask: leave --mask-bias and --mask-penalty at 0"
            )
        if self.schedule == "original" and self.backend != "reference":
            raise UserError("--schedule original needs --backend reference")
        if self.schedule == "original" and self.precision in ("bf16", "fp16"):
            raise UserError("--schedule original is for fp32 tensors: use --precision fp32 or tf32")
        if self.schedule == "original" and self.batch_norm == "synchronised":
            raise UserError("--schedule original needs --batch-norm local")
        if self.backend == "fused" and self.precision == "fp16":
            raise UserError(
                "--precision fp16: not with --backend fused; use --backend auto or --precision bf16"
            )
        if self.graph and self.backend == "reference":
            raise UserError("--graph: not with --backend reference, which is the plain loop")
        if self.graph and self.precision == "fp16":
            raise UserError("--graph: not with --precision fp16: its scaler is not captured")

    def _check_energy(self) -> None:
        for name in ("frames", "size"):
            if not 1 <= getattr(self, name) <= 4096:
                raise UserError(f"{_flag(name)} {getattr(self, name)}: must lie in [1, 4096]")
        self.factors_of_rates(len(self.network_layers()))
        for name in ("width", "latent", "mask_bias"):
            if getattr(self, name) != getattr(type(self), name):
                raise UserError(f"{_flag(name)}: is for the generators of other models")
        if self.step_size <= 0:
            raise UserError(f"--step-size {self.step_size}: must be positive")
        corrected = self.metropolis or self.reference == "uniform"
        if self.step_size >= 2 * self.sigma and not corrected:
            raise UserError(
                f"--step-size {self.step_size}: must be less than twice --sigma {self.sigma}, or "
                "chains grow without end"
            )
        if self.backend == "library":
            raise UserError("--backend library: not with --model stgconvnet; use auto or reference")
        if self.backend == "reference" and self.precision == "bf16":
            raise UserError("--precision bf16: not with --backend reference of --model stgconvnet")
        if self.metropolis and (not self.temperature or self.reference == "uniform"):
            raise UserError("--metropolis: needs --reference gaussian and a --temperature above 0")
        if self.metropolis and self.precision == "bf16":
            raise UserError("--metropolis: needs --precision fp32, or small differences are lost")
        if self.precision == "fp16":
            raise UserError(
                "--precision fp16: not with --model stgconvnet, whose sums exceed its range; use "
                "fp32 or bf16"
            )

    @property
    def _is_energy(self) -> bool:
        return self.model == "stgconvnet"

    @classmethod
    def chosen(cls, preset: str, given: dict) -> "Settings":
        """The settings given on a command line, completed by a preset of `PRESETS`."""
        of_model = _MODEL_PRESETS[preset].get(given.get("model"), {})
        if given.get("model") == "stgconvnet":
            of_model = {**of_model, **_OF_EXPERIMENTS[preset].get(given.get("experiment", "1"), {})}
        return cls(**{**PRESETS[preset], **of_model, **given})

    def network_layers(self, sizes: Sizes | None = None) -> tuple[Layer, ...]:
        """Layers of STGConvNet for clips of `sizes` (T, H, W), by default the settings' own."""
        sizes = sizes or (self.frames, self.size, self.size)
        layers = EXPERIMENTS[self.experiment] if self.layers is None else self.layers
        return parse_layers(layers, sizes)

    def factors_of_rates(self, layers: int) -> tuple[float, ...]:
        """Factors of the learning rate, one for each of STGConvNet's layers."""
        if self.layer_rates is not None:
            return parse_rates(self.layer_rates, layers)
        graded = self.experiment in ("2", "2b", "5") and self.layers is None
        return tuple(LAYER_RATE ** (i * graded) for i in range(layers))

    @property
    def shape(self) -> ClipShape:
        """Sizes of the clips and networks."""
        doubled = self.model == "future" and self.encoder == "spatial"
        return ClipShape(self.frames, self.size, self.width * (1 + doubled), self.latent)

    @property
    def least_weights(self) -> int:
        """Numbers in the largest layer: there are no fewer in the weights of a run."""
        if self._is_energy:
            return max(
                layer.filters * layer.channels * math.prod(layer.kernel)
                for layer in self.network_layers()
            )
        widths = [self.shape.latent, *self.shape.widths]
        inner = max((a * b * 64 for a, b in pairwise(widths[1:])), default=0)
        return max(inner, widths[0] * widths[1] * 16)

    @property
    def augmentation(self) -> Augmentation:
        """What varies from clip to clip."""
        names = (field.name for field in dataclasses.fields(Augmentation))
        return Augmentation(**{name: getattr(self, name) for name in names})

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Settings":
        """Read back what `save` wrote.

        Raises:
            UserError: when the file is missing, is no JSON, or holds other or ill-typed settings.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        try:
            if set(read_json(path, dict)) - known:
                raise UserError(f"{path}: does not hold the settings of this version's runs")
            return read_json(path, cls)
        except (OSError, MalformedError) as error:
            raise UserError(f"{path}: cannot be read as settings ({error})") from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


_OF_FILES = (
    "fps",
    "stride",
    "start",
    "crop",
    "flip",
    "brightness",
    "contrast",
    "saturation",
    "hue",
)

_OF_MODELS = {
    "future": ("encoder", "condition", "reconstruction", "reconstruction_weight"),
    "stgconvnet": (
        *("experiment", "layers", "layer_rates", "growth", "chains", "langevin_steps"),
        *("step_size", "reference", "sigma", "temperature", "metropolis"),
    ),
}

_BOUNDS = {
    "condition": (1, 1024),
    "reconstruction_weight": (0, 10**6),
    "steps": (1, 10**8 - 1),
    "batch_size": (1, 2**16),
    "chains": (1, 2**16),
    "langevin_steps": (1, 10**6),
    "step_size": (0, 10**3),
    "sigma": (1e-3, 10**6),
    "temperature": (0, 10**6),
    "mask_bias": (-100, 100),
    "mask_penalty": (0, 10**6),
    "min_frames": (1, 10**9),
    "stride": (1, 1000),
    "skip_limit": (1, 10**9),
    "seed": (0, 2**62 - 1),
    "sample_every": (1, 10**9),
    "checkpoint_every": (1, 10**9),
    "keep": (1, 10**9),
}

# What a run takes where the command line says nothing. "short" shows learning within minutes on two
# CPU cores; how its mask settings were found stands in benchmarks/NOTES.md.
PRESETS: dict[str, dict] = {
    "paper": {},
    "short": {
        "steps": 700,
        "batch_size": 32,
        "size": 32,
        "width": 32,
        "mask_bias": -3.0,
        "mask_penalty": 1.0,
        "average": 0.99,
        "sample_every": 100,
        "checkpoint_every": 100,
    },
}

# What other models than the two-stream GAN take in place of a preset's values, or of the defaults.
_ONE_STREAM = {"mask_penalty": 0.0, "mask_bias": 0.0}  # no mask
_AUTOENCODER = {"mask_penalty": 0.0, "average": 0.0}
_FUTURE = {"batch_size": 32, "mask_penalty": 0.0, "average": 0.0}
_ENERGY = {
    "mask_penalty": 0.0,
    "average": 0.0,
    "mask_bias": 0.0,
    "width": 64,
    "lr": 1e-3,
    "steps": 500,
    "batch_size": 1,
    "sample_every": 50,
    "checkpoint_every": 50,
}
_MODEL_PRESETS: dict[str, dict[str | None, dict]] = {
    "paper": {
        "one-stream": _ONE_STREAM,
        "autoencoder": _AUTOENCODER,
        "future": _FUTURE,
        "stgconvnet": _ENERGY,
    },
    "short": {
        "one-stream": _ONE_STREAM,
        "autoencoder": _AUTOENCODER,
        # Found on clips of 16 frames of 16x16: benchmarks/NOTES.md.
        "future": {**_FUTURE, "mask_bias": -1.0, "mask_penalty": 0.5, "lr": 5e-4, "lr_d": 2e-4},
        "stgconvnet": {**_ENERGY, "steps": 200, "frames": 24, "size": 48, "langevin_steps": 10},
    },
}
# Of STGConvNet's experiments at the paper's sizes; "short" keeps its own. 500 epochs of batches of
# 10 of 30 clips are 1500 steps.
_OF_EXPERIMENTS: dict[str, dict[str, dict]] = {
    "paper": {
        "1": {"frames": 70, "size": 224},
        "2": {"frames": 70, "size": 224},
        "2b": {"frames": 30, "size": 100, "batch_size": 10, "steps": 1500},
        "3": {"frames": 70, "size": 100, "batch_size": 2},
        "4": {"frames": 70, "size": 150, "batch_size": 2},
        "5": {"frames": 70, "size": 224, "chains": 1},
    },
    "short": {
        # Found on small clips: benchmarks/NOTES.md.
        "4": {"steps": 500, "lr": 2e-3, "chains": 1},
        "5": {"steps": 500, "chains": 1},
    },
}
