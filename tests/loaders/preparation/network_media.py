"""A tiny scene classifier whose answers are known: which of its colours a picture has."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}


def write_network(path: Path, side: int = 32, softmax: bool = False, gain: float = 8.0) -> Path:
    """Write a network for RGB from 0 to 1 (mean 0, std 1): mean colour, distances to `COLOURS`."""
    colours = np.array(list(COLOURS.values()), np.float32)
    # -|x - c|² + |x|², so the nearest colour has the largest logit
    weights = (2 * gain * colours).astype(np.float32)
    biases = (-gain * (colours**2).sum(1)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["picture"], ["pooled"], kernel_shape=[side, side]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Gemm", ["mean", "weights", "biases"], ["logits"], transB=1),
    ]
    output = "logits"
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["shares"], axis=1))
        output = "shares"
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, len(colours)])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(biases, "biases"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def write_labels(path: Path, labels=tuple(COLOURS)) -> Path:
    path.write_text("".join(f"{label}\n" for label in labels))
    return path
