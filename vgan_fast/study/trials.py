"""Which clips a rater sees, in which order, and which of them on the left."""

from collections.abc import Iterator, Mapping
from random import Random

Pair = tuple[int, int]  # of conditions


def plan_trials(
    random: Random,
    clips: Mapping[int, list[int]],
    given: Mapping[Pair, int],
    trials: int,
    catch: list[Pair],
) -> list[tuple[int, int]]:
    """A rater's trials, as clips on the left and on the right.

    Over all raters each pair of conditions comes as often as any other, to within one trial.

    Args:
        random: of pairs, clips, sides and order; nobody must be able to guess it.
        clips: by condition; a rater sees each of them once before any of them twice.
        given: for each pair that is compared, how many trials of raters before it had.
        trials: number of trials that compare conditions.
        catch: pairs of further trials, one each.
    """
    counts = dict(given)
    pairs = list(catch)
    for _ in range(trials):
        least = min(counts.values())
        pair = random.choice([pair for pair, count in counts.items() if count == least])
        counts[pair] += 1
        pairs.append(pair)
    random.shuffle(pairs)
    decks = {condition: _deal(random, cards) for condition, cards in clips.items()}
    planned = []
    for pair in pairs:
        left, right = random.sample(pair, 2)
        planned.append((next(decks[left]), next(decks[right])))
    return planned


def _deal(random: Random, cards: list[int]) -> Iterator[int]:
    while True:
        yield from random.sample(cards, len(cards))
