"""The head's kernels, its twin and its public functions.

On a CPU the kernels run in Triton's interpreter; the same tests compile them where there is a GPU.
"""

import pytest
import torch
import torch.nn.functional as F
from equivalence import DEVICE, DTYPES, assert_close_to_float64

from vgan_fast.kernels import dispatch
from vgan_fast.kernels.head import api, head_blend, head_tanh, reference, triton_impl

NAMES = ["video", "mean", "dx", "dweight", "dbias", "dbackground"]
# (N, Cin, T/2, H/2, W/2). Tiles have 64 or 128 rows, cells in the forward and positions in the
# input gradient, and 32 or 64 channels.
SHAPES = {
    "one position": (40, 1, 1, 1, 1),
    "batch 3, all sizes odd": (3, 5, 1, 3, 5),
    "cells a tile": (1, 16, 1, 7, 7),
    "cells a tile and 2": (1, 2, 1, 4, 12),
    "positions a tile less 1": (1, 3, 1, 1, 127),
    "positions a tile": (2, 17, 2, 4, 8),
    "positions a tile and 1": (1, 31, 3, 1, 43),
    "channels a tile": (2, 64, 1, 2, 3),
    "channels a tile less 1": (1, 63, 2, 2, 2),
    "channels a tile and 1": (1, 65, 2, 3, 1),
}


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fresh memory of the launchers holds NaN."""

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        def empty(self, size, **options):
            return torch.empty(size, **options).fill_(float("nan"))

    monkeypatch.setattr(triton_impl, "torch", Torch())


def inputs(shape, dtype=torch.float32, channels=4):
    """x, weight, bias and background; parameters are fp32 numbers that `dtype` holds exactly."""
    n, cin, _, h, w = shape
    x = torch.randn(shape, device=DEVICE).to(dtype)
    weight = torch.randn(cin, channels, 4, 4, 4, device=DEVICE) * (8 * cin) ** -0.5
    bias = torch.randn(channels, device=DEVICE)
    background = torch.randn(n, 3, 2 * h, 2 * w, device=DEVICE).to(dtype)
    return x, weight.to(dtype).float(), bias.to(dtype).float(), background


def gradients(outputs, leaves, dvideo, dmean):
    video, mean = outputs[:2]
    return torch.autograd.grad([video, mean], leaves, [dvideo.to(video), dmean.to(mean)])


def leaves_of(tensors, dtype=None):
    return [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]


def check(tensors, video_dtype=torch.float32):
    """Outputs and gradients of the kernels against float64, within eager PyTorch's own error."""
    n, _, t, h, w = tensors[0].shape
    # Of mean 1, so that the four sums of the bias's gradient do not cancel down to noise.
    dvideo = (1 + torch.randn(n, 3, 2 * t, 2 * h, 2 * w, device=DEVICE)).to(video_dtype)
    dmean = torch.randn((), device=DEVICE) * n * t * h * w
    before = dispatch.launches.copy()

    ours = leaves_of(tensors)
    outputs = head_blend(*ours, dtype=video_dtype, impl="triton")
    ours = [*outputs, *gradients(outputs, ours, dvideo, dmean)]
    for name in (
        "head_blend_forward",
        "head_blend_backward",
        "mask_blend_backward_in_cells",
        "convolve",
        "weight_gradient",
    ):
        assert dispatch.launches[name] == before[name] + 1, name

    eager = leaves_of(tensors)
    outputs = reference.head_blend(*eager, video_dtype)
    eager = [*outputs[:2], *gradients(outputs, eager, dvideo, dmean)]
    exact = leaves_of(tensors, torch.float64)
    outputs = reference.head_blend(*exact, torch.float64)
    exact = [*outputs[:2], *gradients(outputs, exact, dvideo, dmean)]
    for name, a, b, c in zip(NAMES, ours, eager, exact, strict=True):
        assert a.dtype == b.dtype, name
        assert_close_to_float64(name, a, b, c, terms=8 * tensors[0].shape[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_kernels_match_float64(shape, dtype):
    check(inputs(shape, dtype))


@pytest.mark.parametrize("seed", [1, 2])
def test_other_numbers_match_float64(seed):
    torch.manual_seed(seed)
    check(inputs((2, 9, 2, 3, 4), torch.float16), torch.float16)


def test_large_logits_saturate_and_stay_finite():
    x, weight, bias, background = inputs((1, 4, 1, 2, 3))
    leaves = leaves_of((300 * x, weight, bias, 100 * background))
    ours = head_blend(*leaves, impl="triton")
    twins = head_blend(*leaves, impl="reference")
    ours, twins = (
        [*outputs, *gradients(outputs, leaves, torch.ones_like(ours[0]), torch.ones_like(ours[1]))]
        for outputs in (ours, twins)
    )
    for name, a, b in zip(NAMES, ours, twins, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * b.abs().max().item(), msg=name)


def test_any_layout_is_read_right():
    x, weight, bias, background = inputs((2, 6, 2, 3, 4), torch.float16)
    x = x.repeat_interleave(2, 1)[:, ::2].transpose(2, 4).contiguous().transpose(2, 4)
    weight = weight.transpose(0, 4).contiguous().transpose(0, 4)
    background = background.repeat(1, 2, 1, 1)[:, :3].transpose(2, 3).contiguous().transpose(2, 3)
    # One number off its 16 bytes.
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=DEVICE)[1:]
    shifted = shifted.view(2, 2, 3, 4, 6).permute(0, 4, 1, 2, 3).copy_(x)
    assert shifted.data_ptr() % 16
    for each in (x, shifted):
        check((each, weight, bias.repeat_interleave(2)[::2], background))


@pytest.mark.parametrize("used", ["video", "mean"])
def test_gradients_of_one_output_alone(used):
    tensors = inputs((1, 3, 1, 2, 2))
    found = []
    for impl in ("triton", "reference"):
        leaves = leaves_of(tensors)
        video, mean = head_blend(*leaves, impl=impl)
        # A sum's gradient is expanded: its strides are 0.
        found.append(torch.autograd.grad(video.sum() if used == "video" else mean, leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_results_do_not_change_from_call_to_call():
    leaves = leaves_of(inputs((2, 17, 2, 4, 8), torch.float16))
    found = []
    for _ in range(2):
        outputs = head_blend(*leaves, impl="triton")
        found.append([*outputs, *gradients(outputs, leaves, outputs[0].detach(), outputs[1])])
    assert all(map(torch.equal, *found))


def test_a_master_weights_gradient_is_not_rounded():
    tensors = inputs((1, 4, 1, 4, 4), torch.float16)
    leaves = leaves_of(tensors)
    video, _ = head_blend(*leaves, impl="triton")
    dweight = torch.autograd.grad(video.square().sum(), leaves[1])[0]
    assert dweight.dtype == torch.float32
    assert (dweight != dweight.half().float()).any()


def test_each_kernel_element_serves_one_tap_and_pixel():
    """The index algebra by hand: output o takes input i through element k = o + 1 - 2 i."""
    weight = torch.arange(2 * 4 * 64, dtype=torch.float32).view(2, 4, 4, 4, 4)
    cells = triton_impl._cell_weight(weight, torch.float32).view(2, 2, 2, 2, 2, 2, 2, 4)
    assert torch.equal(cells.flatten().sort().values, weight.flatten())
    for sd, sh, sw, ci, pd, ph, pw, c in torch.cartesian_prod(*map(torch.arange, cells.shape)):
        expected = weight[ci, c, 2 * sd + pd, 2 * sh + ph, 2 * sw + pw]
        assert cells[sd, sh, sw, ci, pd, ph, pw, c] == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_one_stream_head_is_tanh_of_the_transposed_convolution(impl, dtype):
    x, weight, bias, _ = inputs((2, 7, 2, 3, 4), dtype, channels=3)
    dvideo = torch.randn(2, 3, 4, 6, 8, device=DEVICE)

    def eager(x, weight, bias):
        logits = F.conv_transpose3d(x, weight.to(x), bias.to(x), stride=2, padding=1)
        return torch.tanh(logits.to(torch.promote_types(x.dtype, torch.float32)))

    found = []
    for function, wide in (
        (lambda *leaves: head_tanh(*leaves, impl=impl), None),
        (eager, None),
        (eager, torch.float64),
    ):
        leaves = leaves_of((x, weight, bias), wide)
        video = function(*leaves)
        found.append([video, *torch.autograd.grad(video, leaves, dvideo.to(video))])
    assert found[0][0].is_contiguous()
    for name, a, b, c in zip(["video", "dx", "dweight", "dbias"], *found, strict=True):
        assert_close_to_float64(name, a, b, c)


@pytest.mark.parametrize("shape", [(2, 3, 1, 2, 3), (1, 1, 2, 2, 1)], ids=str)
def test_the_twins_backward_is_autograds(shape):
    tensors = [x.double() for x in inputs(shape)]
    leaves = leaves_of(tensors)
    video, mean, logits = reference.head_blend(*leaves, torch.float64)
    dvideo, dmean = torch.randn_like(video), torch.randn_like(mean)
    expected = gradients((video, mean), leaves, dvideo, dmean)
    x, weight, _, background = tensors
    written = reference.head_blend_backward(dvideo, dmean, x, weight, logits.detach(), background)
    for name, a, b in zip(NAMES[2:], written, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_ops_pass_opcheck(dtype):
    n, _, t, h, w = shape = (2, 3, 1, 2, 3)
    x, weight, bias, background = leaves_of(inputs(shape, dtype))
    last = torch.channels_last_3d
    x = x.detach().contiguous(memory_format=last).requires_grad_()
    torch.library.opcheck(api._head_blend, (x, weight, bias, background, torch.float32, "auto"))
    logits = torch.randn(n, 4, 2 * t, 2 * h, 2 * w, device=DEVICE).to(dtype)
    backward = (
        torch.randn(n, 3, 2 * t, 2 * h, 2 * w, device=DEVICE),
        torch.randn((), device=DEVICE),
        x.detach(),
        weight.detach(),
        logits.contiguous(memory_format=last),
        background.detach(),
    )
    for impl in ("auto", "triton"):
        torch.library.opcheck(api._head_blend_backward, (*backward, impl))


@pytest.mark.parametrize("cin", [1, 3])
@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_results_are_laid_out_as_promised(cin, impl):
    leaves = leaves_of(inputs((2, cin, 1, 2, 3)))
    video, mean = head_blend(*leaves, impl=impl)
    dx, dweight, _, dbackground = gradients((video, mean), leaves, video.detach(), mean.detach())
    assert video.is_contiguous() and dbackground.is_contiguous()
    assert dweight.permute(2, 3, 4, 1, 0).is_contiguous()
    assert dx.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("function", ["head_blend", "head_tanh"])
def test_it_compiles_without_a_graph_break(function):
    channels = 4 if function == "head_blend" else 3
    tensors = inputs((2, 3, 1, 2, 3), channels=channels)

    def objective(*leaves):
        if function == "head_tanh":
            return head_tanh(*leaves[:3]).square().sum()
        video, mean = head_blend(*leaves)
        return video.square().sum() + mean

    found = []
    for run in (torch.compile(objective, fullgraph=True, backend="aot_eager"), objective):
        leaves = leaves_of(tensors if channels == 4 else tensors[:3])
        found.append(torch.autograd.grad(run(*leaves), leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_second_derivative_is_refused():
    leaves = leaves_of(inputs((1, 2, 1, 2, 2)))
    video, _ = head_blend(*leaves)
    first = torch.autograd.grad(video.square().sum(), leaves[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"head_blend_backward.*no autograd"):
        first.sum().backward()


def test_a_kernel_that_fails_is_refused_or_replaced_once(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no shared memory")

    tensors = inputs((1, 2, 1, 2, 2))
    expected = head_blend(*tensors, impl="reference")[0]
    monkeypatch.setattr(triton_impl, "head_blend", broken)
    with pytest.raises(RuntimeError, match="no shared memory"):
        head_blend(*tensors, impl="triton")

    class OnGpu(torch.Tensor):
        device = torch.device("cuda")
        is_cuda = False

    monkeypatch.setattr(dispatch, "_broken", set())
    arguments = (*(x.as_subclass(OnGpu) for x in tensors), torch.float32)
    launch = dispatch.launcher("vgan_fast.kernels.head", "head_blend")
    twin = reference.head_blend
    with pytest.warns(UserWarning, match=r"head_blend_forward.*no shared memory") as warned:
        for _ in range(2):
            found = dispatch.run("head_blend_forward", "auto", launch, twin, *arguments)
    assert len(warned) == 1
    assert torch.equal(found[0].as_subclass(torch.Tensor), expected)


def test_without_an_interpreter_kernels_are_refused_on_a_cpu(monkeypatch):
    monkeypatch.setattr(dispatch, "kernels_run_on", lambda device: False)
    with pytest.raises(RuntimeError, match="impl='triton' needs tensors on a GPU"):
        head_blend(*inputs((1, 2, 1, 2, 2)), impl="triton")


@pytest.mark.parametrize(
    ("argument", "shape", "message"),
    [
        ("x", (2, 3, 4, 4), r"x must be .*got \(2, 3, 4, 4\)"),
        ("x", (0, 3, 1, 2, 2), r"x must be .*got \(0, 3, 1, 2, 2\)"),
        ("x", (2, 0, 1, 2, 2), r"x must be .*got \(2, 0, 1, 2, 2\)"),
        ("weight", (4, 4, 4, 4, 4), r"weight must be \(3, 4, 4, 4, 4\).*got \(4, 4, 4, 4, 4\)"),
        ("weight", (3, 3, 4, 4, 4), r"weight must be \(3, 4, 4, 4, 4\).*got \(3, 3, 4, 4, 4\)"),
        ("bias", (3,), r"bias must be \(4\).*got \(3,\)"),
        ("background", (1, 3, 4, 4), r"background must be \(2, 3, 4, 4\).*got \(1, 3, 4, 4\)"),
        ("background", (2, 3, 4, 2), r"background must be \(2, 3, 4, 4\).*got \(2, 3, 4, 2\)"),
    ],
)
def test_wrong_shapes_are_refused(argument, shape, message):
    tensors = dict(zip(["x", "weight", "bias", "background"], inputs((2, 3, 1, 2, 2)), strict=True))
    tensors[argument] = torch.randn(shape, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        head_blend(**tensors)


def test_wrong_channels_of_the_one_stream_head_are_refused():
    x, weight, bias, _ = inputs((2, 3, 1, 2, 2))
    with pytest.raises(ValueError, match=r"weight must be \(3, 3, 4, 4, 4\)"):
        head_tanh(x, weight, bias)
    with pytest.raises(ValueError, match=r"bias must be \(3\)"):
        head_tanh(x, weight[:, :3], bias)
    with pytest.raises(ValueError, match=r"x must be"):
        head_tanh(x[0], weight[:, :3], bias[:3])


@pytest.mark.parametrize("argument", range(4), ids=["x", "weight", "bias", "background"])
def test_wrong_dtypes_and_devices_are_refused(argument):
    tensors = list(inputs((2, 3, 1, 2, 2)))
    with pytest.raises(TypeError, match=r"must be fp32, fp16 or bf16, got torch\.float64"):
        head_blend(*(x.double() if i == argument else x for i, x in enumerate(tensors)))
    if argument:
        with pytest.raises(ValueError, match=f"is on meta, the first argument on {DEVICE}"):
            head_blend(*(x.to("meta") if i == argument else x for i, x in enumerate(tensors)))


def test_other_wrong_arguments_are_refused():
    x, weight, bias, background = tensors = inputs((2, 3, 1, 2, 2))
    with pytest.raises(TypeError, match=r"must be fp32, fp16 or bf16, got torch\.int8"):
        head_blend(*tensors, dtype=torch.int8)
    with pytest.raises(TypeError, match=r"weight's dtype torch\.float32, got torch\.float16"):
        head_blend(x, weight, bias.half(), background)
    with pytest.raises(ValueError, match="got 'cuda'"):
        head_blend(*tensors, impl="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_papers_size_matches_float64(batch, dtype):
    check(inputs((batch, 64, 16, 32, 32), dtype), dtype)


@pytest.mark.gpu
def test_the_papers_batch_matches_float64():
    check(inputs((64, 64, 16, 32, 32), torch.bfloat16), torch.bfloat16)
