"""A labelled synthetic set: the class is how objects move, and no single frame tells it.

Objects live on a picture whose opposite borders meet, and at the clip's beginning each is anywhere
on it with equal chance, whatever the class. Every motion below shifts that place by an amount that
does not depend on it, so at every moment an object is still anywhere with equal chance: one frame
has exactly the same distribution in every class, and so have frames of any one moment.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from .synthetic import DRAWS, WAVES, SyntheticClips, background, compose, looks, outline

CLASSES = (
    "right",
    "left",
    "down",
    "up",
    "clockwise",
    "counter-clockwise",
    "sideways-to-and-fro",
    "up-and-down",
)
OBJECTS = 4  # in every clip, all of its class, each with its own speed and place
_EACH = 9  # uniform numbers of an object


class SyntheticMotions(SyntheticClips):
    """An endless source of clips with labels; see `SyntheticClips`, whose arguments it takes.

    Attributes:
        classes: names of the classes by label.
    """

    fingerprint = "synthetic-motions"
    classes: ClassVar[list[str]] = list(CLASSES)

    @property
    def summary(self) -> str:
        """One line on what the batches hold."""
        return (
            f"synthetic motions, endless: {OBJECTS} objects that move by the clip's class, of "
            f"{len(CLASSES)}, {self.frames} frames of {self.size}x{self.size}"
        )

    def next_batch_with_labels(self) -> tuple[Tensor, Tensor]:
        """The next clips, uint8 (N, T, H, W, 3), and their labels, int64 (N,), on the device."""
        draws = self._draws()
        # The last number, which neither scenery nor objects use.
        labels = torch.floor(draws[:, -1] * len(CLASSES)).long()
        return self.next_batch(), labels

    def next_batch_with_masks(self) -> tuple[Tensor, Tensor]:
        """The next clips and the cover of their objects, fp32 (N, T, H, W) in [0, 1]."""
        draws = self._draws()
        self.position += 1
        scenery, movers = draws.split([3 + 6 * WAVES, DRAWS - (3 + 6 * WAVES)], dim=1)
        labels = torch.floor(draws[:, -1] * len(CLASSES)).long()
        return compose(background(scenery, self.size), *self._objects(movers, labels))

    def _objects(self, u: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Covers fp32 (N, objects, T, H, W) in [0, 1], and colours (N, objects, 3) in [0, 1]."""
        u = u[:, : _EACH * OBJECTS].unflatten(1, (OBJECTS, _EACH))
        radius = 0.1 + 0.06 * u[..., 0]
        colour, power = looks(u[..., 1:5])
        time = torch.arange(self.frames, dtype=u.dtype, device=u.device) / self.frames
        shift_x, shift_y = _shifts(labels, u[..., 7, None], u[..., 8, None], time)
        centre_x, centre_y = u[..., 5, None] + shift_x, u[..., 6, None] + shift_y
        covers = outline(centre_x, centre_y, radius, power, self.size, wrapped=True)
        return covers, colour.float()


def _shifts(labels: Tensor, speed: Tensor, phase: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Where objects are, from where they began, in picture widths: x and y, (N, objects, T).

    Args:
        labels: (N,).
        speed, phase: uniform in [0, 1), (N, objects, 1): 0.5 to 1.2 widths a clip, or 1 to 2
            turns or swings of 0.12 widths to each side.
        time: (T,), in clips.
    """
    way = (0.5 + 0.7 * speed) * time
    angle = 2 * math.pi * (phase + (1 + speed) * time)
    start = 2 * math.pi * phase
    across, along = (0.12 * (f(angle) - f(start)) for f in (torch.cos, torch.sin))
    still = torch.zeros_like(way)
    # y grows downwards, so a growing angle turns clockwise.
    x = torch.stack([way, -way, still, still, across, across, across, still])
    y = torch.stack([still, still, way, -way, along, -along, still, along])
    each = torch.arange(len(labels), device=labels.device)
    return x[labels, each], y[labels, each]
