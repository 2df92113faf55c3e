"""Clips as pictures a person looks at: animated grids (GIF, MP4) and film strips (PNG)."""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor

from vgan_fast.clip_output import FPS
from vgan_fast.errors import UserError
from vgan_fast.files import written_whole

GAP = 2  # pixels of white between clips
SHOWN = 128  # small clips are enlarged to about this height
LARGEST_MP4 = 16384  # pixels a side that the encoder takes


def as_frames(clip: Tensor) -> np.ndarray:
    """Frames uint8 (N, T, H, W, 3) of clips (N, 3 or 1, T, H, W) in [-1, 1]; 1 channel is grey."""
    frames = ((clip.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return frames.expand(-1, 3, -1, -1, -1).permute(0, 2, 3, 4, 1).cpu().numpy()


def stream_rows(streams: dict[str, Tensor], rows: int) -> np.ndarray:
    """Animation whose rows are samples and whose columns are the streams, uint8 (T, H, W, 3).

    Args:
        streams: clips (N, C, T, H, W) in [-1, 1] by name, in the order of the columns.
        rows: samples shown.
    """
    columns = [as_frames(clip[:rows]) for clip in streams.values()]
    return _tiled(np.stack(columns, axis=1).reshape(-1, *columns[0].shape[1:]), len(columns))


def animated_grid(clips: np.ndarray) -> np.ndarray:
    """Animation of clips uint8 (N, T, H, W, 3) side by side, as square as it gets: (T, H, W, 3)."""
    return _tiled(clips, int(np.ceil(np.sqrt(len(clips)))))


def film_strip(clips: np.ndarray, shown: int = 8) -> np.ndarray:
    """Picture uint8 (H, W, 3): a row of `shown` frames for each clip (N, T, H, W, 3)."""
    picks = np.linspace(0, clips.shape[1] - 1, min(shown, clips.shape[1])).round().astype(int)
    frames = clips[:, picks].reshape(-1, 1, *clips.shape[2:])
    return _tiled(frames, len(picks))[0]


def with_colours_of(clip: np.ndarray, given: np.ndarray) -> np.ndarray:
    """A clip whose first frames have the colour histograms of given ones.

    Each channel goes through the monotone curve that turns the histogram of the clip's first k
    frames into that of the given ones; the same curve for all frames keeps the motion.

    Args:
        clip: uint8 (T, H, W, 3).
        given: uint8 (k, H, W, 3).

    Returns:
        uint8 (T, H, W, 3).
    """
    matched = np.empty_like(clip)
    levels = np.arange(256)
    for channel in range(3):
        # At the middle of each level's share, so that equal histograms give the identity.
        shares = []
        for frames in (clip[: len(given)], given):
            counts = np.bincount(frames[..., channel].ravel(), minlength=256)
            shares.append((np.cumsum(counts) - counts / 2) / counts.sum())
        there = np.bincount(given[..., channel].ravel(), minlength=256) > 0
        curve = np.interp(shares[0], shares[1][there], levels[there])
        matched[..., channel] = curve.round().astype(np.uint8)[clip[..., channel]]
    return matched


def beside(given: np.ndarray, streams: dict[str, np.ndarray]) -> list[np.ndarray]:
    """For each input one wide clip, uint8 (1, T, H, W', 3): the input, then its streams.

    Args:
        given: inputs, uint8 (N, k, H, W, 3); one of few frames stands still at its last.
        streams: clips uint8 (N, T, H, W, 3) by name.
    """
    length = next(iter(streams.values())).shape[1]
    still = np.repeat(given[:, -1:], length - given.shape[1], axis=1)
    wide = np.concatenate([np.concatenate([given, still], axis=1), *streams.values()], axis=3)
    return list(wide[:, None])


def in_front(given: np.ndarray, streams: dict[str, np.ndarray]) -> list[np.ndarray]:
    """For each input its streams, uint8 (streams, 1 + T, H, W, 3), its last frame before each."""
    clips = np.stack(list(streams.values()), axis=1)
    last = np.repeat(given[:, None, -1:], clips.shape[1], axis=1)
    return list(np.concatenate([last, clips], axis=2))


def write_picture(
    path: Path, picture: np.ndarray, fps: int = FPS, remedy: str = "choose another --out"
) -> None:
    """Write a picture (H, W, 3) as PNG or an animation (T, H, W, 3) as GIF or MP4, by suffix.

    `remedy` is what to do where it cannot be written.

    Raises:
        UserError: when it cannot be written.
    """
    with written_whole(path, remedy=remedy) as part:
        part.write_bytes(encode(picture, path.suffix, fps))


def encode(picture: np.ndarray, suffix: str, fps: int = FPS) -> bytes:
    """The bytes of a `.png`, `.gif` (endless) or `.mp4` (H.264) file.

    Raises:
        UserError: for an MP4 of more than 16,384 pixels a side.
    """
    if suffix == ".gif":
        return iio.imwrite(
            "<bytes>", picture, extension=".gif", plugin="pillow", duration=1000 / fps, loop=0
        )
    if suffix == ".mp4":
        if max(picture.shape[1:3]) > LARGEST_MP4:
            raise UserError(
                f"{picture.shape[2]}x{picture.shape[1]} pixels are too many for MP4; ask for fewer "
                "clips or another format"
            )
        # H.264's common pixel format halves the colour planes, so sides must be even.
        padding = [(0, 0), (0, picture.shape[1] % 2), (0, picture.shape[2] % 2), (0, 0)]
        return iio.imwrite(
            "<bytes>",
            np.pad(picture, padding, mode="edge"),
            extension=".mp4",
            plugin="pyav",
            codec="libx264",
            fps=fps,
        )
    return iio.imwrite("<bytes>", picture, extension=".png", plugin="pillow")


def _tiled(clips: np.ndarray, columns: int) -> np.ndarray:
    """Lay clips (N, T, H, W, 3) out in rows of `columns`, enlarged, with white gaps."""
    scale = max(1, SHOWN // clips.shape[2])
    clips = clips.repeat(scale, axis=2).repeat(scale, axis=3)
    n, t, h, w, _ = clips.shape
    rows = -(-n // columns)
    sheet = np.full((t, rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), 255, np.uint8)
    for i, clip in enumerate(clips):
        top, left = GAP + i // columns * (h + GAP), GAP + i % columns * (w + GAP)
        sheet[:, top : top + h, left : left + w] = clip
    return sheet
