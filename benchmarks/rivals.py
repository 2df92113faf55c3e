"""Ways to train and to sample the same networks: PyTorch's, as people use it today, and ours."""

from dataclasses import dataclass, replace

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


REFERENCE = Rival(
    "reference fp32",
    "plain loop over plain layers, contiguous, eager; Adam as PyTorch defaults to",
    "reference",
    "fp32",
)
LIBRARY = Rival(
    "library bf16",
    "PyTorch's layers under bf16 autocast, weights stored channels-last, cuDNN benchmark on, fused "
    "Adam, no gradient that nobody reads",
    "library",
    "bf16",
)


def default(device: Device) -> Rival:
    """What `vgan_fast.train` runs."""
    if device.gpu:
        about = (
            "what `vgan_fast.train` runs on a GPU: each layer and direction by the fastest of our "
            "kernels and the library, the whole step one CUDA graph"
        )
        return Rival("ours", about, "auto", "bf16", graph=True)
    about = (
        "what `vgan_fast.train` runs on a CPU that multiplies bf16: library bf16, with the layers "
        "that the library is slow at as other products (`vgan_fast/cpu.py`), and freed memory kept"
    )
    return Rival("ours", about, "auto", "bf16")


def rivals(device: Device) -> list[Rival]:
    """Every way that the device has, the reference first, the default last."""
    compiled = replace(
        LIBRARY,
        name="compiled",
        about="library bf16, both networks by torch.compile",
        mode="default",
    )
    tuned = replace(
        compiled,
        name="compiled, max-autotune",
        about="the same with mode max-autotune, on a GPU with its own CUDA graphs",
        mode="max-autotune",
    )
    fused = Rival("kernels", "our Triton kernels throughout, default tiles", "fused", "bf16")
    if device.gpu:
        return [
            REFERENCE,
            Rival("reference TF32", "the same with TF32 products", "reference", "tf32"),
            *(way for one in (LIBRARY, compiled) for way in (one, captured(one))),
            tuned,
            replace(fused, name="ours, kernels, no graph"),
            captured(replace(fused, name="ours, kernels")),
            default(device),
        ]
    if kernels_run_on(device.device):  # in Triton's interpreter, wrong in bf16: a dry run
        interpreted = replace(fused, name="ours, kernels", precision="fp32")
        return [REFERENCE, LIBRARY, compiled, tuned, interpreted, default(device)]
    return [REFERENCE, LIBRARY, compiled, tuned, default(device)]


def captured(rival: Rival) -> Rival:
    """The same as one CUDA graph."""
    about = f"{rival.about}; the whole step one CUDA graph"
    return replace(rival, name=f"{rival.name}, graph", about=about, graph=True)
