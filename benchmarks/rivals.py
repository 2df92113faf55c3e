"""Ways to train and to sample the same networks: PyTorch's, as people use it today, and ours."""

import dataclasses
from dataclasses import dataclass

from benchmarks.measure import Device
from benchmarks.presets import Networks
from vgan_fast.kernels.dispatch import kernels_run_on
from vgan_fast.settings import Settings


@dataclass(frozen=True)
class Rival:
    """Settings that differ from the default, and what is compiled.

    Attributes:
        name: for the report.
        about: what it is, for the report.
        backend, precision, graph: see `vgan_fast.settings.Settings`.
        mode: of torch.compile, which is given both networks; None leaves them as they are.
    """

    name: str
    about: str
    backend: str
    precision: str
    graph: bool = False
    mode: str | None = None

    def settings(self, networks: Networks, device: Device) -> Settings:
        """For networks of these sizes."""
        shape = networks.shape
        return Settings(
            frames=shape.frames,
            size=shape.size,
            width=shape.width,
            batch_size=networks.batch,
            device=device.device.type,
            backend=self.backend,
            precision=self.precision,
            graph=self.graph,
        )


def rivals(device: Device) -> list[Rival]:
    """Every way that the device has, the reference first; "ours" last."""
    ways = [
        Rival(
            "reference fp32",
            "plain loop over plain layers, contiguous, eager; Adam as PyTorch defaults to",
            "reference",
            "fp32",
        ),
        Rival(
            "library bf16",
            "PyTorch's layers under bf16 autocast, 3D layers stored channels-last, cuDNN benchmark "
            "on, fused Adam, no gradient that nobody reads",
            "library",
            "bf16",
        ),
        Rival(
            "compiled",
            "the same, both networks by torch.compile",
            "library",
            "bf16",
            False,
            "default",
        ),
        Rival(
            "compiled, max-autotune",
            "the same with mode max-autotune, on a GPU with its own CUDA graphs",
            "library",
            "bf16",
            False,
            "max-autotune",
        ),
    ]
    if not device.gpu:
        ours = [
            Rival("ours", "what `vgan_fast.train` runs on a CPU with native bf16", "auto", "bf16")
        ]
        if kernels_run_on(device.device):  # Triton's interpreter, wrong in bf16: a dry run
            ours = [Rival("ours, kernels", "interpreted", "fused", "fp32")]
        return ways + ours
    graph = {"graph": True}
    tf32 = Rival("reference TF32", "the same with TF32 products", "reference", "tf32")
    about = "the same, the whole step one CUDA graph"
    captured = [
        dataclasses.replace(way, name=f"{way.name}, graph", about=about, **graph)
        for way in ways[1:3]
    ]
    kernels = "our Triton kernels throughout, default tiles"
    ours = [
        Rival("ours, no graph", kernels, "fused", "bf16"),
        Rival("ours, kernels, graph", f"{kernels}; one CUDA graph", "fused", "bf16", True),
        Rival(
            "ours",
            "what `vgan_fast.train` runs on a GPU: each layer and direction by the fastest of our "
            "kernels and the library, one CUDA graph",
            "auto",
            "bf16",
            True,
        ),
    ]
    return [ways[0], tf32, ways[1], captured[0], ways[2], captured[1], ways[3], *ours]
