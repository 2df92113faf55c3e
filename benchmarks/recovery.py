"""The STGConvNet paper's Table 1 over a folder of videos: errors of recovered pixels.

    python -m benchmarks.recovery VIDEOS --size 150 --frames 70 --langevin-steps 20 --step-size 0.3

Each video is occluded in three ways and recovered by the energy model, by Markov random fields with
L1 and L2 potentials and by linear interpolation over time, once for each seed. Prints a table, and
writes it and film strips to --results. Cells are kept in --results/recovery.json: a run that was
stopped goes on.
"""

import hashlib
import json
import os
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.machine import describe
from vgan_fast.baselines import interpolation, markov_field
from vgan_fast.cli import Program, options_of
from vgan_fast.device import configure, resolved
from vgan_fast.errors import UserError
from vgan_fast.files import explained, written_whole
from vgan_fast.loaders.search import VIDEO_SUFFIXES, natural_key
from vgan_fast.loaders.whole import Clip, read_clips
from vgan_fast.pictures import film_strip, write_picture
from vgan_fast.restoration.occlusions import missing_frames, moving_region, salt_and_pepper
from vgan_fast.restoration.recovery import recover
from vgan_fast.restore import OCCLUDED, REGION, SHARE
from vgan_fast.settings import PRESETS, Settings

OCCLUSIONS = {
    "salt and pepper": lambda shape, seed: salt_and_pepper(shape, share=SHARE, seed=seed),
    "moving region": lambda shape, seed: moving_region(
        shape, side=round(REGION * min(shape[1:])), seed=seed
    ),
    "missing frames": lambda shape, seed: missing_frames(shape, share=SHARE, seed=seed),
}
SWEEPS = 50  # of the Gibbs samplers before the first draw that counts
METHODS = {
    "energy": "STGConvNet",
    "l1": "MRF, L1",
    "l2": "MRF, L2",
    "interpolation": "interpolation over time",
}
OF_SETTINGS = ("frames", "size", "steps", "langevin_steps", "step_size", "chains", "lr")
OF_SETTINGS += ("layers", "layer_rates", "device", "backend", "precision")


@click.command(cls=Program)
@click.argument("videos", type=click.Path(path_type=Path, exists=True, file_okay=False))
@options_of(Settings, PRESETS, names=OF_SETTINGS)
@click.option("--start", type=click.IntRange(0), default=0, help="first frame of each video")
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="of occlusions, weights and noise",
)
@click.option(
    "--samples",
    type=click.IntRange(2),
    default=20,
    show_default=True,
    help="draws, for the mean",
)
@click.option("--workers", type=click.IntRange(1), default=None, help="processes  [one a CPU]")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("runs/recovery"),
    show_default=True,
    help="folder of the table and the strips",
)
def main(videos, start, seeds, samples, workers, results, **given) -> int:
    """Measure, print, write."""
    workers = workers or len(os.sched_getaffinity(0))
    given = {name: value for name, value in given.items() if value is not None}
    settings = resolved(
        Settings.chosen(
            "paper", {"model": "stgconvnet", "experiment": "4", "batch_size": 1} | given
        )
    )
    files = [file for file in videos.iterdir() if file.suffix.lower() in VIDEO_SUFFIXES]
    files.sort(key=lambda file: natural_key(file.name))
    clips, broken = read_clips(
        files, start=start, frames=settings.frames, short_side=settings.size, workers=workers
    )
    for file, reason in broken.items():
        print(f"skipped {file}: {reason}", file=sys.stderr)
    if not clips:
        raise UserError(f"{videos}: holds no video of {settings.frames} frames that can be read")
    with explained(results):
        results.mkdir(parents=True, exist_ok=True)
    kept = results / "recovery.json"
    cells = _kept(kept, settings, start, samples)
    with ProcessPoolExecutor(
        workers, mp_context=torch.multiprocessing.get_context("spawn")
    ) as pool:
        asked = {
            pool.submit(_cell, square(clip.frames), kind, seed, settings, samples): clip
            for seed in range(seeds)
            for clip in clips
            for kind in OCCLUSIONS
            if _key(clip, kind, seed) not in cells
        }
        for cell in as_completed(asked):
            clip = asked[cell]
            try:
                kind, seed, errors, strip = cell.result()
            except UserError:
                pool.shutdown(cancel_futures=True)
                raise
            cells[_key(clip, kind, seed)] = errors
            print(f"{clip.source.name}, {kind}, seed {seed}: {errors}", flush=True)
            if seed == 0:
                name = f"{clip.source.name}_{kind}".replace(".", "_").replace(" ", "_")
                file = f"recovery_{name}.png"
                write_picture(results / file, strip, remedy="choose another --results")
            with written_whole(kept, remedy="choose another --results") as part:
                content = {"of": _of(settings, start, samples), "cells": cells}
                part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = _table(cells, clips, range(seeds), settings, start, samples)
    with written_whole(results / "recovery.md", remedy="choose another --results") as part:
        part.write_text(text, encoding="utf-8")
    print(text)
    return 0


def square(frames: np.ndarray) -> np.ndarray:
    """The middle of frames (T, H, W, 3), as high as wide."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[:, top : top + side, left : left + side]


def _cell(clip: np.ndarray, kind: str, seed: int, settings: Settings, samples: int):
    """Errors by method, [of one draw, of the mean of all], and a film strip."""
    import dataclasses

    torch.set_num_threads(1)
    settings = dataclasses.replace(settings, seed=seed)
    configure(settings)
    hidden = OCCLUSIONS[kind](clip.shape[:3], seed)
    given = np.where(hidden[..., None], np.uint8(0), clip)

    def errors(draws: np.ndarray) -> list[float]:
        off = [np.abs(each - clip)[hidden].mean() for each in (draws[0], draws.mean(0))]
        return [round(float(each), 2) for each in off]

    began = time.perf_counter()
    energy = recover(given[None], hidden[None], settings, samples=samples)[:, 0]
    found = {"energy": errors(energy), "seconds": round(time.perf_counter() - began)}
    for potential in ("l1", "l2"):
        draws = markov_field.recover(
            given, hidden, potential=potential, sweeps=SWEEPS, samples=samples, seed=seed
        )
        found[potential] = errors(draws)
    linear = interpolation.recover(given, hidden)
    found["interpolation"] = errors(linear[None])
    rows = [
        clip,
        np.where(hidden[..., None], np.uint8(OCCLUDED), clip),
        energy.mean(0).round().astype(np.uint8),
        np.abs(energy.mean(0) - clip).round().astype(np.uint8),
    ]
    return kind, seed, found, film_strip(np.stack(rows))


def _key(clip: Clip, kind: str, seed: int) -> str:
    content = hashlib.sha256(clip.frames.tobytes()).hexdigest()[:8]
    return f"{clip.source.name} {content}, {kind}, {seed}"


def _of(settings: Settings, start: int, samples: int) -> dict:
    of = {name: getattr(settings, name) for name in OF_SETTINGS}
    return {**of, "start": start, "samples": samples, "sweeps": SWEEPS}


def _kept(file: Path, settings: Settings, start: int, samples: int) -> dict:
    if not file.exists():
        return {}
    stored = json.loads(file.read_text(encoding="utf-8"))
    if stored["of"] != _of(settings, start, samples):
        raise UserError(f"{file}: is of other options; choose another --results")
    return stored["cells"]


def _table(
    cells: dict, clips: list[Clip], seeds: range, settings: Settings, start: int, samples: int
) -> str:
    told = " ".join(f"{name}={value}" for name, value in _of(settings, start, samples).items())
    seconds = np.mean([cell["seconds"] for cell in cells.values()])
    head = ["", *(f"{title}: one, mean" for title in METHODS.values())]
    lines = [
        "# Recovery of occluded pixels",
        "",
        f"`python -m benchmarks.recovery {shlex.join(sys.argv[1:])}`  ",
        f"{told}. {describe()}, one core a recovery: {seconds / 60:.1f} minutes in the mean.",
        "",
        "Mean absolute errors of occluded pixels, 0 to 255, of one draw and of the mean of "
        f"{samples}: mean and, in brackets, standard deviation over {len(seeds)} seeds (of "
        "occlusion, weights and noise).",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    fewer = np.zeros(2, int)
    for clip in clips:
        for kind in OCCLUSIONS:
            of = [cells[_key(clip, kind, seed)] for seed in seeds]
            row = [f"{clip.source.name}, {kind}"]
            means = {}
            for method in METHODS:
                both = np.array([each[method] for each in of])
                means[method] = both.mean(0)
                shown = [
                    f"{m:.2f} ({s:.2f})" for m, s in zip(both.mean(0), both.std(0), strict=True)
                ]
                row.append(shown[1] if method == "interpolation" else ", ".join(shown))
            fewer += means["energy"] < np.minimum(means["l1"], means["l2"])
            lines.append(f"| {' | '.join(row)} |")
    lines += [
        "",
        f"STGConvNet's errors are lower than both random fields' in {fewer[0]} (one draw) and "
        f"{fewer[1]} (the mean) of {len(clips) * len(OCCLUSIONS)} cells.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
