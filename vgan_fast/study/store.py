"""A study in one SQLite file: its clips, its raters, their trials and votes.

A vote is on the disk before it is acknowledged (write-ahead log, synchronous), and nothing is ever
taken back: a second vote on a trial changes nothing.
"""

import functools
import json
import math
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from random import SystemRandom
from secrets import token_hex, token_urlsafe
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from msgspec import Meta

from vgan_fast.errors import UserError
from vgan_fast.files import remove_unfinished, written_whole
from vgan_fast.foreign import MalformedError, parse_json

from .sheets import decode_strip, encode_sheet, encode_strip
from .trials import Pair, plan_trials

if TYPE_CHECKING:
    from .clips import Condition

_APPLICATION = 0x5647414E  # "VGAN", in the file's header
_VERSION = 1
_PATIENCE = 30  # seconds to wait while others write
MOST_CONDITIONS = 100  # each is compared with each
MOST_RATERS = 10_000  # whoever is let in can begin again and again
LONGEST_NAME = 40
# Names of cookies and links are made of them.
_ID, _TOKEN = re.compile("[0-9a-f]{8}"), re.compile("[A-Za-z0-9_-]{22}")

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


_STRUCTURE = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"


@functools.cache
def _structure() -> list[tuple]:
    """What a study's file tells of its tables."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as base:
        base.executescript(_SCHEMA)
        return base.execute(_STRUCTURE).fetchall()


def is_name(name: str) -> bool:
    """Whether a condition may be called that: it stands in tables and on terminals."""
    return 0 < len(name) <= LONGEST_NAME and name.isprintable() and "|" not in name


@dataclass(frozen=True)
class Options:
    """How a study was made; nothing of it changes later."""

    clips: tuple[str, ...]  # NAME=SOURCE
    static: tuple[str, ...]
    count: Annotated[int, Meta(ge=1, le=1000)]  # clips of each condition
    trials: Annotated[int, Meta(ge=1, le=10_000)]  # of a rater, without catch trials
    catch: Annotated[int, Meta(ge=0, le=1000)]  # catch trials of a rater
    frames: Annotated[int, Meta(ge=1, le=1024)]  # of a clip
    size: Annotated[int, Meta(ge=1, le=4096)]  # pixels a side
    fps: Annotated[int, Meta(ge=1, le=60)]  # at which clips are shown
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


class FullError(Exception):
    """The study has as many raters as it takes."""


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


def _checked_study(rows: list[tuple]) -> tuple[str, str, str]:
    """The one row of a study.

    Raises:
        MalformedError: it is none that `create` wrote.
    """
    if len(rows) != 1 or not all(isinstance(value, str) for value in rows[0]):
        raise MalformedError("its description is damaged")
    if not _ID.fullmatch(rows[0][0]) or not _TOKEN.fullmatch(rows[0][1]):
        raise MalformedError("its id or its token is damaged")
    return rows[0]


def _check_conditions(rows: list[tuple], options: Options) -> None:
    """See that the conditions can be compared.

    Raises:
        MalformedError: they cannot.
    """
    kinds = [kind for _, _, kind in rows]
    for number, name, kind in rows:
        if not isinstance(name, str) or not is_name(name.removeprefix("static ")):
            raise MalformedError(f"the name of condition {number} is damaged")
        if kind not in ("model", "real", "static", "foil"):
            raise MalformedError(f"the kind of condition {number} is damaged")
    if len(rows) > MOST_CONDITIONS:
        raise MalformedError(f"over {MOST_CONDITIONS} conditions")
    if len(kinds) - kinds.count("foil") < 2:
        raise MalformedError("under two conditions")
    if options.catch and not ("real" in kinds and "foil" in kinds):
        raise MalformedError("catch trials, but no clips for them")


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
                # Triggers and views of somebody else's would run with every vote.
                if base.execute(_STRUCTURE).fetchall() != _structure():
                    raise MalformedError("its tables are not a study's")
                self.id, self.token, options = _checked_study(
                    base.execute("SELECT * FROM study LIMIT 2").fetchall()
                )
                rows = base.execute(
                    "SELECT id, name, kind FROM condition ORDER BY id LIMIT ?",
                    (MOST_CONDITIONS + 1,),
                ).fetchall()
            self.options = parse_json(options.encode(), Options)
            _check_conditions(rows, self.options)
        except (sqlite3.Error, MalformedError) as error:
            raise UserError(f"{path}: cannot be read as a study ({error})") from error
        self.conditions = [name for _, name, kind in rows if kind != "foil"]
        compared = [condition for condition, _, kind in rows if kind != "foil"]
        self._pairs = list(combinations(compared, 2))
        self._catch: list[Pair] = []
        if self.options.catch:
            real = next(condition for condition, _, kind in rows if kind == "real")
            foil = next(condition for condition, _, kind in rows if kind == "foil")
            self._catch = [(real, foil)] * self.options.catch

    def begin(self) -> str:
        """A new rater's secret, with trials drawn for them.

        Raises:
            FullError: there are as many raters as there may be.
            MalformedError, sqlite3.Error: the file is damaged or cannot be written to.
        """
        secret = token_urlsafe(16)
        with self._write() as base:
            clips: dict[int, list[int]] = {}
            for clip, condition in base.execute("SELECT id, condition FROM clip ORDER BY id"):
                clips.setdefault(condition, []).append(clip)
            if not {one for pair in (*self._pairs, *self._catch) for one in pair} <= clips.keys():
                raise MalformedError("a condition has no clips")
            (raters,) = base.execute("SELECT count(*) FROM rater").fetchone()
            if raters >= MOST_RATERS:
                raise FullError
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
        if row is None:
            return None
        if not isinstance(row[0], str) or not isinstance(row[1], int):
            raise MalformedError("a trial is damaged")
        return Trial(*row)

    def show(self, secret: str, key: str) -> bytes:
        """The sheet (`sheets.encode_sheet`) of a trial; the time of the first call is kept.

        Raises:
            UnknownTrialError: it is not one of this rater's.
            MalformedError, sqlite3.Error: the file is damaged or cannot be written to.
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
        if strips is None:
            raise MalformedError("a trial has no clips")
        shape = self.options.frames, self.options.size
        return encode_sheet(*(decode_strip(strip, *shape) for strip in strips))

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
        """Every vote so far, in the order of their coming.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with self._open() as base:
                return self._answers(base)
        except (sqlite3.Error, MalformedError) as error:
            raise UserError(f"{self._path}: cannot be read as a study ({error})") from error

    @staticmethod
    def _answers(base: sqlite3.Connection) -> list[Answer]:
        rows = base.execute(
            "SELECT rater, side, at - shown, l.name, l.kind, r.name, r.kind FROM vote"
            " JOIN trial ON trial.id = trial"
            " JOIN clip lc ON lc.id = left_clip JOIN condition l ON l.id = lc.condition"
            " JOIN clip rc ON rc.id = right_clip JOIN condition r ON r.id = rc.condition"
            " ORDER BY at"
        ).fetchall()
        answers = []
        for rater, side, seconds, *named in rows:
            # Columns of SQLite hold what is put into them, whatever their type.
            if side not in ("left", "right") or not isinstance(seconds, float):
                raise MalformedError("a vote is damaged")
            if not isinstance(rater, int) or not 0 <= seconds < math.inf:
                raise MalformedError("a vote is damaged")
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
        if not (row[1] is None or isinstance(row[1], float)):
            raise MalformedError("a trial is damaged")
        return row

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # One a call: a connection belongs to its thread, and opening takes a fraction of a
        # millisecond.
        with closing(sqlite3.connect(self._path, timeout=_PATIENCE, isolation_level=None)) as base:
            base.execute("PRAGMA synchronous = FULL")  # some builds of SQLite do less by default
            base.execute("PRAGMA trusted_schema = OFF")  # the file may be somebody else's
            base.execute("PRAGMA cell_size_check = ON")
            yield base

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._open() as base:
            base.execute("BEGIN IMMEDIATE")  # not a reader that would turn writer and collide
            yield base
            base.execute("COMMIT")  # not reached after an error: closing takes all back
