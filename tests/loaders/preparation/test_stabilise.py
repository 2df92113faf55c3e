import itertools

import cv2
import numpy as np
import pytest
from camera_media import HEIGHT, WIDTH, Take, residuals, take

from vgan_fast.loaders.preparation.shots import with_cuts
from vgan_fast.loaders.preparation.stabilise import Clip, Cutting, Rejected, cut_clips

REST = {"shift": 0, "turn": 0, "zoom": 0}
CUTTING = Cutting(frames=16, min_frames=8, skip=0)


def pieces(frames, cutting=CUTTING):
    return list(cut_clips(frames, cutting, b"file"))


def spans(made):
    return [
        (type(piece), piece.start, len(piece.pixels) if isinstance(piece, Clip) else piece.frames)
        for piece in made
    ]


def unrest(clip):
    return np.abs(clip[1:].astype(float) - clip[0]).mean()


def test_cuts_are_where_shots_begin():
    shots = [take(seed, 12).frames for seed in range(3)]
    out = list(with_cuts(np.concatenate(shots)))
    assert [number for number, (_, begins) in enumerate(out) if begins] == [0, 12, 24]
    np.testing.assert_array_equal(np.stack([frame for frame, _ in out]), np.concatenate(shots))


def test_a_fast_pan_is_no_cut():
    frames = take(0, 24, shift=6).frames
    assert [number for number, (_, begins) in enumerate(with_cuts(frames)) if begins] == [0]


def test_clips_follow_one_another_and_end_with_their_shot():
    frames = np.concatenate([take(0, 40).frames, take(1, 5).frames, take(2, 20).frames])
    made = pieces(frames)
    assert spans(made) == [
        (Clip, 0, 16),
        (Clip, 16, 16),
        (Clip, 32, 8),
        (Rejected, 40, 5),
        (Clip, 45, 16),
        (Rejected, 61, 4),
    ]
    assert made[3].reason == "the shot is short"


def test_every_frame_but_the_first_is_in_one_piece():
    frames = np.concatenate([take(0, 21, covered=0.4).frames, take(1, 30, shift=9).frames])
    made = spans(pieces(frames, Cutting(frames=16, min_frames=8, skip=3)))
    ends = [3, *(start + count for _, start, count in made)]
    assert [start for _, start, _ in made] == ends[:-1]
    assert ends[-1] == len(frames)


@pytest.mark.parametrize("motion", ["similarity", "homography"])
def test_stabilised_pixels_and_what_is_told_of_them(motion):
    filmed = take(5, 16)
    (clip,) = pieces(filmed.frames, Cutting(frames=16, skip=0, motion=motion))
    assert residuals(filmed, clip.matrices).max() < 0.5
    raw = np.stack([cv2.resize(f[:, 40:280], (128, 128), interpolation=3) for f in filmed.frames])
    assert clip.error_before == pytest.approx(unrest(raw), rel=1e-6)
    assert clip.error_after == pytest.approx(unrest(clip.pixels), rel=1e-6)
    assert clip.error_after < 0.5 * clip.error_before
    np.testing.assert_array_equal(clip.pixels[0], raw[0])
    assert (clip.frame_size, clip.crop) == ((HEIGHT, WIDTH), (40, 0, 240))
    points = np.array([[[40, 0]], [[280, 0]], [[280, 240]], [[40, 240]]], float)
    put = np.stack([cv2.perspectiveTransform(points, matrix) for matrix in filmed.truth])
    moved = np.linalg.norm(put - points, axis=-1).mean() * 128 / 240
    assert clip.motion == pytest.approx(moved, rel=0.05)


def test_pixels_follow_from_the_recorded_matrices():
    filmed = take(6, 12, shift=1)
    (clip,) = pieces(filmed.frames)
    for frame, matrix, made in zip(filmed.frames, clip.matrices, clip.pixels, strict=True):
        whole = cv2.warpPerspective(frame, matrix, (WIDTH, HEIGHT))
        covered = cv2.warpPerspective(np.ones((HEIGHT, WIDTH)), matrix, (WIDTH, HEIGHT)) == 1
        again = cv2.resize(whole[:, 40:280], (128, 128), interpolation=cv2.INTER_AREA)
        inside = cv2.erode(covered[:, 40:280].astype(np.uint8), np.ones((13, 13)))
        inside = cv2.resize(inside, (128, 128), interpolation=cv2.INTER_NEAREST) == 1
        assert np.abs(made[inside].astype(int) - again[inside]).mean() < 0.6


def test_what_a_frame_does_not_cover_is_the_last_output():
    world = take(7, 1, noise=0).frames[0]
    frames = [np.ascontiguousarray(world[:200, 20 * k : 20 * k + 200]) for k in range(4)]
    (clip,) = pieces(np.stack(frames), Cutting(frames=4, min_frames=4, skip=0, size=100))
    # The camera went right, so the left of the first frame is out of sight, and stays.
    kept, first = clip.pixels[-1][:, :24].astype(int), clip.pixels[0][:, :24]
    assert np.abs(kept - first).mean() < 2
    assert unrest(clip.pixels) < 3
    wrong = np.abs(np.asarray(frames[-1])[::2, ::2].astype(int) - clip.pixels[0]).mean()
    assert wrong > 20


def test_a_resting_camera_gives_the_raw_frames():
    filmed = take(8, 16, covered=0.1, **REST)
    (clip,) = pieces(filmed.frames)
    assert not clip.stabilised
    assert clip.motion == 0
    assert clip.error_before == clip.error_after
    (raw,) = pieces(filmed.frames, Cutting(frames=16, skip=0, motion="none"))
    np.testing.assert_array_equal(clip.pixels, raw.pixels)
    assert raw.registration_error is None


def test_no_clip_is_worse_than_raw(monkeypatch):
    filmed = take(9, 16, covered=0.3, **REST)
    wrong = np.array([[1, 0, 3], [0, 1, 2], [0, 0, 1.0]])
    monkeypatch.setattr(
        "vgan_fast.loaders.preparation.stabilise._Take._registered", lambda *_: wrong
    )
    (clip,) = pieces(filmed.frames)
    assert not clip.stabilised
    assert clip.error_after == clip.error_before


@pytest.mark.parametrize(
    ("cutting", "reason"),
    [
        ({"max_error": 1e-4}, "the motion fits badly"),
        ({"min_overlap": 0.995}, "the camera turned away"),
    ],
)
def test_frames_that_do_not_belong_end_a_clip(cutting, reason):
    made = pieces(take(10, 24, shift=3).frames, Cutting(frames=24, skip=0, **cutting))
    assert {piece.reason for piece in made if isinstance(piece, Rejected)} >= {reason}
    assert not any(isinstance(piece, Clip) for piece in made)


def test_a_picture_without_texture_is_rejected_once():
    flat = np.full((40, 64, 64, 3), 99, np.uint8)
    lost, last = pieces(flat)
    assert (lost.start, lost.frames, lost.reason) == (0, 39, "too few corners")
    assert (last.start, last.frames, last.reason) == (39, 1, "the shot is short")


def test_sizes_of_every_shape():
    for height, width in itertools.product((40, 97, 256), (40, 131)):
        frame = take(11, 1).frames[0]
        frame = cv2.resize(frame, (width, height))
        made = pieces(np.stack([frame] * 8))
        assert [piece.pixels.shape for piece in made] == [(8, 128, 128, 3)]


def test_the_gate_of_synthetic_truth():
    off = []
    for seed, (covered, path) in enumerate(
        itertools.product((0.2, 0.4), ({}, REST, {"shift": 3, "turn": 0.8, "zoom": 0.008}))
    ):
        filmed = take(20 + seed, 16, covered=covered, **path)
        for piece in pieces(filmed.frames):
            assert isinstance(piece, Clip)
            part = slice(piece.start, piece.start + len(piece.pixels))
            truth = np.linalg.inv(filmed.truth[piece.start]) @ filmed.truth[part]
            off.append(residuals(Take(filmed.frames[part], truth), piece.matrices).mean())
    assert np.mean(off) <= 0.2
    assert max(off) <= 1
