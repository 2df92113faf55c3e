"""Every kernel compiles for every target without spilling; the report refuses what does not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vgan_fast import kernels
from vgan_fast.kernels.aot import (
    SHARED,
    AotCase,
    Compiled,
    _parse,
    all_cases,
    complaints,
    picked_on,
)

# Compiled, not interpreted.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
# KiB that a block may have: CUDA C++ programming guide, technical specifications.
ROOM = {"sm_80": 163, "sm_86": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}
# Opcodes of products: mma.sync, wgmma, tcgen05.mma.
PRODUCTS = {
    "sm_80": "HMMA",
    "sm_86": "HMMA",
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA",
}


def aot(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "vgan_fast.kernels.aot", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )


def launched() -> set[str]:
    """Every kernel that the package launches, as the report names it."""
    found = set()
    for path in (folder := Path(kernels.__file__).parent).rglob("*.py"):
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        source = path.read_text()
        for name in re.findall(r"^@triton\.jit.*\ndef (\w+)", source, re.MULTILINE):
            if re.search(rf"\b{name}\[.*\]\(", source):
                found.add(f"{module}.{name}")
    return found


def compiles(path, sample) -> None:
    """All that is picked on each target, or a sample of it, compiles and is not refused."""
    ended = aot("--json", path, *["--sample"] * sample)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "REFUSED" not in ended.stdout
    rows = json.loads(path.read_text())
    assert len(ended.stdout.splitlines()) == 1 + len(rows)
    assert all(row["spilled"] == 0 < row["registers"] for row in rows)
    for target, products in PRODUCTS.items():
        here = [row for row in rows if row["target"] == target]
        assert [row["kernel"] for row in here] == picked_on(target, sample)
        assert {row["function"] for row in here} == launched()
        convolutions = {
            row["kernel"]: row["products"] for row in here if "warps, bf16" in row["kernel"]
        }
        assert {
            part for name in convolutions for part in (" up ", " down ", "weight") if part in name
        } == {" up ", " down ", "weight"}
        assert all(list(found) == [products] for found in convolutions.values())
    assert len(rows) == sum(len(picked_on(target, sample)) for target in SHARED)


def test_every_kernel_compiles_for_every_target(tmp_path):
    """Once for each; for one of them with all types and switches."""
    compiles(tmp_path / "report.json", sample=True)


@pytest.mark.slow
def test_all_that_may_be_picked_compiles(tmp_path):
    compiles(tmp_path / "report.json", sample=False)


def test_a_sample_has_every_kernel_and_flag_for_every_target():
    cases = all_cases()
    for target in SHARED:
        everything, sample = picked_on(target, False), picked_on(target, True)
        assert set(sample) < set(everything)
        assert {cases[name].function for name in sample} == launched()
        for flag in ("UP", "VOLUME", "MERGED", "LOGITS", "CELLS", "FROM_BATCH", "MASKED"):
            found = [
                {(cases[name].function, cases[name].constexprs.get(flag)) for name in names}
                for names in (everything, sample)
            ]
            assert found[0] == found[1]
    words = ("EPILOGUE", "PRECISION")
    found = [
        {
            (case.function, *map(case.constexprs.get, words), *case.signature.values())
            for case in chosen
        }
        for chosen in (cases.values(), [cases[name] for name in picked_on("sm_90", True)])
    ]
    assert found[0] == found[1]


def test_what_needs_more_shared_memory_is_not_picked(monkeypatch):
    large, small = (
        AotCase(name, Kernel, {}, {"SIZE": size}, 4, 2, "matmul", shared_bytes=size)
        for name, size in (("large", (99 << 10) + 1), ("small", 99 << 10))
    )
    monkeypatch.setattr("vgan_fast.kernels.aot.all_cases", lambda: {"large": large, "small": small})
    for target, kib in ROOM.items():
        both = ["large", "small"] if kib > 99 else ["small"]
        assert picked_on(target, sample=False) == both
        assert picked_on(target, sample=True) == both[:1]


def test_two_configurations_of_the_same_name_are_a_mistake(monkeypatch):
    monkeypatch.setattr("vgan_fast.kernels.aot.MODULES", ("loss.triton_impl",) * 2)
    with pytest.raises(ValueError, match="two configurations are named logistic losses forward"):
        all_cases.__wrapped__()


def test_a_name_that_no_kernel_has():
    ended = aot("--kernel", "blond")
    assert ended.returncode == 2
    assert "no kernel has blond in its name" in ended.stderr


class Kernel:
    """Stands for a `triton.jit` function."""

    fn = launched


def case(kind: str, **options) -> AotCase:
    return AotCase("a kernel", None, {}, {}, 4, 2, kind, **options)


@pytest.mark.parametrize(
    ("kind", "compiled", "complaint"),
    [
        ("small", Compiled(32, 3, 0, {}, {4: 2}), "3 spilling instructions"),
        ("elementwise", Compiled(32, 0, 0, {}, {}), "no 16-byte access"),
        ("elementwise", Compiled(32, 0, 0, {}, {1: 1, 16: 9}), "1 accesses of 1 bytes, 0 are"),
        ("elementwise", Compiled(32, 0, 0, {}, {4: 3, 16: 9}), "3 accesses of 4 bytes, 2 are"),
        ("elementwise", Compiled(32, 0, 0, {}, {8: 2, 32: 9}), "2 accesses of 8 bytes, 1 are"),
    ],
    ids=["spills", "none", "narrow", "one more than expected", "and by size"],
)
def test_what_is_refused(kind, compiled, complaint):
    (found,) = complaints(case(kind, narrow={4: 2, 8: 1}), "sm_86", compiled)
    assert found.startswith(complaint)


@pytest.mark.parametrize("target", SHARED)
def test_products_are_by_the_targets_own_instruction(target):
    own = PRODUCTS[target]
    others = {"HMMA", "HGMMA", "UTCHMMA", "IMMA"} - {own}
    mistakes = [({}, "no tensor cores")] + [({name: 8}, name) for name in sorted(others)]
    mistakes.append(({"HMMA": 1, "IMMA": 1}, "HMMA and IMMA"))
    for products, words in mistakes:
        (found,) = complaints(case("matmul"), target, Compiled(32, 0, 0, products, {16: 2}))
        assert found == f"products by {words}, {own} is expected"
        assert complaints(case("small"), target, Compiled(32, 0, 0, products, {16: 2})) == []
    assert complaints(case("matmul"), target, Compiled(32, 0, 0, {own: 8}, {16: 2})) == []


def test_narrow_accesses_alone_are_refused_however_many_are_expected():
    found = complaints(case("elementwise", narrow={4: 2}), "sm_90", Compiled(9, 0, 0, {}, {4: 2}))
    assert found == ["no 16-byte access"]
    assert len(complaints(case("elementwise"), "sm_90", Compiled(9, 0, 0, {}, {1: 1, 4: 1}))) == 3


def test_more_shared_memory_than_there_is_is_refused():
    assert ROOM.keys() == SHARED.keys()
    for arch, kib in ROOM.items():
        full, more = (Compiled(32, 0, (kib << 10) + rest, {}, {}) for rest in (0, 1))
        assert complaints(case("small"), arch, full) == []
        (found,) = complaints(case("small"), arch, more)
        assert found == f"{(kib << 10) + 1} bytes of shared memory, {kib << 10} are there"


def test_what_is_not_refused():
    for kind in ("small", "matmul", "elementwise"):
        assert (
            complaints(case(kind), "sm_86", Compiled(255, 0, 99 << 10, {"HMMA": 4}, {16: 2})) == []
        )
    assert complaints(case("small"), "sm_90", Compiled(32, 0, 0, {}, {1: 1000})) == []
    narrow = case("elementwise", narrow={4: 2})
    for accesses in ({4: 2, 16: 1}, {4: 1, 32: 1}, {16: 1}):
        assert complaints(narrow, "sm_90", Compiled(32, 0, 0, {}, accesses)) == []


@pytest.mark.parametrize(
    ("opcode", "what"),
    [
        ("LDL.64", {"spilled": 1}),
        ("STL", {"spilled": 1}),
        ("HMMA.16816.F32.BF16", {"products": {"HMMA": 1}}),
        ("HGMMA.64x64x16.F32.BF16", {"products": {"HGMMA": 1}}),
        ("UTCHMMA", {"products": {"UTCHMMA": 1}}),
        ("HFMA2.MMA", {}),
        ("LDG.E.ENL2.256", {"accesses": {32: 1}}),
        ("LDG.E.128.CONSTANT", {"accesses": {16: 1}}),
        ("STG.E.64", {"accesses": {8: 1}}),
        ("LDG.E", {"accesses": {4: 1}}),
        ("STG.E.U16", {"accesses": {2: 1}}),
        ("LDG.E.S16", {"accesses": {2: 1}}),
        ("LDG.E.U8", {"accesses": {1: 1}}),
        ("LDG.E.S8", {"accesses": {1: 1}}),
        ("LDGSTS.E.BYPASS.128", {"accesses": {16: 1}}),
        ("LDS.128", {}),
        ("STS.U8", {}),
        ("LDC.64", {}),
        ("FFMA", {}),
    ],
)
def test_what_an_instruction_is_counted_as(opcode, what):
    expected = {"spilled": 0, "products": {}, "accesses": {}} | what
    for guard in ("", "@P0 ", "@!P2 ", "@!UPT "):
        sass = f"""
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              {guard}{opcode} R2, [R4] ;
        /*0020*/                   EXIT ;
"""
        found = _parse(" Function kernel:\n  REG:42 STACK:0 SHARED:0", sass, 7)
        assert found == Compiled(registers=42, shared_bytes=7, **expected)


def test_the_machine_code_is_read(tmp_path):
    """Copies of 16 and of 2 bytes a thread, products on tensor cores, and one that must spill."""
    script = tmp_path / "read.py"
    script.write_text("""
import triton
import triton.language as tl
from vgan_fast.kernels.aot import AotCase, compile_case

compile, codes = triton.compile, []
triton.compile = lambda *xs, **options: codes.append(compile(*xs, **options)) or codes[-1]


@triton.jit
def copy(x, y, n, B: tl.constexpr):
    o = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + o, tl.load(x + o, mask=o < n), mask=o < n)


@triton.jit
def product(x, y, B: tl.constexpr):
    o = tl.arange(0, B)[:, None] * B + tl.arange(0, B)[None, :]
    a = tl.load(x + o)
    tl.store(y + o, tl.dot(a, a).to(tl.bfloat16))


@triton.jit
def products(x, y, n, B: tl.constexpr):
    o = tl.arange(0, B)[:, None] * B + tl.arange(0, B)[None, :]
    total = tl.zeros((B, B), tl.float32)
    for i in range(n):
        a = tl.load(x + i * B * B + o)
        total = tl.dot(a, a, total)
    tl.store(y + o, total.to(tl.bfloat16))


@triton.jit
def multiply_and_add(x, y, n, B: tl.constexpr):
    o = tl.arange(0, B)
    a = tl.load(x + o).to(tl.float32)
    tl.store(y + o, (a * n + a).to(tl.bfloat16))


pointers = {"x": "*bf16", "y": "*bf16"}


def read(kernel, constants, warps=4, stages=2, odd=(), arch="sm_90", n="i32"):
    signature = {**pointers, "n": n} if "n" in kernel.arg_names else pointers
    case = AotCase("", kernel, signature, constants, warps, stages, "small", odd)
    return compile_case(case, arch)


archs = ("sm_80", "sm_90", "sm_100")
for kernel, size, warps in ((copy, 1024, 4), (product, 64, 4), (product, 128, 1)):
    for arch in archs if warps > 1 else archs[:1]:
        found = read(kernel, {"B": size}, warps, arch=arch)
        print(arch, found.registers > 8, found.spilled > 0, ",".join(found.products) or "none",
              max(found.accesses))
print(read(copy, {"B": 1024}).accesses, "whole words")
print(read(copy, {"B": 1024}, odd=("n",)).accesses, "single values")
print(read(copy, {"B": 1024}, warps=1).accesses, "one warp")
shared = [read(products, {"B": 64}, stages=stages, arch="sm_80").shared_bytes for stages in (1, 3)]
print(shared[1] > shared[0])
read(multiply_and_add, {"B": 1024}, n="fp32")
print("fma.rn" in codes[-1].asm["ptx"])
""")
    ended = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"TRITON_DEFAULT_FP_FUSION": "0"},
        check=True,
    )
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert [line[1:] for line in lines[:3]] == [["True", "False", "none", "16"]] * 3
    assert [line[:4] for line in lines[3:6]] == [
        [arch, "True", "False", PRODUCTS[arch]] for arch in ("sm_80", "sm_90", "sm_100")
    ]
    assert lines[6][2] == "True"
    assert ended.stdout.splitlines()[7:] == [
        "{16: 2} whole words",
        "{2: 16} single values",
        "{16: 8} one warp",
        "True",
        "True",
    ]
