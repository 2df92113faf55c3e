#!/usr/bin/env bash
# What a GPU shows first, most important first, so that a run that is cut short is worth something:
# are the kernels right, how fast are they, how fast is the step. Needs no DALI and no network;
# about eight minutes. Writes into the folder given, or benchmarks/results/gpu.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
mkdir -p "$out"
failed=0

# Every test of the kernels runs on a GPU where there is one, bf16 included.
timeout 300 python -m pytest -q -m "gpu or not gpu" tests/kernels tests/vgan_fast/test_fused.py \
    --deselect tests/kernels/test_aot.py 2>&1 | tee "$out/tests.txt" | tail -n 40 || failed=1
timeout 120 python -m benchmarks.kernels > "$out/kernels.md" || failed=1
timeout 120 python -m benchmarks.training_step > "$out/training_step.md" || failed=1

echo
tail -n 1 "$out/tests.txt"
cat "$out/kernels.md" "$out/training_step.md"
exit $failed
