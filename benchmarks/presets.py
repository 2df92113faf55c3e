"""Sizes and effort of the benchmarks, by preset."""

import dataclasses
from dataclasses import dataclass

from vgan_fast.shape import ClipShape


@dataclass(frozen=True)
class Networks:
    """What is trained and sampled: frames, pixels a side, width, and clips in a batch."""

    shape: ClipShape
    batch: int

    def __str__(self) -> str:
        shape = self.shape
        return f"{shape.frames}x{shape.size}x{shape.size}, width {shape.width}, batch {self.batch}"


@dataclass(frozen=True)
class Chains:
    """STGConvNet's experiment, frames and pixels a side of its clips, and chains side by side."""

    experiment: str
    frames: int
    size: int
    count: int

    def __str__(self) -> str:
        return f"experiment {self.experiment}, {self.count} x {self.frames}x{self.size}x{self.size}"


@dataclass(frozen=True)
class Files:
    """What the loaders read.

    Attributes:
        frames, size: of the clips delivered; `batch` of them at a time.
        videos, video_frames, video_side: how many videos, and how long and wide.
        clips: strips of 128x128 frames, and clips in the array.
        codecs: of the videos, as FFmpeg's encoders.
        seconds: that each loader is measured for.
    """

    frames: int = 32
    size: int = 64
    batch: int = 32
    videos: int = 12
    video_frames: int = 320
    video_side: int = 240
    clips: int = 192
    codecs: tuple[str, ...] = ("libx264", "mpeg4", "mjpeg", "libvpx")
    seconds: float = 3.0


@dataclass(frozen=True)
class Preset:
    """How large and how long.

    Attributes:
        minutes: about what a run takes; stated in --help.
        device: "cpu" or "cuda".
        trained: networks whose training step is timed, the first the paper's.
        generated: networks whose samples are timed.
        chains: of STGConvNet, whose Langevin steps are timed.
        examined: networks whose kernels and layers are timed.
        growth: networks that are varied, one size at a time, and the values of each size.
        rounds, warm_up: of contenders, see `benchmarks.measure.race`.
        later_steps: after the first, before a step's losses are compared again: a graph is captured
            at the fourth.
        steps_of_files: training steps of a round from files; more than loaders read ahead.
        product: side of the matrices whose product is the ceiling of arithmetic.
        copied: bytes of the copy that is the ceiling of memory.
        compiler: backend of torch.compile; "eager" stands in where compiling takes too long.
        files: what the loaders read.
        workers: of loaders, whose growth is measured.
        speeds: of the simulated consumer, in multiples of the CPU's training step.
    """

    minutes: str
    device: str
    trained: tuple[Networks, ...]
    generated: tuple[Networks, ...]
    chains: tuple[Chains, ...]
    examined: Networks
    growth: Networks
    batches: tuple[int, ...]
    frames: tuple[int, ...]
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    rounds: int = 8
    warm_up: int = 3
    later_steps: int = 0
    steps_of_files: int = 2
    product: int = 2048
    copied: int = 256 << 20
    compiler: str = "inductor"
    files: Files = Files()
    workers: tuple[int, ...] = (1, 2, 4)
    speeds: tuple[int, ...] = (1, 2, 4, 100)

    def tiny(self) -> "Preset":
        """The same benchmarks at sizes that take seconds; their numbers mean nothing."""
        networks = Networks(ClipShape(8, 16, 8), 2)
        return dataclasses.replace(
            self,
            trained=(networks,),
            generated=(networks,),
            chains=(Chains("2", 8, 12, 1),),
            examined=networks,
            growth=networks,
            batches=(2, 4),
            frames=(4, 8),
            sizes=(8, 16),
            widths=(8, 16),
            rounds=1,
            warm_up=0,
            steps_of_files=1,
            product=128,
            copied=1 << 20,
            compiler="eager",
            files=Files(
                frames=8,
                size=16,
                batch=2,
                videos=2,
                video_frames=24,
                video_side=64,
                clips=4,
                codecs=("mpeg4",),
                seconds=0.05,
            ),
            workers=(1, 2),
            speeds=(1, 100),
        )


PAPER, SMALL = ClipShape(32, 64, 64), ClipShape(32, 32, 32)

_CPU = Preset(
    minutes="about 25 minutes on two cores",
    device="cpu",
    trained=(Networks(PAPER, 8), Networks(SMALL, 32)),
    generated=(Networks(PAPER, 16), Networks(SMALL, 64)),
    chains=(Chains("1", 32, 64, 3), Chains("2", 32, 64, 3), Chains("3", 32, 64, 3)),
    examined=Networks(PAPER, 8),
    growth=Networks(SMALL, 16),
    batches=(2, 4, 8, 16, 32, 64),
    frames=(8, 16, 32, 64, 128),
    sizes=(8, 16, 32, 64),
    widths=(8, 16, 32, 64),
)

PRESETS = {
    "smoke": dataclasses.replace(_CPU, minutes="half a minute").tiny(),
    "cpu": _CPU,
    "gpu": dataclasses.replace(
        _CPU,
        minutes="meant to take under 8 minutes once kernels are compiled and chosen "
        "(vgan_fast.kernels.doctor); not yet measured on a GPU",
        device="cuda",
        trained=(Networks(PAPER, 64), Networks(PAPER, 8)),
        generated=(Networks(PAPER, 64),),
        chains=(Chains("1", 70, 224, 3), Chains("2", 70, 224, 3), Chains("3", 70, 100, 3)),
        examined=Networks(PAPER, 64),
        growth=Networks(PAPER, 64),
        batches=(8, 16, 32, 64, 128, 256),
        frames=(16, 32, 64),
        sizes=(16, 32, 64),
        widths=(16, 32, 64),
        rounds=20,
        later_steps=5,
        steps_of_files=100,
        product=8192,
        copied=512 << 20,
    ),
}
