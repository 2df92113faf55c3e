"""Clips from the frames of a video: cut at shots, stabilised, or rejected for a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from .motion import SIDE, Reference, UnregisteredError, View
from .shots import with_cuts

Motion = Literal["similarity", "homography", "none"]

_BORDER = np.ones((5, 5), np.uint8)  # the original's erosion of what a frame covers


@dataclass(frozen=True, slots=True)
class Cutting:
    """What clips are made."""

    frames: int = 32  # at most, in a clip
    min_frames: int = 16
    size: int = 128  # pixels, side of a clip
    skip: int = 2  # frames left out at the beginning of a video, as the original does
    motion: Motion = "similarity"
    max_error: float = 1.0  # pixels of a clip, of a frame's registration
    min_overlap: float = 0.5  # of a clip's picture that a frame must cover

    @property
    def short_side(self) -> int:
        """Pixels, short side that frames are to be scaled to first."""
        return max(SIDE, 2 * self.size)


@dataclass(frozen=True, slots=True)
class Clip:
    """Consecutive frames of one shot in the picture of their first one."""

    start: int  # number of the first frame, from 0 in decode order
    pixels: np.ndarray  # uint8 (T, size, size, 3), RGB
    frame_size: tuple[int, int]  # (height, width) of the frames before they were cropped
    crop: tuple[int, int, int]  # left, top and side of the square that was cut out
    # float64 (T, 3, 3), from pixels of a frame of that size to pixels of the first one
    matrices: np.ndarray
    motion: float  # pixels of the clip: how far, on average, the camera moved from the first frame
    registration_error: float | None  # pixels of the clip, mean; None where nothing was registered
    # Grey levels, 0 to 255: mean difference between a frame and the first, raw and as it is here.
    error_before: float
    error_after: float

    @property
    def stabilised(self) -> bool:
        """Whether any frame was moved."""
        return bool((self.matrices != np.eye(3)).any())


@dataclass(frozen=True, slots=True)
class Rejected:
    """Consecutive frames that no clip holds."""

    start: int
    frames: int
    reason: str  # a few words, the same for the same cause
    detail: str = ""  # figures


def cut_clips(
    frames: Iterable[np.ndarray], cutting: Cutting, seed: bytes
) -> Iterator[Clip | Rejected]:
    """Yield clips and rejected stretches in order: each frame but the first `skip` is in one.

    A clip ends after `cutting.frames` frames, with its shot, or before a frame that cannot be
    registered to its first one, covers too little of it or fits too badly; the next begins there.
    What ends before `cutting.min_frames` is rejected.

    Args:
        frames: uint8 (H, W, 3) each, RGB, all of one size, with a short side of up to
            `cutting.short_side` pixels.
        cutting: what clips are made.
        seed: names the file; OpenCV's generator is started from it and the frame's number.
    """
    waiting: Rejected | None = None
    for piece in _pieces(frames, cutting, seed):
        if waiting and isinstance(piece, Rejected) and piece.reason == waiting.reason:
            waiting = replace(waiting, frames=waiting.frames + piece.frames)
            continue
        if waiting:
            yield waiting
        waiting = piece if isinstance(piece, Rejected) else None
        if isinstance(piece, Clip):
            yield piece
    if waiting:
        yield waiting


def _pieces(
    frames: Iterable[np.ndarray], cutting: Cutting, seed: bytes
) -> Iterator[Clip | Rejected]:
    take = None
    for number, (frame, begins) in enumerate(with_cuts(frames)):
        if number < cutting.skip:
            continue
        if take:
            try:
                if begins:
                    raise _EndError("the shot is short")
                take.add(frame, number)
            except _EndError as end:
                yield take.finished(end)
                take = None
        if take is None:
            take = _Take(frame, number, cutting, seed)
        elif len(take.matrices) == cutting.frames:
            yield take.finished()
            take = None
    if take:
        yield take.finished(_EndError("the shot is short"))


class _EndError(Exception):
    """The clip ends before this frame: (reason, figures)."""


class _Take:
    """A clip that is being made."""

    def __init__(self, first: np.ndarray, number: int, cutting: Cutting, seed: bytes):
        self._cutting, self._seed, self._start = cutting, seed, number
        self._frame_size = height, width = first.shape[:2]
        self._side = side = min(height, width)
        self._corner = np.array([(width - side) // 2, (height - side) // 2])
        self._scale = cutting.size / side
        self._reference = None
        if cutting.motion != "none":
            self._reference = Reference(self._view(first, number), cutting.motion)
        self.matrices = [np.eye(3)]
        self._last = self._cropped(first)  # the last output, before it is scaled
        self._raw = [self._scaled(self._last)]
        self._moved = [self._raw[0]]
        self._errors: list[float] = []

    def add(self, frame: np.ndarray, number: int) -> None:
        """Append a frame.

        Raises:
            _EndError: it cannot be part of this clip.
        """
        matrix = np.eye(3)
        if self._reference:
            matrix = self._registered(frame, number)
        raw = self._cropped(frame)
        moved = raw if _is_rest(matrix) else self._warped(frame, matrix)
        self._last = moved
        self.matrices.append(matrix)
        self._raw.append(self._scaled(raw))
        self._moved.append(self._raw[-1] if moved is raw else self._scaled(moved))

    def finished(self, end: _EndError | None = None) -> Clip | Rejected:
        """Return the clip, or why there is none."""
        cutting, count = self._cutting, len(self.matrices)
        if count < cutting.min_frames:
            return Rejected(self._start, count, *end.args)
        raw, moved = np.stack(self._raw), np.stack(self._moved)
        before, after = _unrest(raw), _unrest(moved)
        matrices = np.stack(self.matrices)
        if after > before:  # what looks like the camera's motion is not: better none than wrong
            matrices, moved, after = np.broadcast_to(np.eye(3), matrices.shape), raw, before
        return Clip(
            start=self._start,
            pixels=moved,
            frame_size=self._frame_size,
            crop=(*self._corner.tolist(), self._side),
            matrices=matrices,
            motion=self._motion(matrices),
            registration_error=float(np.mean(self._errors)) if self._errors else None,
            error_before=before,
            error_after=after,
        )

    def _view(self, frame: np.ndarray, number: int) -> View:
        return View(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), self._seed, number)

    def _registered(self, frame: np.ndarray, number: int) -> np.ndarray:
        try:
            registration = self._reference.register(self._view(frame, number))
        except UnregisteredError as error:
            raise _EndError(str(error)) from None
        error = registration.error * self._scale
        if error > self._cutting.max_error:
            raise _EndError("the motion fits badly", f"by {error:.2f} pixels")
        overlap = self._overlap(registration.matrix)
        if overlap < self._cutting.min_overlap:
            raise _EndError("the camera turned away", f"{overlap:.0%} of the picture is left")
        self._errors.append(error)
        return registration.matrix

    def _overlap(self, matrix: np.ndarray) -> float:
        """Return the share of the clip's picture that the frame covers."""
        height, width = self._frame_size
        covered, _ = cv2.intersectConvexConvex(
            cv2.perspectiveTransform(_rectangle((0, 0), width, height), matrix),
            _rectangle(self._corner, self._side, self._side),
        )
        return covered / self._side**2

    def _warped(self, frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Return the crop of the frame in the first one's place, over the last output."""
        onto_crop = np.array([[1, 0, -self._corner[0]], [0, 1, -self._corner[1]], [0, 0, 1]])
        onto_crop = onto_crop @ matrix
        size = (self._side, self._side)
        warped = cv2.warpPerspective(frame, onto_crop, size)
        inside = np.full(frame.shape[:2], 255, np.uint8)
        inside = cv2.warpPerspective(inside, onto_crop, size, flags=cv2.INTER_NEAREST)
        inside = cv2.erode(inside, _BORDER, borderType=cv2.BORDER_REPLICATE)
        return np.where(inside[..., None] > 0, warped, self._last)

    def _cropped(self, frame: np.ndarray) -> np.ndarray:
        (x, y), side = self._corner, self._side
        return frame[y : y + side, x : x + side]

    def _scaled(self, crop: np.ndarray) -> np.ndarray:
        size = self._cutting.size
        return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)

    def _motion(self, matrices: np.ndarray) -> float:
        corners = _rectangle(self._corner, self._side, self._side)
        put = np.stack([cv2.perspectiveTransform(corners, matrix) for matrix in matrices])
        return float(np.linalg.norm(put - corners, axis=-1).mean() * self._scale)


def _is_rest(matrix: np.ndarray) -> bool:
    return bool((matrix == np.eye(3)).all())


def _rectangle(corner: tuple[float, float], width: float, height: float) -> np.ndarray:
    """Return the corners in order: float32 (4, 1, 2)."""
    around = np.array([(0, 0), (width, 0), (width, height), (0, height)])
    return (np.array(corner) + around).astype(np.float32)[:, None]


def _unrest(clip: np.ndarray) -> float:
    """Return the mean difference between the first frame and the others, in grey levels."""
    if len(clip) == 1:
        return 0.0
    return float(np.mean([cv2.absdiff(frame, clip[0]).mean() for frame in clip[1:]]))
