"""Where a library that reads videos is absent, as on a bare GPU machine, these are left out."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("av") else ["test_*.py"]
