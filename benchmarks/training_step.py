"""Time of one training step: the default path against the plain fp32 eager reference.

    python -m benchmarks.training_step

The two take turns on the same batches, so that their ratio holds when the machine's speed drifts.
Before any timing, losses and gradients of one step are compared: no number is printed for a wrong
result.
"""

import argparse
import dataclasses
import statistics
import sys
import time

import torch

from benchmarks.machine import describe
from vgan_fast.device import configure, find_device, resolved
from vgan_fast.gan_step import GANStep
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.settings import Settings

# The paper's networks at a batch that a CPU bears, and the size that a CPU trains by default.
SIZES = {
    "64x64, width 64, batch 8": Settings(batch_size=8),
    "32x32, width 32, batch 32": Settings(batch_size=32, size=32, width=32),
}
PATHS = {
    "reference": {"backend": "reference"},
    "default in fp32": {"precision": "fp32"},  # what a CPU without native bf16 runs
    "default": {},
}
if torch.cuda.is_available():
    PATHS["fused kernels"] = {"backend": "fused"}
TOLERANCE = 0.02  # relative error of losses after one step: bf16 keeps 8 bits
# bf16 against fp32: 0.09 was seen for the discriminator, whose real and generated terms nearly
# cancel at first, 0.15 for the generator, behind a discriminator whose first Adam step turned
# rounding into signs. A wrong sign or a missing term is off by about 1.
GRADIENT_TOLERANCE = {"discriminator": 0.2, "generator": 0.3}


def check(steps: dict[str, GANStep], frames: torch.Tensor) -> None:
    """Refuse to time paths that disagree after one step: in losses, or in either gradient."""
    losses = {path: step(frames) for path, step in steps.items()}
    for path, step in steps.items():
        reference = steps["reference"]
        for name, value in losses["reference"].items():
            error = abs(float(losses[path][name] / value) - 1)
            if not error < TOLERANCE:
                sys.exit(f"error: the loss '{name}' of '{path}' is off by {error:.1%}")
        for name, tolerance in GRADIENT_TOLERANCE.items():
            expected = _gradient(reference, name)
            error = float((_gradient(step, name) - expected).norm() / expected.norm())
            if not error < tolerance:
                sys.exit(f"error: the {name}'s gradient in '{path}' is off by {error:.1%}")


def _gradient(step: GANStep, name: str) -> torch.Tensor:
    # Half the first gradient, in Adam's first moment: .grad of the reference's discriminator also
    # holds what the generator's step left there.
    moments = step.optimizers[name].state.values()
    return torch.cat([state["exp_avg"].flatten() for state in moments])


def milliseconds(step: GANStep, frames: torch.Tensor) -> float:
    """One step, from start until the device is done."""
    configure(step.settings)
    start = time.perf_counter()
    losses = step(frames)
    float(losses["g"])
    return 1000 * (time.perf_counter() - start)


def percentiles(times: list[float]) -> str:
    """Median with the 20th and 80th percentiles."""
    tenths = statistics.quantiles(times, n=10)
    return f"{statistics.median(times):.0f} ({tenths[1]:.0f}-{tenths[7]:.0f})"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    device = find_device("auto")
    print("# Training step: default path against plain fp32 eager\n")
    print(f"`python -m benchmarks.training_step {' '.join(sys.argv[1:])}`  ")
    print(f"{describe()}\n")
    columns = ["networks", *(f"{path}, ms" for path in PATHS), "default, clips/s"]
    columns += [f"reference / {path}" for path in PATHS if path != "reference"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, settings in SIZES.items():
        steps = {
            path: GANStep(resolved(dataclasses.replace(settings, **changes)))
            for path, changes in PATHS.items()
        }
        clips = SyntheticClips(
            frames=settings.frames,
            size=settings.size,
            batch_size=settings.batch_size,
            seed=0,
            device=device,
        )
        check(steps, clips.next_batch())
        times = {path: [] for path in steps}
        for round_ in range(3 + rounds):
            frames = clips.next_batch()
            for path, step in steps.items():
                elapsed = milliseconds(step, frames)
                if round_ >= 3:  # The first rounds choose algorithms and fill caches.
                    times[path].append(elapsed)
        rate = 1000 * settings.batch_size / statistics.median(times["default"])
        ratios = [
            statistics.median(a / b for a, b in zip(times["reference"], times[path], strict=True))
            for path in PATHS
            if path != "reference"
        ]
        cells = [name, *map(percentiles, times.values()), f"{rate:.0f}"]
        cells += [f"{ratio:.2f}" for ratio in ratios]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
