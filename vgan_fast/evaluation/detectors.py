"""Detectors: networks that turn clips into the features that distances are measured between.

A distance means something only beside others of the same detector, so each has a name and the hash
of its weights, which every number carries.
"""

import hashlib
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan_fast.checkpoint import load_weights, open_weights
from vgan_fast.errors import UserError
from vgan_fast.networks import build_discriminator


class RandomExtractor(nn.Module):
    """A fixed, untrained 3D convolution network: features of a clip that need no download.

    Three 4x4x4 convolutions, stride 2, padding 1, 3 -> 32 -> 64 -> 128 channels, LeakyReLU 0.2,
    orthogonal weights drawn from seed 0, zero bias. Its distances compare runs of this project
    with each other and with nothing else.
    """

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Conv3d(inner, outer, 4, stride=2, padding=1)
            for inner, outer in ((3, 32), (32, 64), (64, 128))
        )
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        self.requires_grad_(False)

    def forward(self, clip: Tensor) -> Tensor:
        """Features (N, 512) of clips (N, 3, T, H, W) in [-1, 1].

        Mean and standard deviation over positions, of the frames and of the frame differences.
        """
        return torch.cat([*self._moments(clip), *self._moments(clip.diff(dim=2))], dim=1)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return x.mean((2, 3, 4)), x.std((2, 3, 4))


class PooledDiscriminator(nn.Module):
    """What a discriminator computes before its last layer, averaged over positions."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self._body = discriminator.layers[:-1]

    def forward(self, clip: Tensor) -> Tensor:
        """Features (N, widest) of clips (N, 3, T, H, W) in [-1, 1]."""
        return self._body(clip).float().mean((2, 3, 4))


@dataclass(frozen=True)
class Detector:
    """A network with a name and the hash of its weights.

    Attributes:
        kind: "random", "discriminator" or "torchscript".
        sha256: of the weights; of a TorchScript file all its bytes, its code included.
        network: clips (N, 3, T, H, W) fp32 in [-1, 1] to features (N, D), or to those and class
            logits (N, C).
        clips: (T, H, W) that the network takes, None where it takes any from `least` on.
        least: (T, H, W) of the smallest clips.
        resize: side to which frames are scaled first, None to leave them.
    """

    kind: str
    sha256: str
    network: nn.Module
    clips: tuple[int, int, int] | None = None
    least: tuple[int, int, int] = (1, 1, 1)
    resize: int | None = None

    @property
    def label(self) -> str:
        """Name and short hash, which stand beside every number."""
        return f"{self.kind}:{self.sha256[:8]}"

    def check(self, frames: int, size: int) -> None:
        """Refuse clips that the network does not take.

        Raises:
            UserError: naming its sizes and those given.
        """
        if self.clips:
            fits = (frames, size) == self.clips[:2]
            takes = "{} frames of {}x{}".format(*self.clips)
        else:
            fits = frames >= self.least[0] and size >= self.least[1]
            takes = "clips from {} frames of {}x{} on".format(*self.least)
        if not fits:
            raise UserError(
                f"the detector {self.label} takes {takes}, the runs make {frames} of {size}x{size};"
                " choose another with --detector, --detector-run or --detector-file"
            )

    @torch.inference_mode()
    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (N, D) fp64 on the CPU, and class logits (N, C) fp64 where the network has them.

        Computed in fp32 without TF32, so that a number does not hang on the run's precision.

        Raises:
            UserError: when a TorchScript network fails, or gives something else.
        """
        clips = clips.float()
        if self.resize is not None and clips.shape[-1] != self.resize:
            clips = _resized(clips, self.resize)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            try:
                made = self.network(clips)
            except RuntimeError as error:
                if self.kind != "torchscript" or "memory" in str(error):
                    raise
                reason = str(error).strip().splitlines()[-1]
                raise UserError(
                    f"--detector-file: fails on clips {tuple(clips.shape)} ({reason}); it may need "
                    "another --detector-size"
                ) from error
        made = tuple(made) if isinstance(made, tuple | list) else (made, None)
        fitting = len(made) == 2 and all(of is None or _fits(of, len(clips)) for of in made)
        if not fitting or made[0] is None:
            raise UserError(
                f"--detector-file: of clips {tuple(clips.shape)} it must make finite features "
                f"({len(clips)}, D), or those and class logits ({len(clips)}, C), two "
                "columns at least"
            )
        features, logits = made
        return features.double().cpu(), None if logits is None else logits.double().cpu()


def random_detector(device: torch.device) -> Detector:
    """The seeded random network: needs nothing, and compares runs on equal clips."""
    network = RandomExtractor()
    # Smaller ones have nothing left before the last convolution of the frame differences.
    return Detector("random", _hash_of(network), network.to(device), least=(9, 8, 8))


def discriminator_of(run: Path, device: torch.device) -> Detector:
    """The discriminator of a run: sees what that run learned to see.

    Raises:
        UserError: when the run has no whole checkpoint, or no discriminator.
    """
    checkpoint, settings = open_weights(run)
    if settings.model == "autoencoder":
        raise UserError(
            f"{run}: a run of --model autoencoder has no discriminator; name another run with "
            "--detector-run, or use --detector random"
        )
    network = build_discriminator(replace(settings, backend="reference", graph=None))
    load_weights(checkpoint, {"discriminator": network})
    network.eval().requires_grad_(False)
    shape = settings.frames, settings.size, settings.size
    detector = PooledDiscriminator(network).to(device)
    return Detector("discriminator", _hash_of(network), detector, clips=shape)


def torchscript_detector(
    file: Path, trust: str | None, resize: int | None, device: torch.device
) -> Detector:
    """A detector of somebody else, as a TorchScript file.

    Such a file carries code, which runs with the rights of the user: it is loaded only where
    `trust` is the SHA-256 of its bytes. The bytes are read once; those hashed are those loaded.

    Args:
        file: takes clips (N, 3, T, H, W) fp32 in [-1, 1]; returns features (N, D), or a tuple of
            features and class logits (N, C).
        trust: the hash that the user expects.
        resize: side that the frames are scaled to.
        device: where to compute.

    Raises:
        UserError: when the file cannot be read, is not trusted or is no TorchScript.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({(error.strerror or '').lower()})") from error
    found = hashlib.sha256(content).hexdigest()
    if trust is None:
        raise UserError(
            f"{file}: a TorchScript file carries code, which would run with your rights; if you "
            f"know where it is from, add --trust {found}"
        )
    if trust.lower() != found:
        raise UserError(
            f"{file}: its SHA-256 is {found}, not the trusted {trust}: the file is another one or "
            "was changed; get it again"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # The format is the user's choice.
            network = torch.jit.load(io.BytesIO(content), map_location=device).eval()
    except RuntimeError as error:
        raise UserError(f"{file}: is no TorchScript file; make one with torch.jit.save") from error
    return Detector("torchscript", found, network, resize=resize)


def features(extractor: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Features (clips, D), fp64, of batches of clips (N, 3, T, H, W) in [-1, 1]."""
    with torch.inference_mode():
        return torch.cat([extractor(batch.float()).double() for batch in batches])


def _fits(made: object, count: int) -> bool:
    """Whether it is features, or logits, of so many clips."""
    if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != count:
        return False
    return made.shape[1] >= 2 and bool(torch.isfinite(made).all())


def _hash_of(network: nn.Module) -> str:
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()


def _resized(clips: Tensor, side: int) -> Tensor:
    frames = clips.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(frames, (side, side), mode="bilinear", antialias=True)
    return frames.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2)
