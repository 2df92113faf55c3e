import contextlib

import cv2
import numpy as np
import pytest
from camera_media import HEIGHT, WIDTH, residuals, take
from scipy.stats import pearsonr, spearmanr

from vgan_fast.loaders.preparation import motion
from vgan_fast.loaders.preparation.motion import Reference, UnregisteredError, View

REST = {"shift": 0, "turn": 0, "zoom": 0}
HARD = {"shift": 4, "turn": 1, "zoom": 0.01}


def view(frame, number, seed=b"file"):
    return View(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), seed, number)


def registered(filmed, model="similarity"):
    """Matrices (F, 3, 3) and errors (F - 1,) in pixels of a clip of 128, up to a failure."""
    reference = Reference(view(filmed.frames[0], 0), model)
    matrices, errors = [np.eye(3)], []
    for number, frame in enumerate(filmed.frames[1:], start=1):
        try:
            found = reference.register(view(frame, number))
        except UnregisteredError:
            break
        matrices.append(found.matrix)
        errors.append(found.error * 128 / HEIGHT)
    return np.stack(matrices), np.array(errors)


@pytest.mark.parametrize("model", ["similarity", "homography"])
@pytest.mark.parametrize("covered", [0, 0.2, 0.4])
@pytest.mark.parametrize("path", [{}, REST, {"shift": 0.3, "turn": 0.05, "zoom": 0.0003}])
def test_the_camera_is_found_behind_moving_objects(path, covered, model):
    filmed = take(0, 20, covered=covered, **path)
    matrices, errors = registered(filmed, model)
    assert len(matrices) == 20
    assert residuals(filmed, matrices).mean() < (0.15 if model == "similarity" else 1)
    assert np.median(errors) < 0.5


@pytest.mark.parametrize("covered", [0, 0.3])
def test_large_motion(covered):
    filmed = take(1, 20, covered=covered, **HARD)
    matrices, _ = registered(filmed)
    assert len(matrices) == 20
    assert residuals(filmed, matrices).max() < 1


def test_a_resting_camera_is_left_alone():
    matrices, _ = registered(take(2, 20, covered=0.2, **REST))
    assert (matrices == np.eye(3)).all()


def test_a_wall_outvotes_a_textured_object():
    filmed = take(3, 12, covered=0.3, contrast=0.3)
    matrices, _ = registered(filmed)
    assert residuals(filmed, matrices).max() < 1


def test_direct_registration_does_not_drift():
    filmed = take(4, 60, shift=2)
    matrices, _ = registered(filmed)
    off = residuals(filmed, matrices)
    assert len(off) == 60
    assert off[-10:].mean() < 0.2


def test_the_error_tells_how_far_off_a_frame_is():
    true, told = [], []
    conditions = [
        *({"covered": covered} for covered in (0, 0.2, 0.4)),
        *({"covered": 0.3, "contrast": contrast} for contrast in (0.2, 0.1, 0.05)),
        *({"contrast": contrast} for contrast in (0.1, 0.05, 0.02)),
        *({"covered": 0.3, "noise": noise} for noise in (10, 20, 40)),
        *({"covered": 0.3, "blur": blur} for blur in (2, 8)),
        HARD | {"covered": 0.3},
    ]
    for seed, condition in enumerate(conditions):
        filmed = take(seed, 16, **condition)
        matrices, errors = registered(filmed)
        true.append(residuals(filmed.first(len(matrices)), matrices)[1:])
        told.append(errors)
    true, told = np.concatenate(true), np.concatenate(told)
    assert len(true) > 200
    assert spearmanr(true, told)[0] >= 0.8
    # On logarithms, for off by hundredths and off by tens of pixels are told apart alike.
    assert pearsonr(np.log(true + 0.02), np.log(told + 0.02))[0] >= 0.8


def test_features_are_matched_where_tracking_fails(monkeypatch):
    filmed = take(5, 2, shift=0, turn=0, zoom=0)
    turned = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 70, 1)
    frame = cv2.warpAffine(filmed.frames[1], turned, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
    reference = Reference(view(filmed.frames[0], 0), "similarity")
    found = reference.register(view(frame, 1))
    expected = np.linalg.inv(np.vstack((turned, (0, 0, 1))))
    corners = np.array([[[0, 0]], [[WIDTH, HEIGHT]]], float)
    put = cv2.perspectiveTransform(corners, found.matrix)
    assert np.abs(put - cv2.perspectiveTransform(corners, expected)).max() < 1
    monkeypatch.setattr(Reference, "_matched_motions", lambda self, view: [])
    with pytest.raises(UnregisteredError, match="no common motion"):
        Reference(view(filmed.frames[0], 0), "similarity").register(view(frame, 1))


def test_the_frame_before_helps_where_the_first_is_out_of_sight(monkeypatch):
    filmed = take(6, 3)
    reference = Reference(view(filmed.frames[0], 0), "similarity")
    reference.register(view(filmed.frames[1], 1))
    matches = motion._matches
    first = reference.first

    def none_with_first(view, target):
        return (
            motion._Pairs(*np.zeros((2, 0, 2), np.float32))
            if target is first
            else matches(view, target)
        )

    monkeypatch.setattr(motion, "_matches", none_with_first)
    motions = reference._matched_motions(view(filmed.frames[2], 2))
    only_third = filmed.truth[[0, 2]]
    off = residuals(type(filmed)(filmed.frames[[0, 2]], only_third), [np.eye(3), motions[0]])
    assert off[1] < 0.5


def test_a_picture_without_texture_is_refused():
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    with pytest.raises(UnregisteredError, match="too few corners"):
        Reference(view(grey, 0), "similarity").register(view(grey, 1))


def test_pictures_that_share_nothing_are_refused_or_far_off():
    first, other = take(7, 1).frames[0], take(8, 1).frames[0]
    reference = Reference(view(first, 0), "similarity")
    with contextlib.suppress(UnregisteredError):
        assert reference.register(view(other, 1)).error > 2


def test_matching_depends_on_file_and_frame_alone():
    filmed = take(9, 2, covered=0.4)

    def nearest(before, seed=b"file", number=1):
        target, seen = view(filmed.frames[0], 0), view(filmed.frames[1], number, seed)
        cv2.setRNGSeed(before)
        return motion._matches(seen, target)

    for one, other in zip(nearest(1), nearest(99), strict=True):
        np.testing.assert_array_equal(one, other)


def test_generator_is_started_from_file_and_frame():
    picture = np.zeros((8, 8), np.uint8)
    drawn = set()
    for seed, number in ((b"a", 0), (b"a", 1), (b"b", 0), (b"a", 0)):
        View(picture, seed, number).reseed()
        drawn.add(cv2.randu(np.zeros((1, 4), np.int32), 0, 1 << 30).tobytes())
    assert len(drawn) == 3
