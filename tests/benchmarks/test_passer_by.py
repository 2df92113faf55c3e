"""Someone in dark clothes before a scene that a shaking camera films."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import passer_by as program
from benchmarks.passer_by import passer_by
from vgan_fast.loaders.whole import AS_FILMED, read_clips
from vgan_fast.restoration.occlusions import read_mask

VIDEOS = os.environ.get("VGAN_FAST_TEST_VIDEOS")


def filmed(frames=30, height=96, width=160):
    """Frames uint8 (T, H, W, 3) of a bright scene, and where the passer-by is in them."""
    random = np.random.default_rng(0)
    room = 12
    noise = random.integers(90, 250, (height + 2 * room, width + 2 * room, 3)).astype(np.uint8)
    scene = cv2.GaussianBlur(noise, (0, 0), 3).astype(float)
    scene = np.clip((scene - scene.mean()) * 6 + 170, 90, 250)  # blurring took the contrast
    clip, masks = [], []
    for number in range(frames):
        world, mask = scene.copy(), np.zeros(scene.shape[:2], bool)
        left = 30 + 3 * number
        mask[40:100, left : left + 14] = True  # the coat
        mask[30:40, left + 3 : left + 11] = True  # the head
        world[mask] = 15
        world[100:, left : left + 14] = scene[100:, left : left + 14]  # legs of the scene's colour
        mask[100:, left : left + 14] = True
        dy, dx = room + round(4 * np.sin(number / 4)), room + round(4 * np.cos(number / 5))
        seen = np.s_[dy : dy + height, dx : dx + width]
        clip.append(world[seen].round().astype(np.uint8))
        masks.append(mask[seen])
    return np.stack(clip), np.stack(masks)


def test_the_mask_covers_the_passer_by_and_little_else():
    clip, wanted = filmed()
    found = passer_by(clip, threshold=40, margin=3)
    assert found.shape == wanted.shape
    assert not (wanted & ~found).any()
    assert found.sum() < 2 * wanted.sum()


def test_nobody_is_found_where_nobody_is():
    clip, _ = filmed()
    assert not passer_by(clip[:1].repeat(4, axis=0), threshold=40, margin=3).any()


@pytest.mark.slow
@pytest.mark.skipif(not VIDEOS, reason="VGAN_FAST_TEST_VIDEOS names no folder of real videos")
def test_who_walks_past_a_real_fountain_is_covered(tmp_path):
    video, out = Path(VIDEOS, "texture", "Fontaine_chatelet.mp4"), tmp_path / "mask.mp4"
    with pytest.raises(SystemExit) as stop:
        program.main.main([str(video), "--frames", "104", "--out", str(out)])
    assert not stop.value.code
    (clip,), _ = read_clips([video], start=66, frames=32, short_side=AS_FILMED, workers=1)
    mask = read_mask(out, shape=clip.frames.shape[:3], filmed=clip.filmed, start=66)
    for frame, hidden in zip(clip.frames, mask, strict=True):
        dark = (frame.max(axis=2) < 40).astype(np.uint8)
        # Without the gaps between the fountain's stones, which are as dark as the coat.
        dark = cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((31, 31), np.uint8))
        _, labels, statistics, _ = cv2.connectedComponentsWithStats(dark)
        coat = labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()
        assert coat.mean() > 0.03 and not (coat & ~hidden).any()
        assert hidden.mean() < 0.11
