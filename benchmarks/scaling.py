"""Training on many GPUs: bytes counted, step times predicted, where it stops scaling.

    python -m benchmarks.scaling > benchmarks/results/scaling.md

Needs no GPU and no network. The calls of a step are those of `vgan_fast.kernels.cost`, the
collectives those of `vgan_fast.distributed`, at the paper's sizes.
"""

import argparse
from dataclasses import dataclass
from math import log2

from torch import nn

from benchmarks.machine import describe
from vgan_fast.kernels.cost import FP32, TBYTES, TFLOPS, training_step
from vgan_fast.networks import build_discriminator, build_generator
from vgan_fast.settings import Settings
from vgan_fast.shape import ClipShape

NODE = 8  # GPUs of a machine
GPUS = (1, 8, 64)
LAUNCH = 3e-6  # seconds for each call, as in `benchmarks.step_table`
NVLINK, NETWORK = 450e9, 50e9  # bytes a second that a GPU sends: within its machine, out of it
REACHED = 0.8  # share of either that a ring keeps busy
HOP_NEAR, HOP_FAR = 1.5e-6, 5e-6  # seconds that a message takes to the next GPU: within, out
START = 10e-6  # seconds of any collective besides
COPIES = 6  # times that gradients pass the memory: into the buffer, divided, and out of it


@dataclass(frozen=True)
class Collectives:
    """What the processes send in a step, each from its own rows.

    Attributes:
        gradients: bytes of each network's.
        norms: bytes of each message of synchronised norms: the moments of a pass, the sums of its
            backward.
    """

    gradients: tuple[int, ...]
    norms: tuple[int, ...]


def collectives(settings: Settings) -> Collectives:
    """Of a step of a two-stream GAN whose layers are PyTorch's (`--backend library`).

    The generator runs once. The discriminator runs on real clips and on generated ones, and on
    these once more for the generator's gradient.
    """
    generator, discriminator = build_generator(settings), build_discriminator(settings)
    sizes = [
        sum(p.numel() for p in network.parameters()) * FP32
        for network in (generator, discriminator)
    ]
    norms = []
    for network, passes in ((generator, 1), (discriminator, 3)):
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # Two moments in fp64 forwards, two sums in fp32 backwards.
                norms += [2 * module.num_features * of for of in (2 * FP32, FP32)] * passes
    return Collectives(tuple(sizes), tuple(norms))


def computed(clips: int) -> float:
    """Seconds of a step of so many clips on one GPU: floors and launches."""
    calls = training_step(ClipShape(), clips)
    return sum(call.floor(TFLOPS, TBYTES) + LAUNCH for call in calls)


def sent(size: int, gpus: int) -> float:
    """Bytes that each GPU sends for an all-reduce of `size` bytes in a ring."""
    return 2 * (gpus - 1) / gpus * size


def all_reduce(size: int, gpus: int) -> float:
    """Seconds of an all-reduce.

    A machine has as many rings as GPUs, so that every network port carries its share; each GPU
    sends all of it over NVLink. Small ones go over a tree.
    """
    if gpus == 1:
        return 0.0
    machines = gpus // NODE
    slowest = max(1 / NVLINK, 1 / (NODE * NETWORK) if machines > 1 else 0.0)
    hops_far = 2 * machines if machines > 1 else 0
    ring = sent(size, gpus) * slowest / REACHED
    ring += (2 * (gpus - 1) - hops_far) * HOP_NEAR + hops_far * HOP_FAR
    tree = 2 * size * slowest / REACHED
    tree += 2 * log2(NODE) * HOP_NEAR + 2 * log2(machines) * HOP_FAR
    return START + min(ring, tree)


@dataclass(frozen=True)
class Row:
    """A step on so many GPUs, in seconds."""

    gpus: int
    clips: int  # of each GPU
    computes: float
    gradients: float
    norms: float

    @property
    def local(self) -> float:
        """The step as it is written, norms local."""
        return self.computes + self.gradients

    @property
    def hidden(self) -> float:
        """The least it could be, were gradients sent while others are computed."""
        return max(self.computes, self.gradients)

    def speed(self, seconds: float) -> float:
        """Clips a second of all GPUs."""
        return self.gpus * self.clips / seconds


def row(gpus: int, clips: int, of: Collectives) -> Row:
    """A step of so many clips on each of so many GPUs."""
    copied = COPIES * sum(of.gradients) / (TBYTES * 1e12) if gpus > 1 else 0.0
    return Row(
        gpus,
        clips,
        computed(clips),
        copied + sum(all_reduce(size, gpus) for size in of.gradients),
        sum(all_reduce(size, gpus) for size in of.norms),
    )


def least_clips(gpus: int, of: Collectives, share: float = 0.1) -> int:
    """Fewest clips a GPU, a power of two, of whose step the gradients take at most a share."""
    clips = 1
    while (made := row(gpus, clips, of)).gradients > share * made.local:
        clips *= 2
    return clips


def table(rows: list[Row], of: Collectives) -> list[str]:
    """Rows in Markdown, each beside the first one's speed."""
    (alone, *_) = rows
    lines = [
        "| GPUs | clips a GPU | sent a GPU, MB | of it out of the machine, MB a port "
        "| computes, ms | gradients, ms | step, ms | clips/s | of the ideal | step if hidden, ms "
        "| synchronised norms, ms more | of the ideal |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        moved = sum(sent(size, r.gpus) for size in of.gradients) / 1e6
        out = moved / NODE if r.gpus > NODE else 0.0
        ideal = alone.speed(alone.local) / alone.gpus * r.gpus
        synchronised = r.local + r.norms
        lines.append(
            f"| {r.gpus} | {r.clips} | {moved:.1f} | {out:.1f} | {r.computes * 1e3:.2f} "
            f"| {r.gradients * 1e3:.2f} | {r.local * 1e3:.2f} | {r.speed(r.local):,.0f} "
            f"| {r.speed(r.local) / ideal:.0%} | {r.hidden * 1e3:.2f} | {r.norms * 1e3:.2f} "
            f"| {r.speed(synchronised) / ideal:.0%} |"
        )
    return lines


def page(batch: int = 64) -> str:
    """The page in Markdown, for a batch on each GPU and for the same in all."""
    of = collectives(Settings(device="cuda", precision="bf16", backend="library"))
    weak = [row(gpus, batch, of) for gpus in GPUS]
    strong = [row(gpus, batch // gpus, of) for gpus in GPUS]
    least = {gpus: least_clips(gpus, of) for gpus in GPUS[1:]}
    fastest = max(strong, key=lambda r: r.speed(r.local))
    return f"""\
# Training on many GPUs: counted and predicted, not measured

`python -m benchmarks.scaling`{f" `--batch {batch}`" if batch != 64 else ""}  
{describe()}; no GPU

One step of the two-stream networks at the paper's sizes in bf16. **No time here was measured, and
no run of this project has used more than one GPU.** Bytes are counted; the rates and delays below
are assumptions, which whoever has such machines should replace by their own.

- A GPU computes as `vgan_fast.kernels.cost` counts, at its floors ({TFLOPS:.0f} TFLOP/s,
  {TBYTES:.0f} TB/s), and {LAUNCH * 1e6:.0f} us a call. A real step is slower, which makes the
  network's share smaller.
- {NODE} GPUs a machine. Each sends {NVLINK / 1e9:.0f} GB/s over NVLink, and {NETWORK / 1e9:.0f}
  GB/s (400 Gb/s InfiniBand) through a port of its own; rings keep {REACHED:.0%} of that busy. As
  many rings as ports: a machine's ports carry an all-reduce together.
- A message takes {HOP_NEAR * 1e6:g} us to the next GPU of a machine, {HOP_FAR * 1e6:g} us to
  another machine, and a collective {START * 1e6:g} us to begin; an all-reduce takes the faster of a
  ring and a tree.
- A ring's all-reduce of S bytes makes each of N GPUs send 2 (N - 1) / N S. The gradients of a step,
  in fp32: {of.gradients[0] / 1e6:.1f} MB (generator) and {of.gradients[1] / 1e6:.1f} MB
  (discriminator). They pass the memory {COPIES} times on their way.
- Nothing is sent while others are computed: the all-reduce follows the backward pass (why:
  `vgan_fast/distributed.py`). "If hidden" is the bound of an all-reduce that overlaps entirely,
  which nothing reaches: the discriminator's must end before the generator's step begins.
- Synchronised batch norm sends little and often: {len(of.norms)} all-reduces a step of
  {min(of.norms) / 1e3:g} to {max(of.norms) / 1e3:g} kB, one after the other.

## {batch} clips on each GPU

{chr(10).join(table(weak, of))}

## {batch} clips in all

{chr(10).join(table(strong, of))}

## Where it stops

With {batch} clips a GPU it does not stop at {GPUS[-1]}: gradients take
{weak[-1].gradients / weak[-1].local:.0%} of the step, nearly as much as on {GPUS[1]}. They take
under a tenth from {" and from ".join(f"{n} clips a GPU on {gpus}" for gpus, n in least.items())}.

With {batch} clips in all the fastest of these is {fastest.gpus} GPUs,
{fastest.speed(fastest.local) / strong[0].speed(strong[0].local):.1f} times one, and {GPUS[1]}
already give {strong[1].speed(strong[1].local) / strong[0].speed(strong[0].local):.1f} times one.
With {batch // GPUS[-1]} a GPU a step computes for {strong[-1].computes * 1e3:.2f} ms, mostly
launches and passes over all weights, which sharing does not shorten, and the gradients take
{strong[-1].gradients * 1e3:.2f} ms more: a larger batch, not more GPUs, is what then helps.

Synchronised norms cost {weak[-1].norms * 1e3:.2f} ms a step on {GPUS[-1]} GPUs whatever the batch:
{weak[-1].norms / (weak[-1].local + weak[-1].norms):.0%} of a step of {batch} clips a GPU,
{strong[-1].norms / (strong[-1].local + strong[-1].norms):.0%} of one of {batch // GPUS[-1]}.
"""


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="clips, a multiple of 64  [64]")
    batch = parser.parse_args().batch
    if batch < 1 or batch % GPUS[-1]:
        parser.error(f"--batch {batch}: must be a multiple of {GPUS[-1]}")
    print(page(batch), end="")


if __name__ == "__main__":
    main()
