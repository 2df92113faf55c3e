"""What every recovery is given: a clip and where it is occluded."""

import numpy as np

from vgan_fast.errors import UserError


def check_clip(clip: np.ndarray, occluded: np.ndarray) -> None:
    """Raise unless `clip` is uint8 (T, H, W, 3), `occluded` bool (T, H, W) and some is visible."""
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3:
        raise ValueError(f"a clip must be uint8 (T, H, W, 3), got {clip.dtype} {clip.shape}")
    if occluded.dtype != np.bool_ or occluded.shape != clip.shape[:3]:
        raise ValueError(
            f"occlusions must be bool {clip.shape[:3]}, got {occluded.dtype} {occluded.shape}"
        )
    if occluded.all():
        raise UserError("every pixel of the clip is occluded: leave some to recover the rest from")
