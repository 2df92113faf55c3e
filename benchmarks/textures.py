"""How near an STGConvNet's clips come to the textures that it learnt, beside a linear system's.

    python -m vgan_fast.train --model stgconvnet --experiment 2b --data fire.avi --out runs/fire ...
    python -m benchmarks.textures runs/fire runs/fountain

Prints a table, and writes it and a film strip of each run to --results.
"""

import shlex
import sys
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.machine import describe
from benchmarks.recovery import square
from vgan_fast.baselines.linear_system import LinearSystem
from vgan_fast.cli import Program
from vgan_fast.energy_sampling import ChainSampler
from vgan_fast.errors import UserError
from vgan_fast.evaluation.textures import colour_histogram_distance, temporal_spectrum_distance
from vgan_fast.files import written_whole
from vgan_fast.loaders.decode import scaled
from vgan_fast.loaders.whole import decoded
from vgan_fast.pictures import as_frames, film_strip, write_picture
from vgan_fast.settings import Settings

CLIPS = 6  # real ones, one after the other in the video
SHOWN = 3


@click.command(cls=Program)
@click.argument("runs", type=click.Path(path_type=Path, exists=True, file_okay=False), nargs=-1)
@click.option("--states", type=click.IntRange(1), default=20, help="of the linear system  [20]")
@click.option("--langevin-steps", type=click.IntRange(1), default=100, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("runs/textures"))
def main(runs, states, langevin_steps, results) -> int:
    """Measure, print, write."""
    if not runs:
        raise UserError("name runs of vgan_fast.train --model stgconvnet")
    head = ["run", "clips", "colours", "spectrum, dB"]
    lines = [
        "# Textures: what is learnt, and a linear dynamic system",
        "",
        f"`python -m benchmarks.textures {shlex.join(sys.argv[1:])}`  ",
        f"{describe()}.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
    ]
    told = []
    for run in runs:
        sampler = ChainSampler(run, torch.device("cpu"))
        settings = sampler.settings
        frames = real_clips(settings)
        (made,) = sampler.batches(settings.chains, 0, langevin_steps)
        chains = as_frames(made["video"])
        system = LinearSystem.fit(np.concatenate(frames), states)
        linear = np.stack([system.sample(settings.frames, seed) for seed in range(len(chains))])
        rows = {
            "STGConvNet": chains,
            f"linear system, {states} states": linear,
            "its first frame, still": np.repeat(frames[:1, :1], settings.frames, axis=1),
        }
        pairs = [(name, clips, frames) for name, clips in rows.items()]
        if half := len(frames) // 2:  # else there is no other real clip
            pairs.append(("real clips, halves", frames[:half], frames[half:]))
        for name, clips, real in pairs:
            colours = colour_histogram_distance(clips, real)
            spectrum = temporal_spectrum_distance(clips, real)
            lines.append(f"| {run.name} | {name} | {colours:.2f} | {spectrum:.2f} |")
        picture = film_strip(np.concatenate([frames[:1], chains[:SHOWN], linear[:1]]))
        strip = results / f"texture_{run.name}.png"
        write_picture(strip, picture, remedy="choose another --results")
        layers = settings.layers or f"of experiment {settings.experiment}"
        told.append(
            f"`{run.name}`: `{Path(settings.data).name}`, {len(frames)} real clips, "
            f"{settings.frames} frames of "
            f"{settings.size}x{settings.size}, layers {layers}, {settings.steps} steps of "
            f"{settings.langevin_steps} Langevin steps of {settings.step_size}, lr {settings.lr}, "
            f"{settings.chains} chains, {settings.precision}. ![{run.name}]({strip.name})"
        )
    lines += [
        "",
        "Colours: distance of the histograms, grey levels. Spectrum: root mean square difference "
        "of the power spectra over time, on a log scale (`vgan_fast.evaluation.textures`). Both "
        f"from the real clips, up to {CLIPS}, one after the other from the video's beginning, to "
        f"which the linear system is fitted, too. The chains went on by {langevin_steps} Langevin "
        "steps from where training left them.",
        "",
        *(line for of in told for line in (of, "")),
        f"From above: the first real clip, {SHOWN} chains, the linear system.",
        "",
    ]
    with written_whole(results / "textures.md", remedy="choose another --results") as part:
        part.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    return 0


def real_clips(settings: Settings) -> np.ndarray:
    """Clips uint8 (N, T, size, size, 3) of the run's video, from its beginning, up to `CLIPS`."""
    file, length, size = Path(settings.data), settings.frames, settings.size
    with decoded([file], start=0, most=CLIPS * length, least=length, workers=1) as found:
        videos, broken = found
        if not videos:
            raise UserError(f"{file}: {broken[file]}; give runs of one video each")
        (video,) = videos.values()
        frames = square(video.read(0, video.shape[0] // length * length))
    small = np.stack([scaled(frame, size, size) for frame in frames])
    return small.reshape(-1, length, size, size, 3)


if __name__ == "__main__":
    sys.exit(main())
