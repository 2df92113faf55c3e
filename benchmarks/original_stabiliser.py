"""The original project's stabiliser, rewritten plainly: what ours is measured against.

Each frame is registered to the one before it, at full size, and the homographies are multiplied up
to the clip's first frame. Two settings are not the original's: clips have up to 32 frames, not 34,
so that both make the same ones; and matching is by the kd-trees whose settings it gives, where the
number by which it asks FLANN for them is that of a search through all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np

SIZE = 128  # pixels, side of a clip
MIN_FRAMES, MAX_FRAMES = 16, 32  # of a clip
SKIPPED = 2  # frames at a video's start
_RATIO = 0.7  # of the distances to the nearest and the second nearest descriptor, below
_LEAST_MATCHES = 10
_REPROJECTION = 5.0  # pixels
_KDTREE, _TREES, _CHECKS = 1, 5, 50
_BORDER = np.ones((5, 5), np.uint8)


class OriginalClip(NamedTuple):
    """Consecutive frames of a video in the picture of their first one."""

    start: int  # number of the first frame, from 0
    pixels: np.ndarray  # uint8 (T, SIZE, SIZE, 3), RGB
    matrices: np.ndarray  # float64 (T, 3, 3), from pixels of a full frame to those of the first


class _Features(NamedTuple):
    points: tuple[cv2.KeyPoint, ...]
    descriptors: np.ndarray | None  # float32 (K, 128); None where K is 0


def original_clips(frames: Iterable[np.ndarray]) -> Iterator[OriginalClip]:
    """Yield the clips of a video; `frames` are uint8 (H, W, 3) each, RGB, of one size."""
    numbered = islice(enumerate(frames), SKIPPED, None)
    for start, first in numbered:
        clip = _clip(start, first, (frame for _, frame in numbered))
        if clip:
            yield clip


def _clip(start: int, first: np.ndarray, following: Iterator[np.ndarray]) -> OriginalClip | None:
    """Return the clip that begins with `first`, None where it is too short or is given up.

    A frame that is not matched costs the whole clip; one that nothing is left of ends it.
    """
    size = first.shape[1::-1]
    before = _features(first)
    matrices, pictures = [np.eye(3)], [scaled(first).astype(np.float64)]
    for frame in islice(following, MAX_FRAMES - 1):
        features = _features(frame)
        step = _step(features, before)
        if step is None:
            return None
        matrix = matrices[-1] @ step
        inside = cv2.warpPerspective(np.full(size[::-1], 255, np.uint8), matrix, size)
        inside = cv2.erode((inside == 255).astype(np.float32), _BORDER)
        inside = scaled(inside)[..., None]
        if not inside.any():
            break
        moved = scaled(cv2.warpPerspective(frame, matrix, size))
        pictures.append(moved * inside + pictures[-1] * (1 - inside))
        matrices.append(matrix)
        before = features
    if len(pictures) < MIN_FRAMES:
        return None
    pixels = np.stack([np.rint(picture).astype(np.uint8) for picture in pictures])
    return OriginalClip(start, pixels, np.stack(matrices))


def scaled(frame: np.ndarray) -> np.ndarray:
    """Return the centre square of the frame with its short side scaled to SIZE, bilinearly."""
    height, width = (round(side * SIZE / min(frame.shape[:2])) for side in frame.shape[:2])
    frame = cv2.resize(frame, (width, height))
    y, x = height // 2 - SIZE // 2, width // 2 - SIZE // 2
    return frame[y : y + SIZE, x : x + SIZE]


def _features(frame: np.ndarray) -> _Features:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return _Features(*cv2.SIFT_create().detectAndCompute(grey, None))


def _step(seen: _Features, before: _Features) -> np.ndarray | None:
    """Return the homography from a frame to the one before it, None where it is not matched."""
    if min(len(seen.points), len(before.points)) < 2:
        return None
    matcher = cv2.FlannBasedMatcher({"algorithm": _KDTREE, "trees": _TREES}, {"checks": _CHECKS})
    pairs = matcher.knnMatch(seen.descriptors, before.descriptors, k=2)
    good = [nearest for nearest, second in pairs if nearest.distance < _RATIO * second.distance]
    if len(good) < _LEAST_MATCHES:
        return None
    here = np.float32([seen.points[match.queryIdx].pt for match in good])
    there = np.float32([before.points[match.trainIdx].pt for match in good])
    homography, _ = cv2.findHomography(here, there, cv2.RANSAC, _REPROJECTION)
    return homography
