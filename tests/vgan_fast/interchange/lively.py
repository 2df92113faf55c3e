"""Runs whose networks make something of every weight and buffer that they have."""

import torch
from torch import nn

from vgan_fast.checkpoint import save_checkpoint
from vgan_fast.interchange.layout import Description
from vgan_fast.mixture import LatestCodes
from vgan_fast.models import CONVOLUTIONS
from vgan_fast.networks import build_discriminator, build_encoder, build_generator
from vgan_fast.settings import Settings
from vgan_fast.shape import ClipShape

SMALL = {"frames": 4, "size": 16, "width": 4, "latent": 8, "device": "cpu", "precision": "fp32"}
NO_PENALTY = {"mask_penalty": 0.0}
OF_MODELS = {
    "two-stream": {},
    "one-stream": NO_PENALTY,
    "future": {**NO_PENALTY, "condition": 2},
    "autoencoder": NO_PENALTY,
}


@torch.no_grad()
def enliven(network: nn.Module) -> nn.Module:
    """Weights as large as keep activations near 1, and statistics that no fresh network has."""
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            fan_in = module.weight[0].numel() if not module.transposed else module.in_channels * 8
            module.weight.normal_(0, 1.5 * fan_in**-0.5)
            module.bias.normal_(0, 0.3)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(7)
    return network


def run_of(folder, model="two-stream", **given):
    """A run of one checkpoint; its networks by name."""
    settings = Settings(model=model, **{**SMALL, **OF_MODELS.get(model, {}), **given})
    networks = {"generator": enliven(build_generator(settings))}
    if model == "autoencoder":
        networks["encoder"] = enliven(build_encoder(settings))
        networks["codes"] = LatestCodes(settings.latent)
        networks["codes"].add(torch.randn(20, settings.latent))
    else:
        networks["discriminator"] = enliven(build_discriminator(settings))
    if settings.average:
        networks["averaged"] = enliven(build_generator(settings))
    save_checkpoint(folder, 1, networks, {}, settings)
    return {name: network.eval() for name, network in networks.items()}


def described(name, **arguments):
    """A small network of each kind."""
    of_kind = {
        "FutureGenerator": {"condition": 2, "encoder": "spatial"},
        "Encoder": {"outputs": 8},
        "Discriminator": {"outputs": 2},
    }
    shape = {"shape": ClipShape(4, 16, 4, 8)}
    return Description(name, {**shape, **of_kind.get(name, {}), **arguments})
