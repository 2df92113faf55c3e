"""The networks of "Generating Videos with Scene Dynamics" in plain PyTorch.

Clips are (N, 3, T, H, W) in [-1, 1]; latents are (N, latent). The default sizes are the paper's:
32 frames of 64x64, width 64, latent 100. Other sizes keep the scheme: L = log2(size / 4) stride-2
layers, channel widths halving from width * 2**(L-1) to width, and a first (generator) or last
(discriminator) kernel of (frames / 2**L) x 4 x 4.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan_fast.kernels.blend.reference import mask_blend
from vgan_fast.shape import ClipShape

# The original's in discriminator and image encoder; the generator keeps the library's 1e-5.
ENCODER_NORM_EPS = 1e-3

Encoder = Literal["spatial", "latent"]


CONVOLUTIONS = nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d


def _initialise(network: nn.Module) -> None:
    """DCGAN initialisation: weights N(0, 0.01), norm weights N(1, 0.02), all biases 0."""
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def store_channels_last(network: nn.Module) -> None:
    """Lay the weights of its convolutions out with the channels last in memory."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)


def _upsampler(shape: ClipShape, convolution: type, norm: type, first_kernel: tuple[int, ...]):
    """Latent -> `width` channels at half the output's resolution (paper section 3.1)."""
    widths = shape.widths
    layers = [convolution(shape.latent, widths[0], first_kernel), norm(widths[0]), nn.ReLU()]
    for inner, outer in itertools.pairwise(widths):
        layers += [convolution(inner, outer, 4, stride=2, padding=1), norm(outer), nn.ReLU()]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Streams:
    """What a two-stream generator made: G = m * f + (1 - m) * b (paper equation 3).

    Attributes:
        video: (N, 3, T, H, W) in [-1, 1].
        foreground: (N, 3, T, H, W) in [-1, 1].
        mask: (N, 1, T, H, W) in [0, 1].
        background: (N, 3, H, W) in [-1, 1], the same in every frame.
    """

    video: Tensor
    foreground: Tensor
    mask: Tensor
    background: Tensor


class OneStreamGenerator(nn.Module):
    """Latent (N, latent) -> video (N, 3, T, H, W) in [-1, 1]: paper section 3.1."""

    def __init__(self, shape: ClipShape):
        super().__init__()
        self.shape = shape
        kernel = (shape.depth, 4, 4)
        self.foreground = _upsampler(shape, nn.ConvTranspose3d, nn.BatchNorm3d, kernel)
        self.head = nn.ConvTranspose3d(shape.width, 3, 4, stride=2, padding=1)
        _initialise(self)

    def forward(self, latent: Tensor) -> Tensor:
        """Make one video for each row of `latent`."""
        return torch.tanh(self.head(self.foreground(latent[:, :, None, None, None])).float())


class TwoStreamGenerator(nn.Module):
    """Latent (N, latent) -> moving foreground over a still background: paper section 3.2.

    The foreground's and the mask's last layers share their input, so they are one layer of 3 + 1
    output channels (`head`).

    Args:
        shape: sizes of clip and networks.
        mask_bias: initial bias of the mask's logit; 0 is the paper's.
    """

    def __init__(self, shape: ClipShape, mask_bias: float = 0.0):
        super().__init__()
        self.shape = shape
        kernel = (shape.depth, 4, 4)
        self.foreground = _upsampler(shape, nn.ConvTranspose3d, nn.BatchNorm3d, kernel)
        self.head = nn.ConvTranspose3d(shape.width, 3 + 1, 4, stride=2, padding=1)
        self.background = _upsampler(shape, nn.ConvTranspose2d, nn.BatchNorm2d, kernel[1:])
        self.background_head = nn.ConvTranspose2d(shape.width, 3, 4, stride=2, padding=1)
        _initialise(self)
        nn.init.constant_(self.head.bias[3:], mask_bias)

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Video for each row of `latent`, and the mask's mean (scalar fp32) for its penalty."""
        return mask_blend(*self._logits(latent))

    def streams(self, latent: Tensor) -> Streams:
        """The video together with the streams that it was blended from."""
        head, background = self._logits(latent)
        return Streams(
            video=mask_blend(head, background)[0],
            foreground=torch.tanh(head[:, :3].float()),
            mask=torch.sigmoid(head[:, 3:].float()),
            background=torch.tanh(background.float()),
        )

    def _logits(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        return self._decode(latent[:, :, None, None])

    def _decode(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of head and background from a code (N, channels, h, w)."""
        head = self.head(self.foreground(code[:, :, None]))
        return head, self.background_head(self.background(code))


class FutureGenerator(TwoStreamGenerator):
    """First frames (N, 3, k, H, W) in [-1, 1] -> a clip that begins with them: "Future Generation".

    An encoder of stride-2 convolutions over the frames, stacked along the channels, stands in front
    of the two streams. In the original's code its last activations (N, widest, 4, 4) are what both
    streams begin with ("spatial"): the background from there, the foreground after a transposed
    convolution along time. In the paper's text a further layer makes a latent of them ("latent").

    Args:
        shape: sizes of clip and networks.
        mask_bias: initial bias of the mask's logit; 0 is the paper's.
        condition: k, frames given; the paper's is 1.
        encoder: which of the two.
    """

    def __init__(
        self,
        shape: ClipShape,
        mask_bias: float = 0.0,
        condition: int = 1,
        encoder: Encoder = "spatial",
    ):
        super().__init__(shape, mask_bias)
        widths = shape.widths[::-1]
        layers = [nn.Conv2d(3 * condition, widths[0], 4, stride=2, padding=1), nn.ReLU()]
        for inner, outer in itertools.pairwise(widths):
            layers += [
                nn.Conv2d(inner, outer, 4, stride=2, padding=1),
                nn.BatchNorm2d(outer, eps=ENCODER_NORM_EPS),
                nn.ReLU(),
            ]
        if encoder == "latent":
            layers.append(nn.Conv2d(widths[-1], shape.latent, 4))
        else:
            self.foreground[0] = nn.ConvTranspose3d(widths[-1], widths[-1], (shape.depth, 1, 1))
            self.background = self.background[3:]
        self.encoder = nn.Sequential(*layers)
        _initialise(self)
        nn.init.constant_(self.head.bias[3:], mask_bias)

    def _logits(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return self._decode(self.encoder(frames.flatten(1, 2)))


class Discriminator(nn.Module):
    """Clip (N, 3, T, H, W) -> logits (N, outputs): paper section 3.3.

    Args:
        shape: sizes of clip and networks.
        outputs: 1 for one logit (real against generated); 2 for the original's softmax pair; the
            number of classes for action recognition (section 4.3).
        dropout: share of what the last layer takes that is zeroed in training.
    """

    def __init__(self, shape: ClipShape, outputs: int = 1, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        widths = shape.widths[::-1]
        layers = [nn.Conv3d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for inner, outer in itertools.pairwise(widths):
            layers += [
                nn.Conv3d(inner, outer, 4, stride=2, padding=1),
                nn.BatchNorm3d(outer, eps=ENCODER_NORM_EPS),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv3d(widths[-1], outputs, (shape.depth, 4, 4)))
        self.layers = nn.Sequential(*layers)
        _initialise(self)

    def forward(self, clip: Tensor) -> Tensor:
        """Score each clip; larger means more real (K = 1), or columns generated, real (K = 2)."""
        *body, last = self.layers
        for layer in body:
            clip = layer(clip)
        return last(F.dropout(clip, self.dropout, self.training)).flatten(1)
