"""The embedded data set: objects moving over still, textured backgrounds, with known masks.

Endless and drawn on the training device. Clip `index` of a seed is a pure function of the two, so
the loader's state is one integer; the two splits of one seed share no clip.
"""

import math
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

OBJECTS = 3  # most objects in a clip; each clip shows one to three
WAVES = 3  # plane waves in a background's texture
DRAWS = 64  # uniform numbers reserved for each clip, a multiple of Philox's 4 per counter


class SyntheticClips:
    """An endless source of clips with the interface of a loader over files.

    Args:
        frames, size: clips are (T, H, W) = (frames, size, size).
        batch_size: clips in a batch.
        seed: any integer >= 0.
        device: where the clips are drawn.
        split: "train" or "held-out"; different clips of the same distribution.
        position: number of batches to pass over.
        rank, ranks: which of how many sources that share each batch this is, one's clips after
            another's; `batch_size` is of each.

    Attributes:
        skipped: no file can be broken here; empty.
        fingerprint: there are no files that could change; constant.
        position: number of batches handed out.
    """

    skipped: ClassVar[dict[Path, str]] = {}
    fingerprint = "synthetic"

    def __init__(
        self,
        *,
        frames: int,
        size: int,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        split: Literal["train", "held-out"] = "train",
        position: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.frames, self.size, self.batch_size = frames, size, batch_size
        self.device = torch.device(device)
        self.position = position
        self._rank, self._ranks = rank, ranks
        self._key = np.array([seed, ("train", "held-out").index(split)], dtype=np.uint64)

    @property
    def summary(self) -> str:
        """One line on what the batches hold."""
        return (
            f"synthetic clips, endless: one to {OBJECTS} objects moving over a still background, "
            f"{self.frames} frames of {self.size}x{self.size}"
        )

    def next_batch(self) -> Tensor:
        """The next clips: uint8 (N, T, H, W, 3), RGB, contiguous."""
        return self.next_batch_with_masks()[0]

    def next_batch_with_masks(self) -> tuple[Tensor, Tensor]:
        """The next clips and the cover of their objects, fp32 (N, T, H, W) in [0, 1]."""
        draws = self._draws()
        self.position += 1
        scenery, movers = draws.split([3 + 6 * WAVES, DRAWS - (3 + 6 * WAVES)], dim=1)
        return compose(background(scenery, self.size), *_objects(movers, self.frames, self.size))

    def close(self) -> None:
        """Nothing is held open."""

    def _draws(self) -> Tensor:
        first = (self.position * self._ranks + self._rank) * self.batch_size
        generator = np.random.Philox(key=self._key).advance(first * DRAWS // 4)
        uniform = np.random.Generator(generator).random((self.batch_size, DRAWS))
        return torch.from_numpy(uniform).to(self.device)


def background(u: Tensor, size: int) -> Tensor:
    """Colour plus plane waves, fp32 (N, 3, H, W) in [0, 1], from uniform numbers (N, 3 + 6 waves).

    Phases are taken in float64, so that the rounded pixel does not depend on the batch around it.
    """
    base, angle, cycles, phase, tint = u.split([3, WAVES, WAVES, WAVES, 3 * WAVES], dim=1)
    base, tint = 0.25 + 0.5 * base, tint.unflatten(1, (WAVES, 3)) - 0.5
    angle, phase = 2 * math.pi * angle, 2 * math.pi * phase
    cycles = 0.5 + 1.5 * cycles  # periods across the picture
    at = (torch.arange(size, dtype=u.dtype, device=u.device) + 0.5) / size
    x = (cycles * torch.cos(angle))[..., None, None] * at
    y = (cycles * torch.sin(angle))[..., None, None] * at[:, None]
    waves = torch.sin(2 * math.pi * (x + y) + phase[..., None, None])
    texture = torch.einsum("nkc,nkhw->nchw", 0.3 * tint, waves)
    return (base[..., None, None] + texture).clamp(0, 1).float()


def _objects(u: Tensor, frames: int, size: int) -> tuple[Tensor, Tensor]:
    """Covers fp32 (N, objects, T, H, W) in [0, 1], and colours (N, objects, 3) in [0, 1].

    An object is the superellipse |dx / r|^p + |dy / r|^p <= 1, a disc (p = 2) or a rounded square
    (p = 8), of radius 0.1 to 0.2 picture widths. It crosses 0.4 to 1.2 widths during the clip and
    bounces off the borders.
    """
    count, u = u[:, :1], u[:, 1 : 1 + 9 * OBJECTS].unflatten(1, (OBJECTS, 9))
    present = torch.arange(OBJECTS, device=u.device) < 1 + torch.floor(count * OBJECTS)
    radius = 0.1 + 0.1 * u[..., 0]
    travel, heading = 0.4 + 0.8 * u[..., 1], 2 * math.pi * u[..., 2]
    colour, power = looks(u[..., 3:7])
    time = torch.arange(frames, dtype=u.dtype, device=u.device) / frames

    def path(start: Tensor, velocity: Tensor) -> Tensor:
        room = (1 - 2 * radius)[..., None]
        unfolded = start[..., None] * room + velocity[..., None] * time
        return radius[..., None] + room - (unfolded.remainder(2 * room) - room).abs()

    centre_x = path(u[..., 7], travel * torch.cos(heading))
    centre_y = path(u[..., 8], travel * torch.sin(heading))
    covers = outline(centre_x, centre_y, radius, power, size)
    return covers.mul_(present[..., None, None, None]), colour.float()


def looks(u: Tensor) -> tuple[Tensor, Tensor]:
    """Colour (..., 3) near the corners of the cube [0, 1]^3, and power, 2 or 8, from (..., 4)."""
    colour = torch.where(u[..., :3] < 0.5, 0.3 * u[..., :3], 1 - 0.3 * (1 - u[..., :3]))
    return colour, torch.where(u[..., 3] < 0.5, 8.0, 2.0).to(u.dtype)


def outline(
    centre_x: Tensor,
    centre_y: Tensor,
    radius: Tensor,
    power: Tensor,
    size: int,
    wrapped: bool = False,
) -> Tensor:
    """Covers fp32 (N, objects, T, H, W) in [0, 1] of superellipses |dx / r|^p + |dy / r|^p <= 1.

    Args:
        centre_x, centre_y: (N, objects, T), in picture widths.
        radius, power: r and p, (N, objects).
        size: H and W.
        wrapped: whether what leaves at one border enters at the opposite one; 2 r <= 1 then.
    """
    at = (torch.arange(size, dtype=radius.dtype, device=radius.device) + 0.5) / size
    radius, power = radius[..., None, None], power[..., None, None]
    across, down = at - centre_x[..., None], at - centre_y[..., None]
    if wrapped:
        across, down = ((off + 0.5).remainder(1) - 0.5 for off in (across, down))
    across = (across / radius).abs() ** power  # (N, objects, T, W)
    down = (down / radius).abs() ** power  # (N, objects, T, H)
    # The border is one pixel wide where it crosses the axes.
    slope = radius * size / power
    across, down = (slope * across).float(), (0.5 + slope * (1 - down)).float()
    return (down[..., :, None] - across[..., None, :]).clamp_(0, 1)


def compose(background: Tensor, covers: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
    """Later objects hide earlier ones; uint8 (N, T, H, W, 3) and the joint cover (N, T, H, W).

    `covers` is overwritten by the share of each pixel that its object is seen in.
    """
    n, objects, t, h, w = covers.shape
    clear = torch.ones_like(covers[:, 0])
    for k in reversed(range(objects)):
        clear -= covers[:, k].mul_(clear)
    painted = torch.bmm(255 * colour.mT, covers.view(n, objects, -1)).view(n, 3, t, h, w)
    painted.addcmul_(255 * background[:, :, None], clear[:, None]).round_()
    return painted.permute(0, 2, 3, 4, 1).to(torch.uint8).contiguous(), 1 - clear
