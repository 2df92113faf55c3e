"""Ways to train and to sample the same networks: PyTorch's, as people use it today, and ours."""

from dataclasses import dataclass, replace

from torch import nn

from benchmarks.measure import Device
from benchmarks.presets import Networks
from vgan_fast.device import multiplies_bf16
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

    @property
    def graphed(self) -> bool:
        """Whether a CUDA graph holds its memory."""
        return self.graph or self.mode == "max-autotune"

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

    def compile(self, network: nn.Module, compiler: str) -> None:
        """Give a network to torch.compile, if that is the rival's way.

        Args:
            network: compiled in place, at its first calls.
            compiler: "inductor", or a backend that stands in for it.
        """
        if self.mode is None:
            return
        if compiler == "inductor":
            network.compile(mode=self.mode, dynamic=False)
        else:
            network.compile(backend=compiler, dynamic=False)


REFERENCE = Rival(
    "reference fp32",
    "plain loop over plain layers, contiguous, eager; Adam as PyTorch defaults to",
    "reference",
    "fp32",
)
KERNELS = Rival("ours, kernels", "our Triton kernels throughout, default tiles", "fused", "bf16")


def default(device: Device) -> Rival:
    """What `vgan_fast.train` runs."""
    if device.gpu:
        about = (
            "what `vgan_fast.train` runs on a GPU: each layer and direction by the fastest of our "
            "kernels and the library, the whole step one CUDA graph"
        )
        return Rival("ours", about, "auto", "bf16", graph=True)
    about = (
        "what `vgan_fast.train` runs on this CPU: as the library, but the layers that it is slow "
        "at as other products (`vgan_fast/cpu.py`)"
    )
    return Rival("ours", about, "auto", _precision(device))


def rivals(device: Device) -> list[Rival]:
    """Every way that the device has, the reference first, the default last."""
    precision = _precision(device)
    library = Rival(
        f"library {precision}",
        f"PyTorch's layers in {precision} (autocast), weights stored channels-last, cuDNN "
        "benchmark on, fused Adam, no gradient that nobody reads; on a CPU freed memory is kept",
        "library",
        precision,
    )
    compiled = replace(
        library,
        name="compiled",
        about=f"{library.name}, both networks by torch.compile",
        mode="default",
    )
    tuned = replace(
        compiled,
        name="compiled, max-autotune",
        about="the same with mode max-autotune, on a GPU with its own CUDA graphs",
        mode="max-autotune",
    )
    if device.gpu:
        return [
            REFERENCE,
            Rival("reference TF32", "the same with TF32 products", "reference", "tf32"),
            *(way for one in (library, compiled) for way in (one, captured(one))),
            tuned,
            replace(KERNELS, name="ours, kernels, no graph"),
            captured(KERNELS),
            replace(default(device), name="ours, no graph", about="the next without", graph=False),
            default(device),
        ]
    ways = [REFERENCE, library, compiled, tuned]
    if kernels_run_on(device.device):  # in Triton's interpreter, wrong in bf16: a dry run
        ways.append(replace(KERNELS, precision="fp32"))
    if _precision(device) == "bf16":
        about = "the same in fp32, as on a CPU that does not multiply bf16"
        ways.append(replace(default(device), name="ours, fp32", about=about, precision="fp32"))
    return [*ways, default(device)]


def _precision(device: Device) -> str:
    """What the default path resolves to."""
    return "bf16" if multiplies_bf16(device.device) else "fp32"


def captured(rival: Rival) -> Rival:
    """The same as one CUDA graph."""
    about = f"{rival.about}; the whole step one CUDA graph"
    return replace(rival, name=f"{rival.name}, graph", about=about, graph=True)
