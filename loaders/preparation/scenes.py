"""What scene a clip shows, by any image classifier in ONNX.

The paper keeps golf courses, hospital rooms, beaches and train stations, as a network trained on
Places sees them.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vgan_fast.errors import UserError
from vgan_fast.foreign import MalformedError, read_bytes

_TOLD = 5  # best scenes that are recorded


@dataclass(frozen=True, slots=True)
class SceneFilter:
    """Which clips are kept by what they show.

    Raises:
        UserError: the threshold, the side or a deviation is out of range.
    """

    model: Path  # ONNX: float (1, 3, side, side), RGB, to (1, labels), logits or probabilities
    labels: Path  # a label a line, in the order of the outputs
    keep: tuple[str, ...] = ()  # scenes; without any all clips are kept, and the scores recorded
    threshold: float = 0.0  # least probability of one of them, 0 to 1; one of 0 is never enough
    side: int = 224  # pixels, 8 to 1024
    # Of the network's input, RGB, as shares of 255; these are ImageNet's.
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise UserError(f"--scene-threshold {self.threshold}: must be from 0 to 1")
        if not 8 <= self.side <= 1024:
            raise UserError(f"--scene-side {self.side}: must be from 8 to 1024")
        if not all(share > 0 for share in self.std):
            raise UserError(f"--scene-std {self.std}: each must be over 0")


class SceneClassifier:
    """The network and its labels."""

    def __init__(self, settings: SceneFilter):
        """Load both, and classify a picture of noise.

        Raises:
            UserError: one of them cannot be read or used, they do not go together, or no label is
                that of a scene to keep.
        """
        self._settings = settings
        self.labels = read_labels(settings.labels)
        numbers = (_label_number(scene, self.labels, settings.labels) for scene in settings.keep)
        self._keep = list(dict.fromkeys(numbers))
        self._network = _load(settings.model)
        noise = np.random.default_rng(0).integers(0, 256, (settings.side,) * 2 + (3,), np.uint8)
        try:
            outputs = self._outputs(noise)
        except cv2.error as error:
            raise UserError(
                f"{settings.model}: does not run on pictures of {settings.side} pixels"
                f" ({_one_line(error)}); give its --scene-side"
            ) from None
        except FloatingPointError as error:
            raise UserError(
                f"{settings.model}: {error}; use another --scene-model, or its own --scene-mean and"
                " --scene-std"
            ) from None
        if outputs.size != len(self.labels):
            raise UserError(
                f"{settings.labels}: {len(self.labels)} labels, but {settings.model} has"
                f" {outputs.size} outputs; give the --scene-labels that belong to it"
            )
        # Asked once, or a frame whose logits happen to look like it would be scored by other rules.
        self._ends_in_softmax = outputs.min() >= 0 and abs(outputs.sum() - 1) < 1e-3

    def scores(self, frame: np.ndarray) -> np.ndarray:
        """Return the probability of each label, float64 (labels,), for a uint8 (H, W, 3) in RGB.

        What the network sees is the square in the middle.

        Raises:
            MemoryError: there is too little.
            FloatingPointError: the network gives infinities or no numbers.
        """
        try:
            outputs = self._outputs(frame)
        except cv2.error as error:  # it has run on such a picture before, so nothing else is amiss
            raise MemoryError(_one_line(error)) from None
        if self._ends_in_softmax:
            return outputs
        powers = np.exp(outputs - outputs.max())
        return powers / powers.sum()

    def verdict(self, scores: np.ndarray) -> tuple[dict[str, float], str | None]:
        """Return the best five scenes and those to keep, best first, and why it is rejected.

        Scores are rounded to four digits. The reason is None where the clip is to be kept.
        """
        order = np.argsort(-scores, kind="stable")
        told = [n for place, n in enumerate(order) if place < _TOLD or n in self._keep]
        threshold, reason = self._settings.threshold, None
        kept = scores[self._keep].max() if self._keep else 1
        if kept < threshold or kept == 0:
            best = order[0]
            wanted = ", ".join(self.labels[number] for number in self._keep)
            reason = (
                f"best is {self.labels[best]} ({scores[best]:.2f}), none of {wanted} reaches"
                f" {threshold:g}"
            )
        return {self.labels[number]: round(float(scores[number]), 4) for number in told}, reason

    def _outputs(self, frame: np.ndarray) -> np.ndarray:
        """Return what the network makes of a uint8 (H, W, 3), float64 (outputs,).

        Raises:
            cv2.error: it does not run on such pictures, or memory is short.
            FloatingPointError: it gives nothing, infinities or no numbers.
        """
        side = self._settings.side
        short = min(frame.shape[:2])
        top, left = (frame.shape[0] - short) // 2, (frame.shape[1] - short) // 2
        square = frame[top : top + short, left : left + short]
        interpolation = cv2.INTER_AREA if short > side else cv2.INTER_LINEAR
        square = cv2.resize(square, (side, side), interpolation=interpolation)
        shares = square.astype(np.float32) / 255
        normal = (shares - np.float32(self._settings.mean)) / np.float32(self._settings.std)
        self._network.setInput(np.ascontiguousarray(normal.transpose(2, 0, 1)[None]))
        outputs = self._network.forward()
        if outputs is None or not np.isfinite(outputs).all():
            raise FloatingPointError("gives infinities or no numbers")
        return outputs.astype(np.float64).ravel()


_LARGEST_LABELS = 1 << 24  # bytes of a file of labels


def read_labels(path: Path) -> list[str]:
    """Return the labels of a file, one a line, made readable; blank lines do not count.

    Places365 writes `/b/beach_house 46`: the number, counted from 0, the initial and the
    underscores are left out.

    Raises:
        UserError: it cannot be read or is empty, or a line is no label, has the number of another,
            or names what one above it does, in capitals or not.
    """
    try:
        text = read_bytes(path, _LARGEST_LABELS).decode("utf-8-sig")
    except MalformedError as error:
        raise UserError(f"{path}: {error}; correct --scene-labels") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); correct --scene-labels"
        ) from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path}: is no text; give --scene-labels a file with a label a line"
        ) from None
    labels: dict[str, str] = {}  # as they are matched, and as they are shown
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) > 1 and re.fullmatch("[0-9]+", words[-1]):
            # Not int(), which refuses thousands of digits.
            if (words[-1].lstrip("0") or "0") != str(len(labels)):
                raise UserError(
                    f"{path}, line {number}: ends in {words[-1][:20]}, but is label {len(labels)},"
                    " counted from 0; correct the number or take it off"
                )
            words.pop()
        label = _readable(" ".join(words))
        if not label or not label.isprintable():
            raise UserError(f"{path}, line {number}: is no label; write a label a line, as text")
        if label.casefold() in labels:
            raise UserError(
                f"{path}, line {number}: {label[:80]} is named already; give each label its own"
                " name"
            )
        labels[label.casefold()] = label
    if not labels:
        raise UserError(f"{path}: is empty; give --scene-labels a file with a label a line")
    return list(labels.values())


def _readable(label: str) -> str:
    return " ".join(re.sub("^/[a-z]/", "", label).replace("_", " ").split())


def _label_number(scene: str, labels: list[str], path: Path) -> int:
    names = [label.casefold() for label in labels]
    wanted = _readable(scene).casefold()
    if wanted in names:
        return names.index(wanted)
    near = [labels[names.index(name)] for name in difflib.get_close_matches(wanted, names, 3, 0.5)]
    remedy = f"did you mean {' or '.join(near)}?" if near else "give one of those"
    raise UserError(f"--scene {scene}: is none of the labels in {path}; {remedy}")


def _load(path: Path) -> cv2.dnn.Net:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); correct --scene-model"
        ) from None
    try:
        # By name, since PyTorch writes weights into a file of their own beside it. As bytes, since
        # OpenCV dies of a str that is no UTF-8.
        return cv2.dnn.readNetFromONNX(os.fsencode(path))
    except cv2.error as error:
        raise UserError(
            f"{path}: OpenCV cannot read it as ONNX ({_one_line(error)}); export it anew, and leave"
            " its .data file, if it has one, beside it"
        ) from None


def _one_line(error: cv2.error) -> str:
    text, bare = str(error), error.err
    if bare and bare in text:  # it is of the last error that had one, which may be another
        text = bare
    return " ".join(text.replace("> ", " ").split())[:120]
