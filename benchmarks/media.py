"""Files with synthetic clips that loaders read, and what the people's own loaders make of them.

PyAV is imported where it is used: without it only videos are left out.
"""

import itertools
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.presets import Files
from vgan_fast.loaders.synthetic import SyntheticClips

STRIP_SIDE, QUALITY = 128, 90  # the original project's strips
CONTAINERS = {"libx264": ".mp4", "mpeg4": ".avi", "mjpeg": ".avi", "libvpx": ".webm"}
PIXELS = {"mjpeg": "yuvj420p"}


def write_videos(folder: Path, files: Files, codec: str) -> Path:
    """Videos of one codec, all with the same content."""
    import av

    folder.mkdir(parents=True)
    side = files.video_side
    clips = SyntheticClips(frames=files.video_frames, size=side, batch_size=1, seed=0)
    for number in range(files.videos):
        with av.open(str(folder / f"{number:02d}{CONTAINERS[codec]}"), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.height = stream.width = side
            stream.pix_fmt = PIXELS.get(codec, "yuv420p")
            stream.bit_rate = 2_000_000
            for picture in clips.next_batch()[0].numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    return folder


def strip_clips(files: Files) -> np.ndarray:
    """Clips uint8 (clips, T, 128, 128, 3)."""
    source = SyntheticClips(frames=files.frames, size=STRIP_SIDE, batch_size=1, seed=1)
    return np.concatenate([source.next_batch().numpy() for _ in range(files.clips)])


def write_strips(folder: Path, files: Files) -> Path:
    """JPEG strips as the original project's: a clip's frames one below the other."""
    folder.mkdir(parents=True)
    for number, clip in enumerate(strip_clips(files)):
        strip = clip.reshape(-1, STRIP_SIDE, 3)
        iio.imwrite(folder / f"{number:05d}.jpg", strip, quality=QUALITY)
    return folder


def write_shards(folder: Path, files: Files) -> Path:
    """The same strips in a WebDataset shard."""
    strips = write_strips(folder.with_name(f"{folder.name}-strips"), files)
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for path in sorted(strips.iterdir()):
            tar.add(path, path.name)
    return folder


def write_array(folder: Path, files: Files) -> Path:
    """The same clips, scaled, in an array."""
    folder.mkdir(parents=True)
    clips = np.stack([scaled(list(clip), files.size) for clip in strip_clips(files)])
    np.save(folder / "0.npy", clips)
    return folder


def scaled(frames: list[np.ndarray], size: int) -> np.ndarray:
    """Square frames, uint8 (T, size, size, 3)."""
    return np.stack([cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in frames])


def by_pyav(path: Path, start: int, files: Files) -> np.ndarray:
    """Seek to the keyframe before the clip, then decode."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # the DataLoader's processes are the parallelism
        first = start / stream.average_rate
        container.seek(int(first / stream.time_base), stream=stream)
        wanted = (f for f in container.decode(stream) if (f.pts * stream.time_base + 1e-3) >= first)
        frames = [f.to_ndarray(format="rgb24") for f in itertools.islice(wanted, files.frames)]
    return scaled(frames, files.size)


def by_opencv(path: Path, start: int, files: Files) -> np.ndarray:
    """The same through OpenCV's seeking."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    frames = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(files.frames)]
    capture.release()
    return scaled(frames, files.size)


def strip_by_opencv(path: Path, start: int, files: Files) -> np.ndarray:
    """One image, cut into its frames."""
    return _cut(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), files)


def strip_by_pillow(path: Path, start: int, files: Files) -> np.ndarray:
    """One image, cut into its frames."""
    return _cut(iio.imread(path, plugin="pillow"), files)


def array_by_numpy(path: Path, start: int, files: Files) -> np.ndarray:
    """A clip of a memory-mapped array; `start` is its number."""
    return np.array(np.load(path, mmap_mode="r")[start])


def _cut(image: np.ndarray, files: Files) -> np.ndarray:
    return scaled(list(image.reshape(-1, image.shape[1], image.shape[1], 3)), files.size)


class Windows(Dataset):
    """Random clips of files, each read by `read(path, start, files)`: uint8 (T, H, W, 3).

    Args:
        paths: the files.
        starts: places in a file where a clip may begin.
        read: one of the functions above.
        files: what is read.
    """

    def __init__(self, paths: list[Path], starts: int, read: Callable, files: Files):
        self.paths, self.starts, self.read, self.files = paths, starts, read, files

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = np.random.default_rng(index)
        path = self.paths[generator.integers(len(self.paths))]
        return torch.from_numpy(self.read(path, int(generator.integers(self.starts)), self.files))


def batches_of(
    windows: Windows, batch: int, workers: int | None = None, pinned: bool = False
) -> Iterator[torch.Tensor]:
    """Batches of a DataLoader, by default with a process for each CPU."""
    workers = workers or len(os.sched_getaffinity(0))
    yield from DataLoader(windows, batch, num_workers=workers, pin_memory=pinned)


def thumbnails(clips: torch.Tensor | np.ndarray) -> np.ndarray:
    """A few pixels of four frames of clips (N, T, H, W, 3): fp32 (N, 4, pixels).

    Enough to tell clips apart, and one that moves from one that does not.
    """
    clips = np.asarray(clips)
    moments = np.linspace(0, clips.shape[1] - 1, 4).round().astype(int)
    return clips[:, moments, ::4, ::4].reshape(len(clips), 4, -1).astype(np.float32)


def unlike(clip: np.ndarray, others: np.ndarray) -> float:
    """Grey levels between a thumbnail and the nearest of others: mean of the worst frame."""
    return float(np.abs(others - clip).mean(2).max(1).min())


def thumbnails_of_videos(folder: Path, files: Files) -> np.ndarray:
    """Of all clips of all videos, decoded whole by PyAV."""
    import av

    found = []
    for path in sorted(folder.iterdir()):
        with av.open(str(path)) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        small = scaled(frames, files.size)
        starts = range(len(small) - files.frames + 1)
        found += [thumbnails(small[None, start : start + files.frames]) for start in starts]
    return np.concatenate(found)


def thumbnails_of_strips(files: Files) -> np.ndarray:
    """Of the clips in strips, shards and array."""
    return thumbnails(np.stack([scaled(list(clip), files.size) for clip in strip_clips(files)]))
