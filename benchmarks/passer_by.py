"""The mask of someone who walks through a fixed scene, for `vgan_fast.restore --mask`.

    python -m benchmarks.passer_by VIDEO --frames 104 --out mask.mp4

White is the passer-by with a margin around and all that is below, which are legs and shadow; there
is a frame for each of the video's. Frames are brought onto the first one, since hands that hold a
camera shake; the largest thing that differs from the median of the scene behind is the passer-by.
"""

import os
import sys
from pathlib import Path

import click
import cv2
import numpy as np

from vgan_fast.cli import Program
from vgan_fast.errors import UserError
from vgan_fast.files import refuse_unwritable
from vgan_fast.loaders.preparation.motion import Reference, UnregisteredError, View
from vgan_fast.loaders.whole import read_clips
from vgan_fast.pictures import write_picture

SHORT_SIDE = 272  # pixels at which the passer-by is sought
BRIGHT = 85  # percentile of a pixel's levels at which nobody in dark clothes is left
SEEN = 5  # frames that must show a pixel of the scene for their median to be taken
THIN = 3  # pixels of a radius: edges of a scene not quite at rest are thinner than a passer-by
BLUR = 1.5  # pixels: a standard deviation that smooths water and noise away


@click.command(cls=Program)
@click.argument("video", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--frames", type=click.IntRange(2), required=True, help="of VIDEO, from its first")
@click.option("--out", type=click.Path(path_type=Path), default=Path("mask.mp4"), show_default=True)
@click.option(
    "--threshold",
    type=click.IntRange(1, 255),
    default=30,
    show_default=True,
    help="levels that the passer-by differs from the scene by, in any channel",
)
@click.option(
    "--margin",
    type=click.IntRange(0),
    default=6,
    show_default=True,
    help=f"pixels around the passer-by, of {SHORT_SIDE} that the short side has",
)
def main(video: Path, frames: int, out: Path, threshold: int, margin: int) -> int:
    """Write the mask of someone in dark clothes who walks through VIDEO."""
    if out.suffix != ".mp4":
        raise UserError(f"--out {out}: must end in .mp4")
    refuse_unwritable(out)
    clips, broken = read_clips(
        [video],
        start=0,
        frames=frames,
        short_side=SHORT_SIDE,
        workers=len(os.sched_getaffinity(0)),
    )
    for reason in broken.values():
        raise UserError(f"{video}: {reason}")
    try:
        mask = passer_by(clips[0].frames, threshold, margin)
    except UnregisteredError as error:
        raise UserError(f"{video}: the camera's motion cannot be found ({error})") from None
    if not mask.any():
        raise UserError(f"{video}: nobody stands out from the scene; lower --threshold")
    height, width = clips[0].filmed
    pictures = [cv2.resize(255 * frame.astype(np.uint8), (width, height)) for frame in mask]
    write_picture(out, np.stack(pictures)[..., None].repeat(3, axis=3))
    print(f"{mask.mean():.1%} of {video} occluded: {out}")
    return 0


def passer_by(frames: np.ndarray, threshold: int, margin: int) -> np.ndarray:
    """Where someone in dark clothes is: bool (T, H, W) of frames uint8 (T, H, W, 3).

    Raises:
        UnregisteredError: a frame cannot be brought onto the first one.
    """
    height, width = frames.shape[1:3]
    around = height // 8, width // 8  # room for what later frames show beside the first
    canvas = width + 2 * around[1], height + 2 * around[0]
    motions = _motions(frames, around)
    still = np.stack(
        [
            cv2.warpAffine(frame, motion, canvas, borderMode=cv2.BORDER_REPLICATE)
            for frame, motion in zip(frames, motions, strict=True)
        ]
    )
    inside = np.ones((height, width), np.uint8)
    outside = np.stack([cv2.warpAffine(inside, motion, canvas) == 0 for motion in motions])

    scene = np.percentile(still, BRIGHT, axis=0)
    for _ in range(2):
        found = [_largest(_differs(frame, scene, threshold)) for frame in still]
        scene = _scene(still, outside | [_grown(mask, 2 * margin) for mask in found], scene)
    found = [_largest(_differs(frame, scene, threshold)) for frame in still]
    masks = [
        cv2.warpAffine(_grown(mask, margin), motion, (width, height), flags=cv2.WARP_INVERSE_MAP)
        for mask, motion in zip(found, motions, strict=True)
    ]
    return np.maximum.accumulate(np.stack(masks), axis=1) > 0


def _motions(frames: np.ndarray, around: tuple[int, int]) -> list[np.ndarray]:
    """Affine maps (2, 3) from each frame's places to the first's, with room around it."""
    views = [
        View(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), b"", number)
        for number, frame in enumerate(frames)
    ]
    reference = Reference(views[0], "similarity")
    motions = [reference.register(view).matrix[:2] for view in views]
    shift = np.array([[0, 0, around[1]], [0, 0, around[0]]])
    return [motion + shift for motion in motions]


def _differs(frame: np.ndarray, scene: np.ndarray, threshold: int) -> np.ndarray:
    difference = np.abs(frame - scene).max(axis=2).astype(np.float32)
    mask = cv2.GaussianBlur(difference, (0, 0), BLUR) > threshold
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disc(THIN))


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask (H, W), nothing of an empty one."""
    if not mask.any():
        return mask
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask)
    return labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), _disc(by))


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _scene(still: np.ndarray, hidden: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The median (H, W, 3) of the frames that show each pixel; `before` where too few do."""
    shown = np.where(hidden[..., None], np.float32(np.nan), still)
    enough = (hidden == 0).sum(axis=0) >= SEEN
    scene = before.copy()
    scene[enough] = np.nanmedian(shown[:, enough], axis=0)
    return scene


if __name__ == "__main__":
    sys.exit(main())
