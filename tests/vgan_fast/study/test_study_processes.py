"""The server as a process: many raters at once, and sudden death."""

import contextlib
import http.client
import signal
import sqlite3
import threading
import time

import pytest
from small_study import Rater, free_port, make_study, served

from vgan_fast.study.store import Study

RATERS, TRIALS, CATCH = 50, 5, 1


def stored_votes(db):
    with contextlib.closing(sqlite3.connect(db)) as base:
        votes = base.execute("SELECT key, side FROM vote JOIN trial ON trial.id = trial").fetchall()
    assert len(votes) == len(dict(votes))
    return dict(votes)


def take_part(rater, number):
    """Answer every trial, with a pattern of sides that is this rater's own."""
    state = rater.ask("POST", "/begin", {})
    while state["state"] == "trial":
        state = rater.answer(state, "left" if (number >> state["number"]) & 1 else "right")


def in_threads(work, count):
    """Run `work(number)` in as many threads; the first failure is the test's."""
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=90)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


def test_fifty_raters_at_once_lose_no_vote(tmp_path):
    db, port = make_study(tmp_path / "study.db", TRIALS, CATCH), free_port()
    raters = [Rater(port) for _ in range(RATERS)]
    with served(db, port):
        in_threads(lambda number: take_part(raters[number], number), RATERS)
    acknowledged = {}
    for rater in raters:
        assert len(rater.acknowledged) == TRIALS + CATCH
        acknowledged |= rater.acknowledged
    assert stored_votes(db) == acknowledged
    assert len(acknowledged) == RATERS * (TRIALS + CATCH)
    answers = Study(db).answers()
    assert {answer.rater for answer in answers} == set(range(1, RATERS + 1))
    assert sum(answer.missed is not None for answer in answers) == RATERS * CATCH


def test_a_killed_server_has_lost_no_acknowledged_vote_and_goes_on(tmp_path):
    db, port = make_study(tmp_path / "study.db", TRIALS, CATCH), free_port()
    raters = [Rater(port) for _ in range(8)]

    def until_killed(number):
        with contextlib.suppress(OSError, http.client.HTTPException):
            take_part(raters[number], number)

    def acknowledged():
        return {key: side for rater in raters for key, side in rater.acknowledged.copy().items()}

    with served(db, port) as process:

        def kill_in_the_middle():
            deadline = time.monotonic() + 60
            while len(acknowledged()) < 12:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            process.kill()

        killer = threading.Thread(target=kill_in_the_middle)
        killer.start()
        in_threads(until_killed, len(raters))
        killer.join()
        assert process.wait(10) == -signal.SIGKILL
    before = acknowledged()
    assert 12 <= len(before) < len(raters) * (TRIALS + CATCH)
    kept = stored_votes(db)
    assert before.items() <= kept.items()

    with served(db, port):
        in_threads(lambda number: take_part(raters[number], number), len(raters))
    # Cookies of before the kill held: nobody began anew, nobody answered anything twice.
    after = stored_votes(db)
    assert kept.items() <= after.items()
    # A vote that was kept when its acknowledgement died is in neither list of the raters.
    assert acknowledged().items() <= after.items()
    assert len(after) == len(raters) * (TRIALS + CATCH)
    assert len({answer.rater for answer in Study(db).answers()}) == len(raters)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_ends_the_server_in_order(tmp_path, number):
    db, port = make_study(tmp_path / "study.db", trials=2, catch=0), free_port()
    with served(db, port) as process:
        assert process.link == f"http://127.0.0.1:{port}/"
        take_part(Rater(port), 1)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "2 votes in" in stdout
    assert not stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]  # no log is left


def test_open_to_others_the_link_has_the_token_and_works(tmp_path):
    db, port = make_study(tmp_path / "study.db", trials=2, catch=0), free_port()
    with served(db, port, "--host", "0.0.0.0") as process:
        link = process.link
        rater = Rater(port)
        with pytest.raises(AssertionError, match="open the whole link"):
            rater.ask("GET", "/trial")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/" + link.rsplit("/", 1)[1])
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Location")) == (302, "/")
        rater.cookie = answer.getheader("Set-Cookie").split(";")[0]
        connection.close()
        assert rater.ask("GET", "/trial")["state"] == "new"
    with served(db, port, "--host", "0.0.0.0") as process:
        assert process.link == link  # links that were given out stay good
