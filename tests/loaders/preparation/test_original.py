"""Takes whose camera is known: ours places frames no worse than the original's stabiliser."""

import cv2
import numpy as np
import pytest
from camera_media import Take, residuals, take

from benchmarks.original_stabiliser import SKIPPED, original_clips
from vgan_fast.loaders.preparation.stabilise import Clip, Cutting, cut_clips

CUTTING = Cutting()
MOST = 1.0  # pixels of a clip
RESTING = {"shift": 0, "turn": 0, "zoom": 0}
LARGE = {"shift": 4, "turn": 1, "zoom": 0.01}
TAKES = {
    "nothing moves but the camera": {},
    "nothing moves but the camera, another": {"seed": 1},
    "objects on a fifth": {"covered": 0.2},
    "objects on two fifths": {"covered": 0.4},
    "camera at rest, objects on a fifth": {"covered": 0.2, **RESTING},
    "camera at rest, objects on two fifths": {"covered": 0.4, **RESTING},
    "large motion": LARGE,
    "large motion, objects on a fifth": {"covered": 0.2, **LARGE},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TAKES)
def test_no_further_off_than_the_original(case):
    filmed = take(**{"seed": 0, "frames": SKIPPED + CUTTING.frames, **TAKES[case]})
    cv2.setRNGSeed(0)
    (theirs,) = original_clips(filmed.frames)
    (ours,) = cut_clips(filmed.frames, CUTTING, b"")
    assert isinstance(ours, Clip)
    clip = Take(
        filmed.frames[SKIPPED:], np.linalg.inv(filmed.truth[SKIPPED]) @ filmed.truth[SKIPPED:]
    )
    off, original_off = (residuals(clip, made.matrices).mean() for made in (ours, theirs))
    print(f"{case}: ours {off:.3f} pixels, the original's {original_off:.3f}")
    assert off <= min(original_off, MOST)
