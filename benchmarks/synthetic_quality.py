"""Train on the synthetic clips, one run a seed, and measure what the samples are worth.

    python -m benchmarks.synthetic_quality --seeds 0 1 2 --steps 3000 --runs runs/quality

Each run is `python -m vgan_fast.train --preset short --steps … --seed …` in a process of its own; a
finished run in the folder is measured again, not trained again. Prints a table, and writes it and a
film strip of each seed to --results.

The Fréchet distances are on `vgan_fast.evaluation.detectors.RandomExtractor`, against 2,048
held-out clips: the samples', and for scale those of other real clips, of real clips frozen at their
first frame, and of the generator before training.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe
from vgan_fast.checkpoint import find_checkpoint
from vgan_fast.errors import UserError
from vgan_fast.evaluation.detectors import RandomExtractor, features
from vgan_fast.evaluation.metrics import frechet_distance, mask_auc, motion_energy
from vgan_fast.kernels.frames.reference import normalise_frames
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.networks import build_generator
from vgan_fast.pictures import as_frames, film_strip, write_picture
from vgan_fast.sampling import load_generator, sample_streams
from vgan_fast.settings import Settings

CLIPS = 2048
BATCH = 64
LOOKED_AT = 4  # batches for the statistics of masks and motion
HELD_OUT_SEED = 1000


def train(run: Path, seed: int, steps: int, options: list[str]) -> dict[str, str]:
    """Train unless the run is finished; the command, the time it took and the machine.

    Raises:
        UserError: when the folder holds the run of another command.
    """
    command = ["-m", "vgan_fast.train", "--preset", "short", "--steps", str(steps)]
    command += ["--seed", str(seed), *options]
    record = run / "training.json"
    if not record.exists():
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        finished = subprocess.run([sys.executable, *command, "--out", str(run)])
        if finished.returncode:
            raise UserError(f"{run}: training failed; remove the folder before trying again")
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        made = {
            "command": " ".join(["python", *command]),
            "minutes (core minutes)": f"{wall / 60:.1f} ({cpu / 60:.1f})",
            "machine": describe(),
        }
        record.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    made = json.loads(record.read_text(encoding="utf-8"))
    if made["command"] != " ".join(["python", *command]):
        raise UserError(f"{run}: holds the run of `{made['command']}`; choose other --runs")
    return made


def real_clips(settings: Settings, seed: int, count: int = CLIPS) -> Iterator[Tensor]:
    """Held-out clips of a seed, in batches (64, 3, T, H, W)."""
    clips = SyntheticClips(
        frames=settings.frames, size=settings.size, batch_size=BATCH, seed=seed, split="held-out"
    )
    for _ in range(count // BATCH):
        yield normalise_frames(clips.next_batch()).contiguous()


def sampled(generator, settings: Settings, count: int = CLIPS) -> Iterator[dict[str, Tensor]]:
    """Streams of samples, in batches; always of the same latents."""
    seeded = torch.Generator().manual_seed(HELD_OUT_SEED)
    device = next(generator.parameters()).device
    for _ in range(count // BATCH):
        latents = torch.randn(BATCH, settings.latent, generator=seeded).to(device)
        yield sample_streams(generator, latents)


def spread(still: Tensor) -> float:
    """Mean spatial standard deviation of pictures (N, 3, H, W)."""
    return float(still.std((2, 3)).mean())


def measure(run: Path) -> tuple[dict[str, str], torch.Tensor]:
    """The row of a run's table, and the frames for its film strip."""
    checkpoint = find_checkpoint(run)
    settings = Settings.load(checkpoint / "settings.json")
    extractor = RandomExtractor()
    held_out = features(extractor, real_clips(settings, HELD_OUT_SEED))

    def distance(batches) -> float:
        return frechet_distance(features(extractor, batches), held_out)

    torch.manual_seed(settings.seed)  # The weights that this run began with.
    generator = build_generator(settings)
    untrained = distance(batch["video"] for batch in sampled(generator, settings))
    generator = load_generator(checkpoint, settings, torch.device("cpu"))
    ours = distance(batch["video"] for batch in sampled(generator, settings))

    def first(batches: Iterator, of: Callable[[Tensor], float]) -> float:
        return (
            sum(of(batch) for batch, _ in zip(batches, range(LOOKED_AT), strict=False)) / LOOKED_AT
        )

    def looked_at(of: Callable[[dict[str, Tensor]], float]) -> float:
        return first(sampled(generator, settings), of)

    real_motion = first(real_clips(settings, HELD_OUT_SEED), motion_energy)
    real_spread = first(
        real_clips(settings, HELD_OUT_SEED), lambda clip: spread(clip.median(dim=2).values)
    )
    frozen = distance(
        clip[:, :, :1].expand_as(clip) for clip in real_clips(settings, HELD_OUT_SEED)
    )
    # Stored masks are scaled to [-1, 1] as pictures are.
    row = {
        "Fréchet": f"{ours:.4f}",
        "untrained": f"{untrained:.3f}",
        "untrained / ours": f"{untrained / ours:.0f}",
        "real frozen": f"{frozen:.3f}",
        "real": f"{distance(real_clips(settings, HELD_OUT_SEED + 1)):.4f}",
        "motion / real": f"{looked_at(lambda s: motion_energy(s['video'])) / real_motion:.2f}",
        "mask mean": f"{looked_at(lambda s: float((s['mask'] + 1).mean() / 2)):.3f}",
        "mask < 0.3": f"{looked_at(lambda s: float((s['mask'] < -0.4).float().mean())):.2f}",
        "mask > 0.5": f"{looked_at(lambda s: float((s['mask'] > 0).float().mean())):.2f}",
        "mask AUC": f"{looked_at(lambda s: mask_auc(s['mask'], s['video'])):.3f}",
        "background std / real": (
            f"{looked_at(lambda s: spread(s['background'][:, :, 0])) / real_spread:.2f}"
        ),
    }
    streams = next(sampled(generator, settings))
    wide = torch.cat([clip.expand(-1, 3, -1, -1, -1)[:8] for clip in streams.values()], dim=4)
    return row, as_frames(wide)


def main() -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--results", type=Path, default=Path("runs/quality"))
    parser.add_argument("options", nargs="*", help="further options of vgan_fast.train, after --")
    arguments = parser.parse_args()

    lines = [
        "# Quality on synthetic clips",
        "",
        f"`python -m benchmarks.synthetic_quality {' '.join(sys.argv[1:])}`  ",
        f"Measured: {describe()}.",
        "",
    ]
    for seed in arguments.seeds:
        run = arguments.runs / f"seed-{seed}"
        made = train(run, seed, arguments.steps, arguments.options)
        row, frames = measure(run)
        row = {"seed": str(seed), "minutes (core minutes)": made["minutes (core minutes)"], **row}
        if seed == arguments.seeds[0]:
            lines += [f"Trained by `{made['command']}`, {made['machine']}.", ""]
            lines += [f"| {' | '.join(row)} |", "|" + "---|" * len(row)]
        lines.append(f"| {' | '.join(row.values())} |")
        print(lines[-1], flush=True)
        strip = film_strip(frames, shown=6)
        write_picture(arguments.results / f"synthetic_seed_{seed}.png", strip)
    lines += ["", "Film strips: each frame shows video, foreground, mask and background.", ""]
    (arguments.results / "synthetic_quality.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
