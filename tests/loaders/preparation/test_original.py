"""Takes whose camera is known: ours places frames no worse than the original's stabiliser."""

import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from camera_media import Take, residuals, take, write_take

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


def test_the_page_tells_both_methods_figures(tmp_path):
    filmed = take(0, 20, shift=1)
    write_take(tmp_path / "videos/hand.avi", filmed)
    (tmp_path / "videos/broken.mp4").write_bytes(b"nothing")
    command = [sys.executable, "-m", "benchmarks.preparation", tmp_path / "videos"]
    options = ["--frames", "20", "--rounds", "1", "--out", tmp_path / "page.md"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    speed, clips = re.findall(r"^\| hand\.avi \| (.*) \|$", page, re.MULTILINE)
    size, frames, original, ours, ratio = speed.split(" | ")
    assert (size, frames) == ("320x240", "20")
    assert float(ours) / float(original) == pytest.approx(float(ratio), rel=0.1, abs=0.06)
    kept, ours_kept, *_, same, after, ours_after = clips.split(" | ")
    assert (kept, ours_kept, same) == ("90%", "90%", "1")
    assert float(ours_after) < 0.7
    assert float(after) < 1
    hours = re.search(r"^\| all \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert float(hours[2].replace(",", "")) == pytest.approx(5000 * 25 / float(ours), rel=0.02)
    assert "broken.mp4: PyAV: Invalid data" in page
