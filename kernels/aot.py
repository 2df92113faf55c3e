"""`python -m vgan_fast.kernels.aot`: compile every kernel ahead of time and read the machine code.

Needs Triton and no GPU. For each kernel, configuration and target it prints registers a thread,
spilled bytes, shared memory, tensor-core instructions and the widths of global accesses.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import click

from vgan_fast.cli import Program
from vgan_fast.files import written_whole

from . import dispatch

# Modules with kernels; each has `aot_cases`.
MODULES = (
    "blend.triton_impl",
    "frames.triton_impl",
    "norm.triton_impl",
    "head.triton_impl",
    "langevin.triton_impl",
    "loss.triton_impl",
    "conv.gather",
    "conv.weight_gradient",
)

# Shared memory that one block may take, in bytes (CUDA programming guide, compute capabilities).
SHARED = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
}
# Opcodes of the machine code.
_SPILLS = ("LDL", "STL")
# A product of 16 bits or TF32 has these and no others: of a warp, of Hopper's warp groups, of data
# centre Blackwell's fifth generation.
_PRODUCTS = {
    "sm_80": "HMMA",
    "sm_86": "HMMA",
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA",
}
_GLOBAL = ("LDG", "STG", "LDGSTS")  # the last copies to shared memory
# Bytes a thread; others move 4.
_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class AotCase:
    """One kernel in one configuration that may be picked.

    Attributes:
        name: what it is and at which size, for the table.
        kernel: the `triton.jit` function.
        signature: Triton type of each argument that is no constant, by name; a tuple for tuples.
        constexprs: value of each constant, by name.
        num_warps, num_stages: as at the launch.
        kind: what the report asks of it.
        odd: integer arguments that are no multiples of 16.
        narrow: accesses of fewer than 16 bytes that an elementwise kernel may make beside its
            passes over large tensors, by bytes: so many, on any target. The case says what for.
        shared_bytes: what it is picked for by shared memory: nowhere where a block has less.
    """

    name: str
    kernel: Any
    signature: dict[str, str | tuple[str, ...]]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    kind: Literal["elementwise", "matmul", "small"]
    odd: tuple[str, ...] = ()
    narrow: Mapping[int, int] = field(default_factory=dict)
    shared_bytes: int = 0

    @property
    def function(self) -> str:
        """Name of the kernel, with its module's in this package."""
        module = self.kernel.fn.__module__.removeprefix(f"{__package__}.")
        return f"{module}.{self.kernel.fn.__name__}"


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one case says."""

    registers: int
    spilled: int  # loads and stores of spilled registers
    shared_bytes: int
    products: dict[str, int]  # tensor-core instructions, by opcode
    accesses: dict[int, int]  # global loads and stores, by bytes a thread


def compile_case(case: AotCase, arch: str) -> Compiled:
    """Compile for a target such as "sm_90" and read the result.

    Raises:
        Exception: whatever the compiler raises.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    divisible = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in case.signature.items()
        if isinstance(kind, str)
        and (kind.startswith("*") or kind in ("i32", "i64"))
        and name not in case.odd
    }
    source = ASTSource(
        case.kernel,
        signature={n: case.signature.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): v for n, v in case.constexprs.items()},
        attrs=divisible,
    )
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    options = {
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        **dispatch.OPTIONS,
    }
    compiled = triton.compile(source, target=target, options=options)
    return _read(compiled.asm["cubin"], compiled.metadata.shared)


def _read(cubin: bytes, shared: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "--print-code", "--no-dataflow", file.name)
    return _parse(usage, sass, shared)


def _parse(usage: str, sass: str, shared: int) -> Compiled:
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+ +)?(\S+)", sass, re.MULTILINE)
    names = [opcode.split(".")[0] for opcode in opcodes]
    accesses = Counter(
        _WIDTHS.get(suffix, 4)
        for name, opcode in zip(names, opcodes, strict=True)
        if name in _GLOBAL
        for suffix in [next((part for part in opcode.split(".") if part in _WIDTHS), "")]
    )
    # HFMA2.MMA is none, as the part before the first dot says.
    products = Counter(name for name in names if name.endswith("MMA"))
    return Compiled(
        registers,
        sum(name in _SPILLS for name in names),
        shared,
        dict(sorted(products.items())),
        dict(sorted(accesses.items())),
    )


def _tool(name: str, *arguments: str) -> str:
    import triton.backends.nvidia

    folder = Path(triton.backends.nvidia.__file__).parent / "bin"
    ended = subprocess.run([folder / name, *arguments], capture_output=True, text=True, check=True)
    return ended.stdout


def complaints(case: AotCase, arch: str, compiled: Compiled) -> list[str]:
    """What a configuration is refused for."""
    found = []
    if compiled.spilled:
        found.append(f"{compiled.spilled} spilling instructions")
    if compiled.shared_bytes > SHARED[arch]:
        found.append(f"{compiled.shared_bytes} bytes of shared memory, {SHARED[arch]} are there")
    if case.kind == "matmul" and list(compiled.products) != [_PRODUCTS[arch]]:
        products = " and ".join(compiled.products) or "no tensor cores"
        found.append(f"products by {products}, {_PRODUCTS[arch]} is expected")
    if case.kind == "elementwise":
        if max(compiled.accesses, default=0) < 16:
            found.append("no 16-byte access")
        for size, count in compiled.accesses.items():
            if size < 16 and count > (allowed := case.narrow.get(size, 0)):
                found.append(f"{count} accesses of {size} bytes, {allowed} are expected")
    return found


@cache
def all_cases() -> dict[str, AotCase]:
    """Every kernel in every configuration that may be picked, by name.

    Raises:
        ValueError: two have the same name.
    """
    modules = [import_module(f"{__package__}.{module}") for module in MODULES]
    cases = [case for module in modules for case in module.aot_cases()]
    named = {case.name: case for case in cases}
    if len(named) < len(cases):
        twice = [name for name, count in Counter(c.name for c in cases).items() if count > 1]
        raise ValueError(f"two configurations are named {', '.join(twice)}")
    return named


def picked_on(arch: str, sample: bool) -> list[str]:
    """Names of what may be picked on a target.

    With `sample` the first alone of each kernel with the same flags, on sm_90 also with the same
    types and words: of a product that is the default there at one of the layers.
    """
    names = {}
    for name, case in all_cases().items():
        if case.shared_bytes <= SHARED[arch]:
            names.setdefault(_likeness(case, arch == "sm_90") if sample else name, name)
    return list(names.values())


def _likeness(case: AotCase, close: bool) -> str:
    switches = (bool, str, NoneType) if close else bool
    chosen = {name: x for name, x in case.constexprs.items() if isinstance(x, switches)}
    return str((case.function, chosen, case.signature if close else None))


def _compile_by_name(name: str, arch: str) -> tuple[Compiled | None, list[str]]:
    # By name: a kernel cannot be sent to another process.
    case = all_cases()[name]
    try:
        compiled = compile_case(case, arch)
    except Exception as error:  # whatever the compiler raises
        return None, [f"does not compile: {' '.join(str(error).split())[:200]}"]
    return compiled, complaints(case, arch, compiled)


@click.command(cls=Program)
@click.option(
    "--arch",
    "archs",
    multiple=True,
    type=click.Choice(list(SHARED)),
    default=list(SHARED),
    help="target, may be repeated  [default: all]",
)
@click.option("--kernel", "parts", multiple=True, help="only names with this in them, repeatable")
@click.option("--sample", is_flag=True, help="a fifth of them, with every kernel on each target")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="write the table here")
def main(
    archs: tuple[str, ...], parts: tuple[str, ...], sample: bool, json_file: Path | None
) -> int:
    """Compile every kernel for GPUs that need not be there, and read the machine code.

    The status is 1 if a kernel does not compile, spills, takes more shared memory than there is,
    multiplies without the target's tensor cores or passes over a large tensor by fewer than 16
    bytes a thread.
    """
    picked = {arch: picked_on(arch, sample) for arch in archs}
    names = [name for name in all_cases() if not parts or any(part in name for part in parts)]
    jobs = [(name, arch) for name in names for arch in archs if name in picked[arch]]
    if not jobs:
        raise click.UsageError(f"no kernel has {' or '.join(parts)} in its name")
    bad, rows = 0, []
    wide = max(map(len, names))
    print(f"{'kernel':{wide}} target  regs spills  shared  products     accesses")
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for (name, arch), (compiled, found) in zip(
            jobs, pool.map(_compile_by_name, *zip(*jobs, strict=True)), strict=True
        ):
            bad += bool(found)
            if compiled:
                function = all_cases()[name].function
                rows.append(
                    {"kernel": name, "function": function, "target": arch, **asdict(compiled)}
                )
                products = " ".join(f"{n}x{opcode}" for opcode, n in compiled.products.items())
                widths = " ".join(f"{n}x{size}B" for size, n in compiled.accesses.items())
                print(
                    f"{name:{wide}} {arch:7} {compiled.registers:4} {compiled.spilled:6}"
                    f" {compiled.shared_bytes:7}  {products:11}  {widths}",
                    flush=True,
                )
            for complaint in found:
                print(f"{name:{wide}} {arch:7} REFUSED: {complaint}", flush=True)
    if json_file:
        with written_whole(json_file) as part:
            part.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
