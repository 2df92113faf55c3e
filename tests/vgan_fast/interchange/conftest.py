"""Where a format's library is absent, as on a bare GPU machine, its tests are left out."""

from importlib.util import find_spec

NEEDED = {
    "test_hub.py": ("huggingface_hub", "imageio", "sklearn"),
    "test_export.py": ("onnx", "onnxscript", "onnxruntime"),
}
ABSENT = sorted({name for names in NEEDED.values() for name in names if find_spec(name) is None})
collect_ignore = [file for file, names in NEEDED.items() if set(names) & set(ABSENT)]


def pytest_report_header() -> str | None:
    left_out, absent = ", ".join(collect_ignore), ", ".join(ABSENT)
    return f"{left_out} left out, without {absent}" if ABSENT else None
