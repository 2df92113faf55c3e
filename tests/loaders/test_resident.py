"""Where a set is kept, and how its clips get to a GPU."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vgan_fast.errors import UserError
from vgan_fast.loaders import resident
from vgan_fast.loaders.clips import open_clips
from vgan_fast.loaders.resident import choose_place

free_memory = resident.free_memory  # the fixture below replaces it
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def place(cache: str, frames: int, device: torch.device = CPU) -> str:
    """Of a set of so many frames of 10 by 10 pixels, 300 bytes each."""
    files = [SimpleNamespace(length=frames // 2), SimpleNamespace(length=frames - frames // 2)]
    return choose_place(cache, SimpleNamespace(files=files), 10, device)


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """60,000 bytes on the host and 30,000 on a GPU."""
    monkeypatch.setattr(resident, "free_memory", lambda: 60_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30_000, 80_000))


def test_auto_takes_half_of_what_is_free_and_the_gpu_first():
    assert place("auto", 100) == "host"
    assert place("auto", 101) == "none"
    assert place("auto", 50, GPU) == "gpu"
    assert place("auto", 51, GPU) == "host"
    assert place("auto", 101, GPU) == "none"


def test_ranks_share_the_host():
    files = [SimpleNamespace(length=100)]
    clips = SimpleNamespace(files=files)
    assert choose_place("auto", clips, 10, CPU, ranks=1) == "host"
    assert choose_place("auto", clips, 10, CPU, ranks=2) == "none"
    with pytest.raises(UserError, match="--cache host"):
        choose_place("host", clips, 10, CPU, ranks=3)


def test_a_place_that_is_named_may_be_filled_up():
    assert place("host", 200) == "host"
    assert place("gpu", 100, GPU) == "gpu"
    assert place("none", 10**9) == "none"
    with pytest.raises(UserError, match=r"--cache host: .*0\.0 GB are free; use --cache none"):
        place("host", 201)
    with pytest.raises(UserError, match=r"--cache gpu: .*use --cache none"):
        place("gpu", 101, GPU)


def test_a_gpu_cache_needs_a_gpu():
    with pytest.raises(UserError, match="--cache gpu needs --device cuda"):
        place("gpu", 1)


def test_free_memory_is_between_nothing_and_the_machine(monkeypatch):
    monkeypatch.undo()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 10_000_000 < free_memory() < total


STAT = "anon 10\ninactive_file {}\n"


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("", {}, 4000 * 1024),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "7\n"}, 4000 * 1024),
        ("0::/\n", {"memory.max": "9000", "memory.current": "5000"}, 4100),
        ("0::/\n", {"memory.max": "5000", "memory.current": "6000"}, 0),
        (
            "0::/job/step\n",
            {
                "memory.max": "90000",
                "memory.current": "5000",
                "job/memory.max": "7000",
                "job/memory.current": "5000",
                "job/step/memory.max": "max",
                "job/step/memory.current": "1",
            },
            2100,
        ),
        (
            "5:cpu:/\n4:memory:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "6000",
                "memory/job/memory.usage_in_bytes": "1000",
            },
            5100,
        ),
    ],
    ids=["no group", "no limit", "a limit", "full", "of the job", "first version"],
)
def test_the_limits_of_containers_count(tmp_path, groups, files, free):
    """Of 4 MB that the machine has; 100 bytes in each group are of files not in use."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        (path.parent / "memory.stat").write_text(STAT.format(100))
    assert free_memory(tmp_path) == free


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["gpu", "host", "none"])
def test_every_way_to_the_gpu_gives_the_same_clips(tmp_path, monkeypatch, cache):
    """Twenty batches, so that buffers are used again while copies are under way."""
    pytest.importorskip("nvidia.dali")
    monkeypatch.undo()
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", rng.integers(0, 256, (40, 16, 64, 64, 3), np.uint8))
    settings = dict(frames=16, size=64, batch_size=8, seed=0, decoded=tmp_path)
    with (
        open_clips(tmp_path, device=CPU, cache="host", **settings) as expected,
        open_clips(tmp_path, device=GPU, cache=cache, **settings) as loader,
    ):
        for _ in range(20):
            assert torch.equal(loader.next_batch().cpu(), expected.next_batch())
