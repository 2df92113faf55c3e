"""What scene a clip shows, by any image classifier in ONNX.

The paper keeps golf courses, hospital rooms, beaches and train stations, as a network trained on
Places sees them.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vgan_fast.errors import UserError

_TOLD = 5  # best scenes that are recorded


@dataclass(frozen=True, slots=True)
class SceneFilter:
    """Which clips are kept by what they show."""

    model: Path  # ONNX: float (1, 3, side, side), RGB, to (1, labels), logits or probabilities
    labels: Path  # a label a line, in the order of the outputs
    keep: tuple[str, ...] = ()  # scenes; without any all clips are kept, and the scores recorded
    threshold: float = 0.5  # least probability of one of them, 0 to 1
    side: int = 224
    # Of the network's input, RGB, as shares of 255; these are ImageNet's.
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


class SceneClassifier:
    """The network and its labels."""

    def __init__(self, settings: SceneFilter):
        """Load both, and classify a picture of noise.

        Raises:
            UserError: one of them cannot be read or used, they do not go together, or no label is
                that of a scene to keep.
        """
        if min(settings.std) <= 0:
            raise UserError(f"--scene-std {settings.std}: each must be over 0")
        self._settings = settings
        self.labels = read_labels(settings.labels)
        self._keep = [_label_number(scene, self.labels) for scene in settings.keep]
        self._network = _load(settings.model)
        noise = np.random.default_rng(0).integers(0, 256, (settings.side, settings.side, 3))
        outputs = self._outputs(noise.astype(np.uint8))
        if outputs.size != len(self.labels):
            raise UserError(
                f"{settings.labels}: {len(self.labels)} labels, but {settings.model} has"
                f" {outputs.size} outputs; give the labels that belong to it"
            )
        if not np.isfinite(outputs).all():
            raise UserError(f"{settings.model}: gives infinities or no numbers; use another")

    def scores(self, frame: np.ndarray) -> np.ndarray:
        """Return the probability of each label, float64 (labels,), for a uint8 (H, W, 3) in RGB."""
        outputs = self._outputs(frame)
        if outputs.min() >= 0 and abs(outputs.sum() - 1) < 1e-3:  # a softmax is in the network
            return outputs
        powers = np.exp(outputs - outputs.max())
        return powers / powers.sum()

    def verdict(self, scores: np.ndarray) -> tuple[dict[str, float], str | None]:
        """Return the best scenes and those to keep with their scores, and why it is rejected."""
        order = np.argsort(-scores, kind="stable")
        told = [n for place, n in enumerate(order) if place < _TOLD or n in self._keep]
        reason = None
        if self._keep and scores[self._keep].max() < self._settings.threshold:
            best = order[0]
            wanted = ", ".join(self.labels[number] for number in self._keep)
            reason = (
                f"it is {self.labels[best]} by {scores[best]:.2f}; none of {wanted} reaches"
                f" {self._settings.threshold:g}"
            )
        return {self.labels[number]: round(float(scores[number]), 4) for number in told}, reason

    def _outputs(self, frame: np.ndarray) -> np.ndarray:
        settings = self._settings
        short = min(frame.shape[:2])
        top, left = (frame.shape[0] - short) // 2, (frame.shape[1] - short) // 2
        square = frame[top : top + short, left : left + short]
        shrinks = short > settings.side
        square = cv2.resize(
            square,
            (settings.side, settings.side),
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
        normal = (square.astype(np.float32) / 255 - np.float32(settings.mean)) / settings.std
        planes = np.ascontiguousarray(normal.transpose(2, 0, 1)[None], np.float32)
        try:
            self._network.setInput(planes)
            return self._network.forward().astype(np.float64).ravel()
        except cv2.error as error:
            raise UserError(
                f"{settings.model}: does not run on pictures of {settings.side} pixels"
                f" ({_one_line(error)}); give its --scene-side"
            ) from None


def read_labels(path: Path) -> list[str]:
    """Return the labels of a file, one a line, made readable.

    Places365 writes `/b/beach_house 46`: the number, the initial and the underscores are left out.

    Raises:
        UserError: it cannot be read, is empty, or names something twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); correct --scene-labels"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text; give a file with a label a line") from None
    labels = [_readable(line) for line in lines if line.strip()]
    if not labels:
        raise UserError(f"{path}: is empty; give a file with a label a line")
    twice = next((label for place, label in enumerate(labels) if label in labels[:place]), None)
    if twice:
        raise UserError(f"{path}: names {twice} twice; correct the file")
    return labels


def _readable(label: str) -> str:
    bare = re.sub(r"\s+[0-9]+$", "", label.strip())
    return re.sub(r"^/[a-z]/", "", bare).replace("_", " ")


def _label_number(scene: str, labels: list[str]) -> int:
    names = [label.casefold() for label in labels]
    wanted = _readable(scene).casefold()
    if wanted in names:
        return names.index(wanted)
    near = difflib.get_close_matches(wanted, names, 3, 0.5) or names[:3]
    raise UserError(f"--scene {scene}: no such label; there are {', '.join(near)} and others")


def _load(path: Path) -> cv2.dnn.Net:
    try:
        with open(path, "rb") as file:
            content = np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); correct --scene-model"
        ) from None
    try:
        return cv2.dnn.readNetFromONNX(content)
    except cv2.error as error:
        raise UserError(
            f"{path}: OpenCV cannot read it as ONNX ({_one_line(error)}); export it anew"
        ) from None


def _one_line(error: cv2.error) -> str:
    return " ".join(str(error.err or error).split())[:120]
