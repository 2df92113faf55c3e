"""Who may reach the server, and what it tells; without a browser and without a socket."""

import json
import re
import time

import pytest
from small_study import FPS, FRAMES, SIZE, make_study

from vgan_fast.study.server import Access, create_app
from vgan_fast.study.store import Study

LOCAL = Access.through("127.0.0.1")
OPENED = Access.through("0.0.0.0")
OURS = {"Origin": "http://localhost"}
SECRETS = ("ours", "theirs", "real", "static", "scramble", "source", "catch")


@pytest.fixture
def study(tmp_path):
    return Study(make_study(tmp_path / "study.db"))


@pytest.fixture
def client(study):
    return create_app(study, LOCAL).test_client()


def begin(client):
    return client.post("/begin", headers=OURS, json={}).json


def vote(client, state, side="left", headers=OURS):
    return client.post("/vote", headers=headers, json={"key": state["key"], "side": side})


def watch(client, state):
    sheet = client.get(f"/sheet/{state['key']}")
    time.sleep(FRAMES / FPS + 0.005)
    return sheet


def test_a_session_from_the_first_page_to_the_last(client, study):
    clip = {"frames": FRAMES, "size": SIZE, "fps": FPS, "columns": 2}
    assert "Which video is more realistic?" in client.get("/").text
    for file in ("page.js", "page.css"):
        assert f'"page/{file}"' in client.get("/").text
        assert client.get(f"/page/{file}").status_code == 200
    assert client.get("/trial").json == {"state": "new", "of": 8, "clip": clip}
    state = begin(client)
    for number in range(1, 9):
        assert state == {
            "state": "trial",
            "key": state["key"],
            "number": number,
            "of": 8,
            "clip": clip,
        }
        assert client.get("/trial").json == state  # a reload
        assert begin(client) == state
        watch(client, state)
        state = vote(client, state).json
    assert state == {"state": "done", "of": 8, "clip": clip}
    assert begin(client) == state
    assert len(study.answers()) == 8


def test_nothing_that_is_sent_names_or_orders_the_conditions(client):
    """All states, headers and sheets of a session; sheets of one shape, keys without pattern."""
    begun = client.post("/begin", headers=OURS, json={})
    state, seen, keys = begun.json, [begun], []
    while state["state"] == "trial":
        keys.append(state["key"])
        sheet = watch(client, state)
        assert sheet.mimetype == "image/png"
        assert b"tEXt" not in sheet.data
        answer = vote(client, state)
        seen += [sheet, answer]
        state = answer.json
    told = " ".join(f"{r.headers} {r.data if r.is_json else ''}" for r in seen).lower()
    assert not [word for word in SECRETS if word in told]
    assert not re.search(r"etag|last-modified|\bleft\b|\bright\b", told)
    assert len(set(keys)) == 8
    assert all(re.fullmatch(r"[\w-]{22}", key) for key in keys)


def test_pages_hold_nothing_of_the_study(client):
    for path in ("/", "/page/page.js", "/page/page.css"):
        assert not [
            word for word in ("ours", "theirs", "scramble") if word in client.get(path).text
        ]


def test_a_double_click_counts_once(client, study):
    state = begin(client)
    watch(client, state)
    first, second = vote(client, state, "left"), vote(client, state, "right")
    assert first.json == second.json
    assert first.json["number"] == 2
    (answer,) = study.answers()
    with study._open() as base:
        assert base.execute("SELECT side FROM vote").fetchall() == [("left",)]
    assert answer.rater == 1


def test_an_answer_before_the_clips_were_shown_is_refused(client, study):
    state = begin(client)
    answer = vote(client, state)
    assert (answer.status_code, answer.json) == (
        409,
        {"error": "the clips have not been shown once yet"},
    )
    assert not study.answers()
    assert client.get("/trial").json == state


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "1", "{}", '{"key": "x"}', '{"key": "x", "side": "both"}', '{"key": 1}'],
)
def test_what_is_no_vote_is_refused(client, body):
    begin(client)
    headers = {**OURS, "Content-Type": "application/json"}
    answer = client.post("/vote", headers=headers, data=body)
    assert answer.status_code == 400
    assert answer.json["error"]


def test_others_trials_and_unknown_raters_are_refused(study):
    app = create_app(study, LOCAL)
    mine, other, stranger = app.test_client(), app.test_client(), app.test_client()
    state = begin(mine)
    begin(other)
    watch(mine, state)
    for client in (other, stranger):
        assert vote(client, state).status_code == 404
        assert client.get(f"/sheet/{state['key']}").status_code == 404
    stranger.set_cookie(f"rater-{study.id}", "made-up")
    assert stranger.get("/trial").json["state"] == "new"
    assert begin(stranger)["state"] == "trial"
    assert not study.answers()


@pytest.mark.parametrize(
    "origin",
    [None, "null", "http://evil.example", "http://localhost:81", "http://localhost.evil.example"],
)
def test_a_foreign_page_can_neither_begin_nor_vote(client, study, origin):
    state = begin(client)
    watch(client, state)
    headers = {"Origin": origin} if origin else {}
    assert vote(client, state, headers=headers).status_code == 403
    assert client.post("/begin", headers=headers, json={}).status_code == 403
    assert not study.answers()
    assert vote(client, state, headers={"Origin": "https://localhost"}).status_code == 200


def test_a_form_of_a_foreign_page_is_no_vote(client):
    """A browser sends forms of text across sites without asking."""
    state = begin(client)
    watch(client, state)
    body = json.dumps({"key": state["key"], "side": "left"})
    answer = client.post("/vote", headers=OURS, data=body, content_type="text/plain")
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("access", "host", "status"),
    [
        (LOCAL, "localhost", 200),
        (LOCAL, "localhost:8000", 200),
        (LOCAL, "127.0.0.1:8000", 200),
        (LOCAL, "[::1]:8000", 200),
        (LOCAL, "evil.example", 403),
        (LOCAL, "evil.example:8000", 403),
        (LOCAL, "localhost.evil.example", 403),
        (LOCAL, "127.0.0.1.evil.example", 403),
        (LOCAL, "192.168.1.7:8000", 403),
        (OPENED, "192.168.1.7:8000", 200),
        (OPENED, "localhost", 200),
        (OPENED, "evil.example", 403),
        (Access.through("Lab.example"), "lab.example:8000", 200),
        (Access.through("lab.example"), "evil.example", 403),
    ],
)
def test_a_name_that_was_bent_to_this_machine_is_refused(study, access, host, status):
    client = create_app(study, access).test_client()
    if access.opened:
        client.set_cookie(f"token-{study.id}", study.token, domain=host.rsplit(":", 1)[0])
    answer = client.get("/trial", headers={"Host": host})
    assert answer.status_code == status


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_no_token_is_asked_for_on_this_machine_alone(host):
    assert not Access.through(host).opened


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "lab.example"])
def test_a_token_is_asked_for_when_others_can_come(study, host):
    assert Access.through(host).opened
    client = create_app(study, Access.through(host)).test_client()
    paths = ("/", "/trial", "/page/page.js", "/sheet/x", "/?token=", "/?token=wrong", "/?token=é")
    for path in (*paths, f"/?token={study.token[:-1]}", f"/trial?token={study.token}"):
        assert client.get(path).status_code == 403
    assert client.post("/begin", headers=OURS, json={}).status_code == 403
    told = client.get("/")
    assert told.mimetype == "text/plain"
    assert told.text == "Sorry: open the whole link that you were given, with its token."
    answer = client.get(f"/?token={study.token}")
    assert (answer.status_code, answer.location) == (302, "/")  # out of the address
    assert "HttpOnly; Path=/; SameSite=Lax" in answer.headers["Set-Cookie"]
    assert client.get("/").status_code == 200
    assert begin(client)["state"] == "trial"


def test_tokens_are_compared_in_constant_time(study, monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((a, b)) or False)
    create_app(study, OPENED).test_client().get("/?token=guess")
    assert compared == [(b"guess", study.token.encode())]


def test_cookies_are_out_of_reach_of_scripts_and_of_other_studies(client, study):
    cookie = client.post("/begin", headers=OURS, json={}).headers["Set-Cookie"]
    assert cookie.startswith(f"rater-{study.id}=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Max-Age=31536000" in cookie


def test_no_site_can_frame_the_page_or_add_to_it(client):
    headers = client.get("/").headers
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_vote_that_cannot_be_saved_is_not_acknowledged(client, study, monkeypatch):
    monkeypatch.setattr("vgan_fast.study.store._PATIENCE", 0.1)
    state = begin(client)
    watch(client, state)
    with study._write():  # somebody else holds the file
        answer = vote(client, state)
        assert (answer.status_code, answer.json) == (
            503,
            {"error": "the study cannot be written to now"},
        )
    assert not study.answers()
    assert vote(client, state).status_code == 200
    assert len(study.answers()) == 1
