"""The networks of `vgan_fast.models` in the form that a CPU's library multiplies fastest.

Constructor, parameter names and `state_dict` are the reference's: weights move between the two
freely. Weights are stored channels-last and so are activations, in the dtype of autocast; in
training a video is in it too, where the reference's is fp32. The library is slow with few channels
on the side that a layer makes and with weights larger than what they multiply: the first are made
as cells of 2x2x2 pixels, the second are plain products.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan_fast import models
from vgan_fast.kernels.blend.reference import blend, mask_blend
from vgan_fast.shape import ClipShape

LEAK = 0.2  # slope of the discriminator's activations
_STEPS = [2] * 3, [1] * 3, [1] * 3  # stride, padding and dilation of every layer of kernel 4
_FUNCTIONS = {
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


class OneStreamGenerator(models.OneStreamGenerator):
    """See `models.OneStreamGenerator`."""

    def __init__(self, shape: ClipShape):
        super().__init__(shape)
        models.store_channels_last(self)

    def forward(self, latent: Tensor) -> Tensor:
        """See `_TwoStreams.forward` for the dtype of the video."""
        x = _upsample(self.foreground, latent[:, :, None, None, None])
        video = torch.tanh(_head(x, self.head).float())
        return video.to(x.dtype) if self.training else video


class _TwoStreams:
    """What the generators of two streams share; goes before one of `vgan_fast.models`."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        models.store_channels_last(self)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Video for each code, and the mask's mean, fp32.

        In training the video is in the activations' dtype, which the discriminator reads it in.
        """
        head, background = self._logits(code)
        return mask_blend(head, background, head.dtype if self.training else torch.float32)

    def streams(self, code: Tensor) -> models.Streams:
        """See `models.TwoStreamGenerator.streams`; each stream is activated once."""
        head, background = (logits.float() for logits in self._logits(code))
        foreground, mask = torch.tanh(head[:, :3]), torch.sigmoid(head[:, 3:])
        still = torch.tanh(background)
        return models.Streams(blend(foreground, mask, still)[0], foreground, mask, still)

    def _decode(self, code: Tensor) -> tuple[Tensor, Tensor]:
        head = _head(_upsample(self.foreground, code[:, :, None]), self.head)
        return head, self.background_head(_upsample(self.background, code))


class TwoStreamGenerator(_TwoStreams, models.TwoStreamGenerator):
    """See `models.TwoStreamGenerator`."""


class FutureGenerator(_TwoStreams, models.FutureGenerator):
    """See `models.FutureGenerator`."""

    def _logits(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        stacked = frames.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        return self._decode(self.encoder(stacked))


class Discriminator(models.Discriminator):
    """See `models.Discriminator`."""

    def __init__(self, shape: ClipShape, outputs: int = 1, dropout: float = 0.0):
        super().__init__(shape, outputs, dropout)
        models.store_channels_last(self)

    def forward(self, clip: Tensor) -> Tensor:
        """Score each clip (N, 3, T, H, W); see `models.Discriminator.forward`."""
        x = clip.to(_activations_dtype(clip))
        first, _, *middle, last = self.layers
        x = F.leaky_relu(_FromPixels.apply(x, *_parameters(first, x)), LEAK, inplace=True)
        for convolution, norm in zip(middle[::3], middle[1::3], strict=True):
            x = F.leaky_relu(norm(_convolve(convolution, x)), LEAK, inplace=True)
        x = F.dropout(x, self.dropout, self.training)
        # A kernel as large as its input: one product.
        weight, bias = _parameters(last, x)
        return torch.addmm(bias, _flat(x), _flat(weight).T)


def _upsample(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Transposed convolution, norm and ReLU, layer by layer."""
    x = x.to(_activations_dtype(x))
    for convolution, norm in zip(layers[::3], layers[1::3], strict=True):
        x = F.relu(norm(_convolve(convolution, x)), inplace=True)
    return x


def _convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """What `layer` makes of x, each kind of layer the way that is fastest for it."""
    weight, bias = _parameters(layer, x)
    if layer.stride[0] == 1 and x[0, 0].numel() == 1:
        # The generator's first, a kernel as large as its output: one product.
        y = (_flat(x) @ _flat(weight)).view(len(x), *weight.shape[2:], -1).movedim(-1, 1)
        return y + bias.view(-1, *[1] * (x.dim() - 2))
    up = layer.transposed
    few = x.dim() == 5 and weight.numel() > x.numel() * (8 if up else 1)
    if few and layer.stride[0] == 2:
        return _Gathered.apply(x, weight, bias, up)
    return _FUNCTIONS[type(layer)](x, weight, bias, layer.stride, layer.padding)


def _head(x: Tensor, layer: nn.ConvTranspose3d) -> Tensor:
    """The generator's last convolution: logits, planar."""
    return _ToPixels.apply(x, *_parameters(layer, x))


class _ToPixels(torch.autograd.Function):
    """The generator's last convolution."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Logits."""
        ctx.save_for_backward(x, weight)
        return _to_pixels(x, weight) + bias[:, None, None, None]

    @staticmethod
    def backward(ctx, dy: Tensor):
        """Gradients of x, weight and bias."""
        return _gradients(_channels_last(dy), *ctx.saved_tensors, True, ctx.needs_input_grad)


class _FromPixels(torch.autograd.Function):
    """The discriminator's first convolution."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Channels of x, a clip in any layout."""
        x = _channels_last(x)
        ctx.save_for_backward(x, weight)
        return F.conv3d(x, weight, bias, stride=2, padding=1)

    @staticmethod
    def backward(ctx, dy: Tensor):
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx = _to_pixels(dy, weight) if wanted[0] else None
        return dx, *_gradients(dy, x, weight, False, [False, *wanted[1:]])[1:]


class _Gathered(torch.autograd.Function):
    """A layer whose weight is larger than its activations: products of gathered windows."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, up: bool) -> Tensor:
        """The layer; `up` for a transposed convolution."""
        ctx.save_for_backward(x, weight)
        ctx.up = up
        if up:
            return F.conv_transpose3d(x, weight, bias, stride=2, padding=1)
        return _coarse(torch.addmm(bias, _windows(x), _flat(weight).T), x)

    @staticmethod
    def backward(ctx, dy: Tensor):
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        fine, coarse = (dy, x) if ctx.up else (x, dy)
        dx = dweight = dbias = None
        windows = _windows(fine) if ctx.up or ctx.needs_input_grad[1] else None
        if ctx.needs_input_grad[0] and ctx.up:
            dx = _coarse(windows @ _flat(weight).T, fine)
        elif ctx.needs_input_grad[0]:
            dx = F.conv_transpose3d(dy, weight, stride=2, padding=1)
        if ctx.needs_input_grad[1]:
            dweight = _positions(coarse).T @ windows
            dweight = dweight.view(len(dweight), 4, 4, 4, -1).movedim(-1, 1)
        if ctx.needs_input_grad[2]:
            dbias = _positions(dy).sum(0)
        return dx, dweight, dbias, None


def _to_pixels(x: Tensor, weight: Tensor) -> Tensor:
    """Transposed convolution to few channels, planar.

    Each window of 2x2x2 positions makes all channels of a cell of 2x2x2 pixels.
    """
    channels = weight.shape[1]
    # A tap k of an axis goes to pixel k % 2 of its cell, the later taps from the earlier position.
    taps = weight.unflatten(4, (2, 2)).unflatten(3, (2, 2)).unflatten(2, (2, 2)).flip(2, 4, 6)
    of_cells = taps.permute(3, 5, 7, 1, 0, 2, 4, 6).flatten(0, 3)
    cells = F.conv3d(x, _channels_last(of_cells), padding=1)
    n, _, t, h, w = cells.shape
    pixels = cells.unflatten(1, (2, 2, 2, channels)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    # The border's cells stick out by a pixel.
    return pixels.reshape(n, channels, 2 * t, 2 * h, 2 * w)[:, :, 1:-1, 1:-1, 1:-1]


def _gradients(dy: Tensor, x: Tensor, weight: Tensor, up: bool, wanted) -> list[Tensor | None]:
    """The library's gradients of x, weight and bias."""
    return torch.ops.aten.convolution_backward(
        dy, x, weight, [dy.shape[1]], *_STEPS, up, [0] * 3, 1, list(wanted)
    )


def _windows(fine: Tensor) -> Tensor:
    """What each position on the coarse side sees: (positions, 4 * 4 * 4 * channels)."""
    x = F.pad(fine.movedim(1, -1), (0, 0, 1, 1, 1, 1, 1, 1))
    for axis in (1, 2, 3):
        x = x.unfold(axis, 4, 2)
    return x.movedim(4, -1).flatten(0, 3).flatten(1)


def _coarse(positions: Tensor, fine: Tensor) -> Tensor:
    """(positions, C) as (N, C, T, H, W), half as long as `fine` along each axis."""
    n, _, t, h, w = fine.shape
    return positions.view(n, t // 2, h // 2, w // 2, -1).movedim(-1, 1)


def _positions(x: Tensor) -> Tensor:
    """(N, C, T, H, W), stored channels-last, as (positions, C)."""
    return x.movedim(1, -1).flatten(0, 3)


def _flat(x: Tensor) -> Tensor:
    """(N, C, *sizes), stored channels-last, as (N, numbers of it) without a copy."""
    return x.movedim(1, -1).flatten(1)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _parameters(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias in the dtype of x."""
    return layer.weight.to(x.dtype), layer.bias.to(x.dtype)


def _activations_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
