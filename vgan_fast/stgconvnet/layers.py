"""What an STGConvNet consists of: layer lists in words, and those of the paper's experiments."""

import re
from dataclasses import dataclass

from vgan_fast.errors import UserError

Sizes = tuple[int, int, int]  # of time, height and width

# Filters@kernel/stride+padding, as `parse_layers` reads them. Of experiments 3 and 4 the first
# kernel is assumed: the paper's text gives the stride alone. Explicit padding is the public code's.
EXPERIMENTS = {
    "1": "120@15/7 40@7/3 20@2x3x3/1x2x2",
    "2": "120@7/3 30@4x*x*/2x1x1+2x0x0 5@2x1x1+1x0x0",
    "2b": "120@7/2 30@5x*x*/2x1x1+2x0x0 5@2x1x1/1x2x2+1x0x0",
    "3": "200@7/3 1@*",
    "4": "200@7/3 1@*",
    "5": "120@7/3 30@4x*x*/2x1x1+2x0x0 5@2x1x1+1x0x0",
}

_NUMBER = r"\d{1,9}"
_SIZE = rf"(?:{_NUMBER}|\*)"
_LAYER = re.compile(
    rf"({_NUMBER})@({_SIZE}(?:x{_SIZE}x{_SIZE})?)"
    rf"(?:/({_NUMBER}(?:x{_NUMBER}x{_NUMBER})?))?(?:\+({_NUMBER}(?:x{_NUMBER}x{_NUMBER})?))?"
)
_LARGEST = 4096  # of a number in a layer list


@dataclass(frozen=True, slots=True)
class Layer:
    """A 3D convolution of known sizes, before a ReLU.

    Attributes:
        filters: output channels.
        channels: input channels.
        kernel, stride: of time, height and width.
        padding: zeros before and after, of time, height and width.
        given: sizes of its input.
        made: sizes of its output.
    """

    filters: int
    channels: int
    kernel: Sizes
    stride: Sizes
    padding: tuple[tuple[int, int], ...]
    given: Sizes
    made: Sizes

    @property
    def covers(self) -> bool:
        """Whether the kernel is as high and wide as its input: a matrix product does it."""
        return self.kernel[1:] == self.given[1:] and not any(map(any, self.padding[1:]))


def parse_layers(text: str, shape: Sizes) -> tuple[Layer, ...]:
    """Layers that a list in words describes, for clips of a shape.

    A layer is `FILTERS@KERNEL/STRIDE+PADDING`, layers are parted by blanks. Kernel, stride (1 where
    absent) and padding are three numbers `TxHxW` or one for all; a kernel of `*` is as large as
    what the layer sees. Without padding there are as many zeros as make the output 1/stride of the
    input, rounded up (TensorFlow's "SAME"), none where the kernel is `*`; with it, as many on both
    sides.

    Args:
        text: for instance `120@15/7 40@7/3 20@2x3x3/1x2x2`.
        shape: frames, height and width of a clip.

    Raises:
        UserError: for a list that cannot be read, or filters larger than a clip.
    """
    layers: list[Layer] = []
    channels, given = 3, shape
    for word in text.split():
        match = _LAYER.fullmatch(word)
        if match is None:
            raise UserError(
                f"--layers: {word[:40]!r} is no layer; write FILTERS@KERNEL/STRIDE, as in 120@15/7 "
                "or 20@2x3x3/1x2x2"
            )
        filters, kernel, stride, padding = match.groups()
        kernel = tuple(
            own if size == "*" else int(size)
            for size, own in zip(_three(kernel), given, strict=True)
        )
        whole = [size == "*" for size in _three(match[2])]
        stride = tuple(map(int, _three(stride or "1")))
        given_padding = tuple(map(int, _three(padding or "0")))
        sized = [k for k, w in zip(kernel, whole, strict=True) if not w]
        numbers = int(filters), *stride, *sized
        if min(numbers) < 1 or max(*numbers, *given_padding) > _LARGEST:
            raise UserError(f"--layers: {word!r}: its sizes must lie between 1 and {_LARGEST}")
        if padding is None:
            zeros = tuple(
                (0, 0) if w else _same(n, k, s)
                for n, k, s, w in zip(given, kernel, stride, whole, strict=True)
            )
        else:
            zeros = tuple((p, p) for p in given_padding)
        if not layers and any(k > n for k, n in zip(kernel, given, strict=True)):
            raise UserError(
                f"{_sizes(given)} clips are smaller than the {_sizes(kernel)} filters of the first "
                "layer: give more --frames or --size, or other --layers"
            )
        made = tuple(
            (n + sum(p) - k) // s + 1
            for n, k, s, p in zip(given, kernel, stride, zeros, strict=True)
        )
        if min(made) < 1:
            raise UserError(
                f"--layers: {word!r} is larger than the {_sizes(given)} values that it sees: give "
                "more --frames or --size, or other --layers"
            )
        layers.append(Layer(int(filters), channels, kernel, stride, zeros, given, made))
        channels, given = int(filters), made
    if not layers:
        raise UserError("--layers: names no layer; write for instance '120@15/7 40@7/3'")
    return tuple(layers)


def parse_rates(text: str, layers: int) -> tuple[float, ...]:
    """Factors of the learning rate, one a layer, from numbers parted by commas.

    Raises:
        UserError: when they are no positive numbers, or not as many as the layers.
    """
    try:
        rates = tuple(float(word) for word in text.split(","))
    except ValueError:
        rates = ()
    if len(rates) != layers or not all(0 < rate < float("inf") for rate in rates):
        raise UserError(
            f"--layer-rates {text[:80]}: must be {layers} positive numbers parted by commas, one "
            "for each layer"
        )
    return rates


def _three(text: str) -> list[str]:
    words = text.split("x")
    return words * 3 if len(words) == 1 else words


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


def _sizes(shape: Sizes) -> str:
    return "x".join(map(str, shape))
