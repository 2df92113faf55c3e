"""The API reference is made of the docstrings, by the command in CONTRIBUTING.md."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_module_has_its_page_and_nothing_is_warned_of(tmp_path):
    pytest.importorskip("pdoc", reason="without the docs extra")
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    words = shlex.split(re.search(r"^PDOC.*--output-directory", page, re.MULTILINE)[0])
    variable, python, *command = words
    assert python == "python"
    made = subprocess.run(
        [sys.executable, *command, tmp_path],
        cwd=ROOT,
        env={**os.environ, **dict([variable.split("=")])},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    # A TypedDict does not know its bases at run time: pdoc says that it guesses the file.
    known = re.compile(r"Warn: Cannot determine where .* is taken from")
    warned = [
        line for line in made.stderr.splitlines() if "Warn" in line and not known.search(line)
    ]
    assert not warned, made.stderr[-2000:]
    for name in ("models", "kernels/norm", "loaders/search", "interchange/hub", "study/server"):
        assert (tmp_path / "vgan_fast" / f"{name}.html").is_file()
    text = (tmp_path / "vgan_fast" / "kernels" / "norm.html").read_text(encoding="utf-8")
    assert "batch_norm_act" in text
