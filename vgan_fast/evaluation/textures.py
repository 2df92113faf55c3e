"""How far synthesised dynamic textures are from real ones, in colour and in time.

Both distances compare two sets of clips, which may differ in count, length and size. They see
different things: frames in another order have the same colours and another spectrum, a shift of
colours leaves the spectrum as it is.
"""

import numpy as np

SHORTEST = 4  # frames, for a spectrum
FLOOR = 1 / 12  # squared grey levels: the power that rounding to whole levels adds anyway


def colour_histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Earth mover's distance of the clips' colours, in grey levels, 0 to 255 (differences: 510).

    Of one-dimensional histograms with a bin for each level, the largest over the three channels
    and over the differences of two of them: those see hues that the channels on their own do not.
    A set that is brighter by d throughout is d away.

    Args:
        a: (N, T, H, W, 3) uint8.
        b: (M, U, I, V, 3) uint8.

    Raises:
        ValueError: on other shapes or types, or an empty set.
    """
    _check(a, b, shortest=1)
    gaps = _cumulative_histograms(a) - _cumulative_histograms(b)
    return float(np.abs(gaps).sum(1).max())


def temporal_spectrum_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference of the power spectra over time, in dB.

    A set's spectrum is the mean power of its pixels and channels at each frequency but 0. Clips of
    different lengths are cut into windows of the shortest one's length, half overlapping, the last
    one at the clip's end; each window loses its mean and is tapered (Hann). Power below that of
    rounding to whole grey levels counts as that, so that a still clip is a finite distance away.

    Args:
        a: (N, T, H, W, 3) uint8, T >= 4.
        b: (M, U, I, V, 3) uint8, U >= 4.

    Raises:
        ValueError: on other shapes or types, an empty set, or fewer frames.
    """
    _check(a, b, shortest=SHORTEST)
    length = min(a.shape[1], b.shape[1])
    difference = _spectrum(a, length) - _spectrum(b, length)
    return float(np.sqrt(np.square(difference).mean()))


def _check(a: np.ndarray, b: np.ndarray, shortest: int) -> None:
    for clips in (a, b):
        wrong = clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3
        if wrong or not clips.size or clips.shape[1] < shortest:
            raise ValueError(
                f"clips must be uint8 (>= 1, >= {shortest}, H, W, 3), got "
                f"{clips.dtype} {clips.shape}"
            )


def _cumulative_histograms(clips: np.ndarray) -> np.ndarray:
    """Shares (6, 511) of pixels up to each level -255..255, of channels and their differences."""
    counts = np.zeros((6, 511), np.int64)
    for clip in clips:
        levels = clip.reshape(-1, 3).astype(np.int64)
        projections = np.concatenate([levels, levels - np.roll(levels, 1, axis=1)], axis=1)
        for row, values in zip(counts, projections.T, strict=True):
            row += np.bincount(values + 255, minlength=511)
    return (counts / counts.sum(1, keepdims=True)).cumsum(1)


def _spectrum(clips: np.ndarray, length: int) -> np.ndarray:
    """Power (length // 2,) in dB of one squared grey level, from the lowest frequency on."""
    last = clips.shape[1] - length
    starts = sorted({*range(0, last, max(1, length // 2)), last})
    # Of the Hann window, its first zero left out and none at its end.
    taper = np.hanning(length + 2)[1:-1].astype(np.float32)
    power = np.zeros(length // 2)
    for clip in clips:
        for start in starts:
            window = clip[start : start + length].reshape(length, -1).astype(np.float32)
            window = (window - (taper @ window) / taper.sum()) * taper[:, None]
            bins = np.fft.rfft(window, axis=0)[1:]
            power += np.square(np.abs(bins)).mean(1, dtype=np.float64)
    power /= len(clips) * len(starts) * np.square(taper).sum(dtype=np.float64)
    return 10 * np.log10(np.maximum(power, FLOOR))
