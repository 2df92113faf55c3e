from collections import Counter
from itertools import combinations
from random import Random

from vgan_fast.study.trials import plan_trials

CLIPS = {k: list(range(100 * k, 100 * k + 5)) for k in (1, 2, 3, 4, 9)}
PAIRS = list(combinations((1, 2, 3, 4), 2))


def sessions(raters, trials, catch=0):
    """What raters one after the other are given, as the study counts it."""
    random, given = Random(0), dict.fromkeys(PAIRS, 0)
    for _ in range(raters):
        planned = plan_trials(random, CLIPS, given, trials, [(3, 9)] * catch)
        for left, right in planned:
            pair = tuple(sorted((left // 100, right // 100)))
            if pair in given:
                given[pair] += 1
        yield planned, given


def test_every_pair_comes_as_often_as_the_others_over_all_raters():
    for planned, given in sessions(raters=25, trials=7, catch=2):
        assert len(planned) == 9
        assert max(given.values()) - min(given.values()) <= 1
    assert sum(given.values()) == 25 * 7


def test_catch_trials_are_as_many_as_asked_for_and_anywhere():
    places = Counter()
    for planned, _ in sessions(raters=300, trials=6, catch=2):
        caught = [place for place, sides in enumerate(planned) if max(sides) >= 900]
        assert len(caught) == 2
        assert all(min(planned[place]) // 100 == 3 for place in caught)
        places.update(caught)
    assert set(places) == set(range(8))
    assert min(places.values()) > 0.6 * 300 * 2 / 8


def test_sides_are_even_for_every_pair():
    first_on_left = Counter()
    for planned, _ in sessions(raters=300, trials=12, catch=2):
        first_on_left.update((left // 100, right // 100) for left, right in planned if left < right)
    # 600 trials of each pair: within 5 standard deviations of a half.
    assert all(abs(first_on_left[pair] - 300) < 5 * 12.3 for pair in (*PAIRS, (3, 9)))


def test_no_clip_comes_twice_before_all_of_its_condition_came_once():
    for planned, _ in sessions(raters=20, trials=20):
        for condition in (1, 2, 3, 4):
            seen = [clip for sides in planned for clip in sides if clip // 100 == condition]
            for turn in range(0, len(seen), 5):
                assert len(set(seen[turn : turn + 5])) == len(seen[turn : turn + 5])


def test_sessions_differ():
    plans = [tuple(planned) for planned, _ in sessions(raters=20, trials=6)]
    assert len(set(plans)) == 20
