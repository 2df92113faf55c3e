"""What a report consists of: rows of measured seconds, and the machine that they are of."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from vgan_fast.errors import UserError

FILE = "report.json"
WIDTHS = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}  # bytes of an operand


@dataclass
class Row:
    """A contender of a contest, see `benchmarks.measure`.

    Attributes:
        kind, case, contender: which.
        precision: of the products' operands.
        seconds: of each round.
        clips: of one round; 0 where there are none.
        flops, bytes: that the work needs at least, by the cost table; 0 where it is not counted.
        floor: seconds that these take at the ceilings of the same run.
        launches, peak_bytes: see `benchmarks.measure.Device.inspected`.
        in_turns: whether the contest's contenders took turns.
        details: whatever else the benchmark tells.
    """

    kind: str
    case: str
    contender: str
    precision: str
    seconds: list[float]
    clips: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    floor: float = 0.0
    launches: int = 0
    peak_bytes: int = 0
    in_turns: bool = True
    details: dict = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies a row."""
        return self.kind, self.case, self.contender

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def low(self) -> float:
        """20th percentile of the seconds."""
        return float(np.percentile(self.seconds, 20))

    @property
    def high(self) -> float:
        """80th percentile of the seconds."""
        return float(np.percentile(self.seconds, 80))

    @property
    def rate(self) -> float:
        """Clips a second."""
        return self.clips / self.median

    @property
    def share(self) -> float:
        """Of the ceiling: 1 is as fast as the floor."""
        return self.floor / self.median

    @property
    def waiting(self) -> float:
        """Share of the time spent waiting for clips."""
        return self.details["waiting"]

    @property
    def per_clip(self) -> float:
        """Seconds of a clip, or of a call that gives none."""
        return self.median / (self.clips or 1)

    def over(self, other: Row) -> float:
        """How many times as fast as another of its contest: over turns, where they took any."""
        if not self.in_turns:
            return other.per_clip / self.per_clip
        ours, theirs = (np.array(row.seconds) / (row.clips or 1) for row in (self, other))
        return float(np.median(theirs / ours))


@dataclass
class Report:
    """One run of the benchmarks.

    Attributes:
        preset: its name.
        dry_run: at tiny sizes on a CPU.
        command: that gave it.
        machine: date, commit, device, cores and versions, in words.
        versions: of the libraries that decide speed.
        device: its short name.
        date: as YYYY-MM-DD.
        minutes: that it took.
        rows: what was measured.
        failed: reasons by the name of a contender that has no times.
    """

    preset: str
    dry_run: bool
    command: str
    machine: str
    versions: str
    device: str
    date: str
    minutes: float
    rows: list[Row]
    failed: dict[str, str]

    @classmethod
    def collected(cls, benchmarks: list[dict], **about) -> Report:
        """From pytest-benchmark's list."""
        rows, counted = [], []
        for item in benchmarks:
            info = dict(item["extra_info"])
            passes = info.pop("counted")
            own = {name: info.pop(name) for name in ("kind", "case", "contender", "precision")}
            shared = ("clips", "launches", "peak_bytes", "flops", "bytes", "in_turns")
            own |= {name: info.pop(name) for name in shared if name in info}
            row = Row(seconds=item["stats"]["data"], details=info, **own)
            if passes:
                row.flops = sum(flops for flops, _ in passes)
                row.bytes = WIDTHS[row.precision] / 2 * sum(moved for _, moved in passes)
            rows.append(row)
            counted.append(passes)
        report = cls(rows=rows, **about)
        ceilings = report.ceilings
        for row, passes in zip(rows, counted, strict=True):
            if {"copy", row.precision} <= ceilings.keys():
                width = WIDTHS[row.precision] / 2
                row.floor = sum(
                    max(flops / ceilings[row.precision], width * moved / ceilings["copy"])
                    for flops, moved in passes
                )
        return report

    @property
    def on_gpu(self) -> bool:
        """Whether it is of a GPU."""
        return self.preset == "gpu" and not self.dry_run

    @cached_property
    def ceilings(self) -> dict[str, float]:
        """FLOP/s by precision, and bytes a second as "copy".

        A layer that is faster than the large product shows that the product is no ceiling, as on a
        processor that its library was not written for: the layer's rate is, then.
        """
        found = {row.contender: (row.flops or row.bytes) / row.median for row in self.of("ceiling")}
        for row in self.of("layer"):
            if row.precision in found:
                found[row.precision] = max(found[row.precision], row.flops / row.median)
        return found

    def of(self, kind: str) -> list[Row]:
        """Rows of a kind, in their order."""
        return [row for row in self.rows if row.kind == kind]

    def cases(self, kind: str) -> dict[str, dict[str, Row]]:
        """Rows of a kind by case and contender, in their order."""
        found: dict[str, dict[str, Row]] = {}
        for row in self.of(kind):
            found.setdefault(row.case, {})[row.contender] = row
        return found

    def to_json(self) -> str:
        """Everything, as text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read back what `to_json` gave.

        Raises:
            UserError: it is not that.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "rows": [Row(**row) for row in values["rows"]]})
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise UserError(f"{path}: is no report of this version ({error})") from error


def committed(results: Path) -> list[tuple[Path, Report]]:
    """Folders and reports under `results`, oldest first."""
    found = [(file.parent, Report.load(file)) for file in results.glob(f"*/{FILE}")]
    return sorted(found, key=lambda pair: (pair[1].date, pair[0].name))
