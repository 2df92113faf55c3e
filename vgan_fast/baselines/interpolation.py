"""Occluded pixels by linear interpolation over time: the simplest recovery to be better than."""

import cv2
import numpy as np

from vgan_fast.baselines.inputs import check_clip


def recover(clip: np.ndarray, occluded: np.ndarray) -> np.ndarray:
    """Fill each occluded pixel on the line between its nearest visible moments.

    Before a pixel's first visible moment and after its last one it keeps that one's value. A pixel
    that is never visible takes, in each frame, the value of the nearest pixel of that frame which
    is visible at some moment, interpolated or not (nearest to within 2 % of the distance).

    Args:
        clip: (T, H, W, 3) uint8; what it holds at occluded pixels does not matter.
        occluded: (T, H, W) bool.

    Returns:
        (T, H, W, 3) fp32 in [0, 255], the visible pixels as they were.

    Raises:
        UserError: with everything occluded.
        ValueError: on other shapes or types.
    """
    check_clip(clip, occluded)
    frames = len(clip)
    moments = np.arange(frames)[:, None, None]
    before = np.maximum.accumulate(np.where(occluded, -1, moments), axis=0)
    after = np.minimum.accumulate(np.where(occluded, frames, moments)[::-1], axis=0)[::-1]
    never = occluded.all(0)
    # Beyond the ends both are the one moment that there is; pixels without any are filled below.
    before, after = (
        np.where(before < 0, after, before),
        np.where(after == frames, before, after),
    )
    before, after = before.clip(0, frames - 1), after.clip(0, frames - 1)
    rows, columns = np.indices(never.shape)
    share = ((moments - before) / np.maximum(after - before, 1))[..., None].astype(np.float32)
    filled = clip[before, rows, columns] * (1 - share) + clip[after, rows, columns] * share
    if never.any():
        _, labels = cv2.distanceTransformWithLabels(
            never.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
        )
        # A label is that of the nearest visible pixel, which carries it too.
        places = np.zeros(labels.max() + 1, np.int64)
        places[labels[~never]] = np.flatnonzero(~never)
        filled[:, never] = filled.reshape(frames, -1, 3)[:, places[labels[never]]]
    return filled
