import pytest
import torch
from torch import nn

from vgan_fast.errors import UserError
from vgan_fast.models import Discriminator, OneStreamGenerator, TwoStreamGenerator
from vgan_fast.shape import ClipShape

PAPER = ClipShape()
SMALL = ClipShape(frames=8, size=16, width=8, latent=12)


def count(module):
    return sum(p.numel() for p in module.parameters())


def layer(inner, outer, kernel):
    return inner * outer * kernel + outer


def test_parameter_counts_of_the_papers_networks():
    # By hand: kernels of 4x4x4 = 64 (2D: 16) taps, first and last layers 2x4x4 = 32 taps,
    # biases everywhere, two numbers a channel for each batch norm.
    norms = 2 * (512 + 256 + 128 + 64)
    foreground = layer(100, 512, 32) + layer(512, 256, 64) + layer(256, 128, 64)
    foreground += layer(128, 64, 64) + layer(64, 4, 64) + norms
    background = layer(100, 512, 16) + layer(512, 256, 16) + layer(256, 128, 16)
    background += layer(128, 64, 16) + layer(64, 3, 16) + norms
    assert (foreground, background) == (12_667_716, 3_577_667)

    generator = TwoStreamGenerator(PAPER)
    assert count(generator.foreground) + count(generator.head) == foreground
    assert count(generator.background) + count(generator.background_head) == background
    assert count(generator) == 16_245_383
    assert count(Discriminator(PAPER, 1)) == 11_041_473
    assert count(Discriminator(PAPER, 2)) == 11_057_858
    assert count(OneStreamGenerator(PAPER)) == foreground - layer(64, 1, 64)


@pytest.mark.parametrize(
    "shape",
    [SMALL, ClipShape(2, 8, 3, 1), ClipShape(16, 8, 4, 5), ClipShape(16, 64, 2, 7)],
    ids=["small", "one level", "long", "one frame at the core"],
)
def test_shapes_and_ranges(shape):
    latent = torch.randn(3, shape.latent)
    expected = (3, 3, shape.frames, shape.size, shape.size)
    video, mask_mean = TwoStreamGenerator(shape)(latent)
    assert video.shape == expected
    assert video.abs().max() <= 1
    assert 0 < mask_mean < 1
    assert OneStreamGenerator(shape)(latent).shape == expected
    assert Discriminator(shape, 2)(video).shape == (3, 2)


def test_streams_blend_into_the_video_over_a_still_background():
    generator = TwoStreamGenerator(SMALL)
    for parameter in generator.parameters():  # Large weights, so that the streams are not grey.
        parameter.data.mul_(4)
    streams = generator.streams(torch.randn(4, 12))
    mask, still = streams.mask, streams.background[:, :, None]
    torch.testing.assert_close(streams.video, mask * streams.foreground + (1 - mask) * still)
    assert streams.foreground.std() > 0.01
    assert streams.background.std() > 0.01
    assert mask.shape == (4, 1, 8, 16, 16)
    assert 0 <= mask.min() < mask.max() <= 1


def test_the_video_depends_on_each_latent_entry_and_only_on_its_own_row():
    generator = TwoStreamGenerator(SMALL).eval()
    latent = torch.randn(2, 12)
    base = generator(latent)[0]
    for entry in range(12):
        changed = latent.clone()
        changed[0, entry] += 1
        video = generator(changed)[0]
        assert (video[0] != base[0]).any()
        torch.testing.assert_close(video[1], base[1])


@pytest.mark.parametrize(
    "network",
    [TwoStreamGenerator(PAPER), OneStreamGenerator(PAPER), Discriminator(PAPER)],
    ids=lambda network: type(network).__name__,
)
def test_initialisation_statistics(network):
    weights, scales = [], []
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            weights.append(module.weight.detach().flatten())
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            scales.append(module.weight.detach())
            assert not module.bias.any()
    for values in weights:
        bound = 5 / len(values) ** 0.5
        assert abs(values.mean()) < 0.01 * bound
        assert abs(values.std() / 0.01 - 1) < bound
    scales = torch.cat(scales)
    assert abs(scales.mean() - 1) < 0.02 * 5 / len(scales) ** 0.5
    assert abs(scales.std() / 0.02 - 1) < 5 / len(scales) ** 0.5


def test_batch_norm_epsilons_are_the_originals():
    def epsilons(network):
        return {m.eps for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm3d)}

    assert epsilons(TwoStreamGenerator(SMALL)) == {1e-5}
    assert epsilons(Discriminator(SMALL)) == {1e-3}


def test_mask_bias_opens_or_closes_the_mask_at_the_start():
    means = [TwoStreamGenerator(SMALL, bias)(torch.randn(2, 12))[1] for bias in (-2.0, 0.0, 2.0)]
    torch.testing.assert_close(
        torch.stack(means).detach(), torch.sigmoid(torch.tensor([-2.0, 0, 2])), rtol=0.02, atol=0.01
    )


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"frames": 24}, "--frames 24"),
        ({"size": 48}, "--size 48"),
        ({"size": 4, "frames": 4}, "--size 4"),
        ({"size": 256, "frames": 32}, "--frames 32"),
        ({"frames": 0}, "--frames 0"),
        ({"width": 0}, "--width 0"),
        ({"latent": -1}, "--latent -1"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused_by_name(sizes, named):
    with pytest.raises(UserError, match=named):
        ClipShape(**sizes)
