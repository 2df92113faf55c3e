"""Camera motion: where a frame lies in the picture of a clip's first frame.

The original chains homographies between consecutive frames, fitted to matches of SIFT features
that FLANN finds, so that their errors add up, and the motion with the most matches wins. Here each
frame is registered to the clip's first frame, and the motion wins that brings most of the picture
to rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import cv2
import numpy as np

Model = Literal["similarity", "homography"]

SIDE = 256  # pixels, short side of the frames that motion is measured on; lengths below are theirs
# The original's settings.
RATIO = 0.7  # of the distances to the nearest and the second nearest descriptor, at most
LEAST_MATCHES = 10
_TREES, _CHECKS = 5, 50
_FLANN_KDTREE = 1

_CELL = 32  # side of the cells that a frame is divided into
_BLOCK = 16  # side of the blocks that vote on motions
_FEATURES_IN_CELL = 8
_CORNERS_IN_CELL = 4
_CORNER_QUALITY = 1e-4  # of the best corner's, at least: walls count beside what has texture
_WINDOW = (15, 15)  # of the tracker
_ASTRAY = 3.0  # see `_astray`
_LOST = 16.0  # distance that a corner which is not found counts for
_EXPLAINED = 1.5  # from where a match is to where a motion puts it, at most
_MOTIONS = 4  # that are fitted to one set of matches
_FLATTENED = 0.01  # determinant of a motion that leaves nothing of the picture
_AT_REST = 0.3  # that corners move while the camera rests
_RESTING = 0.6  # of the cells: then no motion is looked for
_DECIDED = 0.25  # grey levels between a block's errors under two motions that tell them apart
# Objects on two fifths of both pictures, in different places, leave a third of the cells to judge
# a motion by: its error is that of the best fifth.
_JUDGED = 0.2
_WELL_TRACKED = 0.5  # error, above which features are matched as well


class UnregisteredError(Exception):
    """The frame cannot be placed; the message says why."""


@dataclass(frozen=True, slots=True)
class Registration:
    """Where a frame lies in the picture of the first one."""

    matrix: np.ndarray  # float64 (3, 3), from pixels of the frame to pixels of the first frame
    # From where the motion puts the first frame's corners to where they are found: the median in
    # each cell, of which a fifth has less. Corners count that the motion does not explain, so that
    # it is large where a minority has been followed.
    error: float


class _Pairs(NamedTuple):
    """Points of two frames that show the same thing: float32 (K, 2) each."""

    seen: np.ndarray  # in the new frame
    there: np.ndarray  # in the earlier one


class _Tracks(NamedTuple):
    """Where corners were looked for."""

    pairs: _Pairs
    followed: np.ndarray  # bool (K,): found

    @property
    def found(self) -> _Pairs:
        return _Pairs(self.pairs.seen[self.followed], self.pairs.there[self.followed])


class View:
    """One frame, and what is found in it: each part is computed once, when first asked for."""

    def __init__(self, grey: np.ndarray, seed: bytes, number: int):
        """`grey` is uint8 (H, W); `seed` names the file and `number` the frame in it."""
        self.grey = grey
        self._seed = hashlib.sha256(seed + number.to_bytes(8, "big")).digest()

    def reseed(self) -> None:
        """Start OpenCV's generator, which FLANN and RANSAC draw from, from file and frame."""
        cv2.setRNGSeed(int.from_bytes(self._seed[:4], "big") >> 1)

    @cached_property
    def corners(self) -> np.ndarray:
        """Corners that can be tracked, float32 (K, 2), spread evenly."""
        found = cv2.goodFeaturesToTrack(self.grey, 0, _CORNER_QUALITY, 4)
        if found is None:
            return np.zeros((0, 2), np.float32)
        return found[_ranks(self._cells(found[:, 0])) < _CORNERS_IN_CELL, 0]

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """SIFT's points, float32 (K, 2), and descriptors, float32 (K, 128), spread evenly."""
        detector = cv2.SIFT_create(contrastThreshold=0.02)
        found = sorted(detector.detect(self.grey), key=lambda point: -point.response)
        if not found:
            return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
        ranks = _ranks(self._cells(np.array([point.pt for point in found])))
        kept = [point for point, rank in zip(found, ranks, strict=True) if rank < _FEATURES_IN_CELL]
        kept, descriptors = detector.compute(self.grey, kept)
        return np.array([point.pt for point in kept], np.float32), descriptors

    @cached_property
    def index(self) -> cv2.flann.Index:
        """Randomised kd-trees over the descriptors."""
        self.reseed()
        return cv2.flann.Index(self.features[1], {"algorithm": _FLANN_KDTREE, "trees": _TREES})

    def by_cell(self, points: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return the median of the values at those points, in each cell that has any."""
        cells = self._cells(points)
        order = np.lexsort((values, cells))
        _, first, counts = np.unique(cells[order], return_index=True, return_counts=True)
        return values[order][first + (counts - 1) // 2]

    def _cells(self, points: np.ndarray) -> np.ndarray:
        x, y = (points // _CELL).astype(np.int64).T
        return y * -(-self.grey.shape[1] // _CELL) + x


def _ranks(cells: np.ndarray) -> np.ndarray:
    """Return for each element how many before it are in the same cell."""
    order = np.argsort(cells, kind="stable")
    ordered = cells[order]
    ranks = np.empty(len(cells), np.int64)
    ranks[order] = np.arange(len(cells)) - np.searchsorted(ordered, ordered)
    return ranks


class Reference:
    """The first frame of a clip, which the others are registered to."""

    def __init__(self, first: View, model: Model):
        self.first, self._model = first, model
        self._before, self._matrix = first, np.eye(3)

    def register(self, view: View) -> Registration:
        """Return where `view`, the next frame, lies.

        Corners of the first frame are tracked into the new one (Lucas and Kanade, pyramidal), from
        where the last frame's motion puts them. Motions are fitted to what was found, and the one
        that brings most of the picture to rest is taken. Where it leaves an error, features of
        SIFT, matched by FLANN with the first frame's or else with the last one's, add motions.

        Raises:
            UnregisteredError: there is too little to be tracked, or no motion is common to it.
        """
        if len(self.first.corners) < LEAST_MATCHES:
            raise UnregisteredError("too few corners")
        view.reseed()
        tracks = self._track(view, self._matrix)
        motions = [np.eye(3)]
        error = self._error(tracks, motions[0])
        winner = motions[0]
        if self._error(tracks, winner, _RESTING) > _AT_REST:
            motions += _motions(tracks.found, self._model)
            winner = self._elected(view, motions)
            error = self._error(tracks, winner)
            if error > _WELL_TRACKED:
                motions += self._matched_motions(view)
                if len(motions) == 1:
                    raise UnregisteredError("no common motion")
                winner = self._elected(view, motions)
                error = self._error(self._track(view, winner), winner)
        self._before, self._matrix = view, winner
        return Registration(winner, error)

    def _track(self, view: View, motion: np.ndarray) -> _Tracks:
        """Look for the corners in `view` near where `motion` expects them."""
        there = self.first.corners
        expected = _put(there, np.linalg.inv(motion))
        height, width = view.grey.shape
        inside = ((expected >= 0) & (expected <= (width - 1, height - 1))).all(1)
        if inside.sum() < LEAST_MATCHES:
            raise UnregisteredError("the camera turned away")
        there = there[inside]
        seen, found, _ = cv2.calcOpticalFlowPyrLK(
            self.first.grey,
            view.grey,
            there,
            (expected[inside] + _astray(len(there))).astype(np.float32),
            winSize=_WINDOW,
            maxLevel=2,
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        )
        return _Tracks(_Pairs(seen, there), found[:, 0] == 1)

    def _error(self, tracks: _Tracks, motion: np.ndarray, quantile: float = _JUDGED) -> float:
        distances = np.minimum(_distances(tracks.pairs, motion), _LOST)
        distances[~tracks.followed] = _LOST
        return float(np.quantile(self.first.by_cell(tracks.pairs.there, distances), quantile))

    def _matched_motions(self, view: View) -> list[np.ndarray]:
        motions = list(_motions(_matches(view, self.first), self._model))
        if not motions and self._before is not self.first:
            steps = _motions(_matches(view, self._before), self._model)
            motions = [self._matrix @ step for step in steps]
        return motions

    def _elected(self, view: View, motions: list[np.ndarray]) -> np.ndarray:
        """Return the motion under which most blocks of the two pictures agree.

        Votes go by area: a textured object has more corners than a wall, but not more blocks.
        """
        height, width = view.grey.shape
        blocks = (-(-width // _BLOCK), -(-height // _BLOCK))
        errors = []
        for motion in motions:
            moved = cv2.warpPerspective(
                view.grey, motion, (width, height), borderMode=cv2.BORDER_REPLICATE
            )
            difference = cv2.absdiff(moved, self.first.grey).astype(np.float32)
            errors.append(cv2.resize(difference, blocks, interpolation=cv2.INTER_AREA))
        errors = np.stack(errors)
        # Approval, for two motions that are nearly the same must not split their blocks' votes.
        approvals = (errors <= errors.min(0) + _DECIDED).sum((1, 2))
        return motions[int(approvals.argmax())]


def _matches(view: View, target: View) -> _Pairs:
    """Return the features of `view` whose nearest in `target` stands out (Lowe's ratio test)."""
    (seen, descriptors), (there, others) = view.features, target.features
    if min(len(seen), len(others)) < LEAST_MATCHES:
        return _Pairs(*np.zeros((2, 0, 2), np.float32))
    index = target.index
    view.reseed()
    nearest, squares = index.knnSearch(descriptors, 2, params={"checks": _CHECKS})
    good = squares[:, 0] < RATIO**2 * squares[:, 1]
    return _Pairs(seen[good], there[nearest[good, 0]])


def _motions(pairs: _Pairs, model: Model) -> Iterator[np.ndarray]:
    """Yield motions, each fitted to the pairs that those before it leave unexplained."""
    for _ in range(_MOTIONS):
        if len(pairs.seen) < LEAST_MATCHES:
            return
        if model == "similarity":
            rows, _ = cv2.estimateAffinePartial2D(
                *pairs, method=cv2.RANSAC, ransacReprojThreshold=_EXPLAINED, confidence=0.999
            )
            motion = None if rows is None else np.vstack((rows, (0, 0, 1)))
        else:
            motion, _ = cv2.findHomography(*pairs, cv2.RANSAC, _EXPLAINED, confidence=0.999)
        if motion is None or np.linalg.det(motion) < _FLATTENED:
            return
        explained = _distances(pairs, motion) < _EXPLAINED
        if explained.sum() < LEAST_MATCHES:
            return
        yield motion
        pairs = _Pairs(pairs.seen[~explained], pairs.there[~explained])


def _astray(count: int) -> np.ndarray:
    """Return how far from where they are expected corners are looked for first.

    A corner is found from there all the same; in noise, the search stays where it began, which
    must not pass for agreement.
    """
    return _ASTRAY * np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])[np.arange(count) % 4]


def _put(points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """Return where a motion takes points (K, 2)."""
    return cv2.perspectiveTransform(points[:, None].astype(np.float64), motion)[:, 0]


def _distances(pairs: _Pairs, motion: np.ndarray) -> np.ndarray:
    return np.linalg.norm(_put(pairs.seen, motion) - pairs.there, axis=1)
