import numpy as np
import pytest

from vgan_fast.evaluation.textures import colour_histogram_distance, temporal_spectrum_distance

BOTH = [colour_histogram_distance, temporal_spectrum_distance]


def textures(clips=3, frames=32, seed=0):
    """Flickering colours, each pixel's on its own, (clips, frames, 8, 12, 3) uint8.

    What is left after a frame is 0.9 of the deviation from grey: slow changes are the larger ones.
    """
    random = np.random.default_rng(seed)
    mixed = np.array([[30, 0, 0], [20, 15, 0], [-10, 5, 10]])
    state = random.standard_normal((clips, 8, 12, 3))
    made = []
    for _ in range(frames):
        made.append(128 + state @ mixed.T)
        state = 0.9 * state + 0.19**0.5 * random.standard_normal(state.shape)
    return as_bytes(np.stack(made, axis=1))


def as_bytes(levels):
    return levels.round().clip(0, 255).astype(np.uint8)


def noisy(clips, amount):
    return as_bytes(clips + np.random.default_rng(1).normal(0, 12 * amount, clips.shape))


def blurred(clips, amount):
    """Averages over 1 + 6 amount frames."""
    width = 1 + 6 * amount
    edge = (3 * amount, 3 * amount)
    padded = np.pad(clips.astype(float), [(0, 0), edge, *[(0, 0)] * 3], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)
    return as_bytes(windows.mean(-1))


def frozen(clips, amount):
    """For the last 10 amount frames nothing moves."""
    frozen, last = clips.copy(), clips.shape[1] - 1 - 10 * amount
    frozen[:, last:] = clips[:, last, None]
    return frozen


def shifted(clips, amount):
    return as_bytes(clips + np.array([8.0, 0, 0]) * amount)


def shuffled(clips, amount):
    """More and more frames change places."""
    random, order = np.random.default_rng(2), np.arange(clips.shape[1])
    moved = random.permutation(len(order))[: 5 * amount]
    order[moved] = np.roll(order[moved], 1)
    return clips[:, order]


@pytest.mark.parametrize(
    ("distance", "corruption"),
    [
        (temporal_spectrum_distance, noisy),
        (temporal_spectrum_distance, blurred),
        (temporal_spectrum_distance, frozen),
        (temporal_spectrum_distance, shuffled),
        (colour_histogram_distance, noisy),
        (colour_histogram_distance, blurred),
        (colour_histogram_distance, shifted),
    ],
)
def test_distances_grow_with_the_corruption(distance, corruption):
    clips = textures()
    course = [distance(clips, corruption(clips, amount)) for amount in range(4)]
    assert course[0] == 0
    floor = distance(clips, textures(seed=5))
    assert course[1] > 0 and course[2] > 1.1 * course[1] and course[3] > 1.1 * course[2]
    assert course[3] > 2 * floor


def test_frames_in_another_order_have_the_same_colours():
    clips = textures()
    assert colour_histogram_distance(clips, shuffled(clips, 3)) == 0


def test_a_shift_of_colours_has_the_same_spectrum():
    clips = textures()
    assert temporal_spectrum_distance(clips, clips + np.uint8(9)) < 0.01
    assert colour_histogram_distance(clips, clips + np.uint8(9)) == pytest.approx(9)


def test_hues_that_each_channel_alone_does_not_show():
    """Red with green and blue with none against red with blue, each channel half the time on."""
    on = np.random.default_rng(0).random((2, 8, 16, 16)) < 0.5
    one = np.stack([on, on, ~on], -1) * np.uint8(200)
    other = np.stack([on, ~on, on], -1) * np.uint8(200)
    assert colour_histogram_distance(one, other) > 150


@pytest.mark.parametrize("distance", BOTH)
def test_distances_are_symmetric_and_nil_of_equals(distance):
    a, b = textures(), noisy(textures(seed=4), 2)
    assert distance(a, b) == distance(b, a) > 0
    assert distance(a, a.copy()) == 0


def test_sets_of_other_counts_lengths_and_sizes():
    long, short = textures(clips=12, frames=64), textures(clips=9, frames=24, seed=1)
    small = short[:, :, :4, :6]
    assert temporal_spectrum_distance(long, small) < 1.2
    assert temporal_spectrum_distance(frozen(long, 4), short) > 3
    assert colour_histogram_distance(long, small) < 4
    assert temporal_spectrum_distance(long, np.concatenate([long, long])) == pytest.approx(0)
    # The end of a longer clip counts, though it does not fill a window.
    tail = long.copy()
    tail[:, -4:] = 0
    assert temporal_spectrum_distance(tail[:, -25:], short) > 2


def test_half_as_high_waves_are_6_db_lower():
    clips = np.zeros((1, 64, 4, 4, 3))
    clips += np.sin(np.arange(64) * 2.2)[None, :, None, None, None]
    noise = np.random.default_rng(0).normal(0, 1, clips.shape)
    loud, quiet = (as_bytes(128 + size * (clips + noise)) for size in (24, 12))
    assert temporal_spectrum_distance(loud, quiet) == pytest.approx(20 * np.log10(2), abs=0.1)


def test_a_still_clip_has_a_finite_spectrum():
    """The power of rounding: white noise of deviation 10 is 100 * 12 times as much."""
    still = np.full((2, 16, 40, 40, 3), 128, np.uint8)
    noise = as_bytes(still + np.random.default_rng(0).normal(0, 10, still.shape))
    assert temporal_spectrum_distance(still, noise) == pytest.approx(30.8, abs=0.3)


def test_errors_name_what_is_wrong():
    clips = textures(1)
    with pytest.raises(ValueError, match=r"uint8 \(>= 1, >= 4, H, W, 3\), got uint8 \(1, 3, "):
        temporal_spectrum_distance(clips, clips[:, :3])
    assert colour_histogram_distance(clips, clips[:, :1]) >= 0
    for distance in BOTH:
        for wrong in (clips / 2, clips[0], clips[..., :2], clips[:0]):
            with pytest.raises(ValueError, match="clips must be uint8"):
                distance(clips, wrong)
