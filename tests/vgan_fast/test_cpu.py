"""The networks for a CPU against the reference."""

import pytest
import torch
import torch.nn.functional as F

from vgan_fast import cpu, models
from vgan_fast.shape import ClipShape

TINY = ClipShape(frames=8, size=16, width=6, latent=5)
NETWORKS = {
    "one stream": ("OneStreamGenerator", {}),
    "two streams": ("TwoStreamGenerator", {"mask_bias": -1.0}),
    "future of two frames": ("FutureGenerator", {"mask_bias": -1.0, "condition": 2}),
    "future by a latent": ("FutureGenerator", {"mask_bias": -1.0, "encoder": "latent"}),
    "discriminator": ("Discriminator", {"outputs": 1}),
    "discriminator of two": ("Discriminator", {"outputs": 2}),
}


def pair(name):
    """Reference in float64 and network for a CPU, same random weights, biases and statistics."""
    torch.manual_seed(0)
    kind, options = NETWORKS[name]
    reference = getattr(models, kind)(TINY, **options)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer_name, buffer in reference.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_()
            elif buffer_name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    ours = getattr(cpu, kind)(TINY, **options)
    ours.load_state_dict(reference.state_dict())
    return reference.double(), ours


def sample(name, batch):
    if "stream" in name:
        return torch.randn(batch, TINY.latent)
    if "future" in name:
        frames = NETWORKS[name][1].get("condition", 1)
        return torch.randn(batch, 3, frames, TINY.size, TINY.size)
    return torch.randn(batch, 3, TINY.frames, TINY.size, TINY.size)


def run(network, x):
    """Outputs, gradients of input and parameters, and buffers after one pass."""
    x = x.clone().requires_grad_()
    made = network(x)
    made = made if isinstance(made, tuple) else (made,)
    weights = torch.linspace(-1, 1, made[0].numel(), dtype=x.dtype).sin().view(made[0].shape)
    ((made[0] * weights).sum() + sum(3 * m for m in made[1:])).backward()
    results = {f"output {i}": m.detach() for i, m in enumerate(made)} | {"input gradient": x.grad}
    results |= {f"gradient of {n}": p.grad for n, p in network.named_parameters()}
    return results | {n: b.clone() for n, b in network.named_buffers()}


@pytest.mark.parametrize("mode", ["training", "evaluation", "one norm frozen"])
@pytest.mark.parametrize("batch", [2, 40])  # weights larger and smaller than activations
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_statistics_are_the_reference_s(name, batch, mode):
    reference, ours = pair(name)
    for network in (reference, ours):
        network.train(mode != "evaluation")
        if mode == "one norm frozen":
            next(m for m in network.modules() if "Norm" in type(m).__name__).eval()
    x = sample(name, batch)
    found, right = run(ours, x), run(reference, x.double())
    assert found.keys() == right.keys()
    scale = max(value.norm() for key, value in right.items() if key.startswith("gradient"))
    for key, value in right.items():
        value = value.double()
        error = (found[key].double() - value).norm()
        # A value next to 0 may fall on the other side of an activation than in float64. A bias in
        # front of a norm has a gradient of rounding noise.
        assert error <= 1e-3 * value.norm() + 5e-5 * scale * key.endswith("bias"), key


def test_streams_are_the_reference_s():
    reference, ours = pair("two streams")
    x = sample("two streams", 3)
    with torch.no_grad():
        found, right = ours.eval().streams(x), reference.eval().streams(x.double())
    for name, value in vars(right).items():
        stream = getattr(found, name)
        assert stream.dtype == torch.float32
        torch.testing.assert_close(stream.double(), value.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_under_autocast_activations_are_bf16_and_gradients_fp32(name):
    reference, ours = pair(name)
    x = sample(name, 4)
    with torch.autocast("cpu", torch.bfloat16):
        made = ours(x)
    made, expected = (m[0] if isinstance(m, tuple) else m for m in (made, reference(x.double())))
    assert made.dtype == torch.bfloat16
    assert (made.double() - expected).norm() < 0.05 * expected.norm()
    made.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in ours.parameters())


def test_weights_that_nobody_trains_get_no_gradient():
    _, ours = pair("discriminator")
    ours.requires_grad_(False)
    clip = sample("discriminator", 2).requires_grad_()
    ours(clip).sum().backward()
    assert clip.grad.any()
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_weights_and_activations_are_stored_channels_last():
    _, ours = pair("discriminator")
    layouts = []
    for module in ours.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.register_forward_pre_hook(lambda module, inputs: layouts.append(inputs[0]))
    ours(sample("discriminator", 2))
    weights = [p for p in ours.parameters() if p.dim() == 5]
    for tensor in (*layouts, *weights):
        assert tensor.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_cells_hold_what_a_transposed_convolution_makes(channels):
    x, weight = torch.randn(2, 5, 2, 3, 4), torch.randn(5, channels, 4, 4, 4)
    expected = F.conv_transpose3d(x, weight, stride=2, padding=1)
    torch.testing.assert_close(cpu._to_pixels(x, weight), expected, rtol=1e-4, atol=1e-4)


def test_a_grid_smaller_than_the_weights_over_it_makes_no_other_clip():
    shape = ClipShape(frames=8, size=16, width=48)
    reference = models.FutureGenerator(shape).eval()
    ours = cpu.FutureGenerator(shape).eval()
    ours.load_state_dict(reference.state_dict())
    frames = torch.randn(1, 3, 1, 16, 16)
    with torch.no_grad():
        for made, wanted in zip(ours(frames), reference(frames), strict=True):
            torch.testing.assert_close(made, wanted)
