"""Which detector sees which damage: Fréchet distances of clips damaged more and more.

    python -m vgan_fast.train --preset short --steps 500 --out runs/judge
    python -m benchmarks.metric_sensitivity runs/judge

Held-out synthetic clips are damaged and compared with as many other ones, by the seeded random
network, by the discriminator of the given run, and by a network that looks at single frames, as a
TorchScript file. Prints a table, and writes it and a plot to --results.
"""

import argparse
import hashlib
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import describe
from vgan_fast.errors import UserError
from vgan_fast.evaluation.detectors import (
    Detector,
    discriminator_of,
    random_detector,
    torchscript_detector,
)
from vgan_fast.evaluation.metrics import flicker, frechet_distance, motion_energy
from vgan_fast.evaluation.statistics import bootstrap
from vgan_fast.files import written_whole
from vgan_fast.kernels.frames.reference import normalise_frames
from vgan_fast.loaders.synthetic import SyntheticClips

CLIPS = 512
BATCH = 64
SEED = 1000  # of the held-out clips
RESAMPLES = 50  # for the interval of the floor


def noise(clips: Tensor, deviation: float, random: torch.Generator) -> Tensor:
    """White noise added."""
    return (clips + deviation * torch.randn(clips.shape, generator=random)).clamp(-1, 1)


def blur(clips: Tensor, pixels: float, random: torch.Generator) -> Tensor:
    """Every frame smoothed by a Gaussian of this standard deviation."""
    reach = min(math.ceil(3 * pixels), clips.shape[-1] - 1)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * pixels**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    n, c, t, h, w = clips.shape
    lines = F.pad(clips.reshape(-1, 1, w), (reach, reach), mode="reflect")
    across = F.conv1d(lines, kernel).view(n, c, t, h, w).mT
    columns = F.pad(across.reshape(-1, 1, h), (reach, reach), mode="reflect")
    return F.conv1d(columns, kernel).view(n, c, t, w, h).mT.contiguous()


def shuffle(clips: Tensor, share: float, random: torch.Generator) -> Tensor:
    """This share of the frames, drawn for each clip, in another order."""
    count, length = round(share * clips.shape[2]), clips.shape[2]
    shuffled = clips.clone()
    for clip in shuffled:
        places = torch.randperm(length, generator=random)[:count]
        clip[:, places.sort().values] = clip[:, places]
    return shuffled


def freeze(clips: Tensor, share: float, random: torch.Generator) -> Tensor:
    """The last frames, this share of them, stand still at the one before them, or at the first."""
    kept = max(1, clips.shape[2] - round(share * clips.shape[2]))
    frames = torch.arange(clips.shape[2]).clamp(max=kept - 1)
    return clips[:, :, frames]


def reverse(clips: Tensor, strength: float, random: torch.Generator) -> Tensor:
    """Time runs backwards."""
    return clips.flip(2)


DAMAGES: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], str, list[float]]] = {
    "noise": (noise, "deviation {}", [0.05, 0.1, 0.2, 0.4]),
    "blur": (blur, "{} pixels", [0.5, 1, 2, 4]),
    "shuffle": (shuffle, "{:.0%} of the frames", [0.25, 0.5, 0.75, 1]),
    "freeze": (freeze, "{:.0%} of the frames", [0.25, 0.5, 0.75, 1]),
    "reverse": (reverse, "", [1]),
}


class FrameNetwork(nn.Module):
    """Seeded random 2D convolutions of single frames, averaged over them: blind to their order."""

    def __init__(self):
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(3, 32, 4, stride=2, padding=1)
        self.second = nn.Conv2d(32, 64, 4, stride=2, padding=1)
        for layer in (self.first, self.second):
            nn.init.orthogonal_(layer.weight, generator=random)
            nn.init.zeros_(layer.bias)

    def forward(self, clips: Tensor) -> Tensor:
        """Features (N, 128) of clips (N, 3, T, H, W)."""
        frames = clips.transpose(1, 2).flatten(0, 1)
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(frames), 0.2)), 0.2)
        moments = torch.cat([x.mean((2, 3)), x.std((2, 3))], dim=1)
        return moments.unflatten(0, (clips.shape[0], clips.shape[2])).mean(1)


def frame_detector() -> Detector:
    """`FrameNetwork` by way of a TorchScript file, trusted by its hash."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frames.pt"
        torch.jit.script(FrameNetwork().eval()).save(str(file))
        trust = hashlib.sha256(file.read_bytes()).hexdigest()
        return torchscript_detector(file, trust, None, torch.device("cpu"))


def held_out(frames: int, size: int, first: int, count: int) -> Tensor:
    """Held-out synthetic clips (count, 3, T, H, W), from number `first` on, a multiple of it."""
    source = SyntheticClips(
        frames=frames,
        size=size,
        batch_size=count,
        seed=SEED,
        split="held-out",
        position=first // count,
    )
    return normalise_frames(source.next_batch()).contiguous()


def seen_by(detector: Detector, clips: Tensor) -> Tensor:
    """Features (N, D) of clips."""
    return torch.cat([detector(batch)[0] for batch in clips.split(BATCH)])


def measured(
    detectors: dict[str, Detector], frames: int, size: int, count: int
) -> Iterator[tuple[str, str, dict[str, float], Tensor]]:
    """Damage, strength, distances by detector, and the damaged clips; undamaged ones first."""
    real, other = held_out(frames, size, 0, count), held_out(frames, size, count, count)
    reference = {name: seen_by(detector, real) for name, detector in detectors.items()}

    def distances(clips: Tensor) -> dict[str, float]:
        return {
            name: frechet_distance(seen_by(detector, clips), reference[name])
            for name, detector in detectors.items()
        }

    yield "none", "", distances(other), other
    for name, (damage, words, strengths) in DAMAGES.items():
        for strength in strengths:
            damaged = damage(other, strength, torch.Generator().manual_seed(0))
            yield name, words.format(strength), distances(damaged), damaged


def floor_ends(detectors: dict[str, Detector], frames: int, size: int, count: int):
    """Upper end of the 95 % interval of the distance between real sets, by detector."""
    real, other = held_out(frames, size, 0, count), held_out(frames, size, count, count)
    return {
        name: bootstrap(frechet_distance, [seen_by(of, other), seen_by(of, real)], RESAMPLES).high
        for name, of in detectors.items()
    }


def verdicts(rows: list[tuple[str, str, dict[str, float]]], ends: dict[str, float]) -> list[str]:
    """For each damage a line of a table: from which strength each detector tells it from real."""
    lines = []
    for damage in DAMAGES:
        cells = [damage]
        for detector, end in ends.items():
            of = [(words, d[detector]) for name, words, d in rows if name == damage]
            values = [value for _, value in of]
            told = next((words or "yes" for words, value in of if value > end), "not at all")
            order = "" if values == sorted(values) else ", not monotone"
            cells.append(told + (order if told != "not at all" else ""))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def plot(rows: list[tuple[str, str, dict[str, float]]], path: Path) -> None:
    """Distance over the floor, by strength, one panel a damage."""
    from matplotlib.figure import Figure

    floor = rows[0][2]
    damages = [name for name in DAMAGES if len(DAMAGES[name][2]) > 1]
    figure = Figure(figsize=(12, 3), layout="constrained")
    panels = figure.subplots(1, len(damages), sharey=True)
    for panel, damage in zip(panels, damages, strict=True):
        for detector in floor:
            of = [d[detector] / floor[detector] for name, _, d in rows if name == damage]
            panel.plot(DAMAGES[damage][2], of, marker="o", label=detector)
        panel.axhline(1, color="grey", lw=0.8, ls="--")
        panel.set(title=damage, yscale="log", xlabel="strength")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Fréchet distance / floor")
    panels[0].legend(frameon=False, fontsize=8)
    with written_whole(path) as part:
        figure.savefig(part, dpi=90)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run whose discriminator is tried")
    parser.add_argument("--count", type=int, default=CLIPS)
    parser.add_argument("--results", type=Path, default=Path("runs/metric_sensitivity"))
    arguments = parser.parse_args()

    judge = discriminator_of(arguments.run, torch.device("cpu"))
    made = [random_detector(torch.device("cpu")), judge, frame_detector()]
    detectors = {detector.label: detector for detector in made}
    frames, size, _ = judge.clips
    ends = floor_ends(detectors, frames, size, arguments.count)
    head = ["damage", "strength", *(f"Fréchet[{name}]" for name in detectors), "motion", "flicker"]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    rows = []
    for name, words, distances, clips in measured(detectors, frames, size, arguments.count):
        rows.append((name, words, distances))
        cells = [f"{d:.4g} ({d / rows[0][2][k]:.2g})" for k, d in distances.items()]
        cells += [f"{motion_energy(clips):.4f}", f"{flicker(clips):.3f}"]
        table.append(f"| {' | '.join([name, words, *cells])} |")
        print(table[-1], flush=True)
    lines = [
        "# Which detector sees which damage",
        "",
        f"`python -m benchmarks.metric_sensitivity {' '.join(sys.argv[1:])}`  ",
        f"{arguments.count} held-out synthetic clips of {frames} frames of {size}x{size}, damaged, "
        "against as many other ones; in brackets over the floor, the distance of undamaged ones. "
        f"{describe()}.",
        "",
        "Seen from this strength on: the distance exceeds the floor's 95 % bootstrap interval.",
        "",
        f"| damage | {' | '.join(detectors)} |",
        "|" + "---|" * (1 + len(detectors)),
        *verdicts(rows, ends),
        "",
        *table,
        "",
        "random: seeded random 3D convolutions; discriminator: of the run; torchscript: random 2D "
        "convolutions of single frames, averaged over them. Bounced objects move backwards as "
        "they do forwards, so reversed clips are clips of the same distribution.",
        "",
    ]
    plot(rows, arguments.results / "metric_sensitivity.png")
    with written_whole(arguments.results / "metric_sensitivity.md") as part:
        part.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
