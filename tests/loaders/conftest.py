"""Where a library of the loaders is absent, as on a bare GPU machine, their tests are left out."""

from importlib.util import find_spec


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


NEEDED = ("nvidia.dali", "av", "cv2", "PIL", "scenedetect", "simplejpeg")
ABSENT = [name for name in NEEDED if not _is_there(name)]
collect_ignore_glob = ["test_*.py", "preparation/*"] if ABSENT else []


def pytest_report_header() -> str | None:
    return f"loaders' tests left out, without {', '.join(ABSENT)}" if ABSENT else None
