"""Real clips, prepared as a user would; VGAN_FAST_TEST_VIDEOS names their folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vgan_fast.loaders.preparation.outcome import read_outcome

VIDEOS = os.environ.get("VGAN_FAST_TEST_VIDEOS")
pytestmark = pytest.mark.skipif(not VIDEOS, reason="VGAN_FAST_TEST_VIDEOS is not set")
BROKEN = ("odd/moviepy_test_video.mp4", "odd/streamio_broken.mp4", "odd/streamio_empty.flv")
# Mean difference between a clip's first frame and the others: what stabilising may leave of it.
HAND_HELD = {
    "handheld/mei_100_0306.AVI": 0.6,
    "handheld/mei_MVI_4823.AVI": 0.6,
    "texture/Fontaine_chatelet.mp4": 0.8,
}
FIXED = {
    "static/bgslib_video02.avi": 1.02,
    "static/car-detection.mp4": 1.02,
    "static/flower.webm": 1.02,
    "odd/dvrscan_traffic_camera_vfr.mp4": 1.02,
    "texture/fire_pot0.avi": 1.02,
}


def prepared(names, folder):
    listed = folder / "videos.txt"
    listed.write_text("".join(f"{Path(VIDEOS, name).resolve()}\n" for name in names))
    command = [sys.executable, "-m", "vgan_fast.prepare", listed, "--out", folder / "set"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    root = Path(os.path.commonpath([Path(VIDEOS, name).resolve().parent for name in names]))
    outcome = read_outcome(folder / "set")
    known = {(root / name).resolve(): name for name in outcome.videos}
    return outcome, {name: known[Path(VIDEOS, name).resolve()] for name in names}, done.stdout


def check(names, folder):
    outcome, known, printed = prepared((*names, *BROKEN), folder)
    assert outcome.failed.keys() == {known[name] for name in BROKEN}
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    for name, most in names.items():
        video = outcome.videos[known[name]]
        assert video.clips
        assert video.ratio <= most, name
        assert float(rows[known[name]][-2]) == pytest.approx(video.ratio, abs=0.001)
    assert (folder / "set/report/index.html").exists()
    return outcome, known


def test_hand_held_clips_come_to_rest(tmp_path):
    outcome, known = check(HAND_HELD, tmp_path)
    assert all(outcome.videos[known[name]].mean_motion > 0.5 for name in HAND_HELD)


@pytest.mark.slow
def test_fixed_cameras_are_left_at_rest(tmp_path):
    outcome, known = check(FIXED, tmp_path)
    assert outcome.videos[known["texture/fire_pot0.avi"]].ratio >= 0.98
    assert all(outcome.videos[known[name]].mean_motion < 0.5 for name in FIXED)
