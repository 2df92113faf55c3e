"""Where a library of the study is absent, as on a bare GPU machine, its tests are left out."""

from importlib.util import find_spec

NEEDED = ("flask", "waitress", "scipy")
ABSENT = [name for name in NEEDED if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if ABSENT else []


def pytest_report_header() -> str | None:
    return f"the study's tests left out, without {', '.join(ABSENT)}" if ABSENT else None
