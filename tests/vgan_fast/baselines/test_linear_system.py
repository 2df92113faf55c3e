import numpy as np
import pytest

from vgan_fast.baselines.linear_system import LARGEST_RADIUS, LinearSystem
from vgan_fast.errors import UserError

PERIOD = 12.5  # frames


def wave(frames=100, amplitude=70, noise=2.0):
    """A wave that runs across a picture of 8x10 and comes round every PERIOD frames."""
    time, _, column = np.meshgrid(np.arange(frames), np.arange(8), np.arange(10), indexing="ij")
    levels = 128 + amplitude * np.sin(2 * np.pi * (time / PERIOD - column / 10))
    levels = levels[..., None] + np.random.default_rng(0).normal(0, noise, (*time.shape, 3))
    return levels.round().clip(0, 255).astype(np.uint8)


def strongest_period(clip):
    centred = clip.reshape(len(clip), -1) - clip.reshape(len(clip), -1).mean(0)
    power = np.square(np.abs(np.fft.rfft(centred, 8192, axis=0))).mean(1)
    return 8192 / (1 + power[1:].argmax())


def test_a_wave_keeps_its_period_and_height():
    system = LinearSystem.fit(wave(), states=2)
    sample = system.sample(400, seed=0)
    assert sample.shape == (400, 8, 10, 3) and sample.dtype == np.uint8
    assert strongest_period(sample[:200]) == pytest.approx(PERIOD, rel=0.01)
    # It runs the same way: a column shows what the one before it showed a tenth of a period ago.
    shift = np.correlate(sample[:200, 0, 4, 0] - 128.0, sample[:200, 0, 1, 0] - 128.0, mode="full")[
        196:204
    ]
    assert shift.argmax() + 196 - 199 == pytest.approx(0.3 * PERIOD, abs=1)
    assert 0.5 < sample[:100].std() / wave().std() < 1.5


def known_system(frames=3000, radius=0.9):
    """A clip of a noisy damped turn beside a third state that decays, and its output (60, 3).

    The noises of the states have deviations of 40, 10 and 25 grey levels.
    """
    random = np.random.default_rng(3)
    angle = 2 * np.pi / PERIOD
    cosine, sine = radius * np.cos(angle), radius * np.sin(angle)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 0.5]])
    output, _ = np.linalg.qr(random.standard_normal((4 * 5 * 3, 3)))
    state, states = np.zeros(3), []
    for _ in range(frames):
        state = turn @ state + random.normal(0, (40, 10, 25))
        states.append(state)
    levels = 128 + np.stack(states) @ output.T
    return levels.round().clip(0, 255).astype(np.uint8).reshape(frames, 4, 5, 3), output


def test_the_fit_finds_a_known_system():
    clip, output = known_system()
    system = LinearSystem.fit(clip, states=3)
    eigenvalues = sorted(np.linalg.eigvals(system.dynamics), key=np.imag)
    np.testing.assert_allclose(np.abs(eigenvalues), [0.9, 0.5, 0.9], atol=0.04)
    angle = 2 * np.pi / PERIOD
    np.testing.assert_allclose(np.angle(eigenvalues), [-angle, 0, angle], atol=0.03)
    turned = system.output.T @ output  # Its states are the known ones, turned.
    np.testing.assert_allclose(
        system.drive @ system.drive.T, turned @ np.diag([1600, 100, 625]) @ turned.T, atol=100
    )
    assert system.fitted_radius == pytest.approx(np.abs(eigenvalues).max())
    np.testing.assert_allclose(system.output.T @ system.output, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(system.mean, clip.mean(0))


def test_samples_vary_as_the_clip_does():
    clip, _ = known_system()
    sample = LinearSystem.fit(clip, states=3).sample(3000, seed=0)
    np.testing.assert_allclose(sample.mean(0), clip.mean(0), atol=2)
    assert sample.std(0).mean() == pytest.approx(clip.std(0).mean(), rel=0.06)


def test_levels_end_at_black_and_white():
    """Bright flicker: what goes beyond white must not come round as black."""
    clip = np.random.default_rng(0).integers(235, 256, (40, 4, 4, 3), dtype=np.uint8)
    sample = LinearSystem.fit(clip, states=20).sample(200, seed=0)
    assert sample.max() == 255 and sample.min() > 200


def test_states_and_output_give_back_the_clip():
    clip = wave(30)
    system = LinearSystem.fit(clip, states=28)
    again = system.beginnings @ system.output.T + system.mean.ravel()
    assert np.abs(again - clip.reshape(30, -1)).mean() < 0.5


def test_an_unstable_system_is_scaled_back():
    """A wave that grows from frame to frame."""
    time, column = np.meshgrid(np.arange(40), np.arange(10), indexing="ij")
    levels = 128 + 3 * 1.08**time * np.sin(2 * np.pi * (time / PERIOD - column / 10))
    clip = np.broadcast_to(levels[:, None, :, None], (40, 8, 10, 3)).round().astype(np.uint8)
    system = LinearSystem.fit(clip, states=2)
    assert system.fitted_radius == pytest.approx(1.08, abs=0.01)
    radius = np.abs(np.linalg.eigvals(system.dynamics)).max()
    assert radius == pytest.approx(LARGEST_RADIUS)
    assert strongest_period(system.sample(200, seed=0)) == pytest.approx(PERIOD, rel=0.02)
    # Not stuck at black and white, as a growing one's clipped levels are.
    late = system.sample(3000, seed=0)[-500:]
    assert ((late > 0) & (late < 255)).mean() > 0.99


def test_seeds_repeat_and_differ_from_the_first_frame_on():
    system = LinearSystem.fit(wave(), states=6)
    sample = system.sample(20, seed=1)
    np.testing.assert_array_equal(system.sample(20, seed=1), sample)
    np.testing.assert_array_equal(system.sample(7, seed=1), sample[:7])
    assert (system.sample(20, seed=2)[0] != sample[0]).mean() > 0.5


def test_a_still_clip_stays_still():
    clip = np.broadcast_to(wave(1), (12, 8, 10, 3))
    sample = LinearSystem.fit(clip, states=3).sample(50, seed=0)
    np.testing.assert_array_equal(sample, np.broadcast_to(clip[:1], sample.shape))


def test_errors_name_what_is_wrong():
    clip = wave(10)
    for states in (0, 9):
        with pytest.raises(UserError, match=f"of {states} states .* take 1 to 8 states"):
            LinearSystem.fit(clip, states)
    with pytest.raises(ValueError, match=r"uint8 \(T, H, W, 3\), got float64"):
        LinearSystem.fit(clip / 2, 3)
    with pytest.raises(ValueError, match=">= 1 frames, got 0"):
        LinearSystem.fit(clip, 3).sample(0, seed=0)
