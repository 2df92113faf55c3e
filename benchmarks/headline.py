"""README's table of the newest committed results: what it says, for a CPU and for a GPU."""

from pathlib import Path

from benchmarks.rows import Report, Row, committed
from vgan_fast.errors import UserError
from vgan_fast.files import written_whole

BEGIN, END = "<!-- headline -->", "<!-- /headline -->"
GOALS = {
    "training step": "8.93 ms, 7,165 clips/s: 32.5× (batch 64, kernels at default tiles; "
    "[H100](benchmarks/results/h100-first-light/README.md)); goal: 7.5 ms, ≥ 5×",
    "against the best torch.compile": "not yet measured; goal: ≥ 1.5×",
    "generation": "not yet measured",
    "from JPEG strips": "not yet measured",
    "clips from memory": "not yet measured; goal: ≥ 10,000 clips/s",
}


def figures(report: Report) -> dict[str, str]:
    """The figures of a report by what they are of; the first networks are the paper's."""
    found = {}

    def first(kind: str, *wanted: str) -> dict[str, Row]:
        rows = next(iter(report.cases(kind).values()), {})
        return rows if rows.keys() >= set(wanted) else {}

    for kind in ("training step", "generation"):
        if rows := first(kind, "ours", "reference fp32"):
            ours = rows["ours"]
            found[kind] = (
                f"{1e3 * ours.median:,.4g} ms, {ours.rate:,.4g} clips/s: "
                f"{ours.over(rows['reference fp32']):.2f}× ({ours.case})"
            )
    if rows := first("training step", "ours"):
        compiled = [row for row in rows.values() if row.contender.startswith("compiled")]
        if compiled:
            best = min(compiled, key=lambda row: row.median)
            found["against the best torch.compile"] = f"{rows['ours'].over(best):.2f}×"
    if rows := first("end to end", "ours, --cache auto", "today's loop"):
        ours, today = rows["ours, --cache auto"], rows["today's loop"]
        found["from JPEG strips"] = (
            f"{ours.rate:,.4g} clips/s: {ours.over(today):.2f}×, "
            f"waiting {ours.waiting:.1%} of the time"
        )
    strips = report.cases("loader").get("strips", {})
    if resident := strips.get("ours, --cache gpu") or strips.get("ours, --cache host"):
        found["clips from memory"] = f"{resident.rate:,.0f} clips/s"
    return found


ABOUT = {
    "training step": "Training step, the paper's networks, against plain fp32 eager PyTorch",
    "against the best torch.compile": "The same step against the best of `torch.compile` in bf16",
    "generation": "Generation, the paper's networks, against plain fp32 eager PyTorch",
    "from JPEG strips": "Training from JPEG strips, against the usual fp32 loop over a DataLoader",
    "clips from memory": "Loading alone, strips once read",
}


def table(results: Path) -> str:
    """The table, from the newest results of a CPU and of a GPU."""
    columns = {}
    for preset in ("cpu", "gpu"):
        of = [(folder, report) for folder, report in committed(results) if report.preset == preset]
        columns[preset] = of[-1] if of else None
    heads, cells = [], []
    for found in columns.values():
        if found is None:
            heads.append("a GPU")
            cells.append(GOALS)
        else:
            folder, report = found
            place = f"benchmarks/results/{folder.name}/README.md"
            heads.append(f"[{report.device}, {report.date}]({place})")
            cells.append(figures(report))
    lines = [f"| | {' | '.join(heads)} |", "|---|---|---|"]
    lines += [
        f"| {about} | {' | '.join(of.get(name, 'not measured') for of in cells)} |"
        for name, about in ABOUT.items()
    ]
    return "\n".join(lines)


def between_markers(readme: Path) -> tuple[str, str, str]:
    """What stands before, between and after the markers.

    Raises:
        UserError: README has none.
    """
    head, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    old, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{readme}: holds no {BEGIN} with {END} behind it; put them back")
    return head, old, tail


def fill_readme(readme: Path, results: Path) -> None:
    """Write the table between README's markers."""
    head, _, tail = between_markers(readme)
    with written_whole(readme) as part:
        part.write_text(f"{head}{BEGIN}\n{table(results)}\n{END}{tail}", encoding="utf-8")
