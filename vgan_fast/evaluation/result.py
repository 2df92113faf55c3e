"""Numbers with the protocol that they were measured by, stored together and never mixed."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from vgan_fast.errors import UserError
from vgan_fast.files import written_whole
from vgan_fast.foreign import MalformedError, read_json

Near = TypedDict("Near", {"median ratio": float, "closer": float})


@dataclass(frozen=True)
class Protocol:
    """All that a number hangs on but the model: equal protocols, comparable numbers.

    Attributes:
        data: what `--data` named; kept for the reader, the fingerprint counts.
        fingerprint: of the files and their lengths.
        split: which clips of the data the real ones are.
        held_out: whether the real clips are other ones than those trained on.
        frames, size: of the clips.
        stride, fps, min_frames: how clips are cut from files, as of `vgan_fast.train`.
        count: clips of each set: samples, reference, and the other real ones.
        training_count: training clips looked at for copies.
        seed: of the codes and of the resampling.
        detector: its label.
        detector_sha256: of its weights, or of its TorchScript file.
        dimensions: of the detector's features.
        resize: side that the detector's frames were scaled to, None where not.
        resamples: of the bootstrap.
    """

    data: str
    fingerprint: str
    split: str
    held_out: bool
    frames: int
    size: int
    stride: int
    fps: float | None
    min_frames: int
    count: int
    training_count: int
    seed: int
    detector: str
    detector_sha256: str
    dimensions: int
    resize: int | None
    resamples: int


@dataclass(frozen=True)
class Number:
    """An estimate, and where it would fall with other clips, with probability 0.95.

    Attributes:
        value: the estimate.
        low, high: the interval's ends.
        bias: how much larger than the estimate the resampled ones were in the mean; already taken
            out of the ends.
    """

    value: float
    low: float
    high: float
    bias: float


@dataclass(frozen=True)
class Row:
    """What was measured of one set of clips.

    Attributes:
        name: of the model.
        checkpoint: folder of the weights, None for real clips.
        step: finished training steps, None for real clips and where it is unknown.
        frechet: distance to the reference clips.
        inception: Inception score, None where the detector has no classes.
        statistics: see `looking.Seen`.
        nearest: of samples to training clips, {"features" or "pixels": {"median ratio", "closer"}}.
    """

    name: str
    checkpoint: str | None
    step: int | None
    frechet: Number
    inception: Number | None
    statistics: dict[str, float]
    nearest: dict[str, Near]


@dataclass(frozen=True)
class Preference:
    """How often a clip of `first` looks more real to the detector than one of `second`."""

    first: str
    second: str
    share: Number


@dataclass(frozen=True)
class Result:
    """What one evaluation gives.

    Attributes:
        protocol: of all its numbers.
        rows: of the models; the last is the floor, other real clips.
        preferences: of every pair of rows, the automatic counterpart of the paper's Table 1.
        made_by: command and versions.
    """

    protocol: Protocol
    rows: list[Row]
    preferences: list[Preference]
    made_by: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all.

        Raises:
            UserError: when it cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        with written_whole(path) as part:
            part.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Result":
        """Read back what `save` wrote.

        Raises:
            UserError: when it is something else.
        """
        try:
            result = read_json(path, cls)
            if not result.rows:
                raise MalformedError("no rows")
        except (OSError, MalformedError) as error:
            raise UserError(f"{path}: is no result of vgan_fast.evaluate ({error})") from error
        return result


def refuse_mixed(protocols: dict[str, Protocol]) -> None:
    """Let numbers into one table only where everything that they hang on is equal.

    Args:
        protocols: by the name of where they are from.

    Raises:
        UserError: naming the first two that differ, and in what.
    """
    (first, wanted), *others = protocols.items()
    for name, protocol in others:
        for of in dataclasses.fields(Protocol):
            one, other = getattr(wanted, of.name), getattr(protocol, of.name)
            # The same files may lie elsewhere.
            if of.name != "data" and one != other:
                raise UserError(
                    f"{name}: its {of.name.replace('_', ' ')} is {other}, that of {first} is {one};"
                    " such numbers cannot be compared: evaluate both by one command"
                )


def joined(results: dict[str, Result]) -> Result:
    """The rows of several results in one, the floor once; preferences between their models lack.

    Raises:
        UserError: when their protocols differ.
    """
    refuse_mixed({name: result.protocol for name, result in results.items()})
    every = list(results.values())
    rows = [row for result in every for row in result.rows[:-1]]
    preferences = [p for result in every for p in result.preferences]
    return Result(every[0].protocol, [*rows, every[0].rows[-1]], preferences)
