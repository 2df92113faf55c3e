"""The energy model, plain: a ConvNet whose summed responses score a clip."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgan_fast.stgconvnet.layers import Layer

# f of clips, (N,), and its gradient, of the shape of the clips.
Scored = tuple[Tensor, Tensor]


class EnergyNetwork(nn.Module):
    """f of the density p(I) ~ exp(f(I)) q(I) over clips I: a stack of 3D convolutions and ReLUs.

    f is the sum of the top layer's responses over filters, moments and positions (paper, "Spatial-
    temporal generative ConvNet"). Weights begin as N(0, 0.001²), biases at 0, as in the public
    code. A top layer of a single filter begins with their absolute values: where its response were
    negative to all of the data, the ReLU would pass no gradient and nothing would ever be learnt.

    Args:
        layers: see `parse_layers`.

    Attributes:
        depth: layers in use, all unless set; f is then the sum of the responses of the last one
            (layer-by-layer learning).
    """

    def __init__(self, layers: tuple[Layer, ...]):
        super().__init__()
        self.layers = layers
        self.depth = len(layers)
        self.convolutions = nn.ModuleList(
            nn.Conv3d(layer.channels, layer.filters, layer.kernel, layer.stride) for layer in layers
        )
        with torch.no_grad():
            for convolution in self.convolutions:
                nn.init.normal_(convolution.weight, std=0.001)
                nn.init.zeros_(convolution.bias)
            if layers[-1].filters == 1:
                self.convolutions[-1].weight.abs_()

    def forward(self, clips: Tensor) -> Tensor:
        """f of clips (N, 3, T, H, W), pixels 0-255 less the data's mean: (N,) >= 0."""
        for layer, convolution in zip(
            self.layers[: self.depth], self.convolutions[: self.depth], strict=True
        ):
            zeros = [zero for both in reversed(layer.padding) for zero in both]
            clips = F.relu(convolution(F.pad(clips, zeros)))
        return clips.flatten(1).sum(1)

    def frozen(self) -> Callable[[Tensor], Scored]:
        """f and its gradient with the weights of now, as a function of clips: for sampling."""

        def scored(clips: Tensor) -> Scored:
            with torch.enable_grad():
                clips = clips.detach().requires_grad_()
                scores = self(clips)
                (gradient,) = torch.autograd.grad(scores.sum(), clips)
            return scores.detach(), gradient

        return scored
