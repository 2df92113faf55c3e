"""Whether an implementation of a convolution is right: a sample of it against float64."""

import inspect
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import reference

# No tile of any configuration is narrower: of so many channels in a row one is looked at.
TILE = 32
PART = 8  # clips that are held in float64 at a time
FP32 = torch.finfo(torch.float32).eps
TF32 = 2.0**-10


class RefusedError(Exception):
    """Results that are not right."""


@dataclass(frozen=True)
class Error:
    """Largest error of one result.

    Attributes:
        error: the largest.
        unit: what roundings that may differ make.
        believed: no library's error is taken to be above it: one that is wrong excuses nobody.
    """

    error: float
    unit: float
    believed: float


@dataclass(frozen=True)
class _Sample:
    """Part of the first result in float64.

    Attributes:
        rows, columns: which of its first two axes.
        exact: the values.
        doubtful: those that nobody need agree on, if any.
    """

    rows: list[int]
    columns: list[int]
    exact: Tensor
    doubtful: Tensor | None = None

    def error(self, y: Tensor) -> float:
        taken = y[self.rows][:, self.columns].double()
        if taken.shape != self.exact.shape:
            raise RefusedError(f"result of shape {tuple(y.shape)}")
        difference = (taken - self.exact).abs()
        if self.doubtful is not None:
            difference = difference.masked_fill(self.doubtful, 0.0)
        return difference.max().item()


class Answer:
    """What a call's results are, in float64 and by PyTorch's own kernels rather than cuDNN's.

    Of the first result a sample: the first and last clip, and a channel of each tile in every
    clip. Statistics and sums are those of the candidate's own first result, all of it.
    """

    def __init__(self, name: str, arguments: tuple, options: dict):
        self.name = name
        signature = inspect.signature(getattr(reference, name))
        self.given = signature.bind(*arguments, **options).arguments
        x = arguments[0]
        tf32 = x.dtype == torch.float32 and torch.backends.cudnn.allow_tf32
        self.eps = TF32 if tf32 else torch.finfo(x.dtype).eps
        with torch.backends.cudnn.flags(enabled=False):
            if name == "weight_gradient":
                self.samples = [self._weight_sample(*arguments)]
                self.length = arguments[1].numel() // arguments[1].shape[1]
            else:
                self.samples = list(self._samples())
                weight = arguments[1]
                self.length = weight.numel() // weight.shape[1 if options["up"] else 0]
        self.largest = max(s.exact.abs().max().item() for s in self.samples)

    def errors(self, results: tuple[Tensor, ...]) -> Iterator[Error]:
        """Of each result in turn."""
        if not all(result.isfinite().all() for result in results):
            raise RefusedError("not finite")
        y, *reduced = results
        if self.name == "convolve_norm_backward":
            reduced = [total for sums in reduced for total in sums]
        error = max(sample.error(y) for sample in self.samples)
        # Products rounded to the precision that was asked for, and summed in fp32.
        summed = FP32 * self.length**0.5
        believed = 4 * (self.eps + summed) * self.largest
        # Libraries cut sums up, and round to TF32 what a tensor core by itself truncates.
        truncated = TF32 / 4 if self.eps == TF32 else 0.0
        unit = max(torch.finfo(y.dtype).eps, summed, truncated) * self.largest
        yield Error(error, unit, believed)
        for value, (exact, unit) in zip(reduced, self._reduced(y), strict=True):
            yield Error((value.double() - exact).abs().max().item(), unit, 4 * unit)

    def _samples(self) -> Iterator[_Sample]:
        x, weight, *_ = self.given.values()
        clips, channels = len(x), weight.shape[1 if self.given["up"] else 0]
        some = _some(channels)
        yield self._sample(sorted({0, clips - 1}), list(range(channels)))
        for part in _parts(clips):
            yield self._sample(part, some)

    def _sample(self, clips: list[int], channels: list[int]) -> _Sample:
        given = self._part(clips, channels)
        result = getattr(reference, self.name)(**given)
        if self.name != "convolve_norm_backward":
            return _Sample(clips, channels, result[0] if isinstance(result, tuple) else result)
        # Where rounding decides the sign of what is activated, either side is right.
        each = (..., *[None] * (given["x"].dim() - 2))
        scale = (given["gamma"] * torch.rsqrt(given["variance"] + given["eps"]))[each]
        scaled = (given["x"] - given["mean"][each]) * scale
        beta = given["beta"][each]
        doubtful = (scaled + beta).abs() <= 8 * FP32 * (scaled.abs() + beta.abs())
        return _Sample(clips, channels, result[0], doubtful)

    def _part(self, clips: list[int], channels: list[int]) -> dict:
        """The arguments, in float64, that give these clips and channels of the result."""
        given, first = dict(self.given), next(iter(self.given))
        count = len(given[first])
        for name, value in self.given.items():
            if name == "groups":
                given[name] = len(clips)  # each clip its own: nothing of a group is used
            elif not isinstance(value, Tensor):
                continue
            elif name == first:
                given[name] = value[clips].double()
            elif name == "weight":
                given[name] = (value[:, channels] if given["up"] else value[channels]).double()
            elif name in ("mean", "variance"):
                of_clip = value.repeat_interleave(count // len(value), 0)
                given[name] = of_clip[clips][:, channels].double()
            elif value.dim() == 1:
                given[name] = value[channels].double()
            else:
                given[name] = value[clips][:, channels].double()
        return given

    def _weight_sample(self, fine: Tensor, coarse: Tensor, kernel: int) -> _Sample:
        some = _some(fine.shape[1])
        exact = sum(
            reference.weight_gradient(fine[part][:, some].double(), coarse[part].double(), kernel)
            for part in _parts(len(fine))
        )
        return _Sample(list(range(coarse.shape[1])), some, exact)

    def _reduced(self, y: Tensor) -> list[tuple[Tensor, float]]:
        """Statistics or sums of y as stored, and what rounding makes of each."""
        if self.name == "convolve_statistics":
            return _statistics(y, self.given["groups"])
        if self.name == "convolve_norm_backward":
            vectors = self.given["mean"], self.given["variance"]
            return _sums(y, self.given["x"], *vectors, self.given["eps"])
        return []


def _some(channels: int) -> list[int]:
    """A channel of each tile, not the same at each call; user's generators are left alone."""
    first = secrets.randbelow(min(TILE, channels))
    return sorted({*range(first, channels, TILE), channels - 1})


def _parts(clips: int) -> Iterator[list[int]]:
    for first in range(0, clips, PART):
        yield list(range(first, min(first + PART, clips)))


def _statistics(y: Tensor, groups: int) -> list[tuple[Tensor, float]]:
    over = (0, *range(2, y.dim()))
    count = y.numel() // (groups * y.shape[1])
    means, variances = [], []
    for group in y.chunk(groups):
        mean = sum(part.double().sum(over) for part in group.split(PART)) / count
        about = mean.view(-1, *[1] * (y.dim() - 2))
        squares = sum((part.double() - about).square().sum(over) for part in group.split(PART))
        means.append(mean)
        variances.append(squares / count)
    mean, variance = torch.stack(means), torch.stack(variances)
    # Partial sums within a tile are fp32: a few roundings.
    return [
        (mean, 4 * FP32 * (mean.abs() + variance.sqrt()).max().item()),
        (variance, 4 * FP32 * variance.max().item()),
    ]


def _sums(
    g: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> list[tuple[Tensor, float]]:
    over, each = (0, *range(2, g.dim())), (..., *[None] * (g.dim() - 2))
    groups = len(mean)
    totals = g.new_zeros(2, 2, *mean.shape, dtype=torch.float64)  # (sum, squares), (g * n, g)
    for k, group in enumerate(zip(g.chunk(groups), x.chunk(groups), strict=True)):
        rstd = torch.rsqrt(variance[k].double() + eps)[each]
        for g_part, x_part in zip(*(t.split(PART) for t in group), strict=True):
            wide = g_part.double()
            normed = (x_part.double() - mean[k].double()[each]) * rstd
            for i, value in enumerate((wide * normed, wide)):
                totals[0, i, k] += value.sum(over)
                totals[1, i, k] += value.square().sum(over)
    # Kernels add up g before it is rounded: what that adds is random, eps / sqrt(12) each.
    unit = max(torch.finfo(g.dtype).eps, 4 * FP32)
    return [(s, unit * (q.sqrt() + s.abs()).max().item()) for s, q in zip(*totals, strict=True)]
