import itertools
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.library import opcheck

from tests.kernels.equivalence import DEVICE, DTYPES, assert_close_to_float64
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.blend import api, blend, mask_blend, reference, triton_impl

# N, T, H, W around BLOCK pixels and FRAMES frames of a program.
SHAPES = [
    (1, 1, 1, 1),
    (3, 2, 1, 13),
    (1, triton_impl.FRAMES - 1, 15, 17),
    (3, triton_impl.FRAMES, 16, 16),
    (1, triton_impl.FRAMES + 1, 1, 257),
    (2, 3, 24, 24),
]
assert triton_impl.BLOCK == 256  # of the shapes above


def by_hand(head, background):
    """Paper equation 3, pixel by pixel in float64."""
    head, background = head.double(), background.double()
    mask = 1 / (1 + torch.exp(-head[:, 3]))
    video = torch.empty(head.shape[0], 3, *head.shape[2:], dtype=torch.float64)
    for t in range(head.shape[2]):
        for c in range(3):
            f, b = torch.tanh(head[:, c, t]), torch.tanh(background[:, c])
            video[:, c, t] = mask[:, t] * f + (1 - mask[:, t]) * b
    return video, mask.mean()


def logits(n, t, h, w, dtype=torch.float32):
    head = torch.randn(n, 4, t, h, w, device=DEVICE, dtype=dtype) * 2
    head = head.contiguous(memory_format=torch.channels_last_3d)
    return head, torch.randn(n, 3, h, w, device=DEVICE, dtype=dtype)


def streams(n, t, h, w, dtype=torch.float32):
    head, background = logits(n, t, h, w, dtype)
    return torch.tanh(head[:, :3]), torch.sigmoid(head[:, 3:]), torch.tanh(background)


def results(function, inputs, dvideo, dmean):
    """Video, mean and the gradient of every input."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    video, mean = function(*inputs)
    loss = (video * dvideo.to(video.dtype)).sum() + mean * dmean
    return [video.detach(), mean.detach(), *torch.autograd.grad(loss, inputs)]


def assert_kernel_is_as_good_as_eager(function, twin, inputs, dtype):
    n, _, t, h, w = inputs[0].shape
    # In the dtype of the video: eager PyTorch rounds its gradient so.
    dvideo = torch.randn(n, 3, t, h, w, device=DEVICE).to(dtype)
    dmean = 3.0 * n * t * h * w  # as much a pixel as from the video
    launched = dispatch.launches.copy()
    ours = results(lambda *x: function(*x, impl="triton"), inputs, dvideo, dmean)
    eager = results(twin, inputs, dvideo, dmean)
    exact = results(twin, [x.double() for x in inputs], dvideo.double(), dmean)
    name = function.__name__
    assert (dispatch.launches - launched) == {f"{name}_forward": 1, f"{name}_backward": 1}
    names = ["video", "mean", *(f"gradient {i}" for i in range(len(inputs)))]
    for name, *values in zip(names, ours, eager, exact, strict=True):
        assert values[0].dtype == values[1].dtype
        assert_close_to_float64(name, *values)


def cells_of(clip):
    """Blocks of 2x2x2 pixels of the clip with a border of zeros, one value after another."""
    n, channels, *sizes = clip.shape
    cells = clip.new_zeros(n, 8 * channels, *(size // 2 + 1 for size in sizes))
    for t, y, x in itertools.product(*map(range, sizes)):
        pixel = ((t + 1) % 2 * 2 + (y + 1) % 2) * 2 + (x + 1) % 2
        here = slice(channels * pixel, channels * (pixel + 1))
        cells[:, here, (t + 1) // 2, (y + 1) // 2, (x + 1) // 2] = clip[:, :, t, y, x]
    return cells


def of_dtype(function, dtype):
    """The twin with a video of `dtype`, or of float64 where its inputs are."""

    def call(head, background):
        exact = head.dtype == torch.float64
        return function(head, background, torch.float64 if exact else dtype)

    return call


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 8, 4, 4)], ids=str)
@pytest.mark.parametrize("layout", ["planar", "channels-last", "strided"])
def test_values_follow_equation_3(shape, layout):
    n, t, h, w = shape
    head, background = torch.randn(n, 4, t, h, w), torch.randn(n, 3, h, w)
    if layout == "channels-last":
        head = head.contiguous(memory_format=torch.channels_last_3d)
    if layout == "strided":
        head = torch.randn(n, 4, t, h, 2 * w)[..., ::2]
    for function in (mask_blend, reference.mask_blend):
        video, mean = function(head, background)
        expected, expected_mean = by_hand(head, background)
        assert video.dtype == mean.dtype == torch.float32
        assert video.is_contiguous()
        torch.testing.assert_close(video.double(), expected, rtol=0, atol=5e-7)
        torch.testing.assert_close(mean.double(), expected_mean, rtol=1e-6, atol=0)


def test_gradients_of_the_twin_match_finite_differences_of_the_equation():
    head = torch.randn(2, 4, 2, 3, 2, dtype=torch.float64)
    background = torch.randn(2, 3, 3, 2, dtype=torch.float64)
    weight = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64)
    inputs = head, background
    _, _, *gradients = results(of_dtype(reference.mask_blend, torch.float64), inputs, weight, 3)

    def objective():
        video, mean = by_hand(head, background)
        return (video * weight).sum() + 3 * mean

    for which, gradient in zip(inputs, gradients, strict=True):
        numeric = torch.zeros_like(which)
        for i in range(which.numel()):
            kept = which.view(-1)[i].item()
            which.view(-1)[i] = kept + 1e-5
            up = objective()
            which.view(-1)[i] = kept - 1e-5
            numeric.view(-1)[i] = (up - objective()) / 2e-5
            which.view(-1)[i] = kept
        torch.testing.assert_close(gradient, numeric, rtol=1e-7, atol=1e-8)


def test_half_precision_logits_are_blended_in_fp32():
    head, background = torch.randn(2, 4, 3, 4, 5).bfloat16(), torch.randn(2, 3, 4, 5).bfloat16()
    torch.testing.assert_close(
        mask_blend(head, background)[0].double(), by_hand(head, background)[0], rtol=0, atol=5e-7
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_explicit_backwards_of_the_twins_equal_autograd(dtype):
    dvideo = torch.randn(2, 3, 4, 5, 6, device=DEVICE, dtype=dtype)
    dmean = torch.tensor(700.0, device=DEVICE, dtype=dtype)
    for twin, explicit, inputs in (
        (of_dtype(reference.mask_blend, dtype), reference.mask_blend_backward, logits(2, 4, 5, 6)),
        (reference.blend, reference.blend_backward, streams(2, 4, 5, 6)),
    ):
        inputs = [x.to(dtype) for x in inputs]
        automatic = results(twin, inputs, dvideo, dmean)[2:]
        for ours, theirs in zip(explicit(dvideo, dmean, *inputs), automatic, strict=True):
            tolerance = 20 * torch.finfo(dtype).eps
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_of_logits(shape, dtype):
    twin = of_dtype(reference.mask_blend, torch.float32)
    assert_kernel_is_as_good_as_eager(mask_blend, twin, logits(*shape, dtype), torch.float32)


# Pixels of a block: few, nearly all, all, and a second block; several rows, or a part of one.
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(40, 2, 2, 2), (3, 4, 6, 42), (1, 2, 16, 16), (2, 6, 10, 28), (1, 2, 2, 260)], ids=str
)
def test_gradients_of_logits_in_cells(shape, dtype):
    head, background = logits(*shape, dtype)
    n, t, h, w = shape
    # Of mean 1, so that the four sums do not cancel down to noise.
    dvideo = 1 + torch.randn(n, 3, t, h, w, device=DEVICE)
    dmean = torch.tensor(3.0 * n * t * h * w, device=DEVICE)
    before = dispatch.launches["mask_blend_backward_in_cells"]
    cells, sums, dbackground = triton_impl.mask_blend_backward_in_cells(
        dvideo, dmean, head, background
    )
    assert dispatch.launches["mask_blend_backward_in_cells"] == before + 1
    assert cells.dtype == dtype and sums.dtype == torch.float32
    assert cells.is_contiguous(memory_format=torch.channels_last_3d)
    inputs = dvideo, dmean, head, background
    eager, exact = (
        reference.mask_blend_backward(*given) for given in (inputs, [x.double() for x in inputs])
    )
    for name, ours, (theirs, exactly) in (
        ("logits", cells, [cells_of(x[0]) for x in (eager, exact)]),
        ("sums", sums.float(), [x[0].float().sum((0, 2, 3, 4)) for x in (eager, exact)]),
        ("background", dbackground, [x[1] for x in (eager, exact)]),
    ):
        assert_close_to_float64(name, ours, theirs, exactly.double())
    assert not cells[cells_of(torch.ones_like(head)) == 0].any()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_of_streams(shape, dtype):
    assert_kernel_is_as_good_as_eager(blend, reference.blend, streams(*shape, dtype), dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_makes_videos_of_other_dtypes_from_mixed_ones(dtype, seed):
    torch.manual_seed(seed)
    head, background = logits(3, 2, 9, 11)

    def function(*inputs, impl):
        return mask_blend(*inputs, dtype=dtype, impl=impl)

    function.__name__ = "mask_blend"
    twin = of_dtype(reference.mask_blend, dtype)
    assert_kernel_is_as_good_as_eager(function, twin, (head, background.half()), dtype)
    foreground, mask, background = streams(2, 2, 9, 11, dtype)
    inputs = foreground, mask.half(), background.float()
    assert_kernel_is_as_good_as_eager(blend, reference.blend, inputs, dtype)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_kernels_at_the_papers_size(dtype):
    shape = 64, 32, 64, 64
    twin = of_dtype(reference.mask_blend, torch.float32)
    assert_kernel_is_as_good_as_eager(mask_blend, twin, logits(*shape, dtype), torch.float32)
    assert_kernel_is_as_good_as_eager(blend, reference.blend, streams(*shape, dtype), dtype)


def stored(x, layout):
    """The same values stored in another way."""
    if layout == "planar":
        return x.contiguous()
    if layout == "strided":
        return x.repeat_interleave(2, -1)[..., ::2]
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    # Off the 16 bytes that accesses are aligned to, in the storage order of x.
    room = torch.zeros(2 * x.numel(), dtype=x.dtype, device=x.device)
    return room.as_strided(x.shape, x.stride(), 1).copy_(x)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("layout", ["planar", "strided", "transposed", "unaligned"])
@pytest.mark.parametrize("function", [mask_blend, blend])
def test_kernels_take_any_layout(function, layout):
    if function is mask_blend:
        inputs = logits(2, 3, 5, 7, torch.float16)
    else:
        inputs = [x.contiguous() for x in streams(2, 3, 5, 7, torch.float16)]
    dvideo = torch.randn(2, 3, 3, 5, 7, device=DEVICE)

    def call(*inputs):
        return function(*inputs, impl="triton")

    expected = results(call, inputs, dvideo, 100)
    found = results(call, [stored(x, layout) for x in inputs], dvideo, 100)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_may_come_expanded_or_not_at_all():
    head, background = (x.requires_grad_() for x in logits(2, 3, 5, 7))
    for loss in (lambda video, mean: video.sum(), lambda video, mean: mean * 1000):
        ours, twins = (
            torch.autograd.grad(loss(*mask_blend(head, background, impl=impl)), (head, background))
            for impl in ("triton", "reference")
        )
        for x, y in zip(ours, twins, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def test_saturated_logits_give_finite_results():
    head = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], device=DEVICE).repeat(1, 4, 1, 2, 1)
    background = head[:, :3, 0].flip(-1)
    dvideo = torch.ones(1, 3, 1, 2, 5, device=DEVICE)
    ours = results(lambda *x: mask_blend(*x, impl="triton"), (head, background), dvideo, 1.0)
    twins = results(reference.mask_blend, (head, background), dvideo, 1.0)
    for x, y in zip(ours, twins, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_partial_sums_are_merged_in_float64():
    # Large values that cancel: in fp32 little would be left of the rest.
    partials = torch.randn(30_011, device=DEVICE)
    partials[:15_000] += 2**20
    partials[15_000:30_000] -= 2**20
    mean = torch.empty((), device=DEVICE)
    arguments = partials, mean, partials.numel(), 7
    triton_impl._mean[(1,)](*arguments, BLOCK=triton_impl.SUMS, num_warps=4)
    assert mean.item() == pytest.approx(partials.double().sum().item() / 7, rel=6.1e-8)


def test_results_are_bitwise_reproducible():
    inputs = logits(2, 3, 16, 24)
    dvideo = torch.randn(2, 3, 3, 16, 24, device=DEVICE)
    first, second = (
        results(lambda *x: mask_blend(*x, impl="triton"), inputs, dvideo, 50) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_opcheck(impl):
    dmean = torch.ones((), device=DEVICE)
    for head, background in (logits(2, 2, 3, 5, torch.float16), logits(1, 1, 1, 1)):
        dvideo = head[:, :3].contiguous()
        saved = head.detach(), background.detach()
        inputs = head.requires_grad_(), background.requires_grad_()
        opcheck(api._mask_blend, (*inputs, torch.float16, impl))
        opcheck(api._mask_blend_backward, (dvideo.detach(), dmean, *saved, impl))
    inputs = [x.contiguous().requires_grad_() for x in streams(2, 2, 3, 5)]
    opcheck(api._blend, (*inputs, impl))
    opcheck(api._blend_backward, (inputs[0].detach(), dmean, *(x.detach() for x in inputs), impl))


def test_compiles_as_one_graph():
    for function, make in ((mask_blend, logits), (blend, streams)):
        inputs = make(2, 3, 4, 5)
        dvideo = torch.randn(2, 3, 3, 4, 5, device=DEVICE)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        found, expected = (results(f, inputs, dvideo, 40) for f in (compiled, function))
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_second_order_is_refused():
    head, background = (x.requires_grad_() for x in logits(1, 2, 3, 4))
    video, _ = mask_blend(head, background)
    (gradient,) = torch.autograd.grad((video**2).sum(), head, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def broken(*arguments):
    raise RuntimeError("does not compile")


@pytest.mark.parametrize("function", [mask_blend, blend])
def test_a_failing_kernel_warns_once_and_leaves_the_work_to_the_twin(function, monkeypatch):
    inputs = (logits if function is mask_blend else streams)(2, 3, 4, 5)
    run = dispatch.run

    def run_as_on_a_gpu(name, impl, kernel, twin, *arguments):
        gpu = SimpleNamespace(device=torch.device("cuda"), is_cuda=False)
        kernel, twin = (lambda _, *xs, f=f: f(*xs) for f in (kernel, twin))
        return run(name, impl, kernel, twin, [gpu], *arguments)

    monkeypatch.setattr(dispatch, "run", run_as_on_a_gpu)
    monkeypatch.setattr(dispatch, "_broken", set())
    for launcher in (function.__name__, f"{function.__name__}_backward"):
        monkeypatch.setattr(triton_impl, launcher, broken)
    dvideo = torch.randn(2, 3, 3, 4, 5, device=DEVICE)
    expected = results(lambda *x: function(*x, impl="reference"), inputs, dvideo, 1)
    with pytest.warns(UserWarning, match="does not compile") as caught:
        found = results(function, inputs, dvideo, 1)
    assert len(caught) == 2  # forward and backward
    assert all(map(torch.equal, found, expected))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results(function, inputs, dvideo, 1)
    with pytest.raises(RuntimeError, match="does not compile"):
        function(*inputs, impl="triton")


@pytest.mark.parametrize(
    ("head", "background"),
    [
        ((2, 3, 4, 4, 4), (2, 3, 4, 4)),
        ((2, 4, 4, 4), (2, 3, 4, 4)),
        ((0, 4, 4, 4, 4), (0, 3, 4, 4)),
        ((2, 4, 4, 4, 4), (1, 3, 4, 4)),
        ((2, 4, 4, 4, 4), (2, 4, 4, 4)),
        ((1, 4, 4, 4, 4), (1, 3, 4, 5)),
    ],
    ids=["head channels", "rank", "empty batch", "batch", "background channels", "width"],
)
def test_shapes_that_do_not_fit_are_refused_with_the_size(head, background):
    with pytest.raises(ValueError, match=r"must be \(.*got \("):
        mask_blend(torch.randn(head), torch.randn(background))
    if len(head) == 5 and head[0] > 0:
        with pytest.raises(ValueError, match="must be"):
            reference.mask_blend(torch.randn(head), torch.randn(background))


@pytest.mark.parametrize("which", range(3))
def test_streams_that_do_not_fit_are_refused(which):
    good = streams(2, 3, 4, 5)
    for change, error in (
        (lambda x: x[:1] if which else x[:0], ValueError),
        (lambda x: x[..., :0], ValueError),
        (lambda x: torch.cat([x, x], 1), ValueError),
        (lambda x: x[0], ValueError),
        (lambda x: x.double(), TypeError),
        (lambda x: x.int(), TypeError),
    ):
        inputs = list(good)
        inputs[which] = change(inputs[which])
        with pytest.raises(error, match=r"must be .*got"):
            blend(*inputs)
    inputs = list(good)
    inputs[which] = inputs[which].to("meta")
    with pytest.raises(ValueError, match="meta"):
        blend(*inputs)


def test_other_refusals():
    head, background = logits(1, 2, 3, 4)
    with pytest.raises(TypeError, match="float64"):
        mask_blend(head.double(), background)
    with pytest.raises(TypeError, match="int64"):
        mask_blend(head, background.long())
    with pytest.raises(TypeError, match="float64"):
        mask_blend(head, background, dtype=torch.float64)
    with pytest.raises(ValueError, match="meta"):
        mask_blend(head, background.to("meta"))
    for call in (mask_blend, blend):
        inputs = (head, background) if call is mask_blend else streams(1, 2, 3, 4)
        with pytest.raises(ValueError, match="'cuda'"):
            call(*inputs, impl="cuda")


def test_an_explicit_kernel_is_refused_where_none_runs(monkeypatch):
    monkeypatch.setattr(dispatch, "kernels_run_on", lambda device: False)
    with pytest.raises(RuntimeError, match="needs tensors on a GPU"):
        mask_blend(*logits(1, 2, 3, 4), impl="triton")
