"""A Ray cluster of two nodes on this machine loses a worker, then a node."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from test_run import STABILISED, files, planned, videos  # noqa: F401 (a fixture)

from vgan_fast.loaders.preparation.run import run

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster():
    ray = pytest.importorskip("ray", reason="without the ray extra")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def busy_workers() -> list[int]:
    """Processes of Ray's that prepare a video; their names say so."""
    busy = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(b"ray::_prepare_on_worker"):
                busy.append(int(process.name))
    return busy


def test_a_worker_and_then_a_node_are_killed(videos, tmp_path, cluster):  # noqa: F811
    run(planned(videos, tmp_path / "whole", recipe=STABILISED), "local", 2)
    whole = planned(videos, tmp_path / "set", recipe=STABILISED)
    failures = []

    def at_work():
        try:
            run(whole, "ray", 1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=at_work)
    parts = tmp_path / "set/.preparing"
    thread.start()
    while not list(parts.rglob(".*.clips-*")):  # a video is being prepared
        assert thread.is_alive()
        time.sleep(0.02)
    before = len(list(parts.rglob("*.json")))
    victims = busy_workers()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    while len(list(parts.rglob("*.json"))) <= before:
        assert thread.is_alive()
        time.sleep(0.02)
    cluster.remove_node(cluster.second, allow_graceful=False)
    thread.join(timeout=300)
    assert not thread.is_alive()
    assert not failures
    assert victims
    assert files(tmp_path / "set") == files(tmp_path / "whole")
