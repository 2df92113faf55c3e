import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from tests.kernels.equivalence import DEVICE, DTYPES, assert_close_to_float64
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.conv import convolve
from vgan_fast.kernels.frames import (
    api,
    clip_to_cells,
    frames_to_cells,
    normalise_frames,
    pair_to_cells,
    reference,
    triton_impl,
)

# N, T, H, W: widths around the 16 pixels that frames are padded to, the powers of two that tiles
# are, and the WARP_PIXELS of a warp; then values around FLAT.
EVEN_SHAPES = [
    (1, 2, 2, 2),
    (3, 2, 4, 6),
    (2, 4, 2, 8),
    (1, 2, 14, 14),
    (2, 4, 6, 16),
    (1, 2, 2, 18),
    (2, 6, 10, 22),
    (1, 2, 2, 48),
    (2, 2, 2, 62),
    (2, 2, 4, 64),
    (1, 2, 2, 126),
    (1, 2, 2, 128),
    (1, 2, 2, 130),
    (1, 2, 2, 256),
]
SHAPES = [(1, 2, 2, 2), (1, 1, 1, 1), (1, 1, 1, 683), (3, 1, 1, 227), (2, 3, 11, 31)]
assert (triton_impl.FLAT, triton_impl.WARP_PIXELS) == (2048, 128)


def grey(n, t, h, w):
    return torch.randint(0, 256, (n, t, h, w, 3), dtype=torch.uint8, device=DEVICE)


def clip_of(n, t, h, w, dtype=torch.float32):
    return torch.randn(n, 3, t, h, w, device=DEVICE).to(dtype)


def same(ours, expected):
    """Equal in values and in dtype, which `torch.equal` ignores."""
    return ours.dtype == expected.dtype and torch.equal(ours, expected)


def cells_by_hand(clip):
    """The contract, pixel by pixel."""
    n, _, t, h, w = clip.shape
    cells = torch.zeros(n, 32, t // 2 + 1, h // 2 + 1, w // 2 + 1, dtype=clip.dtype)
    for z in range(t):
        for y in range(h):
            for x in range(w):
                place = ((z + 1) % 2 * 2 + (y + 1) % 2) * 2 + (x + 1) % 2
                where = (z + 1) // 2, (y + 1) // 2, (x + 1) // 2
                cells[(slice(None), slice(4 * place, 4 * place + 3), *where)] = clip[..., z, y, x]
    return cells


def stored(x, layout):
    """The same values stored in another way."""
    if layout == "planar":
        return x.contiguous()
    if layout == "channels-last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "strided":
        return x.repeat_interleave(2, -1)[..., ::2]
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded":
        return x[:, :, :1].expand(x.shape)
    # Off the 16 bytes that accesses are aligned to.
    room = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)
    return room[1:].view(x.shape).copy_(x)


LAYOUTS = ["planar", "channels-last", "strided", "transposed", "expanded", "unaligned"]
KERNELS = ["_normalise", "_frames_to_cells", "_clip_to_cells", "_from_cells"]


class Watched:
    """A kernel that notes the tensors it is launched on, having seen that they lie well."""

    def __init__(self, kernel, tensors):
        self.kernel, self.tensors = kernel, tensors

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            for x in arguments:
                if isinstance(x, torch.Tensor):
                    assert x.data_ptr() % 16 == 0
                    self.tensors.append(x)
            return self.kernel[grid](*arguments, **constants)

        return launch


@pytest.fixture
def on_kernels(monkeypatch):
    """The tensors that kernels were launched on; all of them start on 16 bytes."""
    tensors = []
    for name in KERNELS:
        monkeypatch.setattr(triton_impl, name, Watched(getattr(triton_impl, name), tensors))
    return tensors


def launched(name, function, *arguments, **options):
    """What `function` returns, after a look that its kernel ran."""
    before = dispatch.launches[name]
    result = function(*arguments, impl="triton", **options)
    assert dispatch.launches[name] == before + 1
    return result


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_every_grey_level_maps_onto_minus_one_to_one(impl):
    frames = torch.arange(256, dtype=torch.uint8, device=DEVICE).repeat_interleave(3)
    clip = normalise_frames(frames.view(1, 4, 8, 8, 3), impl=impl)
    assert clip.shape == (1, 3, 4, 8, 8)
    expected = torch.arange(256, dtype=torch.float64, device=DEVICE) / 127.5 - 1
    for channel in range(3):
        torch.testing.assert_close(clip[0, channel].flatten().double(), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_channels_are_not_mixed_and_stay_last_in_memory(impl):
    frames = grey(2, 3, 4, 5)
    clip = normalise_frames(frames, impl=impl)
    assert clip.is_contiguous(memory_format=torch.channels_last_3d)
    assert clip[1, 2, 0, 3, 4].item() == pytest.approx(
        int(frames[1, 0, 3, 4, 2]) / 127.5 - 1, abs=1e-6
    )


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_normalises(shape, dtype):
    frames = grey(*shape)
    ours = launched("normalise_frames_forward", normalise_frames, frames, dtype=dtype)
    eager = reference.normalise_frames(frames, dtype)
    assert ours.dtype == eager.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last_3d)
    assert_close_to_float64("clip", ours, eager, reference.normalise_frames(frames, torch.float64))


@pytest.mark.usefixtures("poisoned", "on_kernels")
@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_take_frames_of_any_layout(layout, width):
    frames = stored(grey(2, 4, 6, width), layout)
    copied = frames.contiguous()
    for function in (normalise_frames, frames_to_cells):
        twins = function(copied, impl="reference")
        torch.testing.assert_close(function(frames, impl="triton"), twins, rtol=0, atol=2e-7)


def test_what_lies_well_is_not_copied(on_kernels):
    frames, clip = grey(2, 2, 2, 16), clip_of(2, 2, 2, 16)
    for function, argument in (
        (normalise_frames, frames),
        (frames_to_cells, frames),
        (clip_to_cells, clip),
    ):
        on_kernels.clear()
        function(argument, impl="triton")
        assert on_kernels[0].data_ptr() == argument.data_ptr()
    on_kernels.clear()
    frames_to_cells(grey(1, 2, 2, 20), impl="triton")
    assert on_kernels[0].shape == (1, 2, 2, 32, 3)  # rows of whole words
    cells = clip_to_cells(clip)
    on_kernels.clear()
    triton_impl.clip_to_cells_backward(cells, torch.float32)
    assert on_kernels[0].data_ptr() == cells.data_ptr()


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("shape", [(2, 2, 2, 2), (1, 4, 6, 2), (3, 2, 4, 8)], ids=str)
def test_cells_are_what_the_contract_says(shape, impl):
    clip = clip_of(*shape)
    cells = clip_to_cells(clip, impl=impl)
    assert cells.is_contiguous(memory_format=torch.channels_last_3d)
    assert same(cells.cpu(), cells_by_hand(clip.cpu()))


@pytest.mark.parametrize("width", [6, 16])
def test_what_is_not_finite_stays_where_it_is(width):
    clip = clip_of(1, 2, 2, width)
    clip[0, :, :, :, ::3], clip[0, 1, 0] = float("nan"), float("inf")
    clip.requires_grad_()
    cells = clip_to_cells(clip, impl="triton")
    twin = reference.clip_to_cells(clip, torch.float32)
    torch.testing.assert_close(cells, twin, rtol=0, atol=0, equal_nan=True)
    cells, twin = (
        torch.autograd.grad(x, clip, torch.where(x.isfinite(), x, float("nan")).detach())[0]
        for x in (cells, twin)
    )
    torch.testing.assert_close(cells, twin, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", EVEN_SHAPES, ids=str)
def test_kernel_cuts_clips_into_cells_and_back(shape, dtype):
    clip = clip_of(*shape, dtype).requires_grad_()
    cells = launched("clip_to_cells_forward", clip_to_cells, clip)
    assert same(cells, reference.clip_to_cells(clip, dtype))
    assert cells.is_contiguous(memory_format=torch.channels_last_3d)
    dcells = torch.randn(cells.shape, device=DEVICE).to(dtype)
    before = dispatch.launches["clip_to_cells_backward"]
    (ours,) = torch.autograd.grad(cells, clip, dcells)
    assert dispatch.launches["clip_to_cells_backward"] == before + 1
    twin = reference.clip_to_cells(clip, dtype)
    (automatic,) = torch.autograd.grad(twin, clip, dcells)
    assert ours.is_contiguous()
    assert same(ours, automatic)
    assert same(reference.clip_to_cells_backward(dcells, dtype), automatic)


@pytest.mark.usefixtures("poisoned", "on_kernels")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernels_take_clips_and_gradients_of_any_layout(layout):
    clip = stored(clip_of(2, 4, 6, 8), layout).requires_grad_()
    cells = clip_to_cells(clip, impl="triton")
    assert same(cells, reference.clip_to_cells(clip.detach(), torch.float32))
    dcells = stored(torch.randn(cells.shape, device=DEVICE), layout)
    (ours,) = torch.autograd.grad(cells, clip, dcells)
    assert same(ours, reference.clip_to_cells_backward(dcells, torch.float32))


@pytest.mark.usefixtures("poisoned", "on_kernels")
def test_backward_copies_a_dense_gradient_that_is_not_aligned():
    dcells = torch.randn(2, 3, 4, 5, 32, device=DEVICE)
    shifted = stored(dcells, "unaligned").permute(0, 4, 1, 2, 3)
    expected = reference.clip_to_cells_backward(dcells.permute(0, 4, 1, 2, 3), torch.float32)
    assert shifted.data_ptr() % 16
    ours = triton_impl.clip_to_cells_backward(shifted, torch.float32)
    assert same(ours, expected)


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_cells_of_another_dtype_and_their_gradient_in_the_clips(impl):
    clip = clip_of(2, 4, 6, 8).requires_grad_()
    cells = clip_to_cells(clip, dtype=torch.float16, impl=impl)
    assert same(cells, reference.clip_to_cells(clip.half(), torch.float16))
    (gradient,) = torch.autograd.grad(cells.float().square().sum(), clip)
    assert same(gradient, 2 * clip.detach().half().float())


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_dtypes_by_default(impl, monkeypatch):
    frames, clip = grey(1, 2, 2, 2), clip_of(1, 2, 2, 2, torch.float16).requires_grad_()
    assert normalise_frames(frames, impl=impl).dtype == torch.float32
    assert frames_to_cells(frames, impl=impl).dtype == torch.float32
    assert pair_to_cells(frames, clip, impl=impl).dtype == torch.float16
    cells = clip_to_cells(clip, impl=impl)
    assert cells.dtype == torch.float16
    # Autograd would convert a gradient of another dtype, in a pass of its own.
    asked, run = [], dispatch.run
    monkeypatch.setattr(dispatch, "run", lambda *xs: asked.append(xs[-1]) or run(*xs))
    cells.sum().backward()
    assert asked == [torch.float16]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", EVEN_SHAPES, ids=str)
def test_kernel_cuts_frames_into_cells(shape, dtype):
    frames = grey(*shape)
    ours = launched("frames_to_cells_forward", frames_to_cells, frames, dtype=dtype)
    eager = reference.frames_to_cells(frames, dtype)
    exact = reference.frames_to_cells(frames, torch.float64)
    assert ours.dtype == eager.dtype == dtype
    assert ours.is_contiguous(memory_format=torch.channels_last_3d)
    assert_close_to_float64("cells", ours, eager, exact)
    assert torch.equal(ours == 0, exact == 0)  # nothing but the border and the fourth channel
    two = clip_to_cells(normalise_frames(frames, dtype=dtype, impl="triton"), impl="triton")
    assert_close_to_float64("both passes", two, eager, exact)


@pytest.mark.usefixtures("poisoned", "on_kernels")
@pytest.mark.parametrize("layout", ["planar", "channels-last", "unaligned"])
@pytest.mark.parametrize("source", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 6, 16), (3, 2, 4, 6)], ids=str)
def test_kernels_put_frames_and_clip_behind_one_another(shape, dtype, source, layout):
    frames, clip = stored(grey(*shape), layout), stored(clip_of(*shape, source), layout)
    clip.requires_grad_()
    ours = launched("pair_to_cells_forward", pair_to_cells, frames, clip, dtype=dtype)
    assert not ours.requires_grad
    assert ours.is_contiguous(memory_format=torch.channels_last_3d)
    eager = reference.pair_to_cells(frames, clip.detach(), dtype)
    assert ours.dtype == eager.dtype == dtype
    n = shape[0]
    exact = reference.frames_to_cells(frames, torch.float64)
    assert_close_to_float64("frames", ours[:n], eager[:n], exact)
    assert torch.equal(ours[:n] == 0, exact == 0)
    assert torch.equal(ours[n:], eager[n:])
    assert torch.equal(eager[n:], reference.clip_to_cells(clip.detach(), dtype))
    assert_close_to_float64("twin", eager[:n], eager[:n], exact)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.gpu
def test_kernels_at_the_papers_size():
    shape, dtype = (64, 32, 64, 64), torch.bfloat16
    test_kernel_normalises(shape, dtype)
    test_kernel_cuts_clips_into_cells_and_back(shape, dtype)
    test_kernel_cuts_frames_into_cells(shape, dtype)


@pytest.mark.gpu
def test_kernels_reach_beyond_two_to_the_31():
    n = 5600  # 2.2e9 values of the clip, 3.3e9 of its cells: 17 GB in all
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB")
    last = grey(1, 32, 64, 64)
    frames = last.new_zeros(n, *last.shape[1:])
    frames[-1:] = last
    clip = normalise_frames(frames, dtype=torch.bfloat16, impl="triton")
    expected = reference.normalise_frames(last, torch.bfloat16)
    torch.testing.assert_close(clip[-1:], expected)
    del frames
    clip = clip.contiguous()
    cells = clip_to_cells(clip, impl="triton")
    assert same(cells[-1:], reference.clip_to_cells(clip[-1:], torch.bfloat16))
    expected = clip[-1:].clone()
    del clip
    assert same(triton_impl.clip_to_cells_backward(cells, torch.bfloat16)[-1:], expected)


@pytest.mark.parametrize("impl", ["auto", "triton"])
@pytest.mark.parametrize("layout", ["planar", "channels-last"])
def test_first_layer_on_cells_equals_it_on_the_clip(layout, impl):
    clip = stored(clip_of(2, 4, 6, 8), layout)
    weight = torch.randn(5, 3, 4, 4, 4, device=DEVICE)
    # Small integers: sums of them are integers too, whatever algorithm the library takes.
    clip, weight = (x.sign().requires_grad_() for x in (clip, weight))
    plain = F.conv3d(clip, weight, stride=2, padding=1)
    ours = convolve(clip_to_cells(clip, impl=impl), weight, up=False, impl=impl)
    torch.testing.assert_close(ours, plain, rtol=0, atol=0.01)
    upstream = torch.randn(plain.shape, device=DEVICE).sign()
    expected = torch.autograd.grad(plain, (clip, weight), upstream)
    found = torch.autograd.grad(ours, (clip, weight), upstream)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0.01)


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_opcheck(impl):
    for shape in ((2, 2, 4, 6), (1, 2, 2, 2)):
        frames, clip = grey(*shape), clip_of(*shape)
        opcheck(api._normalise_frames, (frames, torch.float16, impl))
        opcheck(api._frames_to_cells, (frames, torch.float16, impl))
        opcheck(api._pair_to_cells, (frames, clip, torch.float16, impl))
        opcheck(api._clip_to_cells, (clip.requires_grad_(), torch.float16, impl))
        dcells = clip_to_cells(clip.detach())
        opcheck(api._clip_to_cells_backward, (dcells, torch.float16, impl))
    opcheck(api._normalise_frames, (grey(1, 1, 1, 1), torch.float32, impl))


def test_compiles_as_one_graph():
    frames, clip = grey(2, 2, 4, 6), clip_of(2, 2, 4, 6).requires_grad_()

    def function(frames, clip):
        cells = frames_to_cells(frames) + clip_to_cells(clip)
        both = pair_to_cells(frames, clip).sum(0)
        return cells + clip_to_cells(normalise_frames(frames)) + both

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = [f(frames, clip) for f in (function, compiled)]
    assert same(*results)
    assert torch.equal(*(torch.autograd.grad((x**2).sum(), clip)[0] for x in results))


def test_first_layer_of_four_channels():
    clip, weight = torch.randn(2, 4, 4, 6, 8).sign(), torch.randn(5, 4, 4, 4, 4).sign()
    cells = reference.clip_to_cells(clip[:, :3], torch.float32)
    grey = reference.clip_to_cells(clip[:, 3:].expand(-1, 3, -1, -1, -1), torch.float32)
    cells[:, 3::4] = grey[:, ::4]
    ours = convolve(cells, weight, up=False)
    expected = F.conv3d(clip, weight, stride=2, padding=1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.01)


def test_second_order_is_refused():
    clip = clip_of(1, 2, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad((clip_to_cells(clip) ** 2).sum(), clip, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def broken(*arguments):
    raise RuntimeError("does not compile")


@pytest.mark.parametrize(
    "function", [normalise_frames, frames_to_cells, clip_to_cells, pair_to_cells]
)
def test_a_failing_kernel_warns_once_and_leaves_the_work_to_the_twin(function, monkeypatch):
    argument = clip_of(2, 2, 4, 6) if function is clip_to_cells else grey(2, 2, 4, 6)
    if function is pair_to_cells:
        clip = clip_of(2, 2, 4, 6)

        def function(frames, **options):
            return pair_to_cells(frames, clip, **options)

        function.__name__ = pair_to_cells.__name__
    run = dispatch.run

    def run_as_on_a_gpu(name, impl, kernel, twin, *arguments):
        gpu = SimpleNamespace(device=torch.device("cuda"), is_cuda=False)
        kernel, twin = (lambda _, *xs, f=f: f(*xs) for f in (kernel, twin))
        return run(name, impl, kernel, twin, [gpu], *arguments)

    monkeypatch.setattr(dispatch, "run", run_as_on_a_gpu)
    monkeypatch.setattr(dispatch, "_broken", set())
    expected = function(argument, impl="reference")
    monkeypatch.setattr(triton_impl, function.__name__, broken)
    with pytest.warns(UserWarning, match="does not compile"):
        assert same(function(argument), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(argument)
    with pytest.raises(RuntimeError, match="does not compile"):
        function(argument, impl="triton")
    if function is clip_to_cells:
        monkeypatch.setattr(triton_impl, "clip_to_cells_backward", broken)
        with pytest.warns(UserWarning, match="does not compile"):
            clip_to_cells(argument.requires_grad_()).sum().backward()
        assert same(argument.grad, torch.ones_like(argument))


def test_other_frames_are_refused():
    for function in (normalise_frames, frames_to_cells):
        with pytest.raises(TypeError, match="uint8"):
            function(torch.zeros(1, 2, 2, 2, 3))
        for shape in ((1, 3, 2, 2, 2), (2, 2, 2, 3), (0, 2, 2, 2, 3), (1, 2, 0, 2, 3)):
            with pytest.raises(ValueError, match=rf"\({', '.join(map(str, shape))}\)"):
                function(torch.zeros(shape, dtype=torch.uint8))
        with pytest.raises(TypeError, match="float64"):
            function(grey(1, 2, 2, 2), dtype=torch.float64)
        with pytest.raises(ValueError, match="'cuda'"):
            function(grey(1, 2, 2, 2), impl="cuda")


def test_other_clips_are_refused():
    for shape in ((1, 4, 2, 2, 2), (3, 2, 2, 2), (0, 3, 2, 2, 2), (1, 3, 2, 0, 2)):
        with pytest.raises(ValueError, match=rf"\({', '.join(map(str, shape))}\)"):
            clip_to_cells(torch.zeros(shape))
    for dtype in (torch.float64, torch.int32, torch.uint8):
        with pytest.raises(TypeError, match=str(dtype)):
            clip_to_cells(torch.zeros(1, 3, 2, 2, 2, dtype=dtype))
    with pytest.raises(TypeError, match="float64"):
        clip_to_cells(clip_of(1, 2, 2, 2), dtype=torch.float64)
    with pytest.raises(ValueError, match="'cuda'"):
        clip_to_cells(clip_of(1, 2, 2, 2), impl="cuda")


def test_other_pairs_are_refused():
    frames, clip = grey(2, 2, 4, 6), clip_of(2, 2, 4, 6)
    with pytest.raises(TypeError, match="frames must be uint8"):
        pair_to_cells(frames.float(), clip)
    for other in (frames[0], frames[:0], frames[..., :2]):
        with pytest.raises(ValueError, match="frames must be"):
            pair_to_cells(other, clip)
    with pytest.raises(ValueError, match="must be even"):
        pair_to_cells(frames[:, :, :3], clip)
    for other in (clip[:1], clip[:, :2], clip[:, :, :1], clip[:, :, :, :2], clip[..., :2], clip[0]):
        with pytest.raises(ValueError, match=r"clip must be \(2, 3, 2, 4, 6\)"):
            pair_to_cells(frames, other)
    with pytest.raises(TypeError, match=r"clip must be fp32, fp16 or bf16, got torch\.float64"):
        pair_to_cells(frames, clip.double())
    with pytest.raises(ValueError, match="clip is on meta"):
        pair_to_cells(frames, clip.to("meta"))
    with pytest.raises(TypeError, match=r"the cells' dtype must be .* got torch\.float64"):
        pair_to_cells(frames, clip, dtype=torch.float64)
    with pytest.raises(ValueError, match="'cuda'"):
        pair_to_cells(frames, clip, impl="cuda")


@pytest.mark.parametrize("sizes", [(3, 2, 2), (2, 3, 2), (2, 2, 3)], ids=str)
def test_odd_sizes_have_no_cells(sizes):
    for call in (
        lambda: clip_to_cells(clip_of(1, *sizes)),
        lambda: frames_to_cells(grey(1, *sizes)),
    ):
        with pytest.raises(ValueError, match=r"must be even .* got"):
            call()


def test_an_explicit_kernel_is_refused_where_none_runs(monkeypatch):
    monkeypatch.setattr(dispatch, "kernels_run_on", lambda device: False)
    with pytest.raises(RuntimeError, match="needs tensors on a GPU"):
        normalise_frames(grey(1, 2, 2, 2), impl="triton")
