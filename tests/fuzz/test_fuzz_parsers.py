"""Damaged input to every parser: accepted or refused in a line, in bounded memory and time."""

import logging
import resource
import warnings
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.parsers import PARSERS, Parser

MEMORY = 1 << 29  # bytes
AT_ONCE = 6  # inputs of a parser that starts a process

ALONE = [parser for parser in PARSERS if parser.parse is not None]
TOGETHER = [parser for parser in PARSERS if parser.parse is None]


@pytest.fixture(autouse=True)
def quiet():
    logging.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def little_memory():
    """This process cannot take much more than it has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    lines = Path("/proc/self/status").read_text().splitlines()
    now = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("parser", ALONE, ids=lambda parser: parser.name)
def test_damaged_input_is_accepted_or_refused(parser: Parser, tmp_path_factory, little_memory):
    parser.made  # noqa: B018

    @given(st.randoms(use_true_random=False))
    def check(random: Random):
        [accepted] = parser.outcomes([parser.input(random)], tmp_path_factory.mktemp("input"))
        assert accepted in (True, False)

    check()


@pytest.mark.parametrize("parser", TOGETHER, ids=lambda parser: parser.name)
def test_what_native_decoders_get_is_decoded_in_a_process_of_its_own(parser: Parser, tmp_path):
    inputs = [parser.input(Random(f"{parser.name}: {number}")) for number in range(AT_ONCE)]
    assert len(parser.outcomes([*parser.made[:1], *inputs], tmp_path)) == AT_ONCE + 1


@pytest.mark.parametrize("parser", ALONE, ids=lambda parser: parser.name)
def test_seeds_are_accepted(parser: Parser, tmp_path):
    """Or all inputs would be refused at the first step, and nothing behind it tried."""
    if parser.name == "weights":
        assert parser.outcomes(parser.made, tmp_path) == [True, False]  # of another network
    else:
        assert all(parser.outcomes(parser.made, tmp_path))
