"""The networks with `save_pretrained` and `from_pretrained` of Hugging Face.

Their constructors and weights are those of `vgan_fast.models`. A folder of theirs is also read by
the programs, into whichever form of the network suits the device.
"""

from pathlib import Path

import safetensors.torch

from vgan_fast import models
from vgan_fast.errors import UserError
from vgan_fast.interchange.layout import CONFIG, WEIGHTS, read_description
from vgan_fast.interchange.plain import plain_networks

try:
    from huggingface_hub import PyTorchModelHubMixin, snapshot_download
except ImportError as error:
    raise UserError(
        "networks in the layout of Hugging Face need huggingface_hub: pip install 'vgan_fast[hub]'"
    ) from error

_CARD = """---
{{ card_data }}
---

# {{ network }}

{{ summary }} From vgan_fast, after "Generating Videos with Scene Dynamics" ({{ paper_url }}).

```python
from vgan_fast.interchange.hub import {{ network }}

network = {{ network }}.from_pretrained(FOLDER_OR_NAME)
```

What it was trained on, and what it may be used for, its authors must say here.
"""


class _Published(
    PyTorchModelHubMixin,
    model_card_template=_CARD,
    library_name="vgan_fast",
    paper_url="https://arxiv.org/abs/1609.02612",
):
    """What the networks share; goes before one of `vgan_fast.models`."""

    def save_pretrained(self, folder: str | Path, **options) -> str | None:
        """Write config.json, model.safetensors and README.md; options are the mixin's."""
        name, summary = type(self).__name__, " ".join(type(self).__doc__.split())
        options["config"] = {"network": name, **self._hub_mixin_config}
        options["model_card_kwargs"] = {"network": name, "summary": summary}
        return super().save_pretrained(folder, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        # Not the mixin's save_model, which reports a full disk as an error of its own.
        (save_directory / WEIGHTS).write_bytes(safetensors.torch.save(weights))

    @classmethod
    def from_pretrained(cls, folder_or_name: str | Path, **options):
        """The network in a folder, or of a name on the hub, in evaluation mode on the CPU.

        The mixin's own would take any config.json at its word, and a pickle where there are no
        safetensors. Here the two files of the layout are all that is downloaded, and they are
        checked before a network is built.

        Args:
            folder_or_name: of what `save_pretrained` wrote.
            options: of `huggingface_hub.snapshot_download`: revision, token, cache_dir, …

        Raises:
            UserError: when it cannot be had, or is not this network.
        """
        folder = Path(folder_or_name)
        if not folder.is_dir():
            options["allow_patterns"] = [CONFIG, WEIGHTS]
            try:
                folder = Path(snapshot_download(str(folder_or_name), **options))
            except (OSError, ValueError) as error:  # the library's are all of these
                reason = str(error).strip().splitlines()[0]
                raise UserError(f"{folder_or_name}: no folder, nor to be had ({reason})") from error
        described = read_description(folder)
        if described.name != cls.__name__:
            raise UserError(f"{folder}: holds the weights of {described.name}, not {cls.__name__}")
        network = cls(**described.arguments)
        network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        return network.eval()


class OneStreamGenerator(_Published, models.OneStreamGenerator):
    """Makes videos (N, 3, T, H, W) in [-1, 1] of latents (N, latent) from N(0, 1)."""


class TwoStreamGenerator(_Published, models.TwoStreamGenerator):
    """Makes videos (N, 3, T, H, W) in [-1, 1] of latents (N, latent) from N(0, 1), blended of a
    moving foreground and a still background.
    """


class FutureGenerator(_Published, models.FutureGenerator):
    """Goes on from first frames (N, 3, k, H, W) in [-1, 1]: videos (N, 3, T, H, W)."""


class Discriminator(_Published, models.Discriminator):
    """Scores videos (N, 3, T, H, W) in [-1, 1] as real or generated, or by classes."""


class Encoder(_Published, models.Discriminator):
    """The autoencoder's: codes (N, latent) of videos (N, 3, T, H, W) in [-1, 1]."""


class Decoder(_Published, models.TwoStreamGenerator):
    """The autoencoder's: videos (N, 3, T, H, W) in [-1, 1] of codes (N, latent)."""


_CLASSES = {
    of.__name__: of
    for of in (
        OneStreamGenerator,
        TwoStreamGenerator,
        FutureGenerator,
        Discriminator,
        Encoder,
        Decoder,
    )
}


def publish(run: Path, folder: Path) -> list[Path]:
    """Write each network of a run into a folder of its own below `folder`, named by its role.

    Args:
        run: a run of `vgan_fast.train`, or one of its checkpoints.
        folder: that is there.

    Raises:
        UserError: as of `plain_networks`.
    """
    made = []
    for described, plain in plain_networks(run):
        network = _CLASSES[described.name](**described.arguments)
        network.load_state_dict(plain.state_dict())
        network.save_pretrained(folder / described.kind.role)
        made.append(folder / described.kind.role)
    return made
