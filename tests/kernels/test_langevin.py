import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from scipy import stats
from torch.library import opcheck

from tests.kernels.equivalence import DEVICE, DTYPES, assert_close_to_float64
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.langevin import api, langevin_step, normals, reference, triton_impl

# Elements of a program, of a chunk of the twin, and shapes around both; C = 1, 2, 3.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 1, 1, 1),
    (1, 3, 11, 1, 31),  # BLOCK - 1
    (2, 2, 2, 8, 16),  # BLOCK
    (1, 1, 5, 5, 41),  # BLOCK + 1
    (3, 3, 4, 16, 16),  # a multiple of 16, and so read in words
    (1, 1, 1, 1, 2053),  # a prime
]
assert triton_impl.BLOCK == 1024
OPTIONS = {"seed": 2**40 + 17, "step_size": 0.3, "variance": 2.0, "temperature": 1.0}
NOISE = 1 << 20  # numbers that are judged


def moment(number=5):
    return torch.tensor(number, device=DEVICE)


def inputs(shape, dtype=torch.float32):
    return 2 * torch.randn(shape, device=DEVICE), 3 * torch.randn(shape, device=DEVICE).to(dtype)


def fixed_pixels(shape, each):
    n, _, *sizes = shape
    return torch.rand(n if each else 1, 1, *sizes, device=DEVICE) < 0.5


def twin(x, gradient, number, *, fixed=None, bounds=None, **options):
    return reference.langevin_step(x, gradient, number, fixed, bounds=bounds, **(OPTIONS | options))


def assert_kernel_is_as_good_as_eager(x, gradient, number, **options):
    before = dispatch.launches.copy()
    ours = langevin_step(x, gradient, number, **(OPTIONS | options), impl="triton")
    assert dispatch.launches - before == {"langevin_step": 1}
    assert ours.dtype == torch.float32 and ours.is_contiguous()
    eager = twin(x, gradient, number, **options)
    exact = twin(x.double(), gradient.double(), number, **options)
    assert_close_to_float64("x", ours, eager, exact)
    return ours


def by_hand(x, gradient, noise, *, fixed=None, bounds=None, seed, **options):
    """The update, value by value."""
    step, variance, temperature = (
        options[name] for name in ("step_size", "variance", "temperature")
    )
    moved = []
    for old, slope, z in zip(*(v.flatten().tolist() for v in (x, gradient, noise)), strict=True):
        pull = slope if variance is None else slope - old / variance
        new = old + step**2 / 2 * pull + step * math.sqrt(temperature) * z
        if bounds is not None:
            low, high = bounds
            if new < low:
                new = min(2 * low - new, high)
            elif new > high:
                new = max(2 * high - new, low)
        moved.append(new)
    moved = torch.tensor(moved, dtype=torch.float64).view_as(x)
    return moved if fixed is None else torch.where(fixed.cpu(), x.cpu(), moved)


# Every combination of what a step may have.
STEPS = [
    {"fixed": fixed, "bounds": bounds, "variance": variance, "temperature": temperature}
    for fixed, bounds, variance, temperature in itertools.product(
        (None, "all", "each"), (None, (-1.5, 2.0)), (None, 2.0), (0.0, 0.6)
    )
]


def given(options, shape):
    fixed = options["fixed"]
    return options | {"fixed": fixed and fixed_pixels(shape, fixed == "each")}


def named(options):
    return ", ".join(f"{key} {value}" for key, value in options.items())


@pytest.mark.parametrize("options", STEPS, ids=named)
def test_the_twin_follows_the_equation(options):
    shape = 2, 3, 3, 4, 5
    x, gradient = (each.double() for each in inputs(shape))
    options = OPTIONS | given(options, shape)
    noise = normals(shape, moment(), OPTIONS["seed"])
    found = twin(x, gradient, moment(), **options)
    assert found.dtype == torch.float64
    expected = by_hand(x, gradient, noise, **options)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("options", STEPS, ids=named)
@pytest.mark.parametrize("shape", [(2, 3, 3, 4, 5), (2, 3, 3, 16, 16)], ids=str)
def test_kernel_of_every_step(shape, options):
    x, gradient = inputs(shape)
    assert_kernel_is_as_good_as_eager(x, gradient, moment(), **given(options, shape))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_of_any_size(shape, dtype):
    for options in ({}, {"fixed": fixed_pixels(shape, True), "bounds": (-1.0, 2.0)}):
        assert_kernel_is_as_good_as_eager(*inputs(shape, dtype), moment(), **options)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_at_a_papers_size(dtype):
    """3 chains of 70 frames of 224x224."""
    shape = 3, 3, 70, 224, 224
    fixed = fixed_pixels(shape, True)
    x, gradient = inputs(shape, dtype)
    assert_kernel_is_as_good_as_eager(x, gradient, moment(), fixed=fixed, bounds=(-128.0, 127.0))


def stored(x, layout):
    """The same values stored in another way."""
    if layout == "strided":
        return x.repeat_interleave(2, -1)[..., ::2]
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded":
        return x[:1].expand_as(x)
    # Off the 16 bytes that accesses are aligned to.
    return torch.zeros(1 + x.numel(), dtype=x.dtype, device=x.device)[1:].view_as(x).copy_(x)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", ["strided", "transposed", "expanded", "unaligned"])
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_tensors_of_any_layout(impl, layout):
    shape = 2, 3, 3, 16, 16
    x, gradient, fixed = *inputs(shape, torch.float16), fixed_pixels(shape, True)
    if layout == "expanded":
        x, gradient, fixed = (stored(each, layout).contiguous() for each in (x, gradient, fixed))

    def call(x, gradient, fixed):
        return langevin_step(x, gradient, moment(), fixed=fixed, **OPTIONS, impl=impl)

    expected = call(x, gradient, fixed)
    assert expected.equal(call(*(stored(each, layout) for each in (x, gradient, fixed))))
    assert expected.equal(call(x, gradient, fixed))  # and reproducible


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_fixed_pixels_keep_their_bits_and_no_others(impl):
    shape = 2, 3, 3, 5, 7
    x, gradient = inputs(shape)
    x[0, :, 0, 0] = torch.tensor([math.inf, -math.inf, math.nan, -0.0, 1e-42, 3e38, 7.0])
    for each in (False, True):
        fixed = fixed_pixels(shape, each)
        fixed[:, :, 0, 0] = True
        kept = fixed.expand(shape)
        moved = langevin_step(
            x, gradient, moment(), fixed=fixed, bounds=(-1.0, 1.0), **OPTIONS, impl=impl
        )
        assert moved[kept].view(torch.int32).equal(x[kept].view(torch.int32))
        assert (moved[~kept] != x[~kept]).all()
        assert moved[~kept].abs().max() <= 1


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_what_leaves_the_range_is_reflected_once_then_clamped(impl):
    x = torch.tensor([0.25, -0.25, 1.25, -1.5, 2.5, -7.0, 9.0, 0.0, 1.0, math.nan], device=DEVICE)
    expected = [0.25, 0.25, 0.75, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, math.nan]
    x = x.view(1, 1, 1, 1, -1)
    options = OPTIONS | {"temperature": 0.0, "variance": None}
    found = langevin_step(x, torch.zeros_like(x), moment(), bounds=(0.0, 1.0), **options, impl=impl)
    torch.testing.assert_close(found.flatten().tolist(), expected, equal_nan=True, rtol=0, atol=0)


# Random123, tests/kat_vectors, philox4x32 10: counter, key, output.
KNOWN = [
    ("00000000 " * 4, "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers_of_philox(counter, key, output):
    counter, key, output = ([int(w, 16) for w in words.split()] for words in (counter, key, output))
    seed = key[0] | key[1] << 32
    for words in (
        [torch.full((3,), w) for w in counter],
        [np.full(3, w) for w in counter],
        [torch.full((3,), w) for w in counter[:2]] + [torch.tensor([w]) for w in counter[2:]],
    ):
        assert [w.tolist() for w in reference.philox(words, seed)] == [[w] * 3 for w in output]


def test_counters_count_quads_beyond_32_bits():
    number = torch.tensor((7 << 32) + 0xFFFFFFFF)
    for first, low, high in (
        (0, [0, 1, 2], [0] * 3),
        (2**32 - 1, [2**32 - 1, 0, 1], [0, 1, 1]),
        (5 * 2**32, [0, 1, 2], [5] * 3),
    ):
        words = reference.counters(first, 3, number)
        assert [w.expand(3).tolist() for w in words] == [low, high, [2**32 - 1] * 3, [7] * 3]


def test_elements_beyond_two_to_the_34_have_numbers_of_their_own():
    """The counter's second word, from a chunk of a tensor that does not fit in here."""
    size, four = reference.CHUNK, 1 << 34
    here, there, across = (
        reference.noise_of(slice(start, start + size), moment(), 3)
        for start in (0, four, four - size // 2)
    )
    assert (here != there).float().mean() > 0.99
    assert across[size // 2 :].equal(there[: size // 2])


def noise_of_kernel(shape, number, seed):
    """The kernel's own: what it adds to nothing."""
    x = torch.zeros(shape, device=DEVICE)
    options = {"seed": seed, "step_size": 1.0, "variance": None, "impl": "triton"}
    return langevin_step(x, x, moment(number), **options)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 1, 2**62 - 1])
@pytest.mark.parametrize("number", [0, 1, 2**31, 2**32 + 7, 2**63 - 1])
def test_the_kernels_noise_is_the_twins(seed, number):
    shape = 1, 1, 1, 1, 5003
    kernels, twins = noise_of_kernel(shape, number, seed), normals(shape, number, seed, DEVICE)
    torch.testing.assert_close(kernels, twins, rtol=1e-6, atol=1e-6)


@triton.jit
def _noise(made, program, BLOCK: tl.constexpr):  # noqa: N803
    numbers = triton_impl._normals(11, tl.full((), 3, tl.int64), program.to(tl.int64), BLOCK)
    tl.store(made + tl.arange(0, BLOCK), numbers)


def test_the_kernels_noise_is_the_twins_beyond_two_to_the_34():
    """Of a program far into a tensor that does not fit in here."""
    first = (1 << 34) // triton_impl.BLOCK - 1
    made = torch.empty(2 * triton_impl.BLOCK, device=DEVICE)
    for i in range(2):
        _noise[(1,)](made[i * triton_impl.BLOCK :], first + i, BLOCK=triton_impl.BLOCK)
    start = first * triton_impl.BLOCK
    chunk = slice(start, start + len(made))
    torch.testing.assert_close(made, reference.noise_of(chunk, moment(3), 11), rtol=1e-6, atol=1e-6)


def test_noise_is_of_element_moment_and_seed_alone():
    whole = normals((100_003,), 4, 9)
    assert whole.dtype == torch.float32
    for shape in ((1,), (7,), (2, 4, 3), (50, 1001)):
        count = math.prod(shape)
        made = normals(shape, torch.tensor(4), 9)
        assert made.shape == shape and made.flatten().equal(whole[:count])
    for number, seed in ((5, 9), (4, 10), (4 + 2**32, 9), (4, 9 + 2**32), (9, 4)):
        assert (normals((1000,), number, seed) != whole[:1000]).all()


def test_chunks_change_nothing(monkeypatch):
    shape = 2, 3, 5, 7, 9
    x, gradient = inputs(shape)
    options = {"fixed": fixed_pixels(shape, True), "bounds": (-1.0, 2.0)}
    whole = twin(x, gradient, moment(), **options), normals(shape, 5, 3)
    monkeypatch.setattr(reference, "CHUNK", 64)
    assert len(reference._chunks(x.cpu())) == 30
    assert whole[0].equal(twin(x, gradient, moment(), **options))
    assert whole[1].equal(normals(shape, 5, 3))


def test_each_word_makes_what_it_should():
    """Radius and direction of chosen words, by the definition in float64."""
    words = [0, 1, 2, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1, 0x12345678, 0xC0000000]
    uniform, direction = (
        torch.tensor(w) for w in zip(*itertools.product(words, words), strict=True)
    )
    u = (((uniform >> 1).double() + 0.5) * 2.0**-31).float().double()
    radius = (-2 * u.log()).sqrt()
    low = direction % 2**31  # as a signed number of 31 bits
    angle = torch.where(low < 2**30, low, low - 2**31).double() * 2.0**-30 * math.pi / 2
    radius = torch.where(direction < 2**31, radius, -radius)
    found = torch.empty(len(u), 2)
    reference.pair(uniform, direction, found)
    for ours, exact in zip(found.T, (radius * angle.cos(), radius * angle.sin()), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-6)
    assert found.abs().max() < 6.67


def within(name, value, expected, deviation):
    """Five standard errors: by chance once in 1.7 million."""
    assert abs(value - expected) < 5 * deviation, f"{name}: {value:.5g}, not {expected}"


@pytest.fixture(scope="module")
def noise():
    return normals((NOISE,), 12, 2**35 + 3).double()


def test_moments_of_the_noise(noise):
    n = NOISE
    within("mean", noise.mean().item(), 0, n**-0.5)
    within("variance", noise.var().item(), 1, (2 / n) ** 0.5)
    within("skewness", stats.skew(noise.numpy()), 0, (6 / n) ** 0.5)
    within("excess kurtosis", stats.kurtosis(noise.numpy()), 0, (24 / n) ** 0.5)
    beyond = (noise.abs() > 4).sum().item()
    expected = n * 2 * stats.norm.sf(4)
    within("beyond 4", beyond, expected, expected**0.5)


def test_the_noise_is_normal_in_each_of_the_four_places(noise):
    for numbers in (noise, *noise.view(-1, 4).T):
        assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-5


def test_the_noise_is_independent(noise):
    for lag in (1, 2, 3, 4, 5, 64, 1024):
        here, there = noise[:-lag], noise[lag:]
        for power in (1, 2):  # of squares, too: a radius is shared by two
            a, b = here**power, there**power
            within(f"lag {lag}", torch.corrcoef(torch.stack([a, b]))[0, 1].item(), 0, NOISE**-0.5)
    for number, seed in ((13, 2**35 + 3), (12, 2**35 + 4), (12, 3), (12 + 2**32, 2**35 + 3)):
        other = normals((NOISE,), number, seed).double()
        correlation = torch.corrcoef(torch.stack([noise, other]))[0, 1].item()
        within(f"moment {number}, seed {seed}", correlation, 0, NOISE**-0.5)


def test_pairs_point_everywhere_alike(noise):
    """Chi-squared of 64 directions, and no correlation of direction and radius."""
    for first in (0, 2):
        a, b = noise.view(-1, 4)[:, first].numpy(), noise.view(-1, 4)[:, first + 1].numpy()
        angle = torch.atan2(torch.tensor(b), torch.tensor(a))
        counts = torch.histc(angle, 64, -math.pi, math.pi)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-5


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
def test_opcheck(impl):
    x, gradient = inputs((2, 3, 2, 3, 5), torch.float16)
    fixed = fixed_pixels(x.shape, True)
    for extra in ((None, 3, 0.1, None, 1.0, None), (fixed, 2**40, 0.1, 2.0, 0.0, [-1.0, 1.0])):
        opcheck(api._langevin_step, (x, gradient, moment(), *extra, impl))


def test_compiles_as_one_graph():
    x, gradient = inputs((1, 3, 2, 4, 5))
    fixed = fixed_pixels(x.shape, False)

    def function(x, gradient, number):
        return langevin_step(x, gradient, number, fixed=fixed, bounds=(-1.0, 1.0), **OPTIONS)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for number in (3, 4):
        arguments = x, gradient, moment(number)
        assert compiled(*arguments).equal(function(*arguments))


@pytest.mark.gpu
def test_a_graph_reads_the_moment_when_it_is_replayed():
    x, gradient = inputs((1, 3, 8, 32, 32))
    number = moment(1)
    langevin_step(x, gradient, number, **OPTIONS)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        moved = langevin_step(x, gradient, number, **OPTIONS)
    for value in (2, 2**40):
        number.fill_(value)
        graph.replay()
        assert moved.equal(langevin_step(x, gradient, moment(value), **OPTIONS))


def test_a_failing_kernel_leaves_the_work_to_the_twin(monkeypatch):
    x, gradient = inputs((1, 3, 2, 4, 5))

    def broken(*arguments):
        raise RuntimeError("does not compile")

    monkeypatch.setattr(triton_impl, "langevin_step", broken)
    with pytest.raises(RuntimeError, match="does not compile"):
        langevin_step(x, gradient, moment(), **OPTIONS, impl="triton")
    if DEVICE == "cpu":  # `auto` asks for no kernel there
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = langevin_step(x, gradient, moment(), **OPTIONS)
        assert found.equal(twin(x, gradient, moment()))


def test_an_explicit_kernel_is_refused_where_none_runs(monkeypatch):
    monkeypatch.setattr(dispatch, "kernels_run_on", lambda device: False)
    with pytest.raises(RuntimeError, match="needs tensors on a GPU"):
        langevin_step(*inputs((1, 3, 2, 4, 5)), moment(), **OPTIONS, impl="triton")


X = torch.zeros(2, 3, 4, 5, 6)
REFUSED = {
    "rank": ({"x": X[0]}, ValueError, r"x must be .*\(3, 4, 5, 6\)"),
    "empty": ({"x": X[:0]}, ValueError, "x must be .*not empty"),
    "x's dtype": ({"x": X.half()}, TypeError, "x must be fp32, got torch.float16"),
    "x in float64": ({"x": X.double()}, TypeError, "float64"),
    "x with a gradient": ({"x": X.clone().requires_grad_()}, ValueError, "require"),
    "gradient's shape": ({"gradient": X[:1]}, ValueError, r"gradient must be .*\(1, 3, 4, 5, 6\)"),
    "gradient's dtype": ({"gradient": X.double()}, TypeError, "gradient must be .*float64"),
    "gradient's device": ({"gradient": X.to("meta")}, ValueError, "gradient is on meta"),
    "moment's dtype": ({"moment": torch.tensor(1.0)}, TypeError, "moment must be int64.*float32"),
    "moment's shape": ({"moment": torch.tensor([1])}, ValueError, r"a scalar, got \(1,\)"),
    "moment's device": ({"moment": torch.tensor(1, device="meta")}, ValueError, "moment is on"),
    "fixed's dtype": ({"fixed": X[:, :1]}, TypeError, "fixed must be bool, got torch.float32"),
    "fixed's shape": ({"fixed": X > 0}, ValueError, r"fixed must be \(2 or 1, 1, 4, 5, 6\)"),
    "fixed's rank": ({"fixed": X[0, 0] > 0}, ValueError, r"got \(4, 5, 6\)"),
    "fixed's device": ({"fixed": (X[:, :1] > 0).to("meta")}, ValueError, "fixed is on meta"),
    "seed below 0": ({"seed": -1}, ValueError, "seed must be .*got -1"),
    "seed of 2^62": ({"seed": 2**62}, ValueError, f"seed must be .*got {2**62}"),
    "no step": ({"step_size": 0.0}, ValueError, "step_size must be .*got 0.0"),
    "step of inf": ({"step_size": math.inf}, ValueError, "step_size must be .*got inf"),
    "step of nan": ({"step_size": math.nan}, ValueError, "step_size must be .*got nan"),
    "no variance": ({"variance": 0.0}, ValueError, "variance must be .*got 0.0"),
    "variance of inf": ({"variance": math.inf}, ValueError, "variance must be .*got inf"),
    "temperature": ({"temperature": -0.1}, ValueError, "temperature must be .*got -0.1"),
    "temperature of inf": ({"temperature": math.inf}, ValueError, "temperature .*got inf"),
    "bounds": ({"bounds": (1.0, 1.0)}, ValueError, "bounds must be .*got 1.0 and 1.0"),
    "bound of inf": ({"bounds": (0.0, math.inf)}, ValueError, "bounds must be .*0.0 and inf"),
    "impl": ({"impl": "cuda"}, ValueError, "'cuda'"),
}


@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(change, error, message):
    arguments = OPTIONS | {"x": X, "gradient": X, "moment": torch.tensor(1)}
    langevin_step(**arguments, impl="reference")
    with pytest.raises(error, match=message):
        langevin_step(**(arguments | change))


def test_refusals_of_normals():
    with pytest.raises(TypeError, match="float32"):
        normals((3,), torch.tensor(1.0), 0)
    with pytest.raises(ValueError, match="meta"):
        normals((3,), torch.tensor(1), 0, "meta")
    with pytest.raises(ValueError, match=r"seed must be .*got -1"):
        normals((3,), 1, -1)
