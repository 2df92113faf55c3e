"""The convolutions as the networks call them: values, gradients, refusals, registration."""

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.equivalence import DEVICE, DTYPES, assert_close_to_float64
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.conv import (
    api,
    convolve,
    convolve_folded,
    masked_convolve,
    norm_convolve,
    project,
    reference,
)
from vgan_fast.kernels.conv.weights import pack
from vgan_fast.kernels.norm import batch_statistics

IN_THE_INTERPRETER = [
    ("clip", torch.float32),
    ("odd channels", torch.float16),
    ("picture", torch.float32),
    ("cells", torch.float32),
]
# Batch, A, B, sizes of the coarse side, kernel.
SHAPES = {
    "clip": (2, 16, 8, (2, 4, 4), 4),
    "odd channels": (3, 5, 3, (1, 3, 5), 4),
    "picture": (2, 16, 8, (4, 4), 4),
    "ragged picture": (3, 7, 9, (3, 5), 4),
    "cells": (2, 16, 32, (2, 3, 4), 2),
}
# Kernels by themselves are tested elsewhere, in every dtype; here some of each.
CASES = [
    pytest.param(shape, impl, dtype, id=f"{name}-{impl}-{dtype}")
    for name, shape in SHAPES.items()
    for impl in ("triton", "reference")
    for dtype in DTYPES
    if impl == "reference" or DEVICE == "cuda" or (name, dtype) in IN_THE_INTERPRETER
]


def channels_last(x):
    return x.contiguous(memory_format=api.channels_last(x))


def sample(shape, up, dtype=torch.float32, seed=0):
    """Input, weight and bias of a convolution, and a gradient of its result."""
    n, a, b, sizes, kernel = shape
    make = torch.Generator(DEVICE).manual_seed(seed)

    def randn(*size):
        return torch.randn(size, generator=make, device=DEVICE)

    fine = [size + 1 if kernel == 2 else 2 * size for size in sizes]
    coarse, fine = channels_last(randn(n, a, *sizes)), channels_last(randn(n, b, *fine))
    weight = randn(a, b, *[kernel] * len(sizes)) / (a if up else b) ** 0.5
    x, dy = (coarse, fine) if up else (fine, coarse)
    return x.to(dtype), pack(weight, torch.float32), randn(b if up else a), dy.to(dtype)


def terms_of(weight):
    """At most so many products make a value of a result or of its input's gradient."""
    return weight.numel() // min(weight.shape[:2])


def plain(x, weight, bias, up):
    """PyTorch's own layer, the weight rounded as autocast does."""
    stride, padding = (2, 1) if weight.shape[2] == 4 else (1, 0)
    names = ("conv2d", "conv_transpose2d"), ("conv3d", "conv_transpose3d")
    function = getattr(F, names[x.dim() - 4][up])
    return function(x, weight.to(x.dtype), bias.to(x.dtype), stride=stride, padding=padding)


def ours_and_theirs(function, theirs, tensors, dy, dtype):
    """Results and gradients of both, and theirs in float64; `tensors` by name."""
    runs = []
    for run, wide in ((function, False), (theirs, False), (theirs, True)):
        inputs = [t.double() if wide else t for t in tensors.values()]
        inputs = [t.detach().requires_grad_() for t in inputs]
        y = run(*inputs)
        y.backward(dy.double() if wide else dy)
        runs.append({"y": y.detach()} | dict(zip(tensors, (t.grad for t in inputs), strict=True)))
    return runs


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize(("shape", "impl", "dtype"), CASES)
def test_a_layer_alone(shape, up, impl, dtype):
    x, weight, bias, dy = sample(shape, up, dtype)
    before = dispatch.launches.copy()
    ours, theirs, wide = ours_and_theirs(
        lambda *inputs: convolve(*inputs, up=up, impl=impl),
        lambda *inputs: plain(*inputs, up=up),
        {"x": x, "weight": weight, "bias": bias},
        dy,
        dtype,
    )
    ran = dispatch.launches - before
    assert ran == ({"convolve": 2, "weight_gradient": 1} if impl == "triton" else {})
    for name, value in ours.items():
        assert_close_to_float64(name, value, theirs[name], wide[name], terms_of(weight))
    assert ours["weight"].permute(*range(2, weight.dim()), 1, 0).is_contiguous()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize(
    ("shape", "impl", "dtype"), [c for c in CASES if c.id.startswith(("clip-ref", "picture"))]
)
def test_two_layers_with_a_leaky_relu_between(shape, up, groups, impl, dtype):
    """Its slope counts once in the gradient."""
    n, a, b, sizes, kernel = shape
    first = (n, a, b, [2 * s for s in sizes], kernel) if not up else (n, a, b, sizes, kernel)
    x, weight, bias, middle = sample(first, up, dtype)
    inner = [s // 2 for s in middle.shape[2:]] if not up else middle.shape[2:]
    channels = middle.shape[1]
    second = (n, 12, channels, inner, 4) if not up else (n, channels, 12, inner, 4)
    _, weight2, _, dy = sample(second, up, dtype, seed=1)
    made = []

    def both(x, weight, bias, weight2):
        y = convolve(x, weight, bias, up=up, slope=0.2, impl=impl)
        y, *statistics = masked_convolve(y, weight2, up=up, slope=0.2, groups=groups, impl=impl)
        made.append((y, statistics))
        return y

    def library(x, weight, bias, weight2):
        y = F.leaky_relu(plain(x, weight, bias, up), 0.2)
        return plain(y, weight2, weight2.new_zeros(()).expand(12), up)

    tensors = {"x": x, "weight": weight, "bias": bias, "weight2": weight2}
    ours, theirs, wide = ours_and_theirs(both, library, tensors, dy, dtype)
    for name, value in ours.items():
        # In fp16 rounding decides on which side of 0 a value falls, and with it its gradient.
        if dtype == torch.float32 or name in ("y", "weight2"):
            assert_close_to_float64(name, value, theirs[name], wide[name], terms_of(weight))
    y, (mean, variance) = made[0]
    expected = reference_statistics(y, groups)
    torch.testing.assert_close((mean, variance), expected, rtol=1e-5, atol=1e-6)
    assert not mean.requires_grad and not variance.requires_grad


def reference_statistics(y, groups):
    parts = [
        torch.var_mean(p.double(), (0, *range(2, y.dim())), correction=0) for p in y.chunk(groups)
    ]
    return tuple(torch.stack([p[i] for p in parts]).float() for i in (1, 0))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("slope", "up"), [(0.0, True), (0.2, False)], ids=str)
@pytest.mark.parametrize(("shape", "impl", "dtype"), CASES)
def test_norm_activation_and_convolution(shape, groups, up, slope, impl, dtype):
    n, *rest = shape
    shape = (2 * n, *rest)
    x, weight, bias, dy = sample(shape, up, dtype)
    x = channels_last(2 * x + 3 * torch.arange(2 * n, device=DEVICE).view(-1, *[1] * (x.dim() - 1)))
    channels = x.shape[1]
    gamma, beta = torch.randn(2, channels, generator=torch.manual_seed(2)).to(DEVICE)
    made = []

    def ours(x, gamma, beta, weight):
        statistics = batch_statistics(x, groups, impl=impl)
        y, *after = norm_convolve(
            x, *statistics, gamma, beta, weight, up=up, eps=1e-3, slope=slope, impl=impl
        )
        made.append((y, after))
        return y

    def library(x, gamma, beta, weight):
        parts = [
            F.batch_norm(part.to(gamma.dtype), None, None, gamma, beta, True, 0.1, 1e-3)
            for part in x.chunk(groups)
        ]
        activated = F.leaky_relu(torch.cat(parts), slope).to(x.dtype)
        return plain(activated, weight, torch.zeros_like(bias), up)

    tensors = {"x": x, "gamma": gamma, "beta": beta, "weight": weight}
    before = dispatch.launches.copy()
    found, theirs, wide = ours_and_theirs(ours, library, tensors, dy, dtype)
    if impl == "triton":
        names = ("batch_statistics", "norm_act", "convolve_statistics", "weight_gradient")
        names += ("convolve_norm_backward", "norm_act_input_gradient")
        assert dispatch.launches - before == dict.fromkeys(names, 1)
    vectors = {"gamma", "beta"}
    # How nearly roundings of 16 bits cancel in sums of so few channels is a matter of luck.
    luck = max((theirs[name].double() - wide[name]).abs().max().item() for name in vectors)
    for name, value in found.items():
        if DEVICE == "cuda" and dtype != torch.float32 and name in vectors:
            assert (value.double() - wide[name]).abs().max() <= 4 * luck + 1e-6, name
        else:
            assert_close_to_float64(name, value, theirs[name], wide[name], terms_of(weight))
    y, (mean, variance) = made[0]
    expected = reference_statistics(y, groups)
    torch.testing.assert_close((mean, variance), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize(("shape", "impl", "dtype"), CASES)
def test_a_folded_layer(shape, up, impl, dtype):
    x, weight, shift, _ = sample(shape, up, dtype)
    scale = torch.rand(len(shift), device=DEVICE) + 0.5

    def folded(x, weight, scale, shift):
        y = plain(x, weight, torch.zeros_like(shift), up).to(scale.dtype)
        per_channel = [-1, *[1] * (x.dim() - 2)]
        return F.leaky_relu(y * scale.view(per_channel) + shift.view(per_channel), 0.1).to(x.dtype)

    y = convolve_folded(x, weight, scale, shift, up=up, slope=0.1, impl=impl)
    assert not y.requires_grad
    tensors = x, weight, scale, shift
    exact = folded(*(t.double() for t in tensors))
    assert_close_to_float64("y", y, folded(*tensors), exact, terms_of(weight))


def test_what_needs_no_gradient_is_not_computed():
    x, weight, bias, dy = sample(SHAPES["clip"], False)
    for wanted, launches in ((weight, {"weight_gradient": 1}), (x, {"convolve": 1})):
        wanted.requires_grad_()
        y = convolve(x, weight, bias, up=False, impl="triton")
        before = dispatch.launches.copy()
        y.backward(dy)
        assert dispatch.launches - before == launches
        wanted.requires_grad_(False)


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_opcheck(shape, up):
    x, weight, bias, dy = sample(shape, up)
    n, slope, impl = len(x), 0.2, "reference"
    packed = pack(weight, x.dtype)
    c = x.shape[1]
    norm = [torch.rand(n, c, device=DEVICE), torch.rand(n, c, device=DEVICE)]
    norm += [torch.rand(c, device=DEVICE), torch.rand(c, device=DEVICE)]
    fine, coarse = (dy, x) if up else (x, dy)
    torch.library.opcheck(api._weight_gradient, (fine, coarse, shape[4], impl))
    torch.library.opcheck(api._convolve_masked, (dy, packed, x, slope, not up, impl))
    arguments = dy, packed, x, *norm, 1e-3, slope, not up, impl
    torch.library.opcheck(api._convolve_norm_backward, arguments)
    for tensor in (x, weight, bias, *norm[2:]):
        tensor.requires_grad_()
    torch.library.opcheck(api._convolve, (x, weight, packed, bias, None, 1.0, up, impl))
    activated, rest = x.detach(), (weight, packed, 1e-3, slope, n, up, impl)
    torch.library.opcheck(api._layer, (x, None, None, None, None, activated, *rest))
    torch.library.opcheck(api._layer, (x, *norm, activated, *rest))


def test_packed_weights():
    weight = torch.randn(5, 3, 4, 4, 4)
    packed = pack(weight, torch.float16)
    assert packed.equal(weight.half())
    assert packed.permute(2, 3, 4, 1, 0).is_contiguous()
    assert pack(packed, torch.float16).data_ptr() == packed.data_ptr()
    assert reference.convolve(weight.new_ones(1, 3, 2, 2, 2), pack(weight, weight.dtype), up=False)[
        0, :, 0, 0, 0
    ].allclose(weight[..., 1:3, 1:3, 1:3].sum((1, 2, 3, 4)), atol=1e-5)


X, WEIGHT = torch.ones(2, 6, 4, 4, 4), torch.ones(8, 6, 4, 4, 4)
REFUSED = {
    "x rank": ({"x": torch.ones(2, 6, 4)}, ValueError, r"\(2, 6, 4\)"),
    "x integer": ({"x": X.int()}, TypeError, "int32"),
    "x fp64": ({"x": X.double()}, TypeError, "float64"),
    "x empty": ({"x": X[:0]}, ValueError, "empty"),
    "x odd": ({"x": torch.ones(2, 6, 4, 5, 4)}, ValueError, "even.*5"),
    "channels": ({"x": torch.ones(2, 8, 4, 4, 4)}, ValueError, r"\(2, 8, 4, 4, 4\)"),
    "channels, up": ({"up": True}, ValueError, r"any, 8, any.*\(2, 6"),
    "weight rank": ({"weight": WEIGHT[..., 0]}, ValueError, r"weight.*\(8, 6, 4, 4\)"),
    "kernel": ({"weight": WEIGHT[..., :3]}, ValueError, r"weight.*\(8, 6, 4, 4, 3\)"),
    "one cell": (
        {"x": X[..., :1], "weight": WEIGHT[..., :2, :2, :2]},
        ValueError,
        r"2 at least.*\(2, 6, 4, 4, 1\)",
    ),
    "device": ({"weight": WEIGHT.to("meta")}, ValueError, "weight is on meta"),
    "impl": ({"impl": "cuda"}, ValueError, "impl"),
}


@pytest.mark.parametrize(("wrong", "error", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("function", [convolve, masked_convolve, convolve_folded, norm_convolve])
def test_wrong_arguments_are_refused_with_their_values(function, wrong, error, message):
    options = {"x": X, "weight": WEIGHT, "up": False, "slope": 0.2} | wrong
    if function is norm_convolve:
        one = torch.ones(6)
        options |= {"mean": one[None], "variance": one[None], "gamma": one, "beta": one, "eps": 0.1}
    elif function is masked_convolve:
        options["activated"] = options.pop("x")
    elif function is convolve_folded:
        options["scale"] = options["shift"] = torch.ones(8)
    before = dispatch.launches.copy()
    with pytest.raises(error, match=message):
        function(**options)
    assert dispatch.launches == before


def test_vectors_that_do_not_fit_are_refused():
    for wrong, error, message in (
        (torch.ones(6), ValueError, r"bias must be \(8\).*\(6,\)"),
        (torch.ones(8).bfloat16(), TypeError, "bias must be fp32"),
    ):
        with pytest.raises(error, match=message):
            convolve(X, WEIGHT, wrong, up=False)
        with pytest.raises(error, match=message):
            convolve_folded(X, WEIGHT, torch.ones(8), wrong, up=False, slope=0.2)
    with pytest.raises(ValueError, match=r"scale must be \(8\).*\(6,\)"):
        convolve_folded(X, WEIGHT, torch.ones(6), torch.ones(8), up=False, slope=0.2)


def test_groups_must_divide_the_batch():
    with pytest.raises(ValueError, match="groups must divide the batch 2, got 3"):
        masked_convolve(X, WEIGHT, up=False, slope=0.2, groups=3)
    with pytest.raises(ValueError, match=r"mean must be \(groups, 6\)"):
        vectors = torch.ones(3, 6), torch.ones(3, 6), torch.ones(6), torch.ones(6)
        norm_convolve(X, *vectors, WEIGHT, up=False, eps=1e-3, slope=0.2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["", "given in the dtype of x"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_projection(biased, given, dtype):
    x, dy = torch.randn(3, 7, device=DEVICE).to(dtype), torch.randn(3, 5, device=DEVICE).to(dtype)
    tensors = {"x": x, "weight": torch.randn(7, 5, device=DEVICE)}
    if biased:
        tensors["bias"] = torch.randn(5, device=DEVICE)

    def ours(x, weight, bias=None):
        copies = [None if t is None or not given else t.detach().to(dtype) for t in (weight, bias)]
        return project(x, weight, bias, *copies)

    def library(x, weight, bias=None):
        return F.linear(x, weight.T.to(x.dtype), None if bias is None else bias.to(x.dtype))

    found, theirs, wide = ours_and_theirs(ours, library, tensors, dy, dtype)
    for name, value in found.items():
        assert_close_to_float64(name, value, theirs[name], wide[name])
    if dtype != torch.float32:  # not rounded on the way
        assert not found["weight"].equal(found["weight"].to(dtype).float())
    packed = [t.detach().to(dtype) for t in tensors.values()][1:] + [None] * (not biased)
    arguments = [t.requires_grad_() for t in tensors.values()] + [None] * (not biased)
    torch.library.opcheck(api._project, (*arguments, *packed))


def test_a_projection_refuses_what_does_not_fit():
    x, weight = torch.ones(3, 7), torch.ones(7, 5)
    for arguments, message in (
        ((x, weight.T), r"weight must be \(7, any\).*\(5, 7\)"),
        ((x[0], weight), r"x must be.*\(7,\)"),
        ((x, weight, torch.ones(7)), r"bias must be \(5\).*\(7,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            project(*arguments)
    with pytest.raises(TypeError, match="float64"):
        project(x.double(), weight)


def test_gradients_of_biases_are_not_rounded():
    """Sums that 16 bits cannot hold."""
    x = torch.zeros(2139, 8, device=DEVICE, dtype=torch.float16)
    bias = torch.zeros(3, device=DEVICE, requires_grad=True)
    project(x, torch.zeros(8, 3, device=DEVICE), bias).sum().backward()
    assert (bias.grad == 2139).all()
    bias = torch.zeros(8, device=DEVICE, requires_grad=True)
    clip = torch.zeros(3, 8, 46, 62, device=DEVICE, dtype=torch.float16)
    weight = torch.zeros(8, 8, 4, 4, device=DEVICE)
    convolve(clip, weight, bias, up=False, impl="reference").sum().backward()
    assert (bias.grad == 3 * 23 * 31).all()


def test_parameters_of_a_norm_have_gradients_where_its_input_needs_none():
    x, weight, _, dy = sample(SHAPES["picture"], False)
    parameters = [torch.rand(x.shape[1], device=DEVICE, requires_grad=True) for _ in range(2)]
    grads = []
    for needed in (False, True):
        x = x.detach().requires_grad_(needed)
        y, *_ = norm_convolve(
            x, *batch_statistics(x), *parameters, weight, up=False, eps=1e-3, slope=0.0
        )
        grads.append(torch.autograd.grad(y, parameters, dy))
    torch.testing.assert_close(*grads)
    assert all(g.any() for g in grads[0])


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_32_channels_that_go_up_are_no_cells(channels, impl):
    """A generator's last layer of that width; only `down` reads a clip in cells."""
    x, weight, bias, dy = sample((1, 32, channels, (1, 2, 2), 4), True)
    ours, theirs, wide = ours_and_theirs(
        lambda *inputs: convolve(*inputs, up=True, impl=impl),
        lambda *inputs: plain(*inputs, up=True),
        {"x": x, "weight": weight, "bias": bias},
        dy,
        x.dtype,
    )
    for name, value in ours.items():
        assert_close_to_float64(name, value, theirs[name], wide[name], terms_of(weight))
