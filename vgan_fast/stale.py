"""The original schedule's generator gradient: old activations, new weights.

The Torch7 code caches the discriminator's pass over the generated clips, updates the
discriminator, and then back-propagates through the *updated* weights with the *cached*
activations. Autograd refuses that (the weights changed after the forward pass), so the pass
backwards is written out here.
"""

import torch
from torch import Tensor, nn
from torch.nn import grad as conv_grad

from vgan_fast.models import Discriminator


def forward_with_inputs(discriminator: Discriminator, clip: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits (N, K), and the detached input of every layer for `stale_input_gradient`."""
    inputs = []
    for layer in discriminator.layers:
        inputs.append(clip.detach())
        clip = layer(clip)
    return clip.flatten(1), inputs


@torch.no_grad()
def stale_input_gradient(
    discriminator: Discriminator, inputs: list[Tensor], logit_gradient: Tensor
) -> Tensor:
    """Gradient with respect to the clip, of today's weights on the cached activations.

    Args:
        discriminator: the network after its update.
        inputs: each layer's input, from `forward_with_inputs` before the update.
        logit_gradient: (N, K), gradient of the loss with respect to the cached logits.

    Returns:
        (N, 3, T, H, W), fp32.

    Raises:
        TypeError: for a layer other than those of `Discriminator`.
    """
    gradient = logit_gradient[:, :, None, None, None]
    for layer, x in zip(reversed(discriminator.layers), reversed(inputs), strict=True):
        if isinstance(layer, nn.Conv3d):
            gradient = conv_grad.conv3d_input(
                x.shape, layer.weight, gradient, layer.stride, layer.padding
            )
        elif isinstance(layer, nn.LeakyReLU):
            gradient = torch.where(x > 0, gradient, layer.negative_slope * gradient)
        elif isinstance(layer, nn.BatchNorm3d):
            gradient = _batch_norm_input_gradient(layer, x, gradient)
        else:
            raise TypeError(f"no backward pass for a layer {type(layer).__name__}")
    return gradient


def _batch_norm_input_gradient(layer: nn.BatchNorm3d, x: Tensor, gradient: Tensor) -> Tensor:
    over = (0, 2, 3, 4)
    variance, mean = torch.var_mean(x, over, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + layer.eps)
    x_hat = (x - mean) * scale
    centred = gradient - gradient.mean(over, keepdim=True)
    aligned = x_hat * (gradient * x_hat).mean(over, keepdim=True)
    return layer.weight[:, None, None, None] * scale * (centred - aligned)
