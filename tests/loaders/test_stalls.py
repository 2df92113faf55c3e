"""A disk or share that answers no more is named, in time, wherever data are opened."""

import builtins
import fcntl
import os
import threading
import time

import pytest
import torch

from vgan_fast.errors import UserError
from vgan_fast.loaders import clips, search, shards
from vgan_fast.loaders.cache import _take_turn
from vgan_fast.loaders.stalls import attended, reading


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(attended, "__defaults__", (0.3,))


def test_what_comes_in_time_comes_through(tmp_path):
    def slow_but_steady():
        for number in range(5):
            reading(tmp_path / str(number))
            time.sleep(0.1)
        return number

    assert attended(slow_but_steady, seconds=0.3) == 4


@pytest.mark.parametrize(
    "error", [TimeoutError("the share's own"), UserError("bad"), OSError(5, "x")]
)
def test_errors_are_passed_on(error):
    def fails():
        raise error

    with pytest.raises(type(error)) as caught:
        attended(fails)
    assert caught.value is error


def test_the_file_at_which_it_is_stuck_is_named(tmp_path):
    ended = threading.Event()

    def stuck():
        reading(tmp_path / "good")
        reading(tmp_path / "bad")
        ended.wait(30)

    began = time.monotonic()
    with pytest.raises(UserError, match=r"bad: reading it has not ended within 0.2 s; is its disk"):
        attended(stuck, seconds=0.2)
    assert time.monotonic() - began < 5
    ended.set()


def blocking(module, name, at, monkeypatch):
    """Let a function of a module block for paths that contain a word."""
    real, ended = getattr(module, name), threading.Event()

    def blocks(path, *arguments, **options):
        if at in str(path):
            ended.wait(30)
        return real(path, *arguments, **options)

    monkeypatch.setattr(module, name, blocks)
    return ended


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("folder", os, "scandir"),
        ("list.txt", search, "_lines"),
        ("strip.jpg", builtins, "open"),
        ("clips.npy", builtins, "open"),
        ("shard.tar", shards, "_TarHeaders"),
    ],
)
def test_every_kind_of_source(tmp_path, impatient, monkeypatch, name, module, function):
    data = tmp_path / name
    if name == "folder":
        data.mkdir()
    else:
        data.write_bytes(b"")
    with monkeypatch.context() as patched:
        ended = blocking(module, function, name, patched)
        with pytest.raises(UserError, match=rf"{name}: reading it has not ended within 0.3 s"):
            clips.open_clips(
                data,
                frames=4,
                size=16,
                batch_size=1,
                seed=0,
                device=torch.device("cpu"),
                decoded=tmp_path / "decoded",
            )
        ended.set()


def test_a_wait_for_another_run_is_told(tmp_path, caplog):
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (first, fcntl.LOCK_UN)).start()
        _take_turn(tmp_path, second)
    assert "another run decodes into it" in caplog.text
