"""What a number was measured on: printed above every result."""

import os
import platform
import subprocess
from datetime import date
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
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return (
        f"{date.today()}, commit {commit or 'unknown'}, {device}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def _processor() -> str:
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
