"""The answer key of a Langevin step in plain PyTorch; on a CPU it is what runs.

There it goes through memory in chunks that stay in a core's cache, as most of its passes are over
its own results: the ten rounds of Philox.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Elements, a multiple of 4: 64 KiB for each word of their counters.
CHUNK = 1 << 15
ROUNDS = 10
WORD = 0xFFFFFFFF
# Of Philox 4x32: multipliers of words 0 and 2, and what the key's words grow by each round.
FACTORS = 0xD2511F53, 0xCD9E8D57
GROWTH = 0x9E3779B9, 0xBB67AE85
# sin(pi/2 f) / f and cos(pi/2 f) by powers of f^2 for |f| <= 1: within 7e-9 and 3e-10.
SINE = 1.5707963705062866, -0.6459637880325317, 0.07968992739915848, -0.004674157593399286
SINE = (*SINE, 0.00015167852689046413)
COSINE = 1.0, -1.2337005138397217, 0.2536693215370178, -0.02086268924176693
COSINE = (*COSINE, 0.0009177248575724661, -2.382491948083043e-05)


def langevin_step(
    x: Tensor,
    gradient: Tensor,
    moment: Tensor,
    fixed: Tensor | None,
    seed: int,
    step_size: float,
    variance: float | None,
    temperature: float,
    bounds: Sequence[float] | None,
) -> Tensor:
    """x + step_size^2 / 2 * (gradient - x / variance) + step_size * sqrt(temperature) * noise.

    In fp32, or in float64 of float64 but for the noise. See `api.langevin_step`.
    """
    moved = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    before, slopes, after = x.reshape(-1), gradient.reshape(-1), moved.view(-1)
    for chunk in _chunks(x):
        old, new = before[chunk], after[chunk]
        drift = slopes[chunk].to(x.dtype)
        if variance is not None:
            drift = torch.sub(drift, old, alpha=1 / variance)
        torch.add(old, drift, alpha=step_size**2 / 2, out=new)
        if temperature:
            noise = _normals(chunk, moment, seed)
            new.add_(noise, alpha=step_size * math.sqrt(temperature))
        if bounds is not None:
            low, high = bounds
            # What is inside stays as it is, to the bit: 2 * new - new.
            new.neg_().add_(new.neg().clamp_(low, high), alpha=2).clamp_(low, high)
    return moved if fixed is None else torch.where(fixed, x, moved)


def normals(shape: torch.Size, moment: Tensor, seed: int) -> Tensor:
    """Standard normals, fp32, on the moment's device. See `api.normals`."""
    made = torch.empty(shape, dtype=torch.float32, device=moment.device)
    flat = made.view(-1)
    for chunk in _chunks(made):
        flat[chunk] = _normals(chunk, moment, seed)
    return made


def philox(counter: Sequence[Tensor], seed: int, rounds: int = ROUNDS) -> list[Tensor]:
    """Philox 4x32: four words of 32 bits, in int64, of a counter of as many.

    Words may be scalars, and stay so for as long as they depend on nothing else.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & WORD, seed >> 32
    for _ in range(rounds):
        # The low half of a product is what is left of it when the next factor is masked.
        p0, p2 = c0 * FACTORS[0], c2 * FACTORS[1]
        c0 = ((p2 >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(WORD)
        c2 = ((p0 >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(WORD)
        c1, c3 = p2, p0
        k0, k1 = (k0 + GROWTH[0]) & WORD, (k1 + GROWTH[1]) & WORD
    return [c0, c1 & WORD, c2, c3 & WORD]


def counters(first: int, count: int, moment: Tensor) -> list[Tensor]:
    """Counters of `count` quads of elements, the first of which is `first`."""
    quads = torch.arange(first, first + count, device=moment.device)
    # Within a chunk the high word is one, mostly: as a scalar it costs nothing.
    high = quads[:1] >> 32
    if (first + count - 1) >> 32 != first >> 32:
        high = quads >> 32
    return [quads & WORD, high, moment & WORD, (moment >> 32) & WORD]


def _chunks(x: Tensor) -> list[slice]:
    size = CHUNK if x.device.type == "cpu" else max(4, x.numel())
    return [slice(i, min(i + size, x.numel())) for i in range(0, x.numel(), size)]


def _normals(chunk: slice, moment: Tensor, seed: int) -> Tensor:
    first, last = chunk.start // 4, (chunk.stop + 3) // 4
    words = philox(counters(first, last - first, moment), seed)
    pairs = [each for i in (0, 2) for each in _pair(words[i], words[i + 1])]
    return torch.stack(pairs, -1).view(-1)[: chunk.stop - chunk.start]


def _pair(uniform: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent normals of two words: the transform of Box and Muller.

    The first is their radius, of a uniform number in (0, 1]. The highest bit of the second says
    which half of the circle they are in, the others where in it.
    """
    radius = (uniform >> 1).float().mul_(2.0**-31).add_(2.0**-32).log_().mul_(-2).sqrt_()
    bits = direction.to(torch.int32)
    radius = radius.copysign_(bits.view(torch.float32))
    f = (bits << 1).float().mul_(2.0**-31)
    square = f * f
    return _polynomial(COSINE, square).mul_(radius), _polynomial(SINE, square).mul_(f).mul_(radius)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    *lower, highest = coefficients
    total = x * highest
    for coefficient in lower[:0:-1]:
        total.add_(coefficient).mul_(x)
    return total.add_(lower[0])
