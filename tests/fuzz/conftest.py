"""Where a library of the loaders or the study is absent, what feeds their parsers is left out.

Each parser gets a few inputs, always the same ones, so that a run of all tests stays short;
`python -m benchmarks.fuzzing --inputs 10000` gives them many, by the same code.
"""

from datetime import timedelta
from importlib.util import find_spec

from hypothesis import HealthCheck, settings

NEEDED = ("av", "cv2", "flask", "PIL", "scenedetect", "scipy", "simplejpeg", "waitress")
ABSENT = [name for name in NEEDED if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if ABSENT else []

settings.register_profile(
    "ci",
    derandomize=True,
    database=None,
    max_examples=15,
    deadline=timedelta(seconds=10),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ci")


def pytest_report_header() -> str | None:
    return f"fuzzing left out, without {', '.join(ABSENT)}" if ABSENT else None
