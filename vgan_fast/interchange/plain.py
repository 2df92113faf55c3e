"""The networks of a run in their plain form: what is written for other programs."""

from pathlib import Path

import torch
from torch import nn

from vgan_fast.checkpoint import load_weights, open_weights
from vgan_fast.errors import UserError
from vgan_fast.interchange.layout import Description, is_published, read_description
from vgan_fast.sampling import load_generator
from vgan_fast.settings import Settings


def plain_networks(run: Path) -> list[tuple[Description, nn.Module]]:
    """What a run's networks are, and those of `vgan_fast.models`: evaluation mode, fp32, CPU.

    Of a run with a moving average the generator is that, with statistics of its own, as
    `vgan_fast.generate` samples from.

    Args:
        run: as of `open_weights`; in the layout of Hugging Face there is one network.

    Raises:
        UserError: when there are no whole weights, or they are an energy model's, which is nothing
            without its chains.
    """
    folder, settings = open_weights(run)
    if settings.model == "stgconvnet":
        raise UserError(f"{folder}: an energy model is nothing without its chains; keep the run")
    if is_published(folder):
        described = read_description(folder)
        network = described.build()
        load_weights(folder, {described.kind.role: network})
        return [(described, network.eval())]
    made = []
    for name, described in _descriptions(settings).items():
        network = described.build()
        if name == "generator":
            sampled = load_generator(folder, settings, torch.device("cpu"))
            network.load_state_dict(sampled.state_dict())
        else:
            load_weights(folder, {name: network})
        made.append((described, network.eval()))
    return made


def _descriptions(settings: Settings) -> dict[str, Description]:
    """The networks of a run by their names there."""
    shape = {"shape": settings.shape}
    future = {"condition": settings.condition, "encoder": settings.encoder}
    if settings.model == "autoencoder":
        encoder = Description("Encoder", {**shape, "outputs": settings.latent})
        return {"generator": Description("Decoder", shape), "encoder": encoder}
    generators = {
        "one-stream": Description("OneStreamGenerator", shape),
        "two-stream": Description("TwoStreamGenerator", shape),
        "future": Description("FutureGenerator", {**shape, **future}),
    }
    discriminator = Description("Discriminator", {**shape, "outputs": int(settings.logits)})
    return {"generator": generators[settings.model], "discriminator": discriminator}
