import sqlite3
import time
from collections import Counter

import imageio.v3 as iio
import pytest
from small_study import FPS, FRAMES, conditions, make_study

from vgan_fast.errors import UserError
from vgan_fast.study.store import Options, Study, TooEarlyError, UnknownTrialError, create

ONCE = FRAMES / FPS + 0.005  # seconds


@pytest.fixture
def study(tmp_path):
    return Study(make_study(tmp_path / "study.db"))


def watch(study, rater):
    trial = study.current(rater)
    sheet = study.show(rater, trial.key)
    time.sleep(ONCE)
    return trial, iio.imread(sheet)


def finish(study, rater, choose):
    """Vote on all trials; `choose` takes the grey levels on the left and on the right."""
    while study.current(rater):
        trial, sheet = watch(study, rater)
        study.vote(rater, trial.key, choose(int(sheet[0, 0, 0]), int(sheet[0, -1, 0])))


def brighter(left, right):
    return "left" if left > right else "right"


def test_votes_come_back_with_the_conditions_that_were_seen(study):
    """Clips of later conditions are brighter; the scramble is the brightest."""
    finish(study, study.begin(), brighter)
    answers = study.answers()
    assert len(answers) == 8
    order = [*study.conditions, "scramble"]
    assert study.conditions == ["ours", "theirs", "real", "static real"]
    for answer in answers:
        assert order.index(answer.chosen) > order.index(answer.other)
        assert answer.missed == (True if answer.chosen == "scramble" else None)
        assert ONCE <= answer.seconds < 5
    assert Counter(answer.missed for answer in answers) == {True: 2, None: 6}
    pairs = {frozenset((a.chosen, a.other)) for a in answers if a.missed is None}
    assert len(pairs) == 6


def test_who_takes_the_real_clip_of_catch_trials_misses_none(study):
    finish(study, study.begin(), lambda left, right: "right" if left > right else "left")
    assert Counter(answer.missed for answer in study.answers()) == {False: 2, None: 6}


def test_only_the_first_vote_on_a_trial_counts(study):
    rater = study.begin()
    trial, _ = watch(study, rater)
    study.vote(rater, trial.key, "left")
    (before,) = study.answers()
    study.vote(rater, trial.key, "right")
    study.vote(rater, trial.key, "left")
    assert study.answers() == [before]
    assert study.current(rater).number == 2


def test_a_trial_stays_as_it_is_until_it_is_answered(study):
    rater = study.begin()
    trial, sheet = watch(study, rater)
    again, same = watch(Study(study._path), rater)  # as after a restart
    assert again == trial
    assert (same == sheet).all()


def test_a_vote_before_the_clips_were_shown_once_is_refused(tmp_path):
    study = Study(make_study(tmp_path / "slow.db", fps=8))  # half a second
    rater = study.begin()
    trial = study.current(rater)
    with pytest.raises(TooEarlyError):
        study.vote(rater, trial.key, "left")
    study.show(rater, trial.key)
    with pytest.raises(TooEarlyError):
        study.vote(rater, trial.key, "left")
    assert not study.answers()
    time.sleep(0.3)
    study.show(rater, trial.key)  # a reload does not start the time anew
    time.sleep(0.21)
    study.vote(rater, trial.key, "left")
    assert len(study.answers()) == 1


def test_nobody_sees_or_answers_another_s_trials(study):
    mine, other = study.begin(), study.begin()
    trial, _ = watch(study, mine)
    for act in (study.show, lambda *who: study.vote(*who, "left")):
        for secret, key in ((other, trial.key), ("nobody", trial.key), (mine, "no-such-key")):
            with pytest.raises(UnknownTrialError):
                act(secret, key)
    assert not study.answers()
    assert study.current("nobody") is None
    assert not study.knows("nobody")
    assert study.knows(mine)


def test_pairs_are_even_over_raters(tmp_path):
    study = Study(make_study(tmp_path / "study.db", trials=4, catch=1))
    for _ in range(10):
        study.begin()
    with study._open() as base:
        counts = base.execute(
            "SELECT count(*) FROM trial JOIN clip l ON l.id = left_clip"
            " JOIN clip r ON r.id = right_clip"
            " GROUP BY min(l.condition, r.condition), max(l.condition, r.condition)"
        ).fetchall()
    assert sorted(counts) == [(6,)] * 2 + [(7,)] * 4 + [(10,)]


def test_every_commit_reaches_the_disk(study):
    with study._open() as base:
        assert base.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert base.execute("PRAGMA synchronous").fetchone() == (2,)


def test_a_study_appears_whole_or_not_at_all(tmp_path):
    def broken():
        yield next(conditions())
        raise UserError("the second source is broken")

    options = Study(make_study(tmp_path / "study.db")).options
    with pytest.raises(UserError, match="second source"):
        create(tmp_path / "half.db", options, broken())
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


def test_the_log_of_another_study_is_not_taken_for_its_own(tmp_path):
    path = tmp_path / "study.db"
    study = Study(make_study(path))
    with study._open() as base:
        base.execute("UPDATE study SET token = 'old'")
        log = (tmp_path / "study.db-wal").read_bytes()
    path.unlink()
    (tmp_path / "study.db-wal").write_bytes(log)  # as a killed server leaves it
    with pytest.raises(UserError, match=r"study\.db-wal: is left of another study; remove it"):
        make_study(path)
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [None, b"", b"no database" * 1000, "sqlite", "application_id", "user_version"]
)
def test_what_is_no_study_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "study.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "sqlite":
        base = sqlite3.connect(path)
        base.execute("CREATE TABLE vote (trial)")
        base.close()
    elif content:
        base = sqlite3.connect(make_study(path))
        base.execute(f"PRAGMA {content} = 99")
        base.close()
    with pytest.raises(UserError, match=r"study\.db: ") as error:
        Study(path)
    assert "\n" not in str(error.value)


def test_options_come_back_as_they_were(study):
    assert study.options == Options(
        ("ours=a", "theirs=b", "real=c"), ("real",), 3, 6, 2, FRAMES, 8, FPS, 0
    )
    assert study.options.length == 8
