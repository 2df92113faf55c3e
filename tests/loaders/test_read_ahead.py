"""Reading ahead in threads: in order, errors passed on, a read that hangs named."""

import os
import threading
import time

import pytest

from vgan_fast.errors import UserError
from vgan_fast.loaders.read_ahead import ReadAhead


def jobs(number: int) -> list[int]:
    return [10 * number + k for k in range(4)] if number < 5 else []


def test_results_come_in_the_order_of_the_jobs():
    def read(job: int) -> int:
        time.sleep(0.002 * (job % 3))  # later jobs end earlier
        return -job

    reader = ReadAhead(jobs, read, str, threads=3)
    taken = [reader.take() for _ in range(7)]
    reader.close()
    assert taken == [[-job for job in jobs(number)] for number in range(7)]


def test_batches_are_read_before_they_are_asked_for():
    begun = threading.Event()

    def read(job: int) -> int:
        if job == 20:  # of the third batch
            begun.set()
        return job

    reader = ReadAhead(jobs, read, str, threads=1)
    assert begun.wait(5)
    reader.close()


def test_a_stuck_read_is_named_in_time_and_does_not_keep_the_program(tmp_path):
    os.mkfifo(tmp_path / "stuck.jpg")
    before = time.monotonic()
    reader = ReadAhead(
        lambda _: ["good.jpg", "stuck.jpg"],
        lambda name: (tmp_path / name).read_bytes() if name == "stuck.jpg" else b"",
        str,
        threads=2,
        seconds=0.5,
    )
    with pytest.raises(UserError, match=r"stuck\.jpg: .* not ended within 0\.5 s; .*disk or net"):
        reader.take()
    reader.close()
    assert time.monotonic() - before < 5
    assert all(thread.daemon for thread in threading.enumerate() if thread.name != "MainThread")


def test_an_error_of_a_read_is_passed_on():
    def read(job: int) -> int:
        raise UserError("no good file is left")

    reader = ReadAhead(jobs, read, str, threads=2)
    with pytest.raises(UserError, match="no good file is left"):
        reader.take()
    reader.close()
