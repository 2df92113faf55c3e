"""Share of training time spent waiting for clips, from JPEG strips of the original's format.

    python -m benchmarks.data_wait

Makes a folder of strips (32 stacked frames of 128x128), trains on it with the default settings of
this device, and times the loader and the step in the same loop on the same cores.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

import imageio.v3 as iio

from benchmarks.machine import describe
from vgan_fast.device import configure, default_preset, resolved
from vgan_fast.gan_step import GANStep
from vgan_fast.loaders.clips import open_clips
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.settings import Settings

STRIPS = 256
WARM_UP = 5


def write_strips(folder: Path) -> None:
    """Synthetic clips as vertical JPEG strips."""
    clips = SyntheticClips(frames=32, size=128, batch_size=8, seed=0)
    for first in range(0, STRIPS, 8):
        for i, clip in enumerate(clips.next_batch(), start=first):
            strip = clip.reshape(32 * 128, 128, 3).numpy()
            iio.imwrite(folder / f"{i:05d}.jpg", strip, quality=90)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    settings = resolved(Settings.chosen(default_preset("auto"), {}))
    configure(settings)
    print("# Data wait from JPEG strips\n")
    print(f"`python -m benchmarks.data_wait {' '.join(sys.argv[1:])}`  ")
    print(f"{describe()}\n")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "strips")
        data.mkdir()
        write_strips(data)
        step = GANStep(settings)
        print("| clips | cache | steps | clips/s | data wait |")
        print("|---|---|---|---|---|")
        for cache in ("none", "auto"):
            rate, wait = train(step, settings, data, Path(folder, "frames"), cache, arguments.steps)
            print(
                f"| {settings.frames}x{settings.size}x{settings.size}, batch"
                f" {settings.batch_size} | {cache} | {arguments.steps} | {rate:.0f} | {wait:.1%} |"
            )


def train(
    step: GANStep, settings: Settings, data: Path, decoded: Path, cache: str, steps: int
) -> tuple[float, float]:
    """Clips a second, and the share of the time spent waiting for them."""
    loader = open_clips(
        data,
        frames=settings.frames,
        size=settings.size,
        batch_size=settings.batch_size,
        seed=0,
        device=step.device,
        decoded=decoded,
        cache=cache,
    )
    with contextlib.closing(loader):
        waited = trained = 0.0
        for number in range(WARM_UP + steps):
            start = time.perf_counter()
            frames = loader.next_batch()
            arrived = time.perf_counter()
            float(step(frames)["g"])
            if number >= WARM_UP:
                waited += arrived - start
                trained += time.perf_counter() - arrived
    return steps * settings.batch_size / (waited + trained), waited / (waited + trained)


if __name__ == "__main__":
    main()
