import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.kernels.equivalence import DEVICE, DTYPES, assert_close_to_float64
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.norm import (
    api,
    batch_norm_act,
    batch_statistics,
    norm_act,
    reference,
    track_statistics,
    triton_impl,
)

# 64 channels: tiles of 64 rows (statistics, apply) and of 32 (backward).
SHAPES = {
    "rows 2": (2, 64, 1, 1),
    "rows tile-1": (1, 64, 7, 9),
    "rows tile": (1, 64, 4, 4, 4),
    "rows tile+1": (1, 64, 1, 5, 13),
    "rows half tile+1": (3, 64, 1, 11, 1),
    "rows prime": (1, 64, 1, 127),
    "channels 1": (3, 1, 2, 3, 5),
    "channels 5": (1, 5, 3, 4, 7),
    "channels tile-1": (3, 63, 3, 3),
    "channels tile+1": (3, 65, 2, 3, 2),
    "channels 2 tiles": (1, 128, 2, 3, 3),
    "channels prime": (1, 131, 5, 5),
}


def channels_last(x):
    return torch.channels_last if x.dim() == 4 else torch.channels_last_3d


def last(x):
    return x.contiguous(memory_format=channels_last(x))


def sample(shape, dtype=torch.float32, seed=0):
    """x (deviation about 2, mean about 3), four vectors and dy; bias and slope that cut some z."""
    make = torch.Generator(DEVICE).manual_seed(seed)

    def randn(*size):
        return torch.randn(size, generator=make, device=DEVICE)

    c = shape[1]
    x = last((randn(*shape) * 2 + 3).to(dtype))
    vectors = randn(c), randn(c), randn(c) + 3, randn(c).square() + 1
    return x, vectors, last(randn(*shape).to(dtype))


def layer(
    x, weight, bias, running_mean, running_var, *, training, impl="auto", groups=1, **options
):
    """The ops as a batch norm's layer calls them; running statistics are left alone."""
    statistics = running_mean[None], running_var[None]
    if training:
        statistics = batch_statistics(x, groups, impl=impl)
    return norm_act(x, *statistics, weight, bias, from_batch=training, impl=impl, **options)


def by_group(function):
    """As `function`, of each of the groups alone."""

    def run(x, *vectors, groups=1, **options):
        parts = (function(part, *vectors, **options) for part in x.chunk(groups))
        return torch.cat(list(parts))

    return run


@by_group
def eager(x, weight, bias, running_mean, running_var, *, training, slope=0.0, eps=1e-5):
    running = running_mean.clone(), running_var.clone()
    return F.leaky_relu(F.batch_norm(x, *running, weight, bias, training, 0.1, eps), slope)


@by_group
def exact(x, weight, bias, running_mean, running_var, *, training, slope=0.0, eps=1e-5):
    statistics = running_mean[None], running_var[None]
    if training:
        statistics = reference.batch_statistics(x, 1)
    return reference.norm_act(x, *statistics, weight, bias, eps, slope)


def gradients(function, x, vectors, dy, **options):
    """y and the gradients of x, weight and bias."""
    inputs = [t.detach().requires_grad_() for t in (x, *vectors[:2])]
    y = function(*inputs, *vectors[2:], **options)
    return dict(
        zip(("y", "dx", "dweight", "dbias"), (y, *torch.autograd.grad(y, inputs, dy)), strict=True)
    )


def check(x, vectors, dy, **options):
    before = dispatch.launches.copy()
    ours = gradients(layer, x, vectors, dy, impl="triton", **options)
    names = {"norm_act", "norm_act_backward"}
    if x.numel() // (x.shape[1] * options.get("groups", 1)) > api.FEW_ROWS:
        names.add("norm_act_input_gradient")
    if options["training"]:
        names.add("batch_statistics")
    assert dispatch.launches - before == dict.fromkeys(names, 1)
    # From memory that starts on 16 bytes: cuDNN stops the device at any other.
    theirs = gradients(eager, x.clone(), vectors, dy.clone(), **options)
    wide = gradients(exact, x.double(), [v.double() for v in vectors], dy.double(), **options)
    for name, value in ours.items():
        assert_close_to_float64(name, value, theirs[name], wide[name])
    assert ours["y"].dtype == ours["dx"].dtype == x.dtype
    stride = torch.empty_like(x, memory_format=channels_last(x)).stride()
    assert ours["y"].stride() == ours["dx"].stride() == stride
    return ours


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fresh memory is NaN."""
    for name in ("empty", "empty_like"):
        fresh = getattr(torch, name)

        def poisoned(*args, fresh=fresh, **kwargs):
            made = fresh(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        monkeypatch.setattr(triton_impl.torch, name, poisoned)


@pytest.fixture
def in_parts(monkeypatch):
    """Statistics, merge and apply apart, as of tensors that are too large for the interpreter."""
    monkeypatch.setattr(api, "FEW_ROWS", 0)


@pytest.fixture
def few_programs(monkeypatch, in_parts):
    """A reduction of several steps a program at sizes that the interpreter can do."""
    monkeypatch.setattr(triton_impl, "MAX_PROGRAMS", 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_training_agrees_with_float64(shape, dtype, in_parts):
    check(*sample(shape, dtype), training=True, slope=0.2)


# Tiles of 256 rows and 16 channels.
WHOLE = {
    "rows 2": (2, 16, 1, 1),
    "rows tile-1, channels tile-1": (3, 15, 5, 17),
    "rows tile": (1, 5, 4, 4, 16),
    "rows tile+1, channels tile+1": (1, 17, 1, 257),
    "rows 3 tiles, channels prime": (2, 31, 19, 17),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", WHOLE.values(), ids=WHOLE)
def test_few_rows_are_taken_whole(shape, training, dtype):
    x, vectors, dy = sample(shape, dtype)
    groups = 2 if training and shape[0] == 2 and shape[2] > 1 else 1
    options = {"slope": 0.2, "eps": 1e-3}
    check(x, vectors, dy, training=training, groups=groups, **options)
    if training:
        before = dispatch.launches.copy()
        whole = batch_norm_act(x, *vectors[:2], groups, **options, impl="triton")
        assert dispatch.launches - before == {"batch_norm_act": 1}
        y = exact(
            x.double(), *(v.double() for v in vectors), training=True, groups=groups, **options
        )
        by_eager = eager(x, *vectors, training=True, groups=groups, **options)
        assert_close_to_float64("y", whole[0], by_eager, y)
        statistics = reference.batch_statistics(x.double(), groups)
        torch.testing.assert_close(whole[1:], tuple(v.float() for v in statistics))
        assert not whole[1].requires_grad and not whole[2].requires_grad
        # The backward takes its sign of z from the statistics that are stored.
        again = norm_act(x, *whole[1:], *vectors[:2], from_batch=True, **options, impl="triton")
        assert again.equal(whole[0])


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_gradients_of_statistics_and_norm_in_one(impl):
    x, (weight, bias, *_), dy = sample((4, 17, 5, 7))
    runs = []
    for in_one in (True, False):
        inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
        if in_one:
            y, *_ = batch_norm_act(*inputs, 2, eps=1e-3, slope=0.2, impl=impl)
        else:
            statistics = batch_statistics(x, 2, impl=impl)
            options = {"from_batch": True, "eps": 1e-3, "slope": 0.2, "impl": impl}
            y = norm_act(inputs[0], *statistics, *inputs[1:], **options)
        runs.append(torch.autograd.grad(y, inputs, dy))
    torch.testing.assert_close(*runs)


def test_the_limit_of_what_is_taken_whole(monkeypatch):
    x, vectors, dy = sample((1, 5, 4, 9))
    for limit, launches in ((36, {"batch_norm_act"}), (35, ...)):
        monkeypatch.setattr(api, "FEW_ROWS", limit)
        if launches is ...:
            launches = {"batch_norm_act", "batch_statistics", "norm_act"}
        before = dispatch.launches.copy()
        made = batch_norm_act(x, *vectors[:2], impl="triton")
        assert set(dispatch.launches - before) == launches
        torch.testing.assert_close(made, batch_norm_act(x, *vectors[:2], impl="reference"))
        check(x, vectors, dy, training=True)


@pytest.mark.parametrize("ratio", [100, -100, 1000])
@pytest.mark.parametrize("rows", [2, 17, 300, 700], ids=lambda rows: f"{rows} rows")
def test_variance_of_few_rows_beside_a_large_mean(rows, ratio):
    x = (sample((2, 16, 1, rows), seed=rows)[0] - 3) / 2 + ratio
    one = x.new_ones(16)
    _, mean, variance = batch_norm_act(x, one, one, 2, impl="triton")
    wide, centre = torch.var_mean(x.double(), [2, 3], correction=0)
    assert ((variance - wide).abs() / wide).max() <= 1e-6
    assert ((mean - centre).abs() / centre.abs()).max() <= 2**-23


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_slope_and_eps(slope, eps, seed):
    x, vectors, dy = sample((3, 6, 5, 4), seed=seed)
    check(x * 0.02, vectors, dy, training=True, slope=slope, eps=eps)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 64, 4, 4), 2), ((6, 65, 1, 3, 5), 3), ((4, 5, 3, 7), 4), ((4, 130, 19, 7), 2)],
    ids=str,
)
def test_groups_are_normalised_apart(shape, groups, dtype, few_programs):
    x, vectors, dy = sample(shape, dtype)
    shift = torch.arange(shape[0], device=DEVICE).view(-1, *[1] * (len(shape) - 1))
    check(last(x + shift.to(dtype)), vectors, dy, training=True, slope=0.2, groups=groups)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 64, 1, 1), (3, 65, 1, 5, 7), (1, 1, 3, 5)], ids=str)
def test_evaluation_agrees_with_float64(shape, dtype):
    x, vectors, dy = sample(shape, dtype)
    check(x, vectors, dy, training=False, slope=0.2, eps=1e-3)


# Tiles of 64 rows, then of 32: whole programs, a last one with one row, and with missing tiles.
@pytest.mark.parametrize("shape", [(1, 64, 16, 32), (1, 64, 19, 27), (1, 130, 1, 5, 61)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_several_steps_a_program(shape, dtype, few_programs):
    check(*sample(shape, dtype), training=True, slope=0.2)


LAYOUTS = {
    "planar": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other": lambda x: torch.stack([x, x * 0], -1)[..., 0],
    "channel slice": lambda x: last(torch.cat([x, x], 1))[:, : x.shape[1]],
    "misaligned": lambda x: (
        torch.cat([x.new_zeros(1), last(x).flatten() * 0])[1:]
        .as_strided(x.shape, last(x).stride(), 1)
        .copy_(x)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 6, 3, 5), (3, 8, 2, 3, 5)], ids=str)
def test_any_layout_of_x_and_dy(layout, shape, in_parts):
    x, vectors, dy = sample(shape)
    assert layout(x).equal(x)
    plain = check(x, vectors, dy, training=True)
    for a, b in ((layout(x), dy), (x, layout(dy)), (layout(x), layout(dy))):
        for name, value in check(a, vectors, b, training=True).items():
            assert value.equal(plain[name]), name


def test_kernels_get_aligned_addresses(monkeypatch, in_parts):
    x, vectors, dy = sample((2, 6, 3, 5))
    x, dy = (LAYOUTS["misaligned"](t) for t in (x, dy))
    assert x.data_ptr() % 16 and dy.data_ptr() % 16
    aligned, seen = dispatch.aligned, []

    def spy(given):
        seen.append((given.data_ptr(), aligned(given)))
        return seen[-1][1]

    monkeypatch.setattr(dispatch, "aligned", spy)
    gradients(layer, x, vectors, dy, training=True, impl="triton")
    given = {x.data_ptr(), dy.data_ptr()}
    assert {address for address, _ in seen if address % 16} == given
    assert all(copy.data_ptr() % 16 == 0 for _, copy in seen)


def test_expanded_dy():
    x, vectors, dy = sample((2, 6, 3, 5))
    check(x, vectors, dy[:1, :1, :1, :1].expand_as(x), training=True)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("ratio", [100, -100, 1000])
@pytest.mark.parametrize("rows", [2, 17, 135, 700], ids=lambda rows: f"{rows} rows")
def test_variance_is_right_to_1e_6_beside_a_large_mean(rows, ratio, impl, few_programs):
    x = (sample((2, 64, 1, rows), seed=rows)[0] - 3) / 2 + ratio
    x[1] *= 2
    mean, variance = batch_statistics(x, 2, impl=impl)
    wide, centre = torch.var_mean(x.double(), [2, 3], correction=0)
    assert ((variance - wide).abs() / wide).max() <= 1e-6
    assert ((mean - centre).abs() / centre.abs()).max() <= 2**-23


@pytest.mark.parametrize("first", [0.0, 1e4])
def test_variance_beside_an_unlike_first_row(first, few_programs):
    x = sample((2, 64, 20, 20))[0] + 200
    x[0, :, 0, 0] = first
    mean, variance = batch_statistics(x, impl="triton")
    wide, centre = torch.var_mean(x.double(), [0, 2, 3], correction=0)
    assert ((variance - wide).abs() / wide).max() <= 1e-6
    assert ((mean - centre).abs() / ((centre - first).abs() + centre)).max() <= 2**-23


def test_variance_of_rows_that_drift_within_a_program(few_programs):
    rows = torch.arange(1000.0, device=DEVICE)[:, None] + sample((1, 64, 1, 1000))[0][0, :, 0].T
    x = rows.T[None, :, None]
    _, variance = batch_statistics(x, impl="triton")
    wide = x.double().var([0, 2, 3], correction=0)
    assert ((variance - wide).abs() / wide).max() <= 1e-6


def test_partials_are_merged_in_float64():
    parts, span, rows = 700, 64, 700 * 64 - 23
    first, rest, m2 = torch.randn(3, 2, parts, device=DEVICE)
    first, rest, m2 = first * 1e4, rest * 1e-3, m2.square()
    x = torch.randn(2, device=DEVICE)
    mean, variance, dweight, dbias = torch.empty(4, 2, device=DEVICE)
    triton_impl._merge_statistics_kernel[(2, 1)](
        x, torch.stack([first, rest, m2]), mean, variance, 2, parts, rows, span, BLOCK_P=1024
    )
    count = torch.full((parts,), span, device=DEVICE).double()
    count[-1] -= 23
    means = first.double() + rest
    wide = (means * count).sum(1, keepdim=True) / rows
    wide_variance = (m2 + (means - wide) ** 2 * count).sum(1) / rows
    torch.testing.assert_close(mean.double(), x + wide[:, 0], rtol=2**-24, atol=0)
    torch.testing.assert_close(variance.double(), wide_variance, rtol=2**-24, atol=0)

    partial = torch.stack([first, first.flip(0)])
    partial[:, :, 0] -= partial.sum(2)  # what is left is below the rounding of an fp32 sum
    triton_impl._merge_sums_kernel[(2, 1)](
        partial, x.square(), dweight, dbias, 2, parts, 1e-3, BLOCK_P=1024
    )
    total = partial.double().sum(2)
    rstd = (x.double().square() + 1e-3).rsqrt()
    torch.testing.assert_close(dweight.double(), total[0] * rstd, rtol=1e-6, atol=0)
    torch.testing.assert_close(dbias.double(), total[1], rtol=2**-24, atol=0)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("momentum", [0.1, 0.7, 0.0, 1.0])
def test_running_statistics_follow_batch_norm(momentum, impl):
    """Of several norms in one launch, two groups in turn."""
    channels, rows = (300, 5, 128), (24, 6, 12)
    theirs = [nn.BatchNorm3d(c, momentum=momentum).to(DEVICE) for c in channels]
    biases = [torch.randn(c, device=DEVICE) for c in channels]
    names = "running_mean", "running_var", "num_batches_tracked"
    buffers = [[getattr(norm, name).clone() for norm in theirs] for name in names]
    for step in range(2):
        statistics = []
        for norm, bias, c, n in zip(theirs, biases, channels, rows, strict=True):
            x = sample((4, c, n // 2, 1, 1), seed=step)[0]
            for part in x.chunk(2):
                norm(part + bias[:, None, None, None])
            statistics.append(batch_statistics(x, 2, impl="reference"))
        before = dispatch.launches["norm_act_track"]
        of = [list(v) for v in zip(*statistics, strict=True)]
        track_statistics(*buffers, *of, biases, list(rows), momentum, impl=impl)
        assert dispatch.launches["norm_act_track"] == before + (impl == "triton")
        for name, ours in zip(names, buffers, strict=True):
            for mine, norm in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, getattr(norm, name), rtol=5e-7, atol=5e-7)
                assert not mine.requires_grad


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_slope_counts_where_z_is_exactly_0(slope, impl):
    x = torch.tensor([-1.0, 0.0, 1.0, 0.0], device=DEVICE).view(1, 1, 2, 2)
    one, zero = x.new_ones(1), x.new_zeros(1)
    vectors = one, zero, zero, one
    dy = torch.full_like(x, 3)
    options = {"training": False, "slope": slope, "eps": 0.0}
    ours = gradients(layer, x, vectors, dy, impl=impl, **options)
    assert ours["dx"].flatten().tolist() == pytest.approx([3 * slope, 3 * slope, 3, 3 * slope])
    assert ours["dbias"].item() == pytest.approx(3 + 9 * slope)


@pytest.mark.parametrize("value", [0.1, -777.7])
def test_constant_channels(value):
    x, vectors, dy = sample((3, 6, 5, 7))
    x[:, 2] = value
    mean, variance = batch_statistics(x, impl="triton")
    assert mean[0, 2] == x[0, 2, 0, 0]
    assert variance[0, 2] == 0
    y = layer(x, *vectors, training=True, slope=0.2, impl="triton")
    assert y[:, 2].equal(F.leaky_relu(vectors[1][2], 0.2).expand_as(y[:, 2]))
    check(x, vectors, dy, training=True, slope=0.2)


def test_two_runs_agree_to_the_bit(few_programs):
    x, vectors, dy = sample((3, 65, 9, 11))
    runs = [gradients(layer, x, vectors, dy, training=True, impl="triton") for _ in range(2)]
    for name, value in runs[0].items():
        assert value.equal(runs[1][name]), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_twin_backward_is_the_gradient_of_its_forward(training, slope):
    x, vectors, dy = sample((3, 6, 2, 3, 2))
    x, dy, vectors = x.double(), dy.double(), [v.double() for v in vectors]
    options = {"training": training, "slope": slope, "eps": 1e-3}
    wide = gradients(exact, x, vectors, dy, **options)
    weight, bias, *statistics = vectors
    statistics = [v[None] for v in statistics]
    if training:
        statistics = reference.batch_statistics(x, 1)
    given = dy, x, *statistics, weight, bias
    dx, sums = reference.backward(*given, 1e-3, slope, training)
    for ours, name in zip((dx, *sums), ("dx", "dweight", "dbias"), strict=True):
        torch.testing.assert_close(ours.view_as(wide[name]), wide[name])
    masked = dy * torch.where(exact(x, *vectors, **options) > 0, 1.0, slope)
    again = reference.input_gradient(masked, *given[1:], sums, 1e-3, slope, training, True)
    torch.testing.assert_close(again, dx)
    library = gradients(eager, x, vectors, dy, **options)
    for name, value in wide.items():
        torch.testing.assert_close(value, library[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_reference_op_agrees_with_float64(training, dtype):
    x, vectors, dy = sample((3, 6, 2, 3, 2), dtype)
    options = {"training": training, "slope": 0.2}
    ours = gradients(layer, x, vectors, dy, impl="reference", **options)
    theirs = gradients(eager, x, vectors, dy, **options)
    wide = gradients(exact, x.double(), [v.double() for v in vectors], dy.double(), **options)
    for name, value in ours.items():
        assert_close_to_float64(name, value, theirs[name], wide[name])


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("from_batch", [True, False])
def test_masked_input_gradient(from_batch, impl):
    """The kernel that takes the gradient of what is activated, against the one that masks."""
    x, (weight, bias, *_), dy = sample((4, 66, 3, 7))
    given = x, *batch_statistics(x, 2), weight, bias
    options = 1e-3, 0.2, from_batch
    dx, sums = api._backward(dy, *given, *options, impl)
    plain = api.norm_input_gradient(dy, *given, sums, *options, False, impl)
    torch.testing.assert_close(plain, dx)
    z = norm_act(*given, from_batch=True, eps=1e-3, slope=1.0)
    masked = dy * torch.where(z > 0, 1.0, 0.2)
    again = api.norm_input_gradient(last(masked), *given, sums, *options, True, impl)
    torch.testing.assert_close(again, dx)


@pytest.mark.parametrize(
    ("shape", "groups", "impl"),
    [
        ((4, 6, 2, 3), 2, "triton"),
        ((3, 6, 2, 3), 1, "reference"),
        ((2, 1, 2, 1, 1), 1, "reference"),
        ((4, 5, 2, 1, 1), 2, "reference"),
    ],
    ids=str,
)
def test_opcheck(shape, groups, impl):
    x, (weight, bias, mean, variance), dy = sample(shape)
    torch.library.opcheck(api._batch_statistics, (x, groups, impl))
    statistics = [v.expand(groups, -1).contiguous() for v in (mean, variance)]
    given = x, *statistics, weight, bias
    for from_batch in (True, False):
        options = 1e-5, 0.2, from_batch
        torch.library.opcheck(api._backward, (dy, *given, *options, impl))
        _, sums = api._backward(dy, *given, *options, impl)
        for masked in (True, False):
            arguments = dy, *given, sums, *options, masked, impl
            torch.library.opcheck(api.norm_input_gradient, arguments)
    count = torch.zeros((), dtype=torch.int64, device=DEVICE)
    groups_of = [[v] for v in (*statistics, bias, mean.clone(), variance.clone(), count)]
    torch.library.opcheck(api._track, (*groups_of, [9], 0.1, impl))
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    torch.library.opcheck(api._norm_act, (*given, True, 1e-5, 0.2, impl))
    torch.library.opcheck(api._batch_norm_act, (x, weight, bias, groups, 1e-5, 0.2, impl))


@pytest.mark.parametrize("training", [True, False])
def test_compiles_in_one_graph(training):
    x, vectors, dy = sample((3, 6, 2, 3))
    options = {"training": training, "slope": 0.2}
    plain = gradients(layer, x, vectors, dy, **options)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    ours = gradients(compiled, x, vectors, dy, **options)
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value)


def test_second_order_gradients_are_refused():
    x, vectors, _ = sample((3, 6, 2, 3))
    x.requires_grad_()
    y = layer(x, *vectors, training=True)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="norm_act_backward"):
        dx.sum().backward()


def vectors_but(**wrong):
    names = "mean", "variance", "weight", "bias"
    shapes = (2, 6), (2, 6), (6,), (6,)
    return {k: torch.ones(s, device=DEVICE) for k, s in zip(names, shapes, strict=True)} | wrong


REFUSED = {
    "x fp64": (torch.ones(2, 6, 3, 3).double(), {}, TypeError, "float64"),
    "x integer": (torch.ones(2, 6, 3, 3).int(), {}, TypeError, "int32"),
    "x rank 3": (torch.ones(2, 6, 3), {}, ValueError, r"\(2, 6, 3\)"),
    "x empty": (torch.ones(0, 6, 3, 3), {}, ValueError, "empty"),
    "odd batch": (torch.ones(3, 6, 3, 3), {}, ValueError, r"groups.*\(3, 6, 3, 3\).*\(2, 6\)"),
    "weight bf16": (None, {"weight": torch.ones(6).bfloat16()}, TypeError, "weight must be fp32"),
    "bias length": (None, {"bias": torch.ones(5)}, ValueError, r"bias must be \(6,\).*\(5,\)"),
    "mean rank": (None, {"mean": torch.ones(6)}, ValueError, r"mean must be \(groups, 6\)"),
    "variance rank": (None, {"variance": torch.ones(1, 6)}, ValueError, r"variance.*\(2, 6\)"),
    "device": (None, {"bias": torch.ones(6, device="meta")}, ValueError, "bias.*meta"),
    "impl": (None, {"impl": "cuda"}, ValueError, "impl"),
}


@pytest.mark.parametrize(("x", "wrong", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused_with_their_values(x, wrong, error, message):
    x = (torch.ones(2, 6, 3, 3) if x is None else x).to(DEVICE)
    wrong = {
        k: v.to(DEVICE) if isinstance(v, torch.Tensor) and v.device.type != "meta" else v
        for k, v in wrong.items()
    }
    before = dispatch.launches.copy()
    with pytest.raises(error, match=message):
        norm_act(x, **vectors_but(**wrong), from_batch=False)
    assert dispatch.launches == before


@pytest.mark.parametrize(
    ("shape", "groups", "message"),
    [
        ((1, 6, 1, 1), 1, "more than one value"),
        ((2, 6, 1, 1), 2, "more than one value"),
        ((3, 6, 2, 2), 2, "divide.*2"),
        ((3, 6, 2, 2), 0, "divide.*0"),
    ],
)
def test_statistics_of_wrong_groups_are_refused(shape, groups, message):
    with pytest.raises(ValueError, match=message):
        batch_statistics(torch.ones(shape, device=DEVICE), groups)


def test_running_statistics_are_checked():
    vector, matrix = torch.ones(6, device=DEVICE), torch.ones(2, 6, device=DEVICE)
    count = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for at, wrong, error, message in (
        (0, vector[:5], ValueError, r"running_mean must be \(6,\)"),
        (1, torch.ones(12, device=DEVICE)[::2], ValueError, r"running_var.*strides \(2,\)"),
        (2, count.float(), TypeError, "count must be a scalar int64"),
        (2, count[None], TypeError, "count must be a scalar int64"),
        (4, matrix[:1], ValueError, r"variance must be \(2, 6\)"),
        (5, vector[:5], ValueError, r"bias must be \(6,\)"),
    ):
        arguments = [[v] for v in (vector.clone(), vector.clone(), count, matrix, matrix, vector)]
        arguments[at] = [wrong]
        with pytest.raises(error, match=message):
            track_statistics(*arguments, [9], 0.1)


def test_one_value_a_channel_is_enough_for_evaluation():
    x, vectors, dy = sample((1, 6, 1, 1, 1))
    check(x, vectors, dy, training=False)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))


@pytest.mark.parametrize(
    "name",
    ["batch_statistics", "batch_norm_act", "norm_act", "backward", "input_gradient", "track"],
)
def test_auto_warns_once_when_the_kernel_fails_and_runs_the_twin(name, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(triton_impl, name, fail)
    monkeypatch.setattr(dispatch, "_broken", set())
    x, (weight, bias, *_), dy = sample((3, 6, 2, 3))
    mean, variance = reference.batch_statistics(x, 1)
    given = x, mean, variance, weight, bias
    sums, count = torch.ones(2, 1, 6, device=DEVICE), torch.zeros((), dtype=torch.int64)
    running = [list(torch.ones(1, 6, device=DEVICE)) for _ in range(2)]
    claimed = OnGpu if DEVICE == "cpu" else torch.Tensor
    op, arguments = {
        "batch_statistics": (api._batch_statistics, (x, 1)),
        "norm_act": (api._norm_act, (*given, True, 1e-5, 0.2)),
        "batch_norm_act": (api._batch_norm_act, (x, weight, bias, 1, 1e-5, 0.2)),
        "backward": (api._backward, (dy, *given, 1e-5, 0.2, True)),
        "input_gradient": (api.norm_input_gradient, (dy, *given, sums, 1e-5, 0.2, True, False)),
        "track": (
            api._track,
            ([mean], [variance], [bias], *running, [count.to(DEVICE)], [9], 0.1),
        ),
    }[name]
    first, *rest = arguments
    run = op._init_fn
    if name == "track":  # asks the first of the running means
        rest[2][0] = rest[2][0].as_subclass(claimed)
        on_gpu = first
    else:
        on_gpu = first.as_subclass(claimed)
    with pytest.warns(UserWarning, match="no such kernel"):
        run(on_gpu, *rest, "auto")
    run(on_gpu, *rest, "auto")  # a second warning would be an error
    with pytest.raises(RuntimeError, match="no such kernel"):
        run(first, *rest, "triton")


def test_import_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import torch;"
        "from vgan_fast.kernels.norm import norm_act;"
        "v = torch.ones(1, 6);"
        "norm_act(torch.randn(2, 6, 3, 3), v, v, v[0], v[0], from_batch=True)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What follows is too large for the interpreter.
PAPER = {
    "512 x 2048": (64, 512, 2, 4, 4),
    "256 x 16384": (64, 256, 4, 8, 8),
    "128 x 131072": (64, 128, 8, 16, 16),
    "64 x 1048576": (64, 64, 16, 32, 32),
    "background 512": (64, 512, 4, 4),
    "background 64": (64, 64, 32, 32),
    "odd batch": (61, 128, 8, 16, 16),
}


@pytest.mark.gpu
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", PAPER.values(), ids=PAPER)
def test_paper_sizes(shape, training):
    # Not in fp32: among so many z some are within rounding of 0, where dy counts or does not.
    x, vectors, dy = sample(shape, torch.bfloat16)
    first = check(x, vectors, dy, training=training, slope=0.2)
    again = check(x, vectors, dy, training=training, slope=0.2)
    assert all(value.equal(again[name]) for name, value in first.items())


@pytest.mark.gpu
@pytest.mark.parametrize("ratio", [100, 1000])
def test_variance_at_full_size(ratio):
    x = last(torch.randn(64, 64, 16, 32, 32, device=DEVICE) + ratio)
    _, variance = batch_statistics(x, impl="triton")
    wide = x.double().var([0, 2, 3, 4], correction=0)
    assert ((variance - wide).abs() / wide).max() <= 1e-6


@pytest.mark.gpu
def test_offsets_past_2_to_the_31():
    shape = (33, 64, 1024, 1024)  # 2.2e9 elements
    x = last(torch.randn(shape, device=DEVICE, dtype=torch.bfloat16))
    one, zero = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    vectors = one, zero, zero.clone(), one.clone()
    y = gradients(layer, x, vectors, x, training=True, slope=0.2, impl="triton")
    tail = x[-1:].float()
    expected = F.leaky_relu(tail, 0.2)  # x is standard normal
    torch.testing.assert_close(y["y"][-1:].float(), expected, rtol=0.01, atol=0.01)
    assert y["dx"].isfinite().all()
