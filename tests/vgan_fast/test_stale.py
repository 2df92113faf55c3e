import pytest
import torch
import torch.nn.functional as F
from torch.autograd.functional import jacobian

from vgan_fast.models import Discriminator
from vgan_fast.shape import ClipShape
from vgan_fast.stale import forward_with_inputs, stale_input_gradient

SHAPE = ClipShape(frames=4, size=16, width=2, latent=3)


@pytest.fixture
def discriminator():
    network = Discriminator(SHAPE, outputs=2)
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return network


def chained_jacobians(discriminator, inputs, logit_gradient):
    """The chain rule by hand: logit gradient times each layer's Jacobian, in float64.

    Jacobians are taken at the *cached* inputs with the weights that the layers hold *now*.
    """
    row = logit_gradient.double().flatten()
    for layer, x in zip(reversed(discriminator.layers), reversed(inputs), strict=True):
        x = x.double()
        if isinstance(layer, torch.nn.Conv3d):

            def function(x, layer=layer):
                weight = layer.weight.detach().double()
                return F.conv3d(x, weight, None, layer.stride, layer.padding)
        elif isinstance(layer, torch.nn.BatchNorm3d):

            def function(x, layer=layer):
                mean = x.mean((0, 2, 3, 4), keepdim=True)
                variance = (x - mean).square().mean((0, 2, 3, 4), keepdim=True)
                scale = layer.weight.detach().double()[:, None, None, None]
                return scale * (x - mean) / (variance + layer.eps).sqrt()
        else:

            def function(x):
                return torch.where(x > 0, x, 0.2 * x)

        row = row @ jacobian(function, x).reshape(len(row), x.numel())
    return row


def test_gradient_of_old_activations_under_new_weights(discriminator):
    clip = torch.randn(2, 3, 4, 16, 16)
    _, inputs = forward_with_inputs(discriminator, clip)
    for parameter in discriminator.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    logit_gradient = torch.randn(2, 2)
    gradient = stale_input_gradient(discriminator, inputs, logit_gradient)
    expected = chained_jacobians(discriminator, inputs, logit_gradient).view_as(clip)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)

    # It is neither gradient that autograd could give: old and old, or new and new.
    fresh = clip.clone().requires_grad_()
    (new,) = torch.autograd.grad(discriminator(fresh), fresh, logit_gradient)
    assert (gradient - new).norm() > 0.05 * new.norm()


def test_without_an_update_it_is_the_ordinary_gradient(discriminator):
    clip = torch.randn(2, 3, 4, 16, 16, requires_grad=True)
    logits, inputs = forward_with_inputs(discriminator, clip)
    logit_gradient = torch.randn_like(logits)
    gradient = stale_input_gradient(discriminator, inputs, logit_gradient)
    (expected,) = torch.autograd.grad(discriminator(clip), clip, logit_gradient)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_autograd_refuses_the_original_schedule(discriminator):
    clip = torch.randn(2, 3, 4, 16, 16, requires_grad=True)
    logits = discriminator(clip)
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter += 0.1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()
