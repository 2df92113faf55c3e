#!/usr/bin/env bash
# What a GPU shows first, most important first, so that a run that is cut short is worth something:
# are the kernels right at the sizes that only a GPU can do, which candidates does each layer have
# and how fast are they, how fast is the step, are the kernels right at every other size. Needs no
# DALI and no network; tests run in as many processes as there are cores where pytest-xdist is. Every
# step writes into the folder given, or benchmarks/results/gpu, and can be run by itself: name it as
# the second argument (gpu_tests, doctor, training_step, report or all_tests), where a call may last
# ten minutes only. On an H100 with 16 cores gpu_tests took 98 s, the doctor, kernels compiled
# before, 33 s, training_step with `--without compiled` about a minute.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
only=${2:-}
mkdir -p "$out"
failed=0

run() { # seconds, file, command
    [ -z "$only" ] || [ "$only" = "${2%.*}" ] || return
    timeout "$1" "${@:3}" > "$out/$2" 2>&1 || { failed=1; tail -n 20 "$out/$2"; }
    tail -n 12 "$out/$2"
}

parallel=$(python -c "import xdist" 2> /dev/null && echo "-n $(nproc) --dist worksteal")

run 300 gpu_tests.txt python -m pytest -q $parallel -m gpu tests/kernels tests/vgan_fast
# The rivals' steps alone, before the doctor has chosen for "ours".
run 180 training_step.txt python -m pytest benchmarks/bench_ceilings.py \
    benchmarks/bench_training_step.py --benchmark-only --preset gpu -q --tb=line \
    --benchmark-json="$out/training_step.json"
run 120 doctor.txt python -m vgan_fast.kernels.doctor --json "$out/doctor.json"
# With --out gone it fills benchmarks/results and README's table.
run 540 report.txt python -m benchmarks.report --preset gpu --profile --out "$out/report"
# Every other test of the kernels runs on a GPU where there is one, bf16 included.
run 540 all_tests.txt python -m pytest -q $parallel -m "not gpu and not slow" tests/kernels \
    tests/vgan_fast/test_fused.py --deselect tests/kernels/test_aot.py

exit $failed
