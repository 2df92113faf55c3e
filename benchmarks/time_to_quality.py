"""Seconds of training until samples are good: the default path against the reference.

    python -m benchmarks.time_to_quality --out FOLDER [--seed 0 --seed 1] [options of training]

Good is a Fréchet distance of a twentieth of the untrained generator's, both to 1,024 held-out
synthetic clips on `vgan_fast.evaluation.detectors.RandomExtractor`. The clock runs while batches
are made and trained on and stands still while the samples are judged, every `--every` steps. A run
that does not get there within `--steps` is reported so. Runs that FOLDER/time_to_quality.json holds
already, with the same settings, are not run again: remove the file where the machine or the code is
another.
"""

import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path

import click
import torch

from benchmarks.machine import describe
from benchmarks.synthetic_quality import HELD_OUT_SEED, real_clips, sampled
from vgan_fast.cli import Program, options_of
from vgan_fast.device import configure, default_preset, resolved
from vgan_fast.evaluation.detectors import RandomExtractor, features
from vgan_fast.evaluation.metrics import frechet_distance
from vgan_fast.files import written_whole
from vgan_fast.gan_step import GANStep
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.sampling import with_own_statistics
from vgan_fast.settings import PRESETS, Settings

CLIPS = 1024
SHARE = 1 / 20  # of the untrained distance
FILE = "time_to_quality.json"
# Options of training that make sense here; clips are synthetic, seeds and backends have their own.
GIVEN = ("steps", "batch_size", "frames", "size", "width", "latent", "mask_penalty", "mask_bias")
GIVEN += ("average", "lr", "lr_d", "device", "precision", "graph")


class Judge:
    """Fréchet distance of a step's samples to held-out clips."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._extractor = RandomExtractor().to(settings.device)
        self._real = features(
            self._extractor,
            (clip.to(settings.device) for clip in real_clips(settings, HELD_OUT_SEED, CLIPS)),
        )

    def __call__(self, step: GANStep) -> float:
        """Of the weights that the step samples from, the moving average where it keeps one."""
        sampler = with_own_statistics(step.sampler) if self._settings.average else step.sampler
        made = sampled(sampler, self._settings, CLIPS)
        return frechet_distance(
            features(self._extractor, (batch["video"] for batch in made)), self._real
        )


def run(settings: Settings, every: int) -> dict:
    """Train until the samples are good: steps, seconds and distances of every judgement."""
    configure(settings)
    judge, step = Judge(settings), GANStep(settings)
    clips = SyntheticClips(
        frames=settings.frames,
        size=settings.size,
        batch_size=settings.batch_size,
        seed=settings.seed,
        device=step.device,
    )
    wanted = SHARE * judge(step)
    seconds, curve, good = 0.0, [], False
    for done in range(every, settings.steps + 1, every):
        begin = time.perf_counter()
        for _ in range(every):
            losses = step(clips.next_batch())
        float(losses["g"])  # waits for the device
        seconds += time.perf_counter() - begin
        distance = judge(step)
        curve.append([done, round(seconds, 2), distance])
        print(f"  step {done}: {seconds:.0f} s, {distance:.4f} (wanted {wanted:.4f})", flush=True)
        if good := distance <= wanted:
            break
    return {
        "settings": dataclasses.asdict(settings),
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "wanted": wanted,
        "curve": curve,
        "good": good,
    }


@click.command(cls=Program)
@options_of(Settings, PRESETS, GIVEN)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="as of vgan_fast.train")
@click.option(
    "--seed", "seeds", type=click.IntRange(0), multiple=True, default=(0, 1, 2), show_default=True
)
@click.option(
    "--backend",
    "backends",
    type=click.Choice(["reference", "library", "fused", "auto"]),
    multiple=True,
    default=("reference", "auto"),
    show_default=True,
)
@click.option("--every", type=click.IntRange(1), default=50, show_default=True, help="steps")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
def main(
    preset: str | None,
    seeds: tuple[int, ...],
    backends: tuple[str, ...],
    every: int,
    out: Path,
    **given,
) -> int:
    """Measure seconds to quality and write FOLDER/time_to_quality.json."""
    given = {name: value for name, value in given.items() if value is not None}
    preset = preset or default_preset(given.get("device", "auto"))
    file = out / FILE
    runs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    for seed, backend in itertools.product(seeds, backends):
        settings = resolved(Settings.chosen(preset, {**given, "seed": seed, "backend": backend}))
        print(f"seed {seed}, {backend}", flush=True)
        if any(known["settings"] == dataclasses.asdict(settings) for known in runs):
            print("  known")
            continue
        runs.append(run(settings, every))
        out.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as part:
            part.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
