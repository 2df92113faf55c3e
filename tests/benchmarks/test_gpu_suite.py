"""The tests for a GPU are found on a machine that has PyTorch, Triton and little else."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Of setup.py's libraries those that such a machine lacked.
PLUGIN = """
from importlib.machinery import PathFinder

ABSENT = ("av", "flask", "nvidia", "playwright", "ray", "scenedetect", "simplejpeg",
          "waitress")
found = PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in ABSENT else found(name, path, target)


PathFinder.find_spec = find_spec
"""


def test_they_are_found_without_the_libraries_of_loaders_and_study(tmp_path):
    (tmp_path / "bare.py").write_text(PLUGIN)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "bare", "-q", "--collect-only", "-m", "gpu"]
    found = subprocess.run(
        [*command, "tests/kernels", "tests/vgan_fast"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout[-2000:]
    assert "tests/vgan_fast/test_fused.py::" in found.stdout
