"""Input pass: decoded frames to the tensors that the networks train on."""

from .api import (
    clip_to_cells,
    frames_to_cells,
    normalise_frames,
    pair_to_cells,
)

__all__ = [
    "clip_to_cells",
    "frames_to_cells",
    "normalise_frames",
    "pair_to_cells",
]
