"""Where one shot ends and the next begins."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from scenedetect import AdaptiveDetector, FrameTimecode


def with_cuts(frames: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield each frame and whether a shot begins with it.

    Frames are uint8 (H, W, 3), RGB. PySceneDetect's adaptive detector compares a frame's change of
    colour with that of its neighbours, so that a fast pan is no cut; it decides a few frames late,
    which are held back as long.
    """
    detector = AdaptiveDetector(min_scene_len=1)
    waiting: deque[tuple[np.ndarray, bool]] = deque()
    first = 0  # number of the frame that waits longest
    for number, frame in enumerate(frames):
        waiting.append((frame, number == 0))
        bgr = cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
        for cut in detector.process_frame(FrameTimecode(number, fps=25.0), bgr):
            place = cut.frame_num - first
            waiting[place] = (waiting[place][0], True)
        while len(waiting) > detector.event_buffer_length + 1:
            yield waiting.popleft()
            first += 1
    yield from waiting
