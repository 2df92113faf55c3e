"""From settings to networks: the form of each that suits the backend and the device."""

import torch

from vgan_fast import cpu, fused, models
from vgan_fast.kernels.dispatch import Impl
from vgan_fast.models import Discriminator, OneStreamGenerator, TwoStreamGenerator
from vgan_fast.settings import Settings
from vgan_fast.stgconvnet.fast import FastEnergyNetwork
from vgan_fast.stgconvnet.layers import Sizes
from vgan_fast.stgconvnet.model import EnergyNetwork

Generator = OneStreamGenerator | TwoStreamGenerator


def kernels_of(settings: Settings) -> Impl | None:
    """Which implementation the kernels' ops use, of resolved settings; None for plain layers."""
    if settings.backend == "fused":
        return "triton"
    if settings.backend == "auto" and settings.device == "cuda" and settings.precision != "fp16":
        return "auto"
    return None


def build_generator(settings: Settings) -> Generator:
    """The generator that the settings describe, freshly initialised, on the CPU."""
    if settings.model == "one-stream":
        return _built("OneStreamGenerator", settings)
    if settings.model == "future":
        given = settings.condition, settings.encoder
        return _built("FutureGenerator", settings, settings.mask_bias, *given)
    return _built("TwoStreamGenerator", settings, settings.mask_bias)


def build_discriminator(
    settings: Settings, outputs: int | None = None, dropout: float = 0.0
) -> Discriminator:
    """The discriminator that the settings describe, freshly initialised, on the CPU.

    Args:
        settings: resolved.
        outputs: numbers a clip, in place of `settings.logits`: one for each class of a classifier.
        dropout: see `models.Discriminator`.
    """
    return _built("Discriminator", settings, outputs or int(settings.logits), dropout)


def build_encoder(settings: Settings) -> Discriminator:
    """The autoencoder's encoder, freshly initialised, on the CPU: clips to (N, latent)."""
    return _built("Discriminator", settings, settings.latent)


def build_energy_network(settings: Settings, sizes: Sizes) -> EnergyNetwork:
    """STGConvNet for clips of `sizes` (T, H, W), freshly initialised, on the CPU."""
    layers = settings.network_layers(sizes)
    if settings.backend == "reference":
        return EnergyNetwork(layers)
    bf16 = settings.precision == "bf16"
    return FastEnergyNetwork(layers, torch.bfloat16 if bf16 else torch.float32)


def _built(name: str, settings: Settings, *arguments):
    impl = kernels_of(settings)
    if impl is not None:
        return getattr(fused, name)(settings.shape, *arguments, impl=impl)
    if settings.backend == "auto" and settings.device == "cpu":
        return getattr(cpu, name)(settings.shape, *arguments)
    network = getattr(models, name)(settings.shape, *arguments)
    if settings.backend != "reference":
        models.store_channels_last(network)
    return network
