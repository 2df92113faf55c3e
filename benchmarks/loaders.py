"""Clips a second that each source delivers, beside a DataLoader over PyAV, OpenCV or Pillow.

    python -m benchmarks.loaders [--size 64] [--seconds 10]

Makes videos (H.264), strips (JPEG of 128x128 frames), a WebDataset shard of the same strips and
an array of clips of the size asked for, all with the same content. Every loader then delivers
clips of 32 frames from random places of them, on a CPU with nothing else to do, and after that
the training step runs alone to say what it consumes. A loader whose clips are wrong gets no number.
"""

import argparse
import contextlib
import itertools
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import cv2
import imageio.v3 as iio
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import describe
from vgan_fast.device import configure, resolved
from vgan_fast.gan_step import GANStep
from vgan_fast.loaders.clips import open_clips
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.settings import Settings

FRAMES = 32
VIDEOS, VIDEO_FRAMES, VIDEO_SIDE = 12, 320, 240
CLIPS = 192  # strips and clips in the array
BATCH = 32
BLOCKS = 5


class Windows(Dataset):
    """Random clips of files, each read by `read(path, start)`: uint8 (T, H, W, 3)."""

    def __init__(self, files: list[Path], frames: int, read: Callable[[Path, int], np.ndarray]):
        self.files, self.frames, self.read = files, frames, read

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = np.random.default_rng(index)
        path = self.files[generator.integers(len(self.files))]
        start = int(generator.integers(self.frames - FRAMES + 1))
        return torch.from_numpy(self.read(path, start))


def scaled(frames: list[np.ndarray], size: int) -> np.ndarray:
    """Square frames, uint8 (T, size, size, 3)."""
    return np.stack([cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in frames])


def by_pyav(path: Path, start: int, size: int) -> np.ndarray:
    """Seek to the keyframe before the clip, then decode."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # the DataLoader's processes are the parallelism
        first = start / stream.average_rate
        container.seek(int(first / stream.time_base), stream=stream)
        wanted = (f for f in container.decode(stream) if f.pts * stream.time_base >= first)
        frames = [f.to_ndarray(format="rgb24") for f in itertools.islice(wanted, FRAMES)]
    return scaled(frames, size)


def by_opencv(path: Path, start: int, size: int) -> np.ndarray:
    """The same through OpenCV's seeking."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, start)
    frames = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(FRAMES)]
    capture.release()
    return scaled(frames, size)


def strip_by_opencv(path: Path, start: int, size: int) -> np.ndarray:
    """One image, cut into its frames."""
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return scaled(list(image.reshape(-1, image.shape[1], image.shape[1], 3)), size)


def strip_by_pillow(path: Path, start: int, size: int) -> np.ndarray:
    """One image, cut into its frames."""
    image = iio.imread(path, plugin="pillow")
    return scaled(list(image.reshape(-1, image.shape[1], image.shape[1], 3)), size)


def make(folder: Path, size: int) -> dict[str, Path]:
    """Write every kind of source; return where each is."""
    places = {name: folder / name for name in ("videos", "strips", "shards", "arrays")}
    for place in places.values():
        place.mkdir()
    long = SyntheticClips(frames=VIDEO_FRAMES, size=VIDEO_SIDE, batch_size=1, seed=0)
    for number in range(VIDEOS):
        with av.open(str(places["videos"] / f"{number:02d}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height = stream.width = VIDEO_SIDE
            stream.pix_fmt = "yuv420p"
            for picture in long.next_batch()[0].numpy():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    source = SyntheticClips(frames=FRAMES, size=128, batch_size=8, seed=1)
    clips = np.concatenate([source.next_batch().numpy() for _ in range(CLIPS // 8)])
    for number, clip in enumerate(clips):
        iio.imwrite(places["strips"] / f"{number:05d}.jpg", clip.reshape(-1, 128, 3), quality=90)
    with tarfile.open(places["shards"] / "0.tar", "w") as tar:
        for path in sorted(places["strips"].iterdir()):
            tar.add(path, path.name)
    np.save(places["arrays"] / "0.npy", np.stack([scaled(list(clip), size) for clip in clips]))
    return places


def ours(data: Path, size: int, decoded: Path, cache: str) -> Iterator[torch.Tensor]:
    """Batches of this project's loader."""
    loader = open_clips(
        data,
        frames=FRAMES,
        size=size,
        batch_size=BATCH,
        seed=0,
        device=torch.device("cpu"),
        decoded=decoded,
        cache=cache,
    )
    with contextlib.closing(loader):
        while True:
            yield loader.next_batch()


def array_by_numpy(path: Path, start: int, size: int) -> np.ndarray:
    """A clip of a memory-mapped array; `start` is its number."""
    return np.array(np.load(path, mmap_mode="r")[start])


def rival(files: list[Path], frames: int, size: int, read) -> Iterator[torch.Tensor]:
    """Batches of a DataLoader with a process for each CPU."""
    windows = Windows(files, frames, lambda path, start: read(path, start, size))
    yield from DataLoader(windows, BATCH, num_workers=len(os.sched_getaffinity(0)))


def thumbnails(clips: torch.Tensor | np.ndarray) -> np.ndarray:
    """A few pixels of clips (N, T, H, W, 3), enough to tell them apart: fp32 (N, pixels)."""
    return np.asarray(clips)[:, ::8, ::4, ::4].reshape(len(clips), -1).astype(np.float32)


def every_window(folder: Path, size: int) -> np.ndarray:
    """Thumbnails of all clips of all videos, decoded whole by PyAV."""
    found = []
    for path in sorted(folder.iterdir()):
        with av.open(str(path)) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        small = scaled(frames, size)
        found += [thumbnails(small[None, i : i + FRAMES]) for i in range(len(small) - FRAMES + 1)]
    return np.concatenate(found)


class Measured:
    """Clips a second of one loader: the median of some blocks, 20th and 80th percentile.

    The first batch is checked: a loader that gives a clip unlike all of `right` ends the program.
    """

    def __init__(self, batches: Iterator[torch.Tensor], right: np.ndarray, seconds: float):
        begin = time.perf_counter()
        first = next(batches)
        self.opening = time.perf_counter() - begin
        for clip in thumbnails(first):
            if np.abs(right - clip).mean(1).min() > 4:  # grey levels
                sys.exit("a loader gave a clip that is none of the source's: no numbers")
        rates = []
        for _ in range(BLOCKS):
            begin, count = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds / BLOCKS:
                count += len(next(batches))
            rates.append(count / (time.perf_counter() - begin))
        batches.close()
        self.low, self.rate, self.high = np.percentile(rates, [20, 50, 80])


def consumed(preset: str, batch_size: int) -> float:
    """Clips a second that the training step takes when it never waits."""
    given = {"batch_size": batch_size, "device": "cpu"}
    settings = resolved(Settings.chosen(preset, given))
    configure(settings)
    step = GANStep(settings)
    clips = SyntheticClips(
        frames=settings.frames, size=settings.size, batch_size=batch_size, seed=0
    )
    batch = clips.next_batch()
    times = []
    for _ in range(8):
        begin = time.perf_counter()
        step(batch)
        times.append(time.perf_counter() - begin)
    return batch_size / float(np.median(times[2:]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    size = arguments.size
    cv2.setNumThreads(1)  # as a DataLoader's processes have it
    print("# Clips a second from files\n")
    print(f"`python -m benchmarks.loaders {' '.join(sys.argv[1:])}`  ")
    print(f"{describe()}\n")
    print(f"Clips of {FRAMES}x{size}x{size}, batch {BATCH}, random places, CPU.\n")
    print("| source | loader | clips/s | 20 to 80 % | first batch after | ours / this |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        places = make(Path(scratch), size)
        strips = sorted(places["strips"].iterdir())
        videos = sorted(places["videos"].iterdir())
        array = places["arrays"] / "0.npy"
        of_clips = thumbnails(np.load(array))
        of_videos = every_window(places["videos"], size)
        rivals = {
            "videos": {
                "PyAV + DataLoader": (videos, VIDEO_FRAMES, by_pyav),
                "OpenCV + DataLoader": (videos, VIDEO_FRAMES, by_opencv),
            },
            "strips": {
                "OpenCV + DataLoader": (strips, FRAMES, strip_by_opencv),
                "Pillow + DataLoader": (strips, FRAMES, strip_by_pillow),
            },
            "shards": {},
            "arrays": {"NumPy + DataLoader": ([array], CLIPS + FRAMES - 1, array_by_numpy)},
        }
        for kind, data in places.items():
            right = of_videos if kind == "videos" else of_clips
            rows = {}
            for cache in ("host", "none"):
                decoded = Path(scratch, f"decoded-{cache}")
                rows[f"ours, --cache {cache}"] = Measured(
                    ours(data, size, decoded, cache), right, arguments.seconds
                )
            for name, (files, frames, read) in rivals[kind].items():
                rows[name] = Measured(rival(files, frames, size, read), right, arguments.seconds)
            best = rows["ours, --cache host"].rate
            for name, row in rows.items():
                print(
                    f"| {kind} | {name} | {row.rate:,.0f} | {row.low:,.0f} to {row.high:,.0f} |"
                    f" {row.opening:.1f} s | {best / row.rate:.1f} |",
                    flush=True,
                )
    print("\nThe training step alone, its default settings on this CPU:\n")
    for preset, batch_size in (("paper", 8), ("short", 32)):
        rate = consumed(preset, batch_size)
        print(f"- `--preset {preset} --batch-size {batch_size}`: {rate:.0f} clips/s")


if __name__ == "__main__":
    main()
