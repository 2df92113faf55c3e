"""The model and its fast forms, f and gradients, against float64."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vgan_fast.stgconvnet import fast
from vgan_fast.stgconvnet.fast import FastEnergyNetwork
from vgan_fast.stgconvnet.layers import EXPERIMENTS, parse_layers
from vgan_fast.stgconvnet.model import EnergyNetwork

CASES = {
    "experiment 1": (EXPERIMENTS["1"], (16, 24, 20)),
    "experiment 2": (EXPERIMENTS["2"], (14, 17, 23)),
    "experiment 2b": (EXPERIMENTS["2b"], (15, 16, 14)),
    "experiment 3": (EXPERIMENTS["3"], (13, 16, 19)),
    "pixels that no filter reaches": ("5@2/3+0 4@2x3x3/2", (6, 9, 10)),
    "padding beyond the filters": ("5@3/3+2 2@*", (7, 8, 9)),
    "one layer that covers all": ("2@*", (4, 5, 6)),
    "moments that overlap": ("6@3/2 4@3x*x*/2x1x1+1x0x0", (11, 8, 8)),
    "moments apart": ("6@3/2 4@2x*x*/3x1x1", (13, 8, 8)),
    "stride 1": ("3@3 2@1", (4, 5, 6)),
    "strides of their own": ("4@3x4x5/1x2x4 3@2x1x3/1x1x2", (5, 9, 11)),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def networks(case, dtype=torch.float32, device="cpu"):
    """A plain network with weights of its own, and the fast one with the same."""
    layers = parse_layers(*case)
    plain = EnergyNetwork(layers)
    with torch.no_grad():
        for layer in plain.convolutions:
            fan = layer.weight[0].numel()
            layer.weight.copy_(torch.randn_like(layer.weight) / fan**0.5)
            layer.bias.copy_(torch.randn_like(layer.bias))
        plain.convolutions[-1].bias += 50  # else all of a small layer may be silent
    quick = FastEnergyNetwork(layers, dtype)
    quick.load_state_dict(plain.state_dict())
    return plain.to(device), quick.to(device)


def clips_of(case, count=2):
    return torch.randn(count, 3, *case[1]) * 50


def error(ours, exact):
    return ((ours.double() - exact).norm() / exact.norm()).item()


@pytest.fixture(params=["as here", "moment by moment", "in cells"])
def form(request, monkeypatch):
    """The CPU's form, also where little is folded at a time, and a GPU's run on the CPU."""
    if request.param == "moment by moment":
        monkeypatch.setattr(fast, "_COLUMNS", 1)
    if request.param == "in cells":
        monkeypatch.setattr(fast, "_in_cells", lambda layer, device: max(layer.stride) > 1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_fast_forms_are_the_plain_network(name, device, form):
    plain, quick = networks(CASES[name], device=device)
    clips = clips_of(CASES[name]).to(device)
    exact_f, exact = copy.deepcopy(plain).double().frozen()(clips.double())
    plain_f, plain_gradient = plain.frozen()(clips)
    f, gradient = quick.frozen()(clips)
    assert gradient.shape == clips.shape
    for ours, eager, of in ((f, plain_f, exact_f), (gradient, plain_gradient, exact)):
        assert error(ours, of) <= 2 * (error(eager, of) + 1e-7)
    torch.testing.assert_close(quick(clips), f, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_fast_forms_learn_as_the_plain_network(name, form):
    plain, quick = networks(CASES[name])
    clips = clips_of(CASES[name])
    exact = copy.deepcopy(plain).double()
    for network, given in ((plain, clips), (quick, clips), (exact, clips.double())):
        weight = torch.tensor([1.0, -0.7])
        (network(given) * weight).sum().backward()
    for ours, eager, of in zip(
        quick.parameters(), plain.parameters(), exact.parameters(), strict=True
    ):
        if of.grad.norm():
            assert error(ours.grad, of.grad) <= 2 * (error(eager.grad, of.grad) + 3e-7)


@pytest.mark.parametrize(
    "name", ["experiment 2", "one layer that covers all", "strides of their own"]
)
def test_in_bf16_the_gradient_is_within_a_few_percent(name):
    plain, quick = networks(CASES[name], torch.bfloat16)
    clips = clips_of(CASES[name])
    exact_f, exact = copy.deepcopy(plain).double().frozen()(clips.double())
    f, gradient = quick.frozen()(clips)
    assert error(gradient, exact) < 0.04
    assert error(f, exact_f) < 0.01


def test_pixels_are_not_rounded_to_bf16():
    # One layer whose only work is the pixels' difference, which bf16 would round away.
    layers = parse_layers("1@1x1x2+0", (1, 1, 2))
    quick = FastEnergyNetwork(layers, torch.bfloat16)
    with torch.no_grad():
        quick.convolutions[0].weight.copy_(torch.tensor([1.0, -1.0]).expand(1, 3, 1, 1, 2))
    clips = torch.tensor([100.25, 100.0]).expand(1, 3, 1, 1, 2).contiguous()
    assert quick.frozen()(clips)[0].item() == 0.75
    # Nor are that layer's weights, or 1 + 1/256 would be 1 or 1 + 1/128.
    with torch.no_grad():
        quick.convolutions[0].weight[..., 0] = 1 + 1 / 256
    same = torch.full((1, 3, 1, 1, 2), 128.0)
    assert quick.frozen()(same)[0].item() == 1.5


def test_the_plain_network_is_the_papers_f():
    layers = parse_layers("3@3/2 2@2x*x*", (5, 6, 6))
    plain = EnergyNetwork(layers)
    clips = clips_of(("", (5, 6, 6)))
    x = clips
    for layer, convolution in zip(layers, plain.convolutions, strict=True):
        (t, h, w) = layer.padding
        x = F.conv3d(F.pad(x, (*w, *h, *t)), convolution.weight, convolution.bias, layer.stride)
        x = torch.where(x > 0, x, 0)
    torch.testing.assert_close(plain(clips), x.sum((1, 2, 3, 4)))


def test_f_of_fewer_layers_is_that_of_a_shorter_list():
    shape = (12, 15, 15)
    for kind in (EnergyNetwork, FastEnergyNetwork):
        torch.manual_seed(1)
        whole = kind(parse_layers("5@5/2 4@3/2 2@2", shape))
        short = kind(parse_layers("5@5/2 4@3/2", shape))
        short.load_state_dict({k: v for k, v in whole.state_dict().items() if ".2." not in k})
        whole.depth = 2
        clips = clips_of(("", shape))
        torch.testing.assert_close(whole(clips), short(clips))
        for ours, expected in zip(whole.frozen()(clips), short.frozen()(clips), strict=True):
            torch.testing.assert_close(ours, expected)


def test_weights_begin_as_the_public_codes():
    network = EnergyNetwork(parse_layers(EXPERIMENTS["2"], (20, 48, 48)))
    for layer in network.convolutions[:2]:
        assert layer.weight.std().item() == pytest.approx(0.001, rel=0.02)
        assert abs(layer.weight.mean().item()) < 1e-5
        assert not layer.bias.any()


def test_a_single_filter_on_top_is_alive_at_first():
    for seed in range(5):
        torch.manual_seed(seed)
        network = EnergyNetwork(parse_layers(EXPERIMENTS["3"], (13, 16, 16)))
        assert (network(clips_of(("", (13, 16, 16)))) > 0).all()
