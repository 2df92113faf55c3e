import dataclasses

import pytest

from vgan_fast.errors import UserError
from vgan_fast.evaluation.report import as_tables
from vgan_fast.evaluation.result import (
    Number,
    Preference,
    Protocol,
    Result,
    Row,
    joined,
    refuse_mixed,
)

PROTOCOL = Protocol(
    data="clips",
    fingerprint="f" * 64,
    split="test",
    held_out=True,
    frames=32,
    size=64,
    stride=1,
    fps=None,
    min_frames=1,
    count=100,
    training_count=200,
    seed=0,
    detector="random:01234567",
    detector_sha256="01234567" * 8,
    dimensions=512,
    resize=None,
    resamples=50,
)
OTHER = dict(
    fingerprint="e" * 64,
    split="validation",
    held_out=False,
    frames=16,
    size=32,
    stride=3,
    fps=10.0,
    min_frames=2,
    count=99,
    training_count=201,
    seed=1,
    detector="random:11234567",
    detector_sha256="1" * 64,
    dimensions=128,
    resize=112,
    resamples=51,
)


def row(name, value, **more):
    return Row(
        name=name,
        checkpoint=None if name == "real" else f"runs/{name}",
        step=None if name == "real" else 7,
        frechet=Number(value, value - 1, value + 1, 0.1),
        inception=None,
        statistics={"motion": 0.5},
        nearest={} if name == "real" else {"pixels": {"median ratio": 1.5, "closer": 0.25}},
        **more,
    )


def result(name="model", protocol=PROTOCOL):
    share = Number(0.25, 0.2, 0.3, 0.0)
    rows = [row(name, 3.0), row("real", 1.0)]
    return Result(protocol, rows, [Preference(name, "real", share)], {"command": "python"})


def test_a_result_comes_back_as_it_was_stored(tmp_path):
    of = result()
    of.rows[0] = dataclasses.replace(of.rows[0], inception=Number(2.0, 1.5, 2.5, 0.0))
    of.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == of


def test_what_is_no_result_gets_one_line(tmp_path):
    file = tmp_path / "r.json"
    for text in ("", "[]", "{}", '{"protocol": {"data": "x"}}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"r\.json: is no result"):
            Result.load(file)
    file.write_bytes(bytes(range(256)) * 1000)
    with pytest.raises(UserError, match=r"r\.json: is no result.*no text") as refused:
        Result.load(file)
    assert len(str(refused.value)) < 300


def test_every_field_of_the_protocol_but_the_path_keeps_numbers_apart():
    assert set(OTHER) | {"data"} == {f.name for f in dataclasses.fields(Protocol)}
    refuse_mixed({"a": PROTOCOL, "b": dataclasses.replace(PROTOCOL, data="elsewhere")})
    for name, value in OTHER.items():
        other = dataclasses.replace(PROTOCOL, **{name: value})
        with pytest.raises(UserError, match=f"third: its {name.replace('_', ' ')} is"):
            refuse_mixed({"first": PROTOCOL, "second": PROTOCOL, "third": other})


def test_results_of_one_protocol_make_one_table_and_others_none():
    both = joined({"a.json": result("one"), "b.json": result("two")})
    assert [r.name for r in both.rows] == ["one", "two", "real"]
    with pytest.raises(UserError, match=r"b\.json: its count is 99, that of a\.json is 100"):
        joined(
            {"a.json": result(), "b.json": result(protocol=dataclasses.replace(PROTOCOL, count=99))}
        )


def test_tables_label_numbers_and_keep_people_s_apart():
    text = as_tables(result("two-stream"))
    assert "Fréchet[random:01234567]" in text
    assert PROTOCOL.detector_sha256 in text
    assert "| two-stream | 7 | 3 [2, 4] | 0.5 | 1.50 | 25% |" in text
    assert "to people, %, of other data (paper, Table 1)" in text
    assert "| two-stream over real | 25.0 [20.0, 30.0] | 18 |" in text
    held = dataclasses.replace(PROTOCOL, held_out=False, split="train")
    assert "none held out from training" in as_tables(result(protocol=held))
