#!/usr/bin/env bash
# What a GPU shows first, most important first, so that a run that is cut short is worth something:
# are the kernels right at the sizes that only a GPU can do, which candidates does each layer have
# and how fast are they, how fast is the step, are the kernels right at every other size. Needs no
# DALI and no network; about eight minutes. Writes into the folder given, or benchmarks/results/gpu.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
mkdir -p "$out"
failed=0

run() { # seconds, file, command
    timeout "$1" "${@:3}" > "$out/$2" 2>&1 || { failed=1; tail -n 20 "$out/$2"; }
    tail -n 1 "$out/$2"
}

run 150 gpu_tests.txt python -m pytest -q -m gpu tests/kernels tests/vgan_fast
run 60 training_step.md python -m benchmarks.training_step
run 120 doctor.txt python -m vgan_fast.kernels.doctor --json "$out/doctor.json"
run 60 kernels.md python -m benchmarks.kernels
# Every other test of the kernels runs on a GPU where there is one, bf16 included.
run 240 all_tests.txt python -m pytest -q -x -m "not gpu and not slow" tests/kernels \
    tests/vgan_fast/test_fused.py --deselect tests/kernels/test_aot.py

echo
cat "$out/training_step.md" "$out/doctor.txt" "$out/kernels.md"
tail -qn 1 "$out/gpu_tests.txt" "$out/all_tests.txt"
exit $failed
