"""Size of a clip and of the networks over it."""

import math
from dataclasses import dataclass

from vgan_fast.errors import UserError


@dataclass(frozen=True)
class ClipShape:
    """Frames, pixels a side, channels next to the pixels, and entries of the latent code.

    Raises:
        UserError: when no network of stride-2 layers fits the sizes.
    """

    frames: int = 32
    size: int = 64
    width: int = 64
    latent: int = 100

    def __post_init__(self):
        for name in ("frames", "size"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise UserError(f"--{name} {value}: must be a power of two")
        if not 8 <= self.size <= 1024:
            raise UserError(f"--size {self.size}: must lie between 8 and 1024")
        if self.frames < self.size // 4:
            raise UserError(
                f"--frames {self.frames}: at --size {self.size} at least {self.size // 4} frames "
                "are needed (every stride-2 layer halves time as well as space)"
            )
        if self.frames > 1024:
            raise UserError(f"--frames {self.frames}: must be at most 1024")
        if not 1 <= self.width <= 1024:
            raise UserError(f"--width {self.width}: must lie between 1 and 1024")
        if not 1 <= self.latent <= 65536:
            raise UserError(f"--latent {self.latent}: must lie between 1 and 65536")

    @property
    def levels(self) -> int:
        """Number of stride-2 layers, L."""
        return int(math.log2(self.size // 4))

    @property
    def depth(self) -> int:
        """Frames left at the 4x4 end of the networks."""
        return self.frames >> self.levels

    @property
    def widths(self) -> list[int]:
        """Channels of each layer from the 4x4 end outwards, e.g. [512, 256, 128, 64]."""
        return [self.width << level for level in reversed(range(self.levels))]
