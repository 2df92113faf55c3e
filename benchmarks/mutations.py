"""Damage to files: random, and of the kind that reaches deeper into a parser than random bytes do.

Every draw comes from a `random.Random`: a seeded one for the command, Hypothesis's own for tests.
"""

import json
import re
from collections.abc import Callable
from random import Random

Files = dict[str, bytes]  # by name

_MOST = 4  # changes to one input, beyond which little of a file's structure is left
_RANDOM_BYTES = 48  # in one piece: Hypothesis gives no long ones
_EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 65535, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
_LARGE = (2**53, 2**62, 2**63 - 1, 2**64 - 1, 10**18)
_WORDS = (
    *(b"", b"0", b"-1", b"00", b"1e999", b"NaN", b"-Infinity", b"null", b"true", b"\0", b"\n"),
    *(b"..", b"../../x", b"/etc/passwd", b"C:\\x", b"a" * 300, b"%00", b"%2e%2e%2f", b"<script>"),
    *(b"\xff\xfe", b"\xed\xa0\x80", "\u202e".encode(), b"9" * 30, b"9" * 5000, b"0x" + b"f" * 5000),
)
_VALUES = (
    *(None, True, False, 0, 1, -1, 0.5, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf")),
    *("", "..", "../../x", "/etc/passwd", "\0", "\ud800", "a" * 3000, "<script>", "\x1b[2J", "|"),
    *([], {}, [[]], {"": None}),
)


def mutated(seeds: list[Files], random: Random) -> Files:
    """One input: a seed with up to four changes, or now and then nothing but random bytes."""
    files = dict(random.choice(seeds))
    for _ in range(random.randrange(_MOST + 1)):
        name = random.choice(sorted(files))
        change = random.choice(_CHANGES)
        others = random.choice(seeds)
        files[name] = change(files[name], others.get(name, b""), random)
    return files


def _place(content: bytes, random: Random) -> int:
    """Somewhere, the beginning being as likely as all the rest: headers are there."""
    if len(content) > 64 and random.randrange(2):
        return random.randrange(64)
    return random.randrange(len(content) + 1)


def _span(content: bytes, random: Random) -> tuple[int, int]:
    first = _place(content, random)
    length = random.choice((1, 2, 4, 8, 16, 64, 512, 4096))
    return first, min(len(content), first + length)


def _flipped(content: bytes, other: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))):
        if changed:
            place = min(_place(content, random), len(changed) - 1)
            changed[place] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncated(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: _place(content, random)]


def _removed(content: bytes, other: bytes, random: Random) -> bytes:
    first, end = _span(content, random)
    return content[:first] + content[end:]


def _repeated(content: bytes, other: bytes, random: Random) -> bytes:
    first, end = _span(content, random)
    return content[:end] + content[first:end] * random.choice((1, 1, 2, 50)) + content[end:]


def _moved(content: bytes, other: bytes, random: Random) -> bytes:
    first, end = _span(content, random)
    rest = content[:first] + content[end:]
    place = _place(rest, random)
    return rest[:place] + content[first:end] + rest[place:]


def _spliced(content: bytes, other: bytes, random: Random) -> bytes:
    return content[: _place(content, random)] + other[_place(other, random) :]


def _inserted(content: bytes, other: bytes, random: Random) -> bytes:
    place = _place(content, random)
    return content[:place] + random.choice(_WORDS) + content[place:]


def _random(content: bytes, other: bytes, random: Random) -> bytes:
    return random.randbytes(random.randrange(_RANDOM_BYTES))


def _emptied(content: bytes, other: bytes, random: Random) -> bytes:
    return b""


def _numbered(content: bytes, other: bytes, random: Random) -> bytes:
    """An edge of the range of some integer, in place of what is there."""
    width = random.choice((1, 2, 4, 8))
    value = random.choice(_EDGES + _LARGE) % 256**width
    place = _place(content, random)
    return (
        content[:place]
        + value.to_bytes(width, random.choice(("little", "big")))
        + content[place + width :]
    )


def _renumbered(content: bytes, other: bytes, random: Random) -> bytes:
    """A number that is written in digits replaced by another."""
    found = list(re.finditer(rb"\d+", content[: 2**16]))
    if not found:
        return _numbered(content, other, random)
    match = random.choice(found)
    value = str(random.choice((*_EDGES, *_LARGE, -1, int(match[0][:9]) + 1))).encode()
    if random.randrange(2):  # of fixed width, as in a tar
        value = value[-len(match[0]) :].rjust(len(match[0]), b"0")
    return content[: match.start()] + value + content[match.end() :]


def _reworded(content: bytes, other: bytes, random: Random) -> bytes:
    """A word replaced by one that parsers stumble over."""
    found = list(re.finditer(rb"[\w.%/-]+", content[: 2**16]))
    if not found:
        return _inserted(content, other, random)
    match = random.choice(found)
    return content[: match.start()] + random.choice(_WORDS) + content[match.end() :]


def _relined(content: bytes, other: bytes, random: Random) -> bytes:
    """Lines dropped, repeated or in another order."""
    lines = content.split(b"\n")
    if len(lines) > 2000:
        return _removed(content, other, random)
    one, two = random.randrange(len(lines)), random.randrange(len(lines))
    action = random.randrange(4)
    if action == 0:
        lines[one], lines[two] = lines[two], lines[one]
    elif action == 1:
        del lines[one]
    elif action == 2:
        lines.insert(two, lines[one])
    else:
        lines[one] = lines[one] * 3
    return b"\n".join(lines)


def _nested(content: bytes, other: bytes, random: Random) -> bytes:
    """Deeper than a recursive parser can follow."""
    depth = random.choice((50, 3000, 100_000))
    opening, closing = random.choice(((b"[", b"]"), (b"(", b")"), (b'{"a":', b"}"), (b"-", b"")))
    inner = random.choice((b"1", b"", content[:100]))
    return opening * depth + inner + closing * depth


def _revalued(content: bytes, other: bytes, random: Random) -> bytes:
    """JSON, or a line of it, with one value replaced, removed or added."""
    lines = content.split(b"\n")
    whole = random.randrange(len(lines))
    for text, put in (
        (content, lambda new: new),
        (lines[whole], lambda new: b"\n".join([*lines[:whole], new, *lines[whole + 1 :]])),
    ):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        return put(json.dumps(_altered(value, random)).encode())
    return _reworded(content, other, random)


def _altered(value, random: Random):
    inner = isinstance(value, (list, dict)) and bool(value)
    if not inner or not random.randrange(6):
        return random.choice(_VALUES)
    if isinstance(value, list):
        place = random.randrange(len(value))
        return [*value[:place], _altered(value[place], random), *value[place + 1 :]]
    name = random.choice(sorted(value))
    action = random.randrange(6)
    if action == 0:
        return {key: each for key, each in value.items() if key != name}
    if action == 1:
        return {**value, random.choice(("", "x", name + "x", "\ud800")): value[name]}
    return {**value, name: _altered(value[name], random)}


Change = Callable[[bytes, bytes, Random], bytes]  # content, the same file of another seed, draws

_CHANGES: tuple[Change, ...] = (
    *(_flipped, _truncated, _removed, _repeated, _moved, _spliced, _inserted, _random, _emptied),
    *(_numbered, _renumbered, _reworded, _relined, _nested),
    *(_numbered, _renumbered, _reworded, _revalued, _revalued),  # twice: they reach deepest
)
