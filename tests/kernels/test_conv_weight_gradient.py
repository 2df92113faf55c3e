"""The weight gradient's kernels against float64."""

import pytest
import torch

from tests.kernels.equivalence import DEVICE, DTYPES, assert_close_to_float64
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.conv import reference
from vgan_fast.kernels.conv import weight_gradient as module
from vgan_fast.kernels.conv.weight_gradient import Config, configs, weight_gradient

# Batch, A, B, sizes of the coarse side, kernel. Tiles of 16 bits have 128 or 256 rows (tap, channel
# of B), 64 or 128 columns (channels of A) and 32 or 64 positions; of 32 bits 64, 32 and 16.
SHAPES = {
    "one position": (1, 1, 1, (1, 1, 1), 4),
    "clip": (2, 16, 8, (2, 2, 4), 4),
    "clip, odd channels and sizes": (3, 5, 3, (3, 3, 5), 4),
    "cells": (3, 64, 32, (2, 4, 4), 2),
    "ragged cells": (3, 23, 30, (1, 5, 7), 2),
    "picture, a row of taps a tile": (2, 65, 64, (2, 4), 4),
    "picture, a row of taps two tiles": (3, 24, 128, (2, 2), 4),
    "picture, a tap a tile": (2, 9, 256, (2, 1), 4),
    "picture, tiles straddle taps": (5, 100, 9, (5, 3), 4),
    "picture, a last tile half empty": (2, 9, 24, (4, 5), 4),
    "picture's end": (2, 64, 3, (8, 8), 4),
    "positions a tile less 1": (1, 16, 8, (1, 63), 4),
    "positions a tile and 1": (1, 16, 8, (5, 13), 4),
    "a position more than a row of boxes": (1, 8, 8, (2, 1, 33), 2),
    "batch a tile and 1": (65, 8, 8, (1, 1), 4),
}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Fresh memory is NaN amid NaN, so that what a kernel omits or writes beside it shows."""
    empty, rooms, margin = torch.empty, [], 4096

    def poison(*arguments, **options):
        fresh = empty(*arguments, **options)
        rooms.append(fresh.new_full((fresh.numel() + 2 * margin,), float("nan")))
        return rooms[-1].as_strided(fresh.shape, fresh.stride(), margin)

    monkeypatch.setattr(torch, "empty", poison)
    yield
    for room in rooms:
        assert room[:margin].isnan().all()
        assert room[-margin:].isnan().all()


def amid_nan(shape, dtype):
    """Random numbers, stored channels-last, in memory that is NaN on both sides."""
    n, channels, *sizes = shape
    x = torch.randn(n, *sizes, channels, device=DEVICE).to(dtype)
    margin = 1 << 14
    room = torch.full((x.numel() + 2 * margin,), float("nan"), dtype=dtype, device=DEVICE)
    return room[margin:-margin].view(x.shape).copy_(x).movedim(-1, 1)


def inputs(shape, dtype):
    """The fine and the coarse tensor, and the kernel's size."""
    n, a, b, sizes, kernel = shape
    fine = [2 * size if kernel == 4 else size + 1 for size in sizes]
    return amid_nan((n, b, *fine), dtype), amid_nan((n, a, *sizes), dtype), kernel


def check(shape, dtype, config=None):
    fine, coarse, kernel = inputs(shape, dtype)
    before = dispatch.launches["weight_gradient"]
    ours = weight_gradient(fine, coarse, kernel, config=config)
    assert dispatch.launches["weight_gradient"] == before + 1
    # Products of 16 bits are exact in fp32, in which both sum.
    eager = reference.weight_gradient(fine.float(), coarse.float(), kernel)
    exact = reference.weight_gradient(fine.double(), coarse.double(), kernel)
    assert ours.dtype == torch.float32
    assert ours.permute(*range(2, ours.dim()), 1, 0).is_contiguous()
    positions = coarse.numel() // coarse.shape[1]
    splits, _ = module._split(positions, positions, ours.numel())
    assert_close_to_float64("weight gradient", ours, eager, exact, positions // splits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_matches_float64(shape, dtype):
    check(shape, dtype)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shape", ["cells", "clip, odd channels and sizes"])
def test_other_numbers_match_float64(shape, seed):
    torch.manual_seed(seed)
    check(SHAPES[shape], torch.float16)


@pytest.mark.parametrize("splits", [2, 3, 31, 40])
@pytest.mark.parametrize("sizes", [(33, 8), (32, 8)], ids=str)
def test_splits_are_added_up(sizes, splits, monkeypatch):
    """Boxes, of two samples or of one, do not divide among splits, nor those among their tiles."""
    monkeypatch.setattr(module, "SPLIT_POSITIONS", 1)
    monkeypatch.setattr(module, "BLOCKS", splits)
    check((2, 7, 9, sizes, 4), torch.float16, Config(64, 16, 16, 4, 2))


@pytest.mark.parametrize("channels", [8, 16, 24, 32, 64], ids="{} channels".format)
@pytest.mark.parametrize("kernel", [4, 2])
def test_any_tile_matches_float64(channels, kernel):
    """Tiles of 64 rows: several taps, a row of them, part of one, one tap, and straddling."""
    sizes = (3, 4) if kernel == 4 and channels > 24 else (3, 2, 4)
    check((2, 17, channels, sizes, kernel), torch.float16, Config(64, 16, 16, 4, 2))


@pytest.mark.parametrize("shape", ["picture, a row of taps a tile", "cells", "picture's end"])
def test_every_configuration_matches_float64(shape):
    fine, coarse, kernel = inputs(SHAPES[shape], torch.float16)
    found = configs(fine, coarse, kernel)
    assert 3 <= len(found) <= 5
    for config in found:
        check(SHAPES[shape], torch.float16, config)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # infinity times zero
def test_numbers_that_are_not_finite_stay_where_they_belong():
    """A pixel that a tap does not reach must not be multiplied by zero."""
    fine, coarse, kernel = inputs((3, 8, 8, (3, 3, 5), 4), torch.float16)
    fine[1, 2, 0, 0, 0] = float("inf")
    ours = weight_gradient(fine, coarse, kernel)
    twins = reference.weight_gradient(fine.double(), coarse.double(), kernel)
    # Pixel 0 is reached by taps 1 and 3, of which 3 lies before the first position.
    reached = torch.zeros(ours.shape, dtype=torch.bool, device=DEVICE)
    reached[:, 2, 1, 1, 1] = True
    assert torch.equal(~ours.isfinite(), reached)
    assert torch.equal(~twins.isfinite(), reached)


def test_any_alignment_is_read_right():
    fine, coarse, kernel = inputs((2, 8, 8, (2, 2, 4), 4), torch.float16)
    expected = weight_gradient(fine, coarse, kernel)
    shifted = []
    for x in (fine, coarse):
        room = torch.zeros(x.numel() + 1, dtype=x.dtype, device=DEVICE)[1:]
        shifted.append(room.view(x.movedim(1, -1).shape).copy_(x.movedim(1, -1)).movedim(-1, 1))
        assert shifted[-1].data_ptr() % 16
    assert torch.equal(weight_gradient(*shifted, kernel), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accesses_are_made_16_bytes_wide(dtype):
    for channels in (1, 3, 4, 8, 9):
        room = torch.randn(2 * 3 * 5 * channels + 1, device=DEVICE).to(dtype)
        for x in (room[1:], room[:-1]):
            x = x.view(2, 3, 5, channels).movedim(-1, 1)
            wide = module._wide(x)
            assert wide.data_ptr() % 16 == 0
            assert wide.shape[1] * wide.element_size() % 16 == 0
            assert wide.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(wide[:, :channels], x)


@pytest.mark.parametrize("tile", [module.FEW_SPLITS, module.MANY_SPLITS], ids=str)
def test_partial_sums_are_merged_in_float64(tile):
    """Large values that cancel: in fp32 little would be left of the rest."""
    partial = torch.randn(41, 1100, device=DEVICE)
    partial[:20] += 2**20
    partial[20:40] -= 2**20
    out = torch.empty(1100, device=DEVICE)
    module._sum[(-(-1100 // tile[1]),)](partial, out, 41, 1100, BLOCK_S=tile[0], BLOCK=tile[1])
    torch.testing.assert_close(out, partial.double().sum(0).float(), rtol=1.2e-7, atol=0)


def test_results_do_not_change_from_call_to_call(monkeypatch):
    monkeypatch.setattr(module, "SPLIT_POSITIONS", 16)
    arguments = inputs((3, 16, 8, (4, 4, 8), 4), torch.float16)
    assert torch.equal(weight_gradient(*arguments), weight_gradient(*arguments))


def test_a_new_batch_size_is_no_new_compilation():
    """Constants of the networks' layers hold for any batch, and boxes fit them without a rest."""
    for layer, (fine, coarse, sizes, kernel) in module.LAYERS.items():
        for config in module.layer_configs(layer, 227 << 10):
            found = [
                module._constants(n, sizes, kernel, (fine,) * 2, (coarse,) * 2, config)
                for n in (1, 2, 63, 64, 65, 128)
            ]
            assert all(constants == found[0][0] for constants, _ in found), layer
            assert found[-1][1] * config.positions == 128 * torch.Size(sizes).numel()


def test_boxes_of_large_samples_take_one():
    assert module._box(64, (3, 5, 7), 64, samples=64)[0] == (64, 1, 1, 1)
    assert module._box(64, (3, 5, 7), 64, samples=1)[0][0] == 1


def test_splits_fill_a_gpu_and_bound_the_partial_sums():
    expected = {"D2, G4": 8, "D3, G3": 2, "D4, G2": 1, "D1, head": 264}
    for layer, splits in expected.items():
        fine, coarse, sizes, kernel = module.LAYERS[layer]
        positions = 128 * torch.Size(sizes).numel()
        weights = kernel ** len(sizes) * fine * coarse
        found, steps = module._split(positions // 64, positions, weights)
        assert splits * 0.97 <= found <= splits
        assert (found - 1) * steps < positions // 64 <= found * steps
        assert found == 1 or found * weights <= module.BLOCKS * module.ACCUMULATORS


def test_little_shared_memory_gets_smaller_tiles():
    for layer in module.LAYERS:
        for room in (99 << 10, 163 << 10, 227 << 10):
            found = module.layer_configs(layer, room)
            assert len(found) >= 3
            assert all(config.shared_bytes(2) <= room for config in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_tf32_is_used_where_pytorch_would(dtype, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert module._precision(dtype) == ("tf32" if dtype == torch.float32 else "ieee")
    # The interpreter multiplies exactly all the same.
    if DEVICE == "cpu":
        check(SHAPES["picture's end"], dtype)


@pytest.mark.parametrize("which", ["dtype", "layout", "sizes"])
def test_our_own_mistakes_are_caught(which):
    fine, coarse, kernel = inputs((2, 8, 8, (2, 2, 4), 4), torch.float16)
    if which == "dtype":
        fine = fine.float()
    elif which == "layout":
        fine = fine.contiguous()
    else:
        fine = fine[:, :, 1:]
    with pytest.raises(AssertionError):
        weight_gradient(fine, coarse, kernel)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", module.LAYERS)
def test_the_networks_layers_match_float64(layer, dtype):
    fine, coarse, sizes, kernel = module.LAYERS[layer]
    for batch in (1, 16):
        check((batch, coarse, fine, sizes, kernel), dtype)


@pytest.mark.gpu
def test_offsets_pass_2_to_the_31():
    """Only the last sample is not zero: 134 million values each, the last beyond 2^31."""
    fine = torch.zeros(17, 4096, 4096, 8, dtype=torch.float16, device=DEVICE).movedim(-1, 1)
    coarse = torch.zeros(17, 2048, 2048, 8, dtype=torch.float16, device=DEVICE).movedim(-1, 1)
    fine[-1].normal_()
    coarse[-1].normal_()
    ours = weight_gradient(fine, coarse, 4)
    alone = weight_gradient(fine[-1:].clone(), coarse[-1:].clone(), 4)
    # Sums of four million and of 250,000 products in a row, in which a tensor core loses digits.
    torch.testing.assert_close(ours, alone, rtol=2e-3, atol=2e-3 * alone.abs().max().item())
