"""Pixels of images that Pillow opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


# Pillow goes by a file's content, not by its name, and hands PostScript to a program of its own.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


def as_rgb(image: Image.Image) -> np.ndarray:
    """Return uint8 (H, W, 3), decoding the image; an alpha channel is dropped.

    Raises:
        ValueError: its pixels have 32 bits, whose range is anybody's guess.
        Exception: whatever its format raises where it is damaged.
    """
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("F", "I"):
        raise ValueError("pixels of 32 bits; save it with 8 or 16")
    return np.asarray(image.convert("RGB"))
