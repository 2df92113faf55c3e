import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vgan_fast.errors import UserError
from vgan_fast.models import (
    CONVOLUTIONS,
    Discriminator,
    FutureGenerator,
    OneStreamGenerator,
    TwoStreamGenerator,
)
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


def test_parameter_counts_of_the_originals_future_generator():
    norms = 2 * (512 + 256 + 128)  # each of three norms of a stack
    encoder = layer(3, 128, 16) + layer(128, 256, 16) + layer(256, 512, 16)
    encoder += layer(512, 1024, 16) + 2 * (256 + 512 + 1024)
    foreground = layer(1024, 1024, 2) + 2 * 1024 + layer(1024, 512, 64) + layer(512, 256, 64)
    foreground += layer(256, 128, 64) + norms + layer(128, 4, 64)
    background = layer(1024, 512, 16) + layer(512, 256, 16) + layer(256, 128, 16) + norms
    background += layer(128, 3, 16)
    generator = FutureGenerator(ClipShape(width=128))
    assert count(generator.encoder) == encoder
    assert count(generator) == encoder + foreground + background


def test_the_future_generator_is_the_originals_graph_written_out():
    shape = ClipShape(frames=16, size=32, width=4, latent=6)
    generator = FutureGenerator(shape, condition=2).double().eval()
    for parameter in generator.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    state = dict(generator.state_dict())
    frames = torch.randn(3, 3, 2, 32, 32, dtype=torch.float64)

    def conv(x, name, function, stride=2, padding=1):
        return function(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    def norm(x, name, eps):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.relu(F.batch_norm(x, *(state[f"{name}.{n}"] for n in names), eps=eps))

    x = frames.reshape(3, 6, 32, 32)
    x = F.relu(conv(x, "encoder.0", F.conv2d))
    x = norm(conv(x, "encoder.2", F.conv2d), "encoder.3", 1e-3)
    code = norm(conv(x, "encoder.5", F.conv2d), "encoder.6", 1e-3)
    assert code.shape == (3, 16, 4, 4)
    still = code
    for at in (3, 6):
        y = conv(still, f"background.{at}", F.conv_transpose2d)
        still = norm(y, f"background.{at + 1}", 1e-5)
    still = torch.tanh(conv(still, "background_head", F.conv_transpose2d))
    y = conv(code[:, :, None], "foreground.0", F.conv_transpose3d, 1, 0)
    assert y.shape == (3, 16, 2, 4, 4)
    moving = norm(y, "foreground.1", 1e-5)
    for at in (3, 6):
        y = conv(moving, f"foreground.{at}", F.conv_transpose3d)
        moving = norm(y, f"foreground.{at + 1}", 1e-5)
    head = conv(moving, "head", F.conv_transpose3d)
    mask = torch.sigmoid(head[:, 3:])
    video = mask * torch.tanh(head[:, :3]) + (1 - mask) * still[:, :, None]
    # The blend's reference is fp32.
    torch.testing.assert_close(generator(frames)[0].double(), video, rtol=1e-5, atol=1e-6)


def test_the_papers_encoder_ends_in_a_latent():
    generator = FutureGenerator(SMALL, encoder="latent")
    assert generator.encoder(torch.randn(2, 3, 16, 16)).shape == (2, 12, 1, 1)
    unconditional = TwoStreamGenerator(SMALL)
    shapes = {name: p.shape for name, p in generator.named_parameters() if "encoder" not in name}
    assert shapes == {name: p.shape for name, p in unconditional.named_parameters()}


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
    for encoder in ("spatial", "latent"):
        frames = torch.randn(3, 3, 2, shape.size, shape.size)
        assert FutureGenerator(shape, 0.0, 2, encoder)(frames)[0].shape == expected


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
    [
        TwoStreamGenerator(PAPER),
        OneStreamGenerator(PAPER),
        FutureGenerator(PAPER),
        Discriminator(PAPER),
    ],
    ids=lambda network: type(network).__name__,
)
def test_initialisation_statistics(network):
    weights, scales = [], []
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
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
    assert epsilons(FutureGenerator(SMALL).encoder) == {1e-3}


def test_mask_bias_opens_or_closes_the_mask_at_the_start():
    codes = {TwoStreamGenerator: torch.randn(2, 12), FutureGenerator: torch.randn(2, 3, 1, 16, 16)}
    for kind, code in codes.items():
        means = torch.stack([kind(SMALL, bias)(code)[1] for bias in (-2.0, 0.0, 2.0)])
        wanted = torch.sigmoid(torch.tensor([-2.0, 0, 2]))
        torch.testing.assert_close(means.detach(), wanted, rtol=0.02, atol=0.01)


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
