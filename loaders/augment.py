"""Augmentation: what may vary, and one draw of it for each clip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vgan_fast.errors import UserError

DRAWS = 9  # uniform numbers for each clip
ASPECT = 4 / 3  # a random crop's width over its height lies between 1 / ASPECT and ASPECT
_RANGES = {
    "crop": (0.05, 1),
    "brightness": (0, 1),
    "contrast": (0, 1),
    "saturation": (0, 1),
    "hue": (0, 180),
}


@dataclass(frozen=True)
class Augmentation:
    """What may vary from clip to clip; all frames of a clip share one draw. Nothing by default.

    Attributes:
        crop: least share of the picture's area that a random resized crop keeps, 0.05 to 1.
        flip: whether half of the clips are mirrored left to right.
        brightness: largest relative change, 0 to 1; 0.2 multiplies all values by 0.8 to 1.2.
        contrast: largest relative change of the distance from mid-grey, 0 to 1.
        saturation: largest relative change of the distance from grey of the same lightness, 0 to 1.
        hue: largest turn of the colours, 0 to 180 degrees.

    Raises:
        UserError: a value is out of range.
    """

    crop: float = 1.0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self):
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UserError(f"--{name} {value}: must lie between {least} and {most}")

    @property
    def varied(self) -> list[str]:
        """Names of the parameters that are drawn, those of one operation together."""
        names = []
        if self.crop < 1:
            names += ["top_left", "bottom_right"]
        if self.flip:
            names += ["mirror"]
        if any((self.brightness, self.contrast, self.saturation, self.hue)):
            names += ["brightness", "contrast", "saturation", "hue"]
        return names

    def side(self, size: int) -> int:
        """Pixels a side that a clip needs for its smallest crop to hold `size` a side."""
        return math.ceil(size / math.sqrt(self.crop))

    def parameters(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        """Turn one clip's uniform draws, float64 (DRAWS,), into the parameters of `varied`.

        Returns:
            "top_left" and "bottom_right": the crop's corners as shares of the picture, fp32 (2,)
            in (y, x); "mirror": int32 0 or 1; "brightness", "contrast" and "saturation": factors,
            fp32; "hue": the turn in degrees, fp32.
        """
        area = self.crop + (1 - self.crop) * draws[0]
        # Within these limits neither side of the crop exceeds the picture's.
        widest = min(math.log(ASPECT), -math.log(area))
        aspect = math.exp((2 * draws[1] - 1) * widest)
        crop = np.array([math.sqrt(area / aspect), math.sqrt(area * aspect)])
        corner = (1 - crop) * draws[2:4]
        around = 2 * draws[5:9] - 1
        every = {
            "top_left": np.float32(corner),
            "bottom_right": np.float32(corner + crop),
            "mirror": np.int32(draws[4] < 0.5),
            "brightness": np.float32(1 + self.brightness * around[0]),
            "contrast": np.float32(1 + self.contrast * around[1]),
            "saturation": np.float32(1 + self.saturation * around[2]),
            "hue": np.float32(self.hue * around[3]),
        }
        return {name: every[name] for name in self.varied}
