"""The answer key of a Langevin step in plain PyTorch; on a CPU it is what runs.

There it goes through memory in chunks that stay in a core's cache, as nearly all of its passes are
over its own results: the ten rounds of Philox. NumPy does those on a CPU, in the same words, as it
takes half of PyTorch's time for them.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Words = TypeVar("Words", Tensor, np.ndarray)

# Elements, a multiple of 4: 256 KiB for each word of their counters.
CHUNK = 1 << 17
ROUNDS = 10
WORD = 0xFFFFFFFF
# Of Philox 4x32: multipliers of words 0 and 2, and what the key's words grow by each round.
FACTORS = 0xD2511F53, 0xCD9E8D57
GROWTH = 0x9E3779B9, 0xBB67AE85
# sin(pi/2 f) / f and cos(pi/2 f) by powers of f^2 for |f| <= 1: within 7e-9 and 3e-10.
SINE = 1.5707963705, -0.64596378803, 0.079689927399, -0.0046741575934, 0.00015167852689
COSINE = 1.0, -1.2337005138, 0.25366932154, -0.020862689242, 0.00091772485757, -2.3824919481e-5


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
            noise = noise_of(chunk, moment, seed)
            new.add_(noise, alpha=step_size * math.sqrt(temperature))
        if bounds is not None:
            # 2 * end - new; what is inside stays as it is, to the bit.
            torch.sub(new.clamp(*bounds).mul_(2), new, out=new).clamp_(*bounds)
    return moved if fixed is None else torch.where(fixed, x, moved)


def normals(shape: Sequence[int], moment: Tensor, seed: int) -> Tensor:
    """Standard normals, fp32, on the moment's device. See `api.normals`."""
    made = torch.empty(shape, dtype=torch.float32, device=moment.device)
    flat = made.view(-1)
    for chunk in _chunks(made):
        flat[chunk] = noise_of(chunk, moment, seed)
    return made


def noise_of(chunk: slice, moment: Tensor, seed: int) -> Tensor:
    """Normals, flat, of elements in contiguous order; the first one's number is a multiple of 4."""
    first, last = chunk.start // 4, -(-chunk.stop // 4)
    counter = counters(first, last - first, moment)
    if moment.device.type == "cpu":
        words = map(torch.from_numpy, philox([word.numpy() for word in counter], seed))
    else:
        words = philox(counter, seed)
    made = torch.empty(last - first, 4, device=moment.device)
    w0, w1, w2, w3 = words
    pair(w0, w1, made[:, :2])
    pair(w2, w3, made[:, 2:])
    return made.view(-1)[: chunk.stop - chunk.start]


def counters(first: int, count: int, moment: Tensor) -> list[Tensor]:
    """Words of 32 bits, in int64, of the counters of `count` quads from `first` on.

    What all have in common is a tensor of one.
    """
    quads = torch.arange(first, first + count, device=moment.device)
    common = first >> 32 == (first + count - 1) >> 32
    moment = moment.view(1)
    return [quads & WORD, (quads[:1] if common else quads) >> 32, moment & WORD, moment >> 32]


def philox(counter: Sequence[Words], seed: int, rounds: int = ROUNDS) -> list[Words]:
    """Philox 4x32: four words of 32 bits, in int64, of a counter of as many and a key of two.

    The last word of the counter may be negative: the higher half of an int64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & WORD, seed >> 32
    for _ in range(rounds):
        p0, p2 = c0 * FACTORS[0], c2 * FACTORS[1]  # modulo 2^64
        c0 = (p2 >> 32) ^ c1
        c0 ^= k0
        c0 &= WORD
        c2 = (p0 >> 32) ^ c3
        c2 ^= k1
        c2 &= WORD
        c1, c3 = p2, p0  # the low words, once the masks above have cut them
        k0, k1 = (k0 + GROWTH[0]) & WORD, (k1 + GROWTH[1]) & WORD
    c1 &= WORD
    c3 &= WORD
    return [c0, c1, c2, c3]


def pair(uniform: Tensor, direction: Tensor, made: Tensor) -> None:
    """Write two independent normals of two words: the transform of Box and Muller.

    The first word is their radius, by a uniform number in (0, 1]. The highest bit of the second
    says which half of the circle they are in, the others where in it.

    Args:
        uniform, direction: (count,) int64.
        made: (count, 2) fp32, written.
    """
    radius = (uniform >> 1).float().mul_(2.0**-31).add_(2.0**-32).log_().mul_(-2).sqrt_()
    bits = direction.to(torch.int32)
    radius.copysign_(bits.view(torch.float32))
    f = (bits << 1).float().mul_(2.0**-31)
    square = f * f
    torch.mul(_polynomial(COSINE, square), radius, out=made[:, 0])
    torch.mul(_polynomial(SINE, square).mul_(f), radius, out=made[:, 1])


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    lowest, *others, highest = coefficients
    total = x * highest
    for coefficient in reversed(others):
        total.add_(coefficient).mul_(x)
    return total.add_(lowest)


def _chunks(x: Tensor) -> list[slice]:
    size = CHUNK if x.device.type == "cpu" else x.numel()
    return [slice(i, min(i + size, x.numel())) for i in range(0, x.numel(), size)]
