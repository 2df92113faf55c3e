"""The networks as programs for other runtimes: ONNX, and `torch.export`.

Evaluation mode, fp32, any batch size. Generators give the video and, of two streams, the
foreground, the mask in [0, 1] and the background (N, 3, H, W).
"""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vgan_fast.errors import UserError
from vgan_fast.interchange.layout import Description
from vgan_fast.interchange.plain import plain_networks
from vgan_fast.models import TwoStreamGenerator

_ONNX_LIMIT = 2**31 - 2**20  # bytes of weights in the file itself: protobuf's limit, and some room


class _Streams(nn.Module):
    """A generator of two streams that gives all of them."""

    def __init__(self, generator: TwoStreamGenerator):
        super().__init__()
        self.generator = generator

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        made = self.generator.streams(code)
        return made.video, made.foreground, made.mask, made.background


def export_networks(run: Path, folder: Path, form: Literal["onnx", "pt2"]) -> list[Path]:
    """Write each network of a run into a file in `folder`, named by its role.

    Args:
        run: as of `plain_networks`.
        folder: that is there.
        form: see `write_onnx` and `write_pt2`.

    Returns:
        The files.

    Raises:
        UserError: as of `plain_networks`, or when onnxscript is needed and absent.
    """
    write = {"onnx": write_onnx, "pt2": write_pt2}[form]
    if form == "onnx" and importlib.util.find_spec("onnxscript") is None:
        raise UserError("writing ONNX needs onnxscript: pip install 'vgan_fast[onnx]'")
    made = []
    for described, network in plain_networks(run):
        made.append(folder / f"{described.kind.role}.{form}")
        write(described, network, made[-1])
    return made


def write_onnx(described: Description, network: nn.Module, file: Path) -> None:
    """Write a network as ONNX; weights of 2 GB or more go into a second file beside it.

    Args:
        described: what it is.
        network: of `vgan_fast.models`, on the CPU, in evaluation mode.
        file: to write.
    """
    takes, _, gives = _interface(described)
    with _quiet():
        program = _exported(described, network)
        made = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[takes],
            output_names=gives,
            dynamic_shapes=({0: "batch"},),
        )
        weights = sum(value.nbytes for value in program.state_dict.values())
        made.save(file, external_data=weights >= _ONNX_LIMIT)


def write_pt2(described: Description, network: nn.Module, file: Path) -> None:
    """Write a network for `torch.export.load`; see `write_onnx` for the arguments."""
    content = io.BytesIO()  # not the file: a full disk would be an error of PyTorch's own
    with _quiet():
        torch.export.save(_exported(described, network), content)
    file.write_bytes(content.getbuffer())


def _exported(described: Description, network: nn.Module) -> ExportedProgram:
    if network.training:
        raise ValueError("the network is in training mode: call eval() before it is exported")
    if isinstance(network, TwoStreamGenerator):
        network = _Streams(network).eval()
    _, one, _ = _interface(described)
    # Two of them: one clip would be taken for the only size.
    given, any_size = torch.zeros(2, *one), {0: torch.export.Dim("batch")}
    program = torch.export.export(network, (given,), dynamic_shapes=(any_size,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine
    return program


def _interface(described: Description) -> tuple[str, tuple[int, ...], list[str]]:
    """Name of the input, shape of one, and names of the outputs."""
    shape = described.arguments["shape"]
    clip = 3, shape.frames, shape.size, shape.size
    if described.name == "Discriminator":
        return "clips", clip, ["logits"]
    if described.name == "Encoder":
        return "clips", clip, ["codes"]
    if described.name == "OneStreamGenerator":
        return "codes", (shape.latent,), ["video"]
    streams = ["video", "foreground", "mask", "background"]
    if described.name == "FutureGenerator":
        return "frames", (3, described.arguments["condition"], *clip[2:]), streams
    return "codes", (shape.latent,), streams


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings, which are of absent libraries or of its own code."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
