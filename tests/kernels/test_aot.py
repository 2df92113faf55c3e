"""Every kernel compiles for every target without spilling; the report refuses what does not."""

import json
import os
import subprocess
import sys

import pytest

from vgan_fast.kernels.aot import SHARED, AotCase, Compiled, complaints

# Compiled, not interpreted.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def aot(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "vgan_fast.kernels.aot", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )


def test_every_kernel_compiles_for_every_target(tmp_path):
    ended = aot("--json", tmp_path / "report.json")
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "REFUSED" not in ended.stdout
    rows = json.loads((tmp_path / "report.json").read_text())
    kernels = {row["kernel"] for row in rows}
    assert {(row["kernel"], row["target"]) for row in rows} == {
        (kernel, target) for kernel in kernels for target in SHARED
    }
    assert {name.split()[0] for name in kernels} >= {"blend", "cells", "head", "norm_act"}
    assert all(row["spilled"] == 0 < row["registers"] for row in rows)
    assert len(ended.stdout.splitlines()) == 1 + len(rows)


def case(kind: str) -> AotCase:
    return AotCase("a kernel", None, {}, {}, 4, 2, kind)


@pytest.mark.parametrize(
    ("kind", "compiled", "complaint"),
    [
        ("small", Compiled(32, 3, 0, 0, {4: 2}), "3 spilling instructions"),
        ("small", Compiled(32, 0, 100 << 10, 0, {4: 2}), "102400 bytes of shared memory"),
        ("matmul", Compiled(32, 0, 0, 0, {16: 2}), "no tensor-core instruction"),
        ("elementwise", Compiled(32, 0, 0, 0, {8: 2}), "no 16-byte access"),
    ],
    ids=["spills", "shared memory", "no tensor cores", "narrow"],
)
def test_what_is_refused(kind, compiled, complaint):
    (found,) = complaints(case(kind), "sm_86", compiled)
    assert found.startswith(complaint)


def test_what_is_not():
    for kind in ("small", "matmul", "elementwise"):
        assert complaints(case(kind), "sm_86", Compiled(255, 0, 99 << 10, 4, {16: 2})) == []
    assert complaints(case("small"), "sm_90", Compiled(32, 0, 100 << 10, 0, {4: 1})) == []


def test_the_machine_code_is_read(tmp_path):
    """A copy of 16 bytes a thread, a product on tensor cores, and one that must spill."""
    script = tmp_path / "read.py"
    script.write_text("""
import triton
import triton.language as tl
from vgan_fast.kernels.aot import AotCase, compile_case


@triton.jit
def copy(x, y, n, B: tl.constexpr):
    o = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + o, tl.load(x + o, mask=o < n), mask=o < n)


@triton.jit
def product(x, y, B: tl.constexpr):
    o = tl.arange(0, B)[:, None] * B + tl.arange(0, B)[None, :]
    a = tl.load(x + o)
    tl.store(y + o, tl.dot(a, a).to(tl.bfloat16))


def show(kernel, signature, constants, warps):
    case = AotCase("", kernel, signature, constants, warps, 2, "small")
    for arch in ("sm_80", "sm_90", "sm_100"):
        read = compile_case(case, arch)
        print(arch, read.registers > 8, read.spilled > 0, read.tensor_core_instructions > 0,
              max(read.accesses))


pointers = {"x": "*bf16", "y": "*bf16"}
show(copy, {**pointers, "n": "i32"}, {"B": 1024}, 4)
show(product, pointers, {"B": 64}, 4)
show(product, pointers, {"B": 256}, 1)
""")
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert [line[1:] for line in lines[:3]] == [["True", "False", "False", "16"]] * 3
    assert [line[1:4] for line in lines[3:6]] == [["True", "False", "True"]] * 3
    assert all(line[2] == "True" for line in lines[6:8])
