"""The energy model in the forms that are fast: matrix products where libraries have slow paths.

A convolution's gradient with respect to an input of three channels takes oneDNN five times as long
as its forward, and cuDNN has no tensor cores for three channels. So, of clips' gradients:

- on a CPU a product with the whole kernel at each position, and its rows folded into the clip;
- on a GPU, where channels are few, both directions as a convolution of stride 1 between cells: the
  pixels of a stride's cube are one position's channels;
- where a kernel covers the picture, both directions are a product.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vgan_fast.stgconvnet.layers import Layer
from vgan_fast.stgconvnet.model import EnergyNetwork, Scored

_FEW = 16  # channels below which a GPU's convolutions go through cells
_COLUMNS = 1 << 22  # values of a product folded at a time, which stay in a CPU's cache


class FastEnergyNetwork(EnergyNetwork):
    """`EnergyNetwork`, the same f and weights; its gradients are computed without autograd.

    Args:
        layers: see `vgan_fast.stgconvnet.layers.parse_layers`.
        dtype: of activations and products: fp32 or bf16. Either way the first layer's responses are
            computed from fp32 pixels: bf16 has eight bits for them, and pixels rounded to whole
            grey levels put a gradient off by a tenth, where this way it is half a percent.
    """

    def __init__(self, layers: tuple[Layer, ...], dtype: torch.dtype = torch.float32):
        super().__init__(layers)
        self.dtype = dtype
        for convolution in self.convolutions:
            convolution.to(memory_format=torch.channels_last_3d)

    def forward(self, clips: Tensor) -> Tensor:
        """See `EnergyNetwork.forward`."""
        x = _channels_last(clips)
        for layer, convolution in self._in_use():
            x = F.relu(self._response(x, convolution.weight, convolution.bias, layer))
        return _summed(x)

    def frozen(self) -> Callable[[Tensor], Scored]:
        """See `EnergyNetwork.frozen`."""
        used, back = [], []
        for i, (layer, convolution) in enumerate(self._in_use()):
            dtype = self.dtype if i else torch.float32
            weight, bias = (p.detach().to(dtype) for p in (convolution.weight, convolution.bias))
            used.append((layer, weight, bias))
            back.append(_transposed(weight.to(self.dtype), layer))

        @torch.no_grad()
        def scored(clips: Tensor) -> Scored:
            seen = [_channels_last(clips)]
            for layer, weight, bias in used:
                seen.append(F.relu_(self._response(seen[-1], weight, bias, layer)))
            scores = _summed(seen[-1])
            gradient = (seen[-1] > 0).to(self.dtype)
            for i in reversed(range(len(used))):
                gradient = back[i](gradient)
                if i:
                    gradient = gradient.to(self.dtype) * (seen[i] > 0)
            return scores, gradient.permute(0, 4, 1, 2, 3)

        return scored

    def _response(self, x: Tensor, weight: Tensor, bias: Tensor, layer: Layer) -> Tensor:
        """A layer without its ReLU, in `dtype`."""
        return _convolved(x, weight.to(x.dtype), bias.to(x.dtype), layer).to(self.dtype)

    def _in_use(self) -> list[tuple[Layer, torch.nn.Module]]:
        used = slice(self.depth)
        return list(zip(self.layers[used], self.convolutions[used], strict=True))


def _channels_last(clips: Tensor) -> Tensor:
    return clips.permute(0, 2, 3, 4, 1).contiguous()


def _summed(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1, dtype=torch.float32)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, layer: Layer) -> Tensor:
    """A layer without its ReLU, from (N, *given, channels) to (N, *made, filters)."""
    x = F.pad(x, _zeros(layer))
    if layer.covers:
        n, t, h, w, c = x.shape
        taps, stride = layer.kernel[0], layer.stride[0]
        # Moments that a position sees, one after the other: (N * made, taps * H * W * C). Of two
        # dimensions: a batch of products would copy the weights for each clip.
        rows = x.reshape(n, t, h * w * c).unfold(1, taps, stride).transpose(2, 3)
        rows = rows.reshape(n * layer.made[0], -1)
        made = F.linear(rows, weight.permute(0, 2, 3, 4, 1).flatten(1), bias)
        return made.view(n, -1, 1, 1, layer.filters)
    if _in_cells(layer, x.device):
        cells = _as_cells(x, layer)
        return F.conv3d(cells, _weight_in_cells(weight, layer), bias).permute(0, 2, 3, 4, 1)
    made = F.conv3d(x.permute(0, 4, 1, 2, 3), weight, bias, layer.stride)
    return made.permute(0, 2, 3, 4, 1)


def _transposed(weight: Tensor, layer: Layer) -> Callable[[Tensor], Tensor]:
    """The gradient of `_convolved`: from that of (N, *made, filters) to (N, *given, channels)."""
    kt, kh, kw = layer.kernel
    if layer.covers:
        packed = weight.permute(0, 2, 3, 4, 1).flatten(1)
        return lambda d: _cropped(_moments_folded(d.flatten(0, 3) @ packed, layer), layer)
    if _in_cells(layer, weight.device):
        in_cells = _weight_in_cells(weight, layer)
        return lambda d: _cropped(
            _from_cells(F.conv_transpose3d(d.permute(0, 4, 1, 2, 3), in_cells), layer), layer
        )
    if weight.device.type == "cpu":
        # Columns in the order of folding: width first.
        packed = weight.permute(0, 4, 3, 2, 1).reshape(layer.filters, -1).contiguous()
        return lambda d: _cropped(_folded(d, packed, layer), layer)

    def library(d: Tensor) -> Tensor:
        n = len(d)
        sizes = [size + sum(zeros) for size, zeros in zip(layer.given, layer.padding, strict=True)]
        shape = n, layer.channels, *sizes
        made = torch.nn.grad.conv3d_input(shape, weight, d.permute(0, 4, 1, 2, 3), layer.stride)
        return _cropped(made.permute(0, 2, 3, 4, 1), layer)

    return library


def _moments_folded(rows: Tensor, layer: Layer) -> Tensor:
    """Sum (N * made, taps * H * W * C) where positions overlap: (N, T, H, W, C)."""
    made, taps, stride = layer.made[0], layer.kernel[0], layer.stride[0]
    rows = rows.view(-1, made, taps, *layer.kernel[1:], layer.channels)
    if made == 1:
        return rows[:, 0]
    out = rows.new_zeros((len(rows), (made - 1) * stride + taps, *rows.shape[3:]), dtype=torch.float32)
    for tap in range(taps):
        out[:, tap : tap + (made - 1) * stride + 1 : stride] += rows[:, :, tap]
    return out


def _folded(d: Tensor, packed: Tensor, layer: Layer) -> Tensor:
    """Product of a gradient (N, *made, filters) with the kernel, summed where positions overlap.

    Args:
        d: the gradient.
        packed: (filters, kw * kh * kt * channels).
    """
    n = len(d)
    (mt, mh, mw), (kt, kh, kw), (st, sh, sw) = layer.made, layer.kernel, layer.stride
    c = layer.channels
    t, h, w = (mt - 1) * st + kt, (mh - 1) * sh + kh, (mw - 1) * sw + kw
    out = d.new_zeros((n, t, h, w, c), dtype=torch.float32)
    at_once = max(1, _COLUMNS // (n * mh * mw * packed.shape[1]))
    for first in range(0, mt, at_once):
        part = d[:, first : first + at_once]
        m = part.shape[1]
        columns = (part.flatten(0, 3) @ packed).view(n * m * mh, mw, kw, -1)
        wide = columns.new_zeros((n * m * mh, w, columns.shape[-1]), dtype=torch.float32)
        for i in range(kw):
            wide[:, i : i + (mw - 1) * sw + 1 : sw] += columns[:, :, i]
        wide = wide.view(n * m, mh, w, kh, kt * c)
        high = wide.new_zeros((n * m, h, w, kt * c))
        for i in range(kh):
            high[:, i : i + (mh - 1) * sh + 1 : sh] += wide[:, :, :, i]
        high = high.view(n, m, h, w, kt, c).permute(0, 1, 4, 2, 3, 5)
        for i in range(m):
            out[:, (first + i) * st : (first + i) * st + kt] += high[:, i]
    return out


def _in_cells(layer: Layer, device: torch.device) -> bool:
    return device.type == "cuda" and layer.channels < _FEW and max(layer.stride) > 1


def _as_cells(x: Tensor, layer: Layer) -> Tensor:
    """Padded clips (N, T, H, W, C) as (N, st * sh * sw * C, cells), stored channels-last."""
    reach = [m - 1 + -(-k // s) for m, k, s in zip(layer.made, layer.kernel, layer.stride)]
    fill = [r * s - n for r, s, n in zip(reach, layer.stride, x.shape[1:4])]
    x = F.pad(x, [0, 0, 0, fill[2], 0, fill[1], 0, fill[0]])
    (t, h, w), (st, sh, sw) = reach, layer.stride
    cells = x.reshape(len(x), t, st, h, sh, w, sw, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return cells.reshape(len(x), t, h, w, -1).permute(0, 4, 1, 2, 3)


def _from_cells(cells: Tensor, layer: Layer) -> Tensor:
    """The way back: (N, T, H, W, C), up to a cell's size longer than what is padded."""
    n, _, t, h, w = cells.shape
    st, sh, sw = layer.stride
    x = cells.permute(0, 2, 3, 4, 1).reshape(n, t, h, w, st, sh, sw, -1)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(n, t * st, h * sh, w * sw, -1)


def _weight_in_cells(weight: Tensor, layer: Layer) -> Tensor:
    """(filters, C, *kernel) as (filters, st * sh * sw * C, *kernel / stride rounded up)."""
    missing = [-k % s for k, s in zip(layer.kernel, layer.stride, strict=True)]
    weight = F.pad(weight, [0, missing[2], 0, missing[1], 0, missing[0]])
    (st, sh, sw), f = layer.stride, layer.filters
    t, h, w = (k // s for k, s in zip(weight.shape[2:], layer.stride, strict=True))
    cells = weight.view(f, -1, t, st, h, sh, w, sw).permute(0, 3, 5, 7, 1, 2, 4, 6)
    return cells.reshape(f, -1, t, h, w).contiguous(memory_format=torch.channels_last_3d)


def _zeros(layer: Layer) -> list[int]:
    """Padding of (N, T, H, W, C) as `torch.nn.functional.pad` takes it."""
    return [0, 0, *(zero for both in reversed(layer.padding) for zero in both)]


def _cropped(x: Tensor, layer: Layer) -> Tensor:
    """What is left of a padded input's gradient, with zeros where no filter reaches."""
    for axis, (size, (before, _)) in enumerate(zip(layer.given, layer.padding, strict=True), 1):
        there = x.shape[axis] - before
        if there < size:
            fill = [0] * 2 * (x.dim() - axis)
            fill[-1] = size - there
            x = F.pad(x, fill)
        x = x.narrow(axis, before, size)
    return x
