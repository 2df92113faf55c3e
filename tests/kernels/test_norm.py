import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.kernels.equivalence import DEVICE, DTYPES, assert_close_to_float64
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.norm import api, norm_act, reference, triton_impl

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


def eager(x, weight, bias, running_mean, running_var, *, training, slope=0.0, eps=1e-5):
    running = running_mean.clone(), running_var.clone()
    return F.leaky_relu(F.batch_norm(x, *running, weight, bias, training, 0.1, eps), slope)


def exact(x, weight, bias, running_mean, running_var, *, training, slope=0.0, eps=1e-5):
    if training:
        return reference.forward(x, weight, bias, eps, slope)[0]
    return reference.apply(x, running_mean, running_var, weight, bias, eps, slope)


def gradients(function, x, vectors, dy, **options):
    """y and the gradients of x, weight and bias."""
    inputs = [t.detach().requires_grad_() for t in (x, *vectors[:2])]
    y = function(*inputs, *vectors[2:], **options)
    return dict(
        zip(("y", "dx", "dweight", "dbias"), (y, *torch.autograd.grad(y, inputs, dy)), strict=True)
    )


def check(x, vectors, dy, **options):
    before = dispatch.launches.copy()
    buffers = [v.clone() for v in vectors[2:]]
    ours = gradients(norm_act, x, (*vectors[:2], *buffers), dy, impl="triton", **options)
    forward = "norm_act_forward" if options["training"] else "norm_act_apply"
    for name in (forward, "norm_act_backward"):
        assert dispatch.launches[name] == before[name] + 1
    theirs = gradients(eager, x, vectors, dy, **options)
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
def few_programs(monkeypatch):
    """A reduction of several steps a program at sizes that the interpreter can do."""
    monkeypatch.setattr(triton_impl, "MAX_PROGRAMS", 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_training_agrees_with_float64(shape, dtype):
    check(*sample(shape, dtype), training=True, slope=0.2)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_slope_and_eps(slope, eps, seed):
    x, vectors, dy = sample((3, 6, 5, 4), seed=seed)
    check(x * 0.02, vectors, dy, training=True, slope=slope, eps=eps)


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
def test_any_layout_of_x_and_dy(layout, shape):
    x, vectors, dy = sample(shape)
    assert layout(x).equal(x)
    plain = check(x, vectors, dy, training=True)
    for a, b in ((layout(x), dy), (x, layout(dy)), (layout(x), layout(dy))):
        for name, value in check(a, vectors, b, training=True).items():
            assert value.equal(plain[name]), name


def test_kernels_get_aligned_addresses(monkeypatch):
    x, vectors, dy = sample((2, 6, 3, 5))
    x, dy = (LAYOUTS["misaligned"](t) for t in (x, dy))
    assert x.data_ptr() % 16 and dy.data_ptr() % 16
    aligned, seen = dispatch.aligned, []

    def spy(given):
        seen.append((given.data_ptr(), aligned(given)))
        return seen[-1][1]

    monkeypatch.setattr(dispatch, "aligned", spy)
    gradients(norm_act, x, vectors, dy, training=True, impl="triton")
    assert [address for address, _ in seen] == [x.data_ptr(), dy.data_ptr(), x.data_ptr()]
    assert all(copy.data_ptr() % 16 == 0 for _, copy in seen)


def test_expanded_dy():
    x, vectors, dy = sample((2, 6, 3, 5))
    check(x, vectors, dy[:1, :1, :1, :1].expand_as(x), training=True)


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("ratio", [100, -100, 1000])
@pytest.mark.parametrize("rows", [2, 17, 135, 700], ids=lambda rows: f"{rows} rows")
def test_variance_is_right_to_1e_6_beside_a_large_mean(rows, ratio, impl, few_programs):
    x, (weight, bias, *_), _ = sample((1, 64, 1, rows), seed=rows)
    x = (x - 3) / 2 + ratio
    forward = triton_impl.forward if impl == "triton" else reference.forward
    _, mean, variance = forward(x, weight, bias, 1e-5, 0.0)
    wide, centre = torch.var_mean(x.double(), [0, 2, 3], correction=0)
    assert ((variance - wide).abs() / wide).max() <= 1e-6
    assert ((mean - centre).abs() / centre.abs()).max() <= 2**-23


@pytest.mark.parametrize("first", [0.0, 1e4])
def test_variance_beside_an_unlike_first_row(first, few_programs):
    x = sample((2, 64, 20, 20))[0] + 200
    x[0, :, 0, 0] = first
    _, mean, variance = triton_impl.forward(x, x.new_ones(64), x.new_ones(64), 1e-5, 0.0)
    wide, centre = torch.var_mean(x.double(), [0, 2, 3], correction=0)
    assert ((variance - wide).abs() / wide).max() <= 1e-6
    assert ((mean - centre).abs() / ((centre - first).abs() + centre)).max() <= 2**-23


def test_variance_of_rows_that_drift_within_a_program(few_programs):
    rows = torch.arange(1000.0, device=DEVICE)[:, None] + sample((1, 64, 1, 1000))[0][0, :, 0].T
    x = rows.T[None, :, None]
    _, _, variance = triton_impl.forward(last(x), x.new_ones(64), x.new_ones(64), 1e-5, 0.0)
    wide = x.double().var([0, 2, 3], correction=0)
    assert ((variance - wide).abs() / wide).max() <= 1e-6


def test_partials_are_merged_in_float64():
    parts, span, rows = 700, 64, 700 * 64 - 23
    first, rest, m2 = torch.randn(3, 2, parts, device=DEVICE)
    first, rest, m2 = first * 1e4, rest * 1e-3, m2.square()
    x = torch.randn(2, device=DEVICE)
    mean, variance, dweight, dbias = torch.empty(4, 2, device=DEVICE)
    triton_impl._merge_statistics_kernel[(2,)](
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
    triton_impl._merge_sums_kernel[(2,)](
        partial, x.square(), dweight, dbias, 2, parts, 1e-3, BLOCK_P=1024
    )
    total = partial.double().sum(2)
    rstd = (x.double().square() + 1e-3).rsqrt()
    torch.testing.assert_close(dweight.double(), total[0] * rstd, rtol=1e-6, atol=0)
    torch.testing.assert_close(dbias.double(), total[1], rtol=2**-24, atol=0)


@pytest.mark.parametrize("momentum", [0.1, 0.7, 0.0, 1.0])
def test_running_statistics_follow_batch_norm(momentum):
    theirs = nn.BatchNorm3d(6, momentum=momentum).to(DEVICE)
    buffers = theirs.running_mean.clone(), theirs.running_var.clone()
    before = dispatch.launches["norm_act_track"]
    for step in range(3):
        x = sample((3, 6, 2, 3, 2), seed=step)[0]
        theirs(x)
        norm_act(
            x, theirs.weight, theirs.bias, *buffers, training=True, momentum=momentum, impl="triton"
        )
        torch.testing.assert_close(buffers[0], theirs.running_mean, rtol=5e-7, atol=5e-7)
        torch.testing.assert_close(buffers[1], theirs.running_var, rtol=5e-7, atol=5e-7)
        assert not any(b.requires_grad for b in buffers)
    assert dispatch.launches["norm_act_track"] == before + 3


@pytest.mark.parametrize("options", [{"training": True, "track": False}, {"training": False}])
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_running_statistics_left_alone(options, impl):
    x, vectors, _ = sample((3, 6, 2, 3))
    kept = [v.clone() for v in vectors]
    norm_act(x, *vectors, impl=impl, **options)
    assert all(a.equal(b) for a, b in zip(kept, vectors, strict=True))


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_many_channels_are_tracked(impl):
    mean, variance, running_mean, running_var = torch.rand(4, 300, device=DEVICE)
    expected = 0.9 * running_mean + 0.1 * mean, 0.9 * running_var + 0.1 * variance * 9 / 8
    api._track(running_mean, running_var, mean, variance, 9, 0.1, impl)
    torch.testing.assert_close((running_mean, running_var), expected)


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_the_slope_counts_where_z_is_exactly_0(slope, impl):
    x = torch.tensor([-1.0, 0.0, 1.0, 0.0], device=DEVICE).view(1, 1, 2, 2)
    one, zero = x.new_ones(1), x.new_zeros(1)
    vectors = one, zero, zero, one
    dy = torch.full_like(x, 3)
    options = {"training": False, "slope": slope, "eps": 0.0}
    ours = gradients(norm_act, x, vectors, dy, impl=impl, **options)
    assert ours["dx"].flatten().tolist() == pytest.approx([3 * slope, 3 * slope, 3, 3 * slope])
    assert ours["dbias"].item() == pytest.approx(3 + 9 * slope)


@pytest.mark.parametrize("value", [0.1, -777.7])
def test_constant_channels(value):
    x, vectors, dy = sample((3, 6, 5, 7))
    x[:, 2] = value
    _, mean, variance = triton_impl.forward(x, *vectors[:2], 1e-5, 0.2)
    assert mean[2] == x[0, 2, 0, 0]
    assert variance[2] == 0
    y = norm_act(x, *vectors, training=True, slope=0.2, impl="triton")
    assert y[:, 2].equal(F.leaky_relu(vectors[1][2], 0.2).expand_as(y[:, 2]))
    check(x, vectors, dy, training=True, slope=0.2)


def test_two_runs_agree_to_the_bit(few_programs):
    x, vectors, dy = sample((3, 65, 9, 11))
    runs = [
        gradients(norm_act, x, vectors, dy, training=True, track=False, impl="triton")
        for _ in range(2)
    ]
    for name, value in runs[0].items():
        assert value.equal(runs[1][name]), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_twin_backward_is_the_gradient_of_its_forward(training, slope):
    x, vectors, dy = sample((3, 6, 2, 3, 2))
    x, dy, vectors = x.double(), dy.double(), [v.double() for v in vectors]
    options = {"training": training, "slope": slope, "eps": 1e-3}
    wide = gradients(exact, x, vectors, dy, **options)
    weight, bias, mean, variance = vectors
    if training:
        _, mean, variance = reference.forward(x, weight, bias, 1e-3, slope)
    explicit = reference.backward(dy, x, mean, variance, weight, bias, 1e-3, slope, training)
    for ours, name in zip(explicit, ("dx", "dweight", "dbias"), strict=True):
        torch.testing.assert_close(ours, wide[name])
    library = gradients(eager, x, vectors, dy, **options)
    for name, value in wide.items():
        torch.testing.assert_close(value, library[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_reference_op_agrees_with_float64(training, dtype):
    x, vectors, dy = sample((3, 6, 2, 3, 2), dtype)
    options = {"training": training, "slope": 0.2}
    ours = gradients(norm_act, x, vectors, dy, impl="reference", track=False, **options)
    theirs = gradients(eager, x, vectors, dy, **options)
    wide = gradients(exact, x.double(), [v.double() for v in vectors], dy.double(), **options)
    for name, value in ours.items():
        assert_close_to_float64(name, value, theirs[name], wide[name])


@pytest.mark.parametrize(
    ("shape", "impl"),
    [
        ((3, 6, 2, 3), "triton"),
        ((3, 6, 2, 3), "reference"),
        ((1, 1, 2, 1, 1), "reference"),
        ((2, 5, 1, 1, 1), "reference"),
    ],
    ids=str,
)
def test_opcheck(shape, impl):
    x, (weight, bias, mean, variance), dy = sample(shape)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    scalars = 1e-5, 0.2, impl
    torch.library.opcheck(api._train, (*inputs, *scalars))
    torch.library.opcheck(api._evaluate, (x, mean, variance, weight, bias, *scalars))
    fixed = [t.detach() for t in (dy, x, mean, variance, weight, bias)]
    torch.library.opcheck(api._backward, (*fixed, 1e-5, 0.2, True, impl))
    torch.library.opcheck(
        api._track, (mean.clone(), variance.clone(), mean, variance, 9, 0.1, impl)
    )


@pytest.mark.parametrize("training", [True, False])
def test_compiles_in_one_graph(training):
    x, vectors, dy = sample((3, 6, 2, 3))
    options = {"training": training, "slope": 0.2}
    buffers = [v.clone() for v in vectors[2:]]
    plain = gradients(norm_act, x, (*vectors[:2], *buffers), dy, **options)
    torch._dynamo.reset()
    compiled = torch.compile(norm_act, fullgraph=True, backend="aot_eager")
    ours = gradients(compiled, x, vectors, dy, **options)
    for name, value in plain.items():
        torch.testing.assert_close(ours[name], value)
    torch.testing.assert_close(list(vectors[2:]), buffers)


def test_second_order_gradients_are_refused():
    x, vectors, _ = sample((3, 6, 2, 3))
    x.requires_grad_()
    y = norm_act(x, *vectors, training=True)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first-order"):
        dx.sum().backward()


REFUSED = {
    "x fp64": ({"x": torch.ones(2, 6, 3, 3).double()}, TypeError, "float64"),
    "x integer": ({"x": torch.ones(2, 6, 3, 3).int()}, TypeError, "int32"),
    "x rank 3": ({"x": torch.ones(2, 6, 3)}, ValueError, r"\(2, 6, 3\)"),
    "x empty": ({"x": torch.ones(0, 6, 3, 3)}, ValueError, "empty"),
    "one value": ({"x": torch.ones(1, 6, 1, 1)}, ValueError, "more than one value"),
    "weight bf16": ({"weight": torch.ones(6).bfloat16()}, TypeError, "weight must be fp32"),
    "bias length": ({"bias": torch.ones(5)}, ValueError, r"bias must be \(6,\).*\(5,\)"),
    "mean rank": ({"running_mean": torch.ones(1, 6)}, ValueError, "running_mean"),
    "device": ({"running_var": torch.ones(6, device="meta")}, ValueError, "running_var.*meta"),
    "strides": (
        {"running_var": torch.ones(12, device=DEVICE)[::2]},
        ValueError,
        r"running_var.*\(2,\)",
    ),
    "impl": ({"impl": "cuda"}, ValueError, "impl"),
}


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused_with_their_values(wrong, error, message):
    names = "x", "weight", "bias", "running_mean", "running_var"
    tensors = dict(zip(names, (torch.ones(2, 6, 3, 3), *torch.ones(4, 6)), strict=True))
    wrong = {
        k: v.to(DEVICE) if k in names and v.device.type != "meta" else v for k, v in wrong.items()
    }
    arguments = {k: v.to(DEVICE) for k, v in tensors.items()} | wrong
    before = dispatch.launches.copy()
    with pytest.raises(error, match=message):
        norm_act(**arguments, training=True)
    assert dispatch.launches == before


def test_one_value_a_channel_is_enough_for_evaluation():
    x, vectors, dy = sample((1, 6, 1, 1, 1))
    check(x, vectors, dy, training=False)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    device = property(lambda self: torch.device("cuda"))


@pytest.mark.parametrize("name", ["forward", "apply", "backward", "track"])
def test_auto_warns_once_when_the_kernel_fails_and_runs_the_twin(name, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(triton_impl, name, fail)
    monkeypatch.setattr(dispatch, "_broken", set())
    x, (weight, bias, mean, variance), dy = sample((3, 6, 2, 3))
    claimed = OnGpu if DEVICE == "cpu" else torch.Tensor
    op, arguments = {
        "forward": (api._train, (x, weight, bias, 1e-5, 0.2)),
        "apply": (api._evaluate, (x, mean, variance, weight, bias, 1e-5, 0.2)),
        "backward": (api._backward, (dy, x, mean, variance, weight, bias, 1e-5, 0.2, True)),
        "track": (api._track, (mean, variance, mean.clone(), variance.clone(), 9, 0.1)),
    }[name]
    first, *rest = arguments
    run = op._init_fn
    with pytest.warns(UserWarning, match="no such kernel"):
        run(first.as_subclass(claimed), *rest, "auto")
    run(first.as_subclass(claimed), *rest, "auto")  # a second warning would be an error
    with pytest.raises(RuntimeError, match="no such kernel"):
        run(first, *rest, "triton")


def test_import_needs_no_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import torch;"
        "from vgan_fast.kernels.norm import norm_act;"
        "v = torch.ones(4, 6);"
        "norm_act(torch.randn(2, 6, 3, 3), *v, training=True)"
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
    _, _, variance = triton_impl.forward(x, x.new_ones(64), x.new_ones(64), 1e-5, 0.0)
    wide = x.double().var([0, 2, 3, 4], correction=0)
    assert ((variance - wide).abs() / wide).max() <= 1e-6


@pytest.mark.gpu
def test_offsets_past_2_to_the_31():
    shape = (33, 64, 1024, 1024)  # 2.2e9 elements
    x = last(torch.randn(shape, device=DEVICE, dtype=torch.bfloat16))
    one, zero = torch.ones(64, device=DEVICE), torch.zeros(64, device=DEVICE)
    vectors = one, zero, zero.clone(), one.clone()
    y = gradients(norm_act, x, vectors, x, training=True, slope=0.2, impl="triton")
    tail = x[-1:].float()
    expected = F.leaky_relu(tail, 0.2)  # x is standard normal
    torch.testing.assert_close(y["y"][-1:].float(), expected, rtol=0.01, atol=0.01)
    assert y["dx"].isfinite().all()
