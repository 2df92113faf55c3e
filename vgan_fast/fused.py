"""The networks of `vgan_fast.models` on this project's kernels.

Constructor, parameter names and `state_dict` are the reference's: weights move between the two
freely. In training a layer's statistics ride in its convolution, and the sums of its batch norm's
backward in the convolution behind it (`vgan_fast.kernels.conv`); the generator's head and blend are
one, and the discriminator reads clips as cells of 2x2x2 pixels. In evaluation without gradients
norm, bias and activation ride in the convolution. Outputs are stored in the dtype of the
activations, so under autocast a video is bf16 where the reference's is fp32.

A bias before a batch norm that takes the batch's statistics gets no gradient: the reference's is
rounding noise around 0.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan_fast import models
from vgan_fast.kernels.conv import (
    convolve,
    convolve_folded,
    masked_convolve,
    norm_convolve,
    project,
)
from vgan_fast.kernels.conv.weights import cast, pack
from vgan_fast.kernels.dispatch import Impl
from vgan_fast.kernels.frames import clip_to_cells, pair_to_cells
from vgan_fast.kernels.head import head_blend, head_tanh
from vgan_fast.kernels.norm import (
    FEW_ROWS,
    batch_norm_act,
    batch_statistics,
    norm_act,
    track_statistics,
)
from vgan_fast.shape import ClipShape
from vgan_fast.synchronised import SynchronisedNorm, merged

LEAK = 0.2  # slope of the discriminator's activations


class OneStreamGenerator(models.OneStreamGenerator):
    """See `models.OneStreamGenerator`.

    Args:
        shape: sizes of clip and networks.
        impl: which implementation the ops use.
    """

    def __init__(self, shape: ClipShape, impl: Impl = "auto"):
        super().__init__(shape)
        self.impl = impl
        _store_as_multiplied(self)

    def forward(self, latent: Tensor) -> Tensor:
        """Make one video for each row of `latent`: (N, 3, T, H, W) in the activations' dtype."""
        run = _Pass(self.foreground[::3], latent, self.impl)
        x = run.upsample(self.foreground, run.like)
        run.track()
        return head_tanh(x, self.head.weight, self.head.bias, dtype=x.dtype, impl=self.impl)


class _TwoStreams:
    """What the generators of two streams share; goes before one of `vgan_fast.models`."""

    def __init__(self, *arguments, impl: Impl = "auto", **options):
        super().__init__(*arguments, **options)
        self.impl = impl
        _store_as_multiplied(self)
        last = self.background_head.weight  # which the library multiplies
        last.data = last.data.contiguous(memory_format=torch.channels_last)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Video in the activations' dtype for each code, and the mask's mean, fp32."""
        x, still = self._streams(code)
        head = self.head
        return head_blend(x, head.weight, head.bias, still, dtype=x.dtype, impl=self.impl)

    def _logits(self, code: Tensor) -> tuple[Tensor, Tensor]:
        x, still = self._streams(code)
        head = convolve(x, self.head.weight, self.head.bias, up=True, impl=self.impl)
        return head, still

    def _streams(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """What the head takes, and logits of the background."""
        last = self.background_head
        encoding, others = self._encoding()
        convolutions = [*encoding, *self.foreground[::3], *self.background[::3]]
        others = [*others, last.weight, last.bias]
        run = _Pass(convolutions, code, self.impl, others=others)
        code = self._encode(run)
        x = run.upsample(self.foreground, code)
        # The library's: three channels for one frame of a clip, too little for tiles of our own.
        weight, bias = (
            _Cast.apply(*of) for of in zip((last.weight, last.bias), run.copies[-2:], strict=True)
        )
        still = F.conv_transpose2d(run.upsample(self.background, code), weight, bias, 2, 1)
        run.track()
        return x, still

    def _encoding(self) -> tuple[list[nn.Module], list[Tensor]]:
        """Layers and other parameters that make a code; see `_Pass`."""
        return [], []

    def _encode(self, run: "_Pass") -> Tensor:
        """The code that both streams begin with."""
        return run.like


class TwoStreamGenerator(_TwoStreams, models.TwoStreamGenerator):
    """See `models.TwoStreamGenerator`; `impl` says which implementation the ops use."""


class FutureGenerator(_TwoStreams, models.FutureGenerator):
    """See `models.FutureGenerator`; `impl` says which implementation the ops use."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        first = self.encoder[0].weight  # which the library multiplies
        first.data = first.data.contiguous(memory_format=torch.channels_last)

    def _encoding(self) -> tuple[list[nn.Module], list[Tensor]]:
        first, _, *others = self.encoder
        to_latent = others[len(others) // 3 * 3 :]
        return others[::3], [first.weight, first.bias, *(layer.bias for layer in to_latent)]

    def _encode(self, run: "_Pass") -> Tensor:
        first, _, *others = self.encoder
        # The library's: three channels a frame are too few for tiles of our own.
        weight, bias = (
            _Cast.apply(*of) for of in zip((first.weight, first.bias), run.copies, strict=False)
        )
        frames = run.like.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        x = F.relu(F.conv2d(frames, weight, bias, stride=2, padding=1))
        layers = len(others) // 3 * 3
        x = run.downsample(x, others[:layers:3], others[1:layers:3], slope=0.0)
        if layers == len(others):
            return x
        last = others[-1]
        packed = _flat(run.packed[last]).T, run.copies[2]
        return project(_flat(x), _flat(last.weight).T, last.bias, *packed)


class Discriminator(models.Discriminator):
    """See `models.Discriminator`.

    Args:
        shape: sizes of clip and networks.
        outputs: 1, 2 or the number of classes.
        dropout: share of what the last layer takes that is zeroed in training.
        impl: which implementation the ops use.
    """

    def __init__(
        self, shape: ClipShape, outputs: int = 1, dropout: float = 0.0, impl: Impl = "auto"
    ):
        super().__init__(shape, outputs, dropout)
        self.impl = impl
        _store_as_multiplied(self)

    def forward(self, clip: Tensor) -> Tensor:
        """Score each clip (N, 3, T, H, W); see `models.Discriminator.forward`."""
        cells = clip_to_cells(clip, dtype=_activations_dtype(clip), impl=self.impl)
        return self._score(cells, groups=1)

    def score_pair(self, frames: Tensor, clip: Tensor) -> Tensor:
        """Score frames and clips as one batch, each half normalised by statistics of its own.

        Args:
            frames: (N, T, H, W, 3) uint8.
            clip: (N, 3, T, H, W) in [-1, 1]; gets no gradient.

        Returns:
            (2N, outputs): logits as of two calls, the frames' first.
        """
        cells = pair_to_cells(frames, clip, dtype=_activations_dtype(clip), impl=self.impl)
        return self._score(cells, groups=2)

    def _score(self, cells: Tensor, groups: int) -> Tensor:
        first, _, *middle, last = self.layers
        run = _Pass([*middle[::3], last], cells, self.impl, groups, others=[last.bias])
        norms = middle[1::3]
        rides = bool(norms) and _rides(norms)
        given = cells, first.weight, first.bias
        # What follows then returns the gradient of what the leaky ReLU got.
        x = convolve(*given, up=False, slope=LEAK if rides else 1.0, impl=self.impl)
        x = run.downsample(x if rides else F.leaky_relu(x, LEAK), middle[::3], norms, slope=LEAK)
        run.track()
        x = F.dropout(x, self.dropout, self.training)
        # A kernel as large as its input: one product.
        packed = _flat(run.packed[last]).T, *run.copies
        return project(_flat(x), _flat(last.weight).T, last.bias, *packed)


class _Pass:
    """One pass through a network: what its layers share, and what it leaves to do.

    Args:
        convolutions: layers whose weights are multiplied as they are stored.
        like: its input.
        impl: which implementation the ops use.
        groups: equal parts of the batch that are normalised apart.
        others: parameters that are needed in the dtype of the activations besides.

    Attributes:
        packed: the weight of each of the layers in the dtype of the activations.
        copies: the others in it.
    """

    def __init__(
        self,
        convolutions: Iterable[nn.Module],
        like: Tensor,
        impl: Impl,
        groups: int = 1,
        others: Sequence[Tensor] = (),
    ):
        self.impl, self.groups = impl, groups
        self.like = like.to(_activations_dtype(like))
        convolutions = list(convolutions)
        weights = [convolution.weight.detach() for convolution in convolutions]
        copies = cast([*weights, *(other.detach() for other in others)], self.like.dtype)
        self.packed = dict(zip(convolutions, copies, strict=False))
        self.copies = copies[len(convolutions) :]
        self._tracked = []

    def upsample(self, layers: nn.Sequential, code: Tensor) -> Tensor:
        """Transposed convolution, batch norm and ReLU; `code` is (N, C) or a grid (N, C, h, w)."""
        convolutions, norms = layers[::3], layers[1::3]
        if not norms:  # the background of 8x8 pixels from a grid: its head does it all
            return code
        first, *others = convolutions
        if first.stride[0] == 2:  # of a code that is a grid already
            if _rides(norms) and _takes_batch(norms[0]):
                packed = self.packed[first]
                y = convolve(code, first.weight, None, packed, up=True, impl=self.impl)
                return self._chain(y, None, convolutions, norms, up=True, slope=0.0)
            way = self._fold if _rides(norms) else self._layer_by_layer
            return way(code, convolutions, norms, up=True, slope=0.0)
        y = self._spread(first, code)
        if _rides(norms) and _takes_batch(norms[0]):
            return self._chain(y, None, convolutions, norms, up=True, slope=0.0)
        if not _takes_batch(norms[0]):
            y = y + first.bias.to(y.dtype).view(-1, *[1] * (y.dim() - 2))
        x = self._normalise(y, first, norms[0], 0.0)
        way = self._fold if _rides(norms) else self._layer_by_layer
        return way(x, others, norms[1:], up=True, slope=0.0)

    def downsample(
        self, x: Tensor, convolutions: list[nn.Module], norms: list[nn.Module], *, slope: float
    ) -> Tensor:
        """Convolution, norm, (leaky) ReLU of what such a ReLU made.

        Where the norms ride, the gradient that goes back is that of what the ReLU got.
        """
        if not norms or not _rides(norms):
            return self._layer_by_layer(x, convolutions, norms, up=False, slope=slope)
        if not _takes_batch(norms[0]):
            return self._fold(x, convolutions, norms, up=False, slope=slope)
        first = convolutions[0]
        y, *statistics = masked_convolve(
            x,
            first.weight,
            self.packed[first],
            up=False,
            slope=slope,
            groups=self.groups,
            impl=self.impl,
        )
        return self._chain(y, statistics, convolutions, norms, up=False, slope=slope)

    def track(self) -> None:
        """Update the running statistics of the norms that were passed, in one launch."""
        if not self._tracked:
            return
        norms, *of = (list(of) for of in zip(*self._tracked, strict=True))
        means, variances, biases, rows = of
        buffers = (
            [norm.running_mean for norm in norms],
            [norm.running_var for norm in norms],
            [norm.num_batches_tracked for norm in norms],
        )
        momentum = norms[0].momentum
        if momentum is not None:
            track_statistics(*buffers, *of, momentum, impl=self.impl)
            return
        for group in range(self.groups):  # a cumulative average
            momentum = 1 / (float(norms[0].num_batches_tracked) + 1)
            of_group = ([v[group : group + 1] for v in of] for of in (means, variances))
            track_statistics(*buffers, *of_group, biases, rows, momentum, impl=self.impl)

    def _spread(self, first: nn.Module, code: Tensor) -> Tensor:
        """What a first layer makes of a code, without its bias: one product."""
        _, channels, *sizes = first.weight.shape
        packed = _flat(self.packed[first])
        if code.dim() == 2:  # a kernel as large as its output
            y = project(code, _flat(first.weight), packed=packed)
            return y.view(len(y), *sizes, channels).movedim(-1, 1)
        n, _, height, width = code.shape  # a kernel along time
        y = project(code.movedim(1, -1).flatten(0, 2), _flat(first.weight), packed=packed)
        y = y.view(n, height, width, -1, channels).permute(0, 4, 3, 1, 2)
        return y.contiguous(memory_format=torch.channels_last_3d)

    def _chain(
        self,
        y: Tensor,
        statistics: tuple[Tensor, Tensor] | None,
        convolutions: list[nn.Module],
        norms: list[nn.Module],
        *,
        up: bool,
        slope: float,
    ) -> Tensor:
        """Norm and activation of y, convolution, norm, and so on.

        Args:
            y: what the first convolution made.
            statistics: of y, where at hand.
            convolutions, norms: of all layers, the first included.
            up, slope: of all layers.
        """
        options = {"slope": slope, "impl": self.impl}
        for norm, before, behind in zip(
            norms, convolutions, [*convolutions[1:], None], strict=True
        ):
            activated = None
            if isinstance(norm, SynchronisedNorm):
                statistics = self._merged(norm, y, statistics)
            elif statistics is None:
                # Between layers `norm_convolve` has its gradients.
                with torch.set_grad_enabled(torch.is_grad_enabled() and behind is None):
                    activated, *statistics = batch_norm_act(
                        y, norm.weight, norm.bias, self.groups, eps=norm.eps, **options
                    )
            self._passed(norm, before, y, statistics)
            if behind is None:
                break
            few = self._rows(y, up) <= FEW_ROWS
            y, *statistics = norm_convolve(
                y,
                *statistics,
                norm.weight,
                norm.bias,
                behind.weight,
                self.packed[behind],
                activated,
                up=up,
                eps=norm.eps,
                statistics=not few,
                shared=isinstance(norm, SynchronisedNorm),
                **options,
            )
            statistics = None if few else statistics
        return self._norm_act(y, statistics, norm, True, slope) if activated is None else activated

    def _rows(self, x: Tensor, up: bool) -> int:
        """Values a channel and group of what a layer makes of x."""
        rows, scale = x.numel() // (x.shape[1] * self.groups), 2 ** (x.dim() - 2)
        return rows * scale if up else rows // scale

    def _fold(
        self,
        x: Tensor,
        convolutions: list[nn.Module],
        norms: list[nn.Module],
        *,
        up: bool,
        slope: float,
    ) -> Tensor:
        """Convolution, norm with its running statistics, activation: one pass, no gradient."""
        for convolution, norm in zip(convolutions, norms, strict=True):
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            shift = (convolution.bias - norm.running_mean) * scale + norm.bias
            weight = self.packed[convolution]
            x = convolve_folded(x, weight, scale, shift, up=up, slope=slope, impl=self.impl)
        return x

    def _layer_by_layer(
        self,
        x: Tensor,
        convolutions: list[nn.Module],
        norms: list[nn.Module],
        *,
        up: bool,
        slope: float,
    ) -> Tensor:
        """Convolution, norm of either kind, activation, each by itself."""
        for convolution, norm in zip(convolutions, norms, strict=True):
            bias = None if _takes_batch(norm) else convolution.bias
            packed = self.packed[convolution]
            x = convolve(x, convolution.weight, bias, packed, up=up, impl=self.impl)
            x = self._normalise(x, convolution, norm, slope)
        return x

    def _normalise(self, x: Tensor, before: nn.Module, norm: nn.Module, slope: float) -> Tensor:
        """Batch norm as `norm` would do it and a (leaky) ReLU; `before` is what made x."""
        if not _takes_batch(norm):
            running = norm.running_mean[None], norm.running_var[None]
            return self._norm_act(x, running, norm, False, slope)
        statistics = self._merged(norm, x)
        self._passed(norm, before, x, statistics)
        return self._norm_act(x, statistics, norm, True, slope)

    def _merged(
        self, norm: nn.Module, x: Tensor, statistics: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Statistics of x, of all processes' rows where the norm is synchronised.

        `statistics` are those of this process's rows, where at hand.
        """
        own = statistics or batch_statistics(x, self.groups, impl=self.impl)
        return merged(*own, norm.ranks) if isinstance(norm, SynchronisedNorm) else own

    def _norm_act(
        self,
        x: Tensor,
        statistics: tuple[Tensor, Tensor],
        norm: nn.Module,
        from_batch: bool,
        slope: float,
    ) -> Tensor:
        parameters = norm.weight, norm.bias
        options = {"from_batch": from_batch, "eps": norm.eps, "slope": slope, "impl": self.impl}
        shared = from_batch and isinstance(norm, SynchronisedNorm)
        return norm_act(x, *statistics, *parameters, shared=shared, **options)

    def _passed(
        self, norm: nn.Module, before: nn.Module, x: Tensor, statistics: tuple[Tensor, Tensor]
    ) -> None:
        """Remember the batch's statistics of x, which lacks the bias of the layer before."""
        if norm.training and norm.track_running_stats:
            rows = x.numel() // statistics[0].numel()
            if isinstance(norm, SynchronisedNorm):
                rows *= norm.ranks.count
            self._tracked.append((norm, *statistics, before.bias, rows))


class _Cast(torch.autograd.Function):
    """A copy of a parameter in place of it, as of `cast`."""

    @staticmethod
    def forward(ctx, parameter: Tensor, copy: Tensor) -> Tensor:
        """The copy."""
        ctx.dtype = parameter.dtype
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient in the parameter's dtype."""
        return gradient.to(ctx.dtype), None


def _flat(x: Tensor) -> Tensor:
    """(N, C, *sizes), stored channels-last, as (N, numbers of it) without a copy."""
    return x.movedim(1, -1).flatten(1)


def _takes_batch(norm: nn.Module) -> bool:
    return norm.training or norm.running_mean is None


def _rides(norms: list[nn.Module]) -> bool:
    """Whether the norms ride in the convolutions.

    Those of the batch do. Running statistics are folded away, with what a gradient would need, and
    a mixture goes layer by layer.
    """
    batch = [_takes_batch(norm) for norm in norms]
    return all(batch) or (not any(batch) and not torch.is_grad_enabled())


def _activations_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _store_as_multiplied(network: nn.Module) -> None:
    """Store the weights in the order in which they are multiplied, so that a step only casts."""
    for module in network.modules():
        if isinstance(module, models.CONVOLUTIONS):
            weight = module.weight
            if module.stride[0] == 2:
                weight.data = pack(weight.data, weight.dtype)
            else:  # as large as its input or output
                layout = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
                weight.data = weight.data.contiguous(memory_format=layout)
