"""What a recovery must beat: each occluded pixel from its own past and future."""

import numpy as np


def interpolated(clip: np.ndarray, occluded: np.ndarray) -> np.ndarray:
    """Fill occluded pixels in linearly between the frames that show them before and after.

    Before a pixel's first and after its last appearance that one stands. A pixel that is never seen
    takes the mean colour of all that are.

    Args:
        clip: uint8 (T, H, W, 3); what occluded pixels hold makes no difference.
        occluded: bool (T, H, W), somewhere False.

    Returns:
        float32 (T, H, W, 3) in [0, 255].
    """
    frames = len(clip)
    times = np.arange(frames)[:, None, None]
    before = np.maximum.accumulate(np.where(occluded, -1, times))
    after = np.minimum.accumulate(np.where(occluded, frames, times)[::-1])[::-1]
    first, last = np.where(before < 0, after, before), np.where(after == frames, before, after)
    never = first == frames
    first, last = (np.where(never, 0, known)[..., None] for known in (first, last))
    share = (times[..., None] - first) / np.maximum(last - first, 1)
    start, end = (np.take_along_axis(clip, at, 0).astype(np.float32) for at in (first, last))
    # Beyond the last appearance first and last are the same frame, and the share makes nothing.
    filled = (start + share * (end - start)).astype(np.float32)
    filled[never] = clip[~occluded].mean(axis=0)
    return filled
