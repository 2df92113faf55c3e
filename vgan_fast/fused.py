"""The networks of `vgan_fast.models` on this project's kernels, with the library's convolutions.

Constructor, parameter names and `state_dict` are the reference's: weights move between the two
freely. Batch norm and activation are one op, the generator's head and blend are one, and the
discriminator's first layer reads clips as cells of 2x2x2 pixels. Outputs are stored in the dtype
of the activations, so under autocast a video is bf16 where the reference's is fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan_fast import models
from vgan_fast.kernels.dispatch import Impl
from vgan_fast.kernels.frames import clip_to_cells, first_layer_weight
from vgan_fast.kernels.head import head_blend, head_tanh
from vgan_fast.kernels.norm import norm_act
from vgan_fast.shape import ClipShape


def _norm_act(x: Tensor, norm: nn.Module, slope: float, impl: Impl) -> Tensor:
    """Batch norm as `norm` would do it, its buffers included, and a (leaky) ReLU."""
    track = norm.training and norm.track_running_stats
    momentum = norm.momentum
    if track:
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # a cumulative average
            momentum = 1 / float(norm.num_batches_tracked)
    return norm_act(
        x,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        training=norm.training or not norm.track_running_stats,
        momentum=0.0 if momentum is None else momentum,
        eps=norm.eps,
        slope=slope,
        track=track,
        impl=impl,
    )


def _through(layers: nn.Sequential, x: Tensor, impl: Impl) -> Tensor:
    """Layers of convolution, batch norm and ReLU."""
    for convolution, norm in zip(layers[::3], layers[1::3], strict=True):
        x = _norm_act(convolution(x), norm, 0.0, impl)
    return x


class OneStreamGenerator(models.OneStreamGenerator):
    """See `models.OneStreamGenerator`.

    Args:
        shape: sizes of clip and networks.
        impl: which implementation the ops use.
    """

    def __init__(self, shape: ClipShape, impl: Impl = "auto"):
        super().__init__(shape)
        self.impl = impl

    def forward(self, latent: Tensor) -> Tensor:
        """Make one video for each row of `latent`: (N, 3, T, H, W) in the activations' dtype."""
        x = _through(self.foreground, latent[:, :, None, None, None], self.impl)
        return head_tanh(x, self.head.weight, self.head.bias, dtype=x.dtype, impl=self.impl)


class TwoStreamGenerator(models.TwoStreamGenerator):
    """See `models.TwoStreamGenerator`; `streams` runs the reference's layers.

    Args:
        shape: sizes of clip and networks.
        mask_bias: initial bias of the mask's logit.
        impl: which implementation the ops use.
    """

    def __init__(self, shape: ClipShape, mask_bias: float = 0.0, impl: Impl = "auto"):
        super().__init__(shape, mask_bias)
        self.impl = impl

    def forward(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Video in the activations' dtype for each row of `latent`, and the mask's mean, fp32."""
        x = _through(self.foreground, latent[:, :, None, None, None], self.impl)
        still = _through(self.background, latent[:, :, None, None], self.impl)
        return head_blend(
            x,
            self.head.weight,
            self.head.bias,
            self.background_head(still),
            dtype=x.dtype,
            impl=self.impl,
        )


class Discriminator(models.Discriminator):
    """See `models.Discriminator`.

    Args:
        shape: sizes of clip and networks.
        outputs: 1 or 2.
        impl: which implementation the ops use.
    """

    def __init__(self, shape: ClipShape, outputs: int = 1, impl: Impl = "auto"):
        super().__init__(shape, outputs)
        self.impl = impl

    def forward(self, clip: Tensor) -> Tensor:
        """Score each clip (N, 3, T, H, W); see `models.Discriminator.forward`."""
        if torch.is_autocast_enabled(clip.device.type):
            clip = clip.to(torch.get_autocast_dtype(clip.device.type))
        return self.score_cells(clip_to_cells(clip, impl=self.impl))

    def score_cells(self, cells: Tensor) -> Tensor:
        """Score clips that lie in cells already (`vgan_fast.kernels.frames.frames_to_cells`)."""
        first, _, *middle, last = self.layers
        x = F.leaky_relu(F.conv3d(cells, first_layer_weight(first.weight), first.bias), 0.2)
        for convolution, norm in zip(middle[::3], middle[1::3], strict=True):
            x = _norm_act(convolution(x), norm, 0.2, self.impl)
        return last(x).flatten(1)
