"""What a number was measured on: printed above every result."""

import os
import platform
import re
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def describe() -> str:
    """One line: date, commit, processor or GPU, cores, versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    return (
        f"{date.today()}, commit {commit or 'unknown'}, {device_name()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def device_name(cpu: bool = False) -> str:
    """The GPU, or the processor with its native bf16 where there is none or `cpu` is asked for."""
    if torch.cuda.is_available() and not cpu:
        return torch.cuda.get_device_name()
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        return platform.processor() or platform.machine()
    lines = dict(
        (part.strip() for part in line.split(":", 1))
        for line in flags.read_text().splitlines()
        if ":" in line
    )
    native = [f for f in ("amx_bf16", "avx512_bf16") if f in lines.get("flags", "")]
    return f"{lines.get('model name', 'CPU')} ({', '.join(native) or 'no native bf16'})"


def versions() -> str:
    """Of the libraries that decide speed."""
    library = re.search(r"MKL-DNN (v\S+)", torch.__config__.show())
    found = [f"oneDNN {library[1] if library else 'absent'}"]
    for name in ("triton", "nvidia-dali-cuda130", "av", "opencv-python-headless", "numpy"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    if torch.cuda.is_available():
        found += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    return ", ".join(found)
