"""A study in one SQLite file: its clips, its raters, their trials and votes.

A vote is on the disk before it is acknowledged (write-ahead log, synchronous), and nothing is ever
taken back: a second vote on a trial changes nothing.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from random import SystemRandom
from secrets import token_hex, token_urlsafe
from typing import TYPE_CHECKING, Literal, NamedTuple

from vgan_fast.errors import UserError
from vgan_fast.files import remove_unfinished, written_whole

from .sheets import decode_strip, encode_sheet, encode_strip
from .trials import Pair, plan_trials

if TYPE_CHECKING:
    from .clips import Condition

_APPLICATION = 0x5647414E  # "VGAN", in the file's header
_VERSION = 1
_PATIENCE = 30  # seconds to wait while others write

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_VERSION};
PRAGMA journal_mode = WAL;
CREATE TABLE study (id TEXT NOT NULL, token TEXT NOT NULL, options TEXT NOT NULL);
CREATE TABLE condition (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL CHECK (kind IN ('model', 'real', 'static', 'foil')),
    source TEXT NOT NULL
);
CREATE TABLE clip (
    id INTEGER PRIMARY KEY,
    condition INTEGER NOT NULL REFERENCES condition,
    strip BLOB NOT NULL
);
CREATE TABLE rater (
    id INTEGER PRIMARY KEY,
    secret TEXT NOT NULL UNIQUE,
    began REAL NOT NULL
);
CREATE TABLE trial (
    id INTEGER PRIMARY KEY,
    rater INTEGER NOT NULL REFERENCES rater,
    place INTEGER NOT NULL,
    key TEXT NOT NULL UNIQUE,
    left_clip INTEGER NOT NULL REFERENCES clip,
    right_clip INTEGER NOT NULL REFERENCES clip,
    shown REAL,
    UNIQUE (rater, place)
);
CREATE TABLE vote (
    trial INTEGER PRIMARY KEY REFERENCES trial,
    side TEXT NOT NULL CHECK (side IN ('left', 'right')),
    at REAL NOT NULL
);
"""

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Options:
    """How a study was made; nothing of it changes later."""

    clips: tuple[str, ...]  # NAME=SOURCE
    static: tuple[str, ...]
    count: int  # clips of each condition
    trials: int  # of a rater, without catch trials
    catch: int  # catch trials of a rater
    frames: int  # of a clip
    size: int  # pixels a side
    fps: int  # at which clips are shown
    seed: int

    @property
    def length(self) -> int:
        """Trials of a rater, of both kinds."""
        return self.trials + self.catch

    @property
    def seconds(self) -> float:
        """That a clip lasts."""
        return self.frames / self.fps


class Trial(NamedTuple):
    """What a rater is asked next."""

    key: str  # unguessable, and tells nothing of the clips
    number: int  # from 1


class Answer(NamedTuple):
    """A vote, with the names of the conditions."""

    rater: int
    chosen: str
    other: str
    missed: bool | None  # of a catch trial, whether the real clip was missed; None of others
    seconds: float  # from showing to answer


class UnknownTrialError(Exception):
    """There is no such trial, or it is another rater's."""


class TooEarlyError(Exception):
    """The clips cannot have been shown once yet."""


def create(path: Path, options: Options, conditions: Iterable["Condition"]) -> None:
    """Write a new study, whole or not at all.

    Raises:
        UserError: when it cannot be written.
    """
    log = path.with_name(f"{path.name}-wal")
    if log.exists():  # SQLite would take its pages for this study's.
        raise UserError(f"{log}: is left of another study; remove it, or name another file")
    remove_unfinished(path.parent, path.name)
    with written_whole(path, remedy="name another file") as part:
        try:
            with closing(sqlite3.connect(part, isolation_level=None)) as base:
                base.executescript(_SCHEMA)
                base.execute("BEGIN")
                base.execute(
                    "INSERT INTO study VALUES (?, ?, ?)",
                    (token_hex(4), token_urlsafe(16), json.dumps(asdict(options))),
                )
                for condition in conditions:
                    row = base.execute(
                        "INSERT INTO condition (name, kind, source) VALUES (?, ?, ?)",
                        (condition.name, condition.kind, condition.source),
                    )
                    base.executemany(
                        "INSERT INTO clip (condition, strip) VALUES (?, ?)",
                        ((row.lastrowid, encode_strip(clip)) for clip in condition.clips),
                    )
                base.execute("COMMIT")
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be written ({error}); name another file") from error


class Study:
    """A study that `create` wrote. Threads and processes may share it.

    Attributes:
        id: random, for names of cookies.
        token: random, for those who reach the server from other machines.
        options: how it was made.
        conditions: names of those that are compared, in order.

    Raises:
        UserError: when there is none at `path`, or it is of another version or damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        if not path.is_file():
            raise UserError(f"{path}: no such study; make one with vgan_fast.study serve")
        try:
            with self._open() as base:
                (application,) = base.execute("PRAGMA application_id").fetchone()
                (version,) = base.execute("PRAGMA user_version").fetchone()
                if (application, version) != (_APPLICATION, _VERSION):
                    raise UserError(f"{path}: is no study of this version; name another file")
                self.id, self.token, options = base.execute("SELECT * FROM study").fetchone()
                rows = base.execute("SELECT id, name, kind FROM condition ORDER BY id").fetchall()
        except sqlite3.Error as error:
            raise UserError(f"{path}: cannot be read as a study ({error})") from error
        values = json.loads(options)
        self.options = Options(
            **{**values, "clips": tuple(values["clips"]), "static": tuple(values["static"])}
        )
        self.conditions = [name for _, name, kind in rows if kind != "foil"]
        compared = [condition for condition, _, kind in rows if kind != "foil"]
        self._pairs = list(combinations(compared, 2))
        self._catch: list[Pair] = []
        if self.options.catch:
            real = next(condition for condition, _, kind in rows if kind == "real")
            foil = next(condition for condition, _, kind in rows if kind == "foil")
            self._catch = [(real, foil)] * self.options.catch

    def begin(self) -> str:
        """A new rater's secret, with trials drawn for them."""
        secret = token_urlsafe(16)
        with self._write() as base:
            clips: dict[int, list[int]] = {}
            for clip, condition in base.execute("SELECT id, condition FROM clip ORDER BY id"):
                clips.setdefault(condition, []).append(clip)
            given = dict.fromkeys(self._pairs, 0)
            for first, second, count in base.execute(
                "SELECT min(l.condition, r.condition), max(l.condition, r.condition), count(*)"
                " FROM trial JOIN clip l ON l.id = left_clip JOIN clip r ON r.id = right_clip"
                " GROUP BY 1, 2"
            ):
                if (first, second) in given:
                    given[first, second] = count
            planned = plan_trials(SystemRandom(), clips, given, self.options.trials, self._catch)
            rater = base.execute(
                "INSERT INTO rater (secret, began) VALUES (?, ?)", (secret, time.time())
            ).lastrowid
            base.executemany(
                "INSERT INTO trial (rater, place, key, left_clip, right_clip)"
                " VALUES (?, ?, ?, ?, ?)",
                (
                    (rater, place, token_urlsafe(16), *sides)
                    for place, sides in enumerate(planned, start=1)
                ),
            )
        return secret

    def knows(self, secret: str) -> bool:
        """Whether that is a rater's."""
        with self._open() as base:
            found = base.execute("SELECT 1 FROM rater WHERE secret = ?", (secret,))
            return found.fetchone() is not None

    def current(self, secret: str) -> Trial | None:
        """The first trial without a vote, or None when the rater has finished."""
        with self._open() as base:
            row = base.execute(
                "SELECT key, place FROM trial JOIN rater ON rater.id = rater"
                " LEFT JOIN vote ON trial = trial.id"
                " WHERE secret = ? AND side IS NULL ORDER BY place LIMIT 1",
                (secret,),
            ).fetchone()
        return Trial(*row) if row else None

    def show(self, secret: str, key: str) -> bytes:
        """The sheet (`sheets.encode_sheet`) of a trial; the time of the first call is kept.

        Raises:
            UnknownTrialError: it is not one of this rater's.
        """
        with self._write() as base:
            trial, shown = self._find(base, secret, key)
            if shown is None:
                base.execute("UPDATE trial SET shown = ? WHERE id = ?", (time.time(), trial))
            strips = base.execute(
                "SELECT l.strip, r.strip FROM trial JOIN clip l ON l.id = left_clip"
                " JOIN clip r ON r.id = right_clip WHERE trial.id = ?",
                (trial,),
            ).fetchone()
        return encode_sheet(*(decode_strip(strip, self.options.frames) for strip in strips))

    def vote(self, secret: str, key: str, side: Side) -> None:
        """Keep a vote, on the disk when this returns; only the first on a trial counts.

        Raises:
            UnknownTrialError: the trial is not one of this rater's.
            TooEarlyError: the clips have been out for less than they last.
        """
        now = time.time()
        with self._write() as base:
            trial, shown = self._find(base, secret, key)
            if shown is None or now - shown < self.options.seconds:
                raise TooEarlyError
            base.execute("INSERT OR IGNORE INTO vote VALUES (?, ?, ?)", (trial, side, now))

    def answers(self) -> list[Answer]:
        """Every vote so far, in the order of their coming."""
        with self._open() as base:
            rows = base.execute(
                "SELECT rater, side, at - shown, l.name, l.kind, r.name, r.kind FROM vote"
                " JOIN trial ON trial.id = trial"
                " JOIN clip lc ON lc.id = left_clip JOIN condition l ON l.id = lc.condition"
                " JOIN clip rc ON rc.id = right_clip JOIN condition r ON r.id = rc.condition"
                " ORDER BY at"
            ).fetchall()
        answers = []
        for rater, side, seconds, *named in rows:
            chosen, other = (named[:2], named[2:])[:: 1 if side == "left" else -1]
            kinds = chosen[1], other[1]
            missed = kinds[0] == "foil" if "foil" in kinds else None
            answers.append(Answer(rater, chosen[0], other[0], missed, seconds))
        return answers

    @staticmethod
    def _find(base: sqlite3.Connection, secret: str, key: str) -> tuple[int, float | None]:
        row = base.execute(
            "SELECT trial.id, shown FROM trial JOIN rater ON rater.id = rater"
            " WHERE secret = ? AND key = ?",
            (secret, key),
        ).fetchone()
        if row is None:
            raise UnknownTrialError
        return row

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # One a call: a connection belongs to its thread, and opening takes a fraction of a
        # millisecond.
        with closing(sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)) as base:
            base.execute("PRAGMA synchronous = FULL")  # some builds of SQLite do less by default
            yield base

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._open() as base:
            base.execute("BEGIN IMMEDIATE")  # not a reader that would turn writer and collide
            yield base
            base.execute("COMMIT")  # not reached after an error: closing takes all back
