import json
import re
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.headline import BEGIN, END, fill_readme
from benchmarks.page import page
from benchmarks.presets import PRESETS
from benchmarks.report import compared
from benchmarks.rows import FILE, Report


def benchmark(kind, case, contender, seconds, **info):
    info = {"precision": "fp32", "about": "", "counted": [], **info}
    return {
        "stats": {"data": seconds, "median": float(np.median(seconds))},
        "extra_info": {"kind": kind, "case": case, "contender": contender, **info},
    }


def report(benchmarks, **about):
    about = {
        "preset": "cpu",
        "dry_run": False,
        "command": "a command",
        "machine": "a machine",
        "versions": "versions",
        "device": "A device",
        "date": "2026-01-02",
        "minutes": 1.0,
        "failed": {},
        **about,
    }
    return Report.collected(benchmarks, **about)


CEILINGS = [
    benchmark("ceiling", "copy", "copy", [1.0], bytes=100),
    benchmark("ceiling", "product", "fp32", [1.0], flops=1000),
    benchmark("ceiling", "product", "bf16", [1.0], flops=4000, precision="bf16"),
]


def test_a_floor_is_the_longer_of_both_in_each_pass():
    # In fp32 50 bytes of 16 bits are 100: a second. 500 FLOPs are half a second, or an eighth.
    counted = [[500, 10], [10, 50]]
    rows = [
        benchmark("layer", "a", "slow", [4.0, 4.0], counted=counted),
        benchmark("layer", "a", "fast", [1.25, 1.25], counted=counted, precision="bf16"),
    ]
    slow, fast = report([*CEILINGS, *rows]).of("layer")
    assert slow.floor == pytest.approx(0.5 + 1.0)
    assert fast.floor == pytest.approx(0.125 + 0.5)
    assert slow.share == pytest.approx(1.5 / 4)
    assert (slow.bytes, fast.bytes) == (120, 60)


def test_a_layer_faster_than_the_product_is_the_ceiling():
    fast = benchmark("layer", "a", "fast", [1.0], counted=[[2000, 1]])
    slow = benchmark("layer", "b", "slow", [4.0], counted=[[2000, 1]])
    fast, slow = report([*CEILINGS, fast, slow]).of("layer")
    assert fast.share == pytest.approx(1)
    assert slow.share == pytest.approx(1 / 4)


def test_a_ratio_is_that_of_turns_not_of_medians():
    ours = benchmark("training step", "a", "ours", [1.0, 2.0, 10.0], clips=1)
    theirs = benchmark("training step", "a", "theirs", [30.0, 6.0, 30.0], clips=1)
    ours, theirs = report([ours, theirs]).rows
    assert ours.over(theirs) == pytest.approx(3)  # of 30, 3 and 3; the medians' is 15
    assert theirs.over(ours) == pytest.approx(1 / 3)


def test_those_who_took_no_turns_are_compared_by_their_medians():
    ours = benchmark("loader", "a", "ours", [1.0, 9.0, 2.0], clips=1, in_turns=False)
    theirs = benchmark("loader", "a", "theirs", [8.0, 4.0, 1.0], clips=1, in_turns=False)
    ours, theirs = report([ours, theirs]).rows
    assert ours.over(theirs) == 2


def test_rates_count_the_clips_of_a_call():
    rows = [
        benchmark("loader", "a", "few", [1.0], clips=4),
        benchmark("loader", "a", "many", [2.0], clips=64),
    ]
    few, many = report(rows).rows
    assert (few.rate, many.rate) == (4, 32)
    assert many.over(few) == pytest.approx(8)


def test_percentiles_are_the_20th_and_80th():
    (row,) = report([benchmark("a", "b", "c", list(map(float, range(11))))]).rows
    assert (row.low, row.median, row.high) == (2, 5, 8)


def test_comparing_flags_what_moved_by_more_than_a_tenth():
    def of(times):
        rows = [benchmark("k", "c", name, [time]) for name, time in times.items()]
        return report(rows)

    before = of({"same": 1.0, "slower": 1.0, "faster": 1.0, "gone": 1.0})
    now = of({"same": 1.09, "slower": 1.2, "faster": 0.8, "new": 1.0})
    lines = compared(now, before)
    marks = {line.split()[-1]: line.split()[1] for line in lines if " k, c, " in line}
    assert marks["slower"] == "slower"
    assert marks["faster"] == "faster"
    assert marks["same"] == "k,"
    assert next(line for line in lines if line.endswith("k, c, slower")).split()[0] == "1.20"
    assert lines[-1] == "2 of 4 medians differ by more than 10%; 1 are gone, 1 are new"


def test_a_report_comes_back_from_its_file(tmp_path):
    made = report([*CEILINGS, benchmark("growth", "batch", "2", [1.0], base="x", clips=2)])
    (tmp_path / FILE).write_text(made.to_json())
    assert Report.load(tmp_path / FILE) == made


def test_readme_names_the_newest_results_and_owes_what_was_not_measured(tmp_path):
    step = [
        benchmark("training step", "64x64", "reference fp32", [3.0], clips=8),
        benchmark("training step", "64x64", "compiled", [2.0], clips=8),
        benchmark("training step", "64x64", "compiled, max-autotune", [4.0], clips=8),
        benchmark("training step", "64x64", "ours", [1.0], clips=8),
    ]
    for date, seconds in (("2026-01-02", 1.0), ("2026-03-04", 0.5), ("2025-12-31", 9.0)):
        step[-1] = benchmark("training step", "64x64", "ours", [seconds], clips=8)
        folder = tmp_path / "results" / f"{len(date) + seconds}-{date}"  # names in no order
        folder.mkdir(parents=True)
        (folder / FILE).write_text(report([*CEILINGS, *step], date=date).to_json())
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    fill_readme(readme, tmp_path / "results")
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| | [A device, 2026-03-04](")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "500 ms, 16 clips/s: 6.00×" in text
    assert "| 4.00× | not yet measured; goal: ≥ 1.5× |" in text
    fill_readme(readme, tmp_path / "results")
    assert readme.read_text() == text


def test_the_page_names_what_has_no_number(tmp_path):
    made = report(CEILINGS, failed={"bench_layers: test_layer[a, b]": "WrongResultError: off"})
    text = page(made, tmp_path, {}, "## By hand\n")
    assert "WrongResultError: off" in text
    assert "## By hand" in text
    assert "Not yet measured on a GPU" in text


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.report", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--preset", "smoke"], "error: --out: name a folder"),
        (["--redraw", "absent"], "error: --redraw absent: holds no report.json; name a folder"),
        ([], "error: --preset: name one of smoke, cpu, gpu"),
        (["--preset", "large"], "error: Invalid value for '--preset'"),
    ],
)
def test_bad_options_are_one_line(arguments, line):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1


def test_a_contender_without_a_number_fails_its_benchmark(tmp_path):
    code = """
import sys, pytest
from benchmarks import bench_ceilings
from benchmarks.measure import Contender, Contest
def build(_):
    raise RuntimeError("lacks a part")
contest = Contest("ceiling", "copy", [Contender("copy", build)], 1, 0)
bench_ceilings.contests = lambda preset, device: [contest]
options = ["--preset=smoke", "--benchmark-only", "-q", f"--junitxml={sys.argv[1]}"]
sys.exit(pytest.main(["benchmarks/bench_ceilings.py", *options]))
"""
    outcome = tmp_path / "outcome.xml"
    command = [sys.executable, "-c", code, str(outcome)]
    assert subprocess.run(command, capture_output=True, text=True).returncode == 1
    assert "RuntimeError: lacks a part" in outcome.read_text()


def test_a_damaged_report_is_one_line(tmp_path):
    (tmp_path / FILE).write_text('{"rows": [{"kind": 1}]}')
    result = run("--redraw", str(tmp_path))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {tmp_path / FILE}: is no report of this version")
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def check(folder, preset, result):
    """What a run must leave behind."""
    assert result.returncode == 0, result.stdout + result.stderr
    made = Report.load(folder / FILE)
    assert not made.failed
    kinds = {row.kind for row in made.rows}
    assert kinds == {
        *("ceiling", "kernel", "layer", "training step", "generation"),
        *("langevin", "growth", "loader", "data wait", "end to end"),
    }
    assert all(len(row.seconds) and min(row.seconds) > 0 for row in made.rows)
    text = (folder / "README.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert {"training_step.png", "roofline.png", "growth.png"} <= set(pictures)
    for picture in pictures:
        assert (folder / picture).stat().st_size > 10_000
    assert "no number means anything" in text
    contenders = {row.contender for row in made.of("training step")}
    assert contenders >= {"reference fp32", "library bf16", "compiled", "compiled, max-autotune"}
    return made


def test_every_benchmark_is_alive(tmp_path):
    result = run("--preset", "smoke", "--out", str(tmp_path / "smoke"), "--compare")
    made = check(tmp_path / "smoke", "smoke", result)
    assert "no earlier results" in result.stdout
    assert made.machine
    for networks in PRESETS["smoke"].trained:
        assert str(networks) in made.cases("training step")
    written = json.loads((tmp_path / "smoke" / FILE).read_text())
    assert written["preset"] == "smoke"


@pytest.mark.slow
def test_the_gpu_preset_runs_to_its_end_on_a_cpu(tmp_path):
    result = run("--preset", "gpu", "--dry-run", "--profile", "--out", str(tmp_path / "gpu"))
    made = check(tmp_path / "gpu", "gpu", result)
    assert "ours, kernels" in {row.contender for row in made.of("training step")}
    assert "kernel" in {row.contender for row in made.of("layer")}
    assert "kernel" in {row.contender for row in made.of("kernel")}
    traces = list((tmp_path / "gpu" / "traces").iterdir())
    assert len(traces) == len(made.of("training step"))
