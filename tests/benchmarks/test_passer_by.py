"""Someone in dark clothes before a scene that a shaking camera films."""

import cv2
import numpy as np

from benchmarks.passer_by import passer_by


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
