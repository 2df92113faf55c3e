"""The gathering product's launchers against their twins, and the packed weight.

On a CPU the kernels run in Triton's interpreter; the same tests compile them where there is a GPU.
"""

from dataclasses import replace

import pytest
import torch
from equivalence import DEVICE, DTYPES, assert_close_to_float64

from vgan_fast.kernels import dispatch
from vgan_fast.kernels.aot import SHARED
from vgan_fast.kernels.conv import gather, reference
from vgan_fast.kernels.conv.gather import Config
from vgan_fast.kernels.conv.weights import is_packed, pack

# Batch, A, B, coarse sizes, kernel.
LAYERS = {
    "D1, head": (2, 16, 32, (1, 2, 3), 2),
    "D2, G4": (2, 16, 8, (1, 2, 4), 4),
    "D4, G2": (2, 32, 16, (1, 1, 2), 4),
    "background": (2, 32, 16, (2, 4), 4),
    "background head": (2, 16, 3, (3, 4), 4),
}
RAGGED = {
    "one position": (1, 32, 32, (1, 1, 1), 4),
    "one cell": (1, 32, 32, (1, 1, 1), 2),
    "batch 3, all odd": (3, 5, 3, (1, 3, 1), 4),
    "batch 3, cells, all odd": (3, 7, 9, (3, 1, 2), 2),
    "channels no multiple of a tile": (1, 72, 40, (1, 3), 4),
    "100 channels": (1, 100, 24, (2, 1), 4),
    "rows a tile less 1": (1, 8, 8, (1, 31), 4),
    "rows a tile": (1, 8, 8, (1, 32), 4),
    "groups of a tile and 1": (2, 8, 16, (3, 11), 4),
}
# Small, so that small shapes are cut up; the default holds most of them in one tile.
SMALL = Config(32, 32, 64, False, 1, 4, 2)
GUARD = 64  # values beside a buffer


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fresh memory of the launchers holds NaN, or -1, and nothing is written beside it."""
    buffers = []

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        def empty(self, shape, *, dtype, device, memory_format=torch.contiguous_format):
            like = torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)
            fill = float("nan") if dtype.is_floating_point else -1
            buffers.append(
                torch.full((like.numel() + 2 * GUARD,), fill, dtype=dtype, device=device)
            )
            return buffers[-1].as_strided(shape, like.stride(), GUARD)

    monkeypatch.setattr(gather, "torch", Torch())
    yield
    for buffer in buffers:
        beside = torch.cat([buffer[:GUARD], buffer[-GUARD:]])
        assert (beside.isnan() | (beside == -1)).all(), "written outside"


def guarded(x):
    """The same values and strides in memory that holds NaN on both sides."""
    buffer = torch.full((x.numel() + 2 * GUARD,), float("nan"), dtype=x.dtype, device=x.device)
    return buffer.as_strided(x.shape, x.stride(), GUARD).copy_(x)


def layout(x):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return formats.get(x.dim(), torch.contiguous_format)


def activations(n, channels, sizes, dtype):
    x = torch.randn(n, channels, *sizes, device=DEVICE).to(dtype)
    return guarded(x.contiguous(memory_format=layout(x)))


def sides(shape, up):
    """Channels and sizes of what goes in, and of what comes out."""
    _, a, b, coarse, kernel = shape
    fine = tuple(2 * size if kernel == 4 else size + 1 for size in coarse)
    return ((a, coarse), (b, fine)) if up else ((b, fine), (a, coarse))


def operands(shape, up, dtype):
    """x, its packed weight, and a vector, all finite and of about unit results."""
    n, a, b, coarse, kernel = shape
    (cin, sizes), (cout, _) = sides(shape, up)
    weight = torch.randn(a, b, *[kernel] * len(coarse), device=DEVICE)
    weight *= (cin * (2 if up else kernel) ** len(coarse)) ** -0.5
    shift = torch.randn(cout, device=DEVICE)
    return activations(n, cin, sizes, dtype), guarded(pack(weight, dtype)), shift


def tensors(results):
    """Each by itself: the two sums of a norm's backward differ in size."""
    if isinstance(results, torch.Tensor):
        return (results,)
    return (results[0], *results[1]) if len(results) == 2 else results


def check(name, arguments, up, config=None):
    """A launcher's results against its twin in float64, within the twin's own error."""
    before = dispatch.launches[name]
    ours = tensors(getattr(gather, name)(*arguments, up=up, config=config))
    assert dispatch.launches[name] == before + 1
    x, weight, *rest = arguments
    operands = truncated(x, weight)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        eager = tensors(getattr(reference, name)(*operands, *rest, up=up))
    wide = [x.double() if isinstance(x, torch.Tensor) else x for x in arguments]
    exact = tensors(getattr(reference, name)(*wide, up=up))
    terms = weight[:, 0].numel() // 2 ** (x.dim() - 2) if up else weight[0].numel()
    for number, (a, b, c) in enumerate(zip(ours, eager, exact, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.is_contiguous(memory_format=layout(a))
        assert_close_to_float64(f"{name}, result {number}", a, b, c, terms)


def truncated(*operands):
    """What a tensor core makes of fp32 under TF32; the library rounds, or multiplies in fp32."""
    if operands[0].dtype != torch.float32 or not torch.backends.cudnn.allow_tf32:
        return operands
    return [(x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in operands]


def norm(shape, up, dtype, groups):
    """What was normalised, its statistics and parameters, eps and slope."""
    channels, sizes = sides(shape, up)[1]
    mean, gamma, beta = (torch.randn(k, channels, device=DEVICE) for k in (groups, 1, 1))
    variance = torch.rand(groups, channels, device=DEVICE) + 0.1
    x = activations(shape[0], channels, sizes, dtype)
    # Exactly on the edge of the activation: its own values, and a channel of which z is 0.
    x[x.abs() < 0.2] = 0
    gamma[:, 0] = beta[:, 0] = 0
    return x, mean, variance, gamma[0], beta[0], 0.05, 0.2


def check_all(shape, up, dtype, groups, config=None):
    """Every launcher on operands of a shape."""
    x, weight, shift = operands(shape, up, dtype)
    scale = torch.randn_like(shift)
    check("convolve", (x, weight, shift, scale, 0.2), up, config)
    check("convolve_statistics", (x, weight, groups), up, config)
    activated, *rest = norm(shape, up, dtype, groups)
    check("convolve_masked", (x, weight, activated, 0.2), up, config)
    check("convolve_norm_backward", (x, weight, activated, *rest), up, config)


def small(shape, up):
    """Both parities of a cell in the columns where that is possible, as narrow layers run."""
    return replace(SMALL, merged=up and shape[-1] == 4)


directions = pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@directions
@pytest.mark.parametrize("shape", LAYERS.values(), ids=LAYERS)
def test_layers_match_float64(shape, up, dtype):
    check_all(shape, up, dtype, 2, small(shape, up))


@directions
@pytest.mark.parametrize("shape", RAGGED.values(), ids=RAGGED)
def test_ragged_shapes_match_float64(shape, up):
    check_all(shape, up, torch.float32, shape[0], small(shape, up))


@pytest.mark.parametrize(
    "config",
    [
        None,
        replace(SMALL, depth=16),
        Config(16, 64, 32, False, 2, 4, 2),
        Config(64, 64, 16, False, 4, 4, 2),
        Config(32, 64, 32, True, 4, 4, 2),
    ],
    ids=["default", "shallow", "two parts", "four parts", "four parts, merged"],
)
@directions
def test_every_tiling_matches_float64(config, up):
    """40 and 24 channels, no multiple of anything; one group of three."""
    shape = (3, 24, 40, (2, 3), 4)
    if config and config.merged and not up:
        config = replace(config, merged=False, columns=16)
    x, weight, _ = operands(shape, up, torch.float16)
    check("convolve_statistics", (x, weight, 1), up, config)
    rest = norm(shape, up, torch.float16, 1)
    check("convolve_norm_backward", (x, weight, *rest), up, config)


@directions
@pytest.mark.parametrize("dims", [2, 3])
def test_parities_on_the_grid_match_float64(dims, up):
    """Wide layers' `up` reads cells of one parity; each axis has another size."""
    shape = (1, 8, 8, (1, 2, 3)[-dims:], 4)
    check_all(shape, up, torch.float32, 1, replace(SMALL, rows=16))


@directions
@pytest.mark.parametrize("channels", [8, 16, 24])
def test_taps_that_share_a_block_match_float64(channels, up):
    """Narrow inputs of `down`: one, two or four taps of w in a block, borders within it."""
    shape = (1, 16, channels, (2, 3), 4)
    config = replace(SMALL, depth=32)
    x, weight, _ = operands(shape, up, torch.float16)
    check("convolve_statistics", (x, weight, 1), up, config)


@pytest.mark.parametrize("seed", [1, 2])
@directions
def test_other_numbers_match_float64(up, seed):
    torch.manual_seed(seed)
    check_all((2, 16, 8, (2, 3), 4), up, torch.float16, 1, small((4,), up))


@directions
def test_nothing_is_added_where_nothing_is_given(up):
    x, weight, shift = operands((2, 8, 16, (2, 3), 4), up, torch.float32)
    check("convolve", (x, weight), up)
    check("convolve", (x, weight, shift, None, 0.0), up)
    check("convolve", (x, weight, None, shift), up)


def add_constant(x, weight, values):
    """To all results of `up`: each takes one of the taps in the middle, at the border too."""
    x[:, 0] = 1
    weight[0] = 0
    weight[0, :, 1:3, 1:3] = values[:, None, None]


@dtypes
@pytest.mark.parametrize("merged", [False, True], ids=["parities apart", "merged"])
def test_a_large_mean_leaves_the_variance_right(merged, dtype):
    """|mean| = 100 standard deviations: sums of squares would lose 3e-3 of the variance."""
    x, weight, _ = operands((2, 16, 8, (5, 5), 4), True, dtype)
    add_constant(x, weight, torch.linspace(-100, 100, 8, device=DEVICE))
    config = replace(SMALL, merged=merged)
    y, mean, variance = gather.convolve_statistics(x, weight, 2, up=True, config=config)
    values = y.double().unflatten(0, (2, 1))
    expected, means = torch.var_mean(values, (1, 3, 4), correction=0)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(mean.double(), means, rtol=1e-6, atol=1e-6)


def test_a_constant_channel_has_no_variance():
    x, weight, bias = operands((2, 16, 8, (5, 5), 4), True, torch.float32)
    weight.zero_()
    add_constant(x, weight, bias)
    _, mean, variance = gather.convolve_statistics(x, weight, 2, up=True, config=SMALL)
    assert (variance == 0).all()
    assert torch.equal(mean, bias.expand(2, -1))


def test_more_partials_than_a_step_of_the_merge(monkeypatch):
    monkeypatch.setattr(gather, "BLOCK_P", 4)
    shape = (2, 8, 8, (5, 5), 4)
    x, weight, _ = operands(shape, True, torch.float32)
    check("convolve_statistics", (x, weight, 2), True, replace(SMALL, rows=16))
    rest = norm(shape, True, torch.float32, 2)
    check("convolve_norm_backward", (x, weight, *rest), True, replace(SMALL, rows=16))


def test_operands_off_their_16_bytes_are_copied(monkeypatch):
    def shifted(x):
        flat = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]
        assert flat.data_ptr() % 16
        return flat.as_strided(x.shape, x.stride()).copy_(x)

    shape = (2, 16, 8, (2, 3), 4)
    x, weight, _ = (shifted(tensor) for tensor in operands(shape, False, torch.float16))
    activated, *rest = norm(shape, False, torch.float16, 2)
    kernel = gather._gather_gemm

    class Watched:
        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                given = [x for x in arguments if isinstance(x, torch.Tensor)]
                assert all(x.data_ptr() % 16 == 0 for x in given)
                kernel[grid](*arguments, **constants)

            return launch

    monkeypatch.setattr(gather, "_gather_gemm", Watched())
    rest = [shifted(x) if isinstance(x, torch.Tensor) else x for x in rest]
    check("convolve_norm_backward", (x, weight, shifted(activated), *rest), False)


def test_results_do_not_change_from_call_to_call():
    shape = (2, 16, 8, (2, 3), 4)
    x, weight, _ = operands(shape, True, torch.float16)
    rest = norm(shape, True, torch.float16, 2)
    found = [
        gather.convolve_statistics(x, weight, 2, up=True)
        + gather.convolve_norm_backward(x, weight, *rest, up=True)
        for _ in range(2)
    ]
    assert all(map(torch.equal, *found))


def test_other_operands_than_packed_ones_are_refused():
    x, weight, _ = operands((2, 16, 8, (2, 3), 4), False, torch.float32)
    with pytest.raises(AssertionError, match="not packed"):
        gather.convolve(x, weight.contiguous(), up=False)
    with pytest.raises(AssertionError, match=r"weight torch\.float16"):
        gather.convolve(x, pack(weight, torch.float16), up=False)
    with pytest.raises(AssertionError, match="not channels-last"):
        gather.convolve(x.contiguous(), weight, up=False)
    with pytest.raises(AssertionError, match="16 channels, the weight 8"):
        gather.convolve(activations(2, 16, (2, 4), torch.float32), weight, up=False)
    with pytest.raises(AssertionError, match="merged=True"):
        gather.convolve(x, weight, up=False, config=replace(SMALL, merged=True))


@pytest.mark.parametrize("shape", [(3, 5, 4, 4, 4), (3, 5, 4, 4), (1, 1, 2, 2, 2)], ids=str)
def test_a_packed_weight_has_the_same_elements_in_another_order(shape):
    weight = torch.randn(shape).transpose(0, 2).contiguous().transpose(0, 2)
    packed = pack(weight, torch.float16)
    assert torch.equal(packed, weight.half())
    a, b, *kernel = shape
    rows = packed.as_strided((*kernel, b, a), torch.empty(*kernel, b, a).stride())
    assert torch.equal(rows, weight.half().permute(*range(2, len(shape)), 1, 0))
    assert is_packed(packed)
    assert is_packed(weight) == (weight.numel() == 8)


@directions
@pytest.mark.parametrize("room", SHARED.values(), ids=SHARED)
@pytest.mark.parametrize("channels", [(64, 8), (128, 64), (512, 256)], ids=str)
def test_candidates_fit_the_shared_memory(channels, room, up, monkeypatch):
    monkeypatch.setattr(dispatch, "shared_memory", lambda device: room)
    shape = (1, *channels, (4, 4), 4)
    (cin, sizes), _ = sides(shape, up)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.empty(1, cin, *sizes, dtype=dtype).contiguous(memory_format=torch.channels_last)
        found = gather.configs(x, pack(torch.empty(*channels, 4, 4), dtype), up=up)
        assert len(found) == len(set(found)) >= (1 if dtype == torch.float32 else 2)
        for config in found:
            assert config.shared_bytes(x.element_size()) <= room
            # Where operands come from registers, 128 of sums leave too few.
            assert room >= 200 << 10 or config.rows * config.columns / config.num_warps <= 64 * 32
            assert config.merged == (up and channels[1] <= 64)


def test_a_shape_that_leaves_multiprocessors_idle_gets_smaller_tiles():
    found = {}
    for batch in (64, 4096):
        x = torch.empty(batch, 256, 4, 4, dtype=torch.float16, device="meta")
        x = x.contiguous(memory_format=torch.channels_last)
        weight = pack(torch.empty(512, 256, 4, 4, device="meta"), torch.float16)
        config, *_ = gather.configs(x, weight, up=False)
        found[batch] = config.rows * config.columns
    assert found[64] < found[4096]


@pytest.mark.gpu
@directions
@pytest.mark.parametrize("dtype", [*DTYPES, "tf32"], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (4, 64, 32, (16, 32, 32), 2),
        (4, 128, 64, (8, 16, 16), 4),
        (4, 256, 128, (4, 8, 8), 4),
        (4, 512, 256, (2, 4, 4), 4),
        (4, 64, 3, (32, 32), 4),
    ],
    ids=str,
)
def test_the_papers_sizes_match_float64(shape, dtype, up, monkeypatch):
    if dtype == "tf32":
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        dtype = torch.float32
    x, weight, _ = operands(shape, up, dtype)
    for config in gather.configs(x, weight, up=up):
        check_all(shape, up, dtype, 2, config)
