"""The command that counts sees what is wrong, whichever way it is."""

import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest

from benchmarks import fuzzing
from benchmarks.mutations import _CHANGES, mutated
from benchmarks.parsers import PARSERS, Parser
from vgan_fast.errors import UserError

KEPT = []


def seeds():
    return [{"x": b"0123456789"}]


def behave(how: str, folder: Path) -> bool:
    """Do something odd with every third input or so, by its bytes."""
    content = (folder / "x").read_bytes()
    if content == b"0123456789" or sum(content) % 3:
        if sum(content) % 2:
            raise UserError("refused; mend it")
        return True
    if how == "raise":
        raise KeyError("x")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(60)
    if how == "grow":
        KEPT.append(np.ones(250 << 20, np.uint8))
    if how == "say nothing":
        raise UserError("")
    return True


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "KeyError: 'x'"),
        ("die", r"the process died \(SIGKILL\)"),
        ("hang", r"hung: over 0\.5 s"),
        ("grow", r"\d+ MiB of memory"),
        ("say nothing", "nothing, or too much, is said"),
    ],
)
def test_what_is_wrong_is_counted_and_the_rest_goes_on(how, reason):
    inputs = 9
    parser = Parser("odd", seeds, partial(behave, how))
    bad = [
        number
        for number in range(inputs)
        if (content := fuzzing.drawn(parser, number)["x"]) != b"0123456789"
        and sum(content) % 3 == 0
    ]
    assert 0 < len(bad) < 5  # or the case says little
    seconds = 0.5 if how == "hang" else 20
    tally = fuzzing.fuzz(parser, 0, inputs, seconds=seconds, memory=200 << 20)
    assert [number for number, _ in tally.wrong] == bad
    for _, why in tally.wrong:
        assert re.search(reason, why)
    assert tally.accepted and tally.refused
    if how != "grow":
        assert tally.accepted + tally.refused + len(bad) == inputs
    assert f"| odd | {tally.accepted} | {tally.refused} | {len(bad)} |" in fuzzing.table([tally])


def test_an_input_is_the_same_whenever_it_is_drawn():
    for parser in PARSERS[:3]:
        assert fuzzing.drawn(parser, 7) == fuzzing.drawn(parser, 7)
    draws = [fuzzing.drawn(PARSERS[0], number) for number in range(50)]
    assert len({repr(files) for files in draws}) > 40


def test_every_change_leaves_bytes_of_any_content():
    random = Random(0)
    for change in _CHANGES:
        for content in (b"", b"x", b'{"a": [1, {"b": null}]}\n[]', bytes(range(256)) * 40):
            for _ in range(20):
                assert isinstance(change(content, b"other", random), bytes)
    assert {len(mutated([{"x": b"1"}, {"x": b"2", "y": b""}], random)) for _ in range(50)} == {1, 2}
