import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_importing_the_package_needs_no_triton_dali_or_gpu():
    code = """
import sys
for absent in ("triton", "nvidia", "cv2", "av"):
    sys.modules[absent] = None
import vgan_fast, vgan_fast.kernels, vgan_fast.loaders
assert "torch" not in sys.modules
import vgan_fast.train, vgan_fast.loaders.inspect
assert "torch" not in sys.modules  # Decoding processes import it anew.
import vgan_fast.generate, vgan_fast.evaluation.metrics, vgan_fast.gan_step
import torch
assert not torch.cuda.is_initialized()
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_the_folders_refuse_their_bare_names():
    for name in ("kernels", "loaders"):
        result = python(f"import {name}")
        assert result.returncode != 0
        assert f"vgan_fast.{name}" in result.stderr


def test_all_packages_are_installed():
    root = Path(__file__).parents[2]
    listed = re.findall(r'"(vgan_fast[\w.]*)"', (root / "setup.py").read_text())
    folders = {"vgan_fast": "vgan_fast", "kernels": "vgan_fast.kernels"}
    folders["loaders"] = "vgan_fast.loaders"
    found = set()
    for top, name in folders.items():
        for file in (root / top).rglob("__init__.py"):  # links are not followed
            inner = file.parent.relative_to(root / top).parts
            found.add(".".join([name, *inner]))
    ops = {f"vgan_fast.kernels.{p.name}" for p in (root / "kernels").iterdir() if p.is_dir()}
    assert found - ops <= set(listed), "setup.py's packages lack some"
    for op in ops & found:
        assert f'"{op.rsplit(".")[-1]}"' in (root / "setup.py").read_text()


def modules_of_ours(file):
    """What a file imports from vgan_fast, by the first part of its name there."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("vgan_fast.")}


DRAWING = {"inspect.py", "report.py"}  # of the loaders: a program and a page


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        (["kernels/**/*.py"], {"kernels", "cli", "errors", "files", "shape"}),
        (["loaders/**/*.py"], {"loaders", "errors", "files", "foreign"}),
        ([f"vgan_fast/{n}.py" for n in ("models", "cpu")], {"kernels", "models", "shape"}),
        (["vgan_fast/fused.py"], {"kernels", "models", "shape", "synchronised"}),
        (["vgan_fast/synchronised.py"], {"distributed"}),
        (
            ["vgan_fast/step.py"],
            {"distributed", "graph", "kernels", "settings", "skipping", "synchronised"},
        ),
    ],
)
def test_data_flows_one_way(files, allowed):
    root = Path(__file__).parents[2]
    found = [file for pattern in files for file in root.glob(pattern) if file.name not in DRAWING]
    assert len(found) >= len(files)
    others = {file.name: modules_of_ours(file) - allowed for file in found}
    assert not {name: names for name, names in others.items() if names}
