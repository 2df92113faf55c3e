"""A whole study clicked through in headless Chromium: `pytest -m slow tests/vgan_fast/study`.

Playwright comes with the test extra; its own browsers are not needed. Chromium comes with the
system (Debian: `apt install chromium`); `VGAN_FAST_TEST_CHROMIUM` names one elsewhere.
"""

import contextlib
import io
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import imageio.v3 as iio
import numpy as np
import pytest
from small_study import free_port, served

CHROMIUM = os.environ.get("VGAN_FAST_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no Chromium found: apt install chromium, or name one in VGAN_FAST_TEST_CHROMIUM",
    ),
]

FRAMES, SIZE, FPS, TRIALS, CATCH = 12, 32, 20, 5, 1  # a clip lasts 0.6 s
STUDY = ["--clips", "secretours=synthetic", "--clips", "secrettheirs=synthetic"]
STUDY += ["--static", "secretours", "--frames", FRAMES, "--size", SIZE, "--fps", FPS]
STUDY += ["--count", 6, "--trials", TRIALS, "--catch", CATCH]
DESK = {"viewport": {"width": 1200, "height": 760}}
PHONE = {
    "viewport": {"width": 360, "height": 640},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
SIDES = {"left": "The left video is more realistic", "right": "The right video is more realistic"}


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without its sandbox it starts as root too, as in most containers.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Path of a study of synthetic clips that nobody has seen."""
    db = tmp_path_factory.mktemp("study") / "study.db"
    with served(db, free_port(), *map(str, STUDY)) as server:
        server.terminate()
        server.wait(20)
    return db


@pytest.fixture
def study(fresh, tmp_path):
    """Path of a copy of it, and the port to serve it at."""
    return shutil.copy(fresh, tmp_path / "study.db"), free_port()


class Person:
    """Somebody at a browser of their own."""

    def __init__(self, chromium, port, device):
        self.context = chromium.new_context(**device)
        self.page = self.context.new_page()
        self.errors, self.received, self.keys = [], [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", self._receive)
        self.expected = {}
        self.page.goto(f"http://127.0.0.1:{port}/")

    def _receive(self, response):
        self.received.append(f"{response.url} {response.all_headers()}")
        if "/sheet/" in response.url:
            self.keys.append(response.url.rsplit("/", 1)[1])
        elif not response.url.endswith((".js", ".css")):
            self.received.append(response.text())

    def button(self, side):
        return self.page.get_by_role("button", name=SIDES[side])

    def wait_until(self, enabled):
        self.page.wait_for_selector(f'#left[aria-disabled="{str(not enabled).lower()}"]')

    def wait_for_trial(self, number):
        self.page.get_by_text(f"{number} of {TRIALS + CATCH}", exact=True).wait_for()
        self.wait_until(enabled=True)

    def choose(self, number, side, act):
        self.wait_for_trial(number)
        self.expected[self.keys[-1]] = side
        act()

    def screens(self):
        """What both canvases show at one moment, uint8 (2, H, W, 3)."""
        urls = self.page.evaluate(
            "['left', 'right'].map(id => document.querySelector(`#${id} canvas`).toDataURL())"
        )
        return np.stack([_image(self.page, url) for url in urls])

    def sheet(self):
        """The clips of the trial, uint8 (T, 2, H, W, 3)."""
        image = _image(self.page, f"sheet/{self.keys[-1]}")
        tiles = image.reshape(-1, SIZE, image.shape[1] // (2 * SIZE), 2, SIZE, 3)
        return tiles.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 2, SIZE, SIZE, 3)[:FRAMES]


def _image(page, url):
    script = "async url => [...new Uint8Array(await (await fetch(url)).arrayBuffer())]"
    if url.startswith("data:"):  # the page's policy lets it fetch none of these
        import base64

        return iio.imread(io.BytesIO(base64.b64decode(url.partition(",")[2])))[..., :3]
    return iio.imread(bytes(page.evaluate(script, url)))


def votes(db):
    with contextlib.closing(sqlite3.connect(db)) as base:
        return dict(base.execute("SELECT key, side FROM vote JOIN trial ON trial.id = trial"))


def test_two_people_at_once_from_the_first_page_to_the_last(chromium, study, tmp_path):
    """One by keyboard, one by touch on a phone, taking turns within the same trials."""
    db, port = study
    with served(db, port):
        desk, phone = Person(chromium, port, DESK), Person(chromium, port, PHONE)
        desk.page.get_by_role("button", name="Begin").click()
        phone.page.get_by_role("button", name="Begin").tap()
        pressed = ["ArrowLeft", "ArrowRight", "1", "2", "ArrowRight", "ArrowLeft"]
        for number, key in enumerate(pressed, start=1):
            side = "left" if key in ("ArrowLeft", "1") else "right"
            desk.choose(number, side, lambda key=key: desk.page.keyboard.press(key))
            tapped = "right" if number % 3 else "left"
            phone.choose(number, tapped, phone.button(tapped).tap)
            if number == 3:
                desk.page.screenshot(path=tmp_path / "desk.png")
        for person in (desk, phone):
            person.page.get_by_text("Thank you!").wait_for()
            person.page.reload()
            person.page.get_by_text("Thank you!").wait_for()
            assert not person.errors
            assert not [told for told in person.received if "secret" in told]
            assert not person.page.evaluate("document.body.innerHTML.includes('secret')")
    assert len(desk.expected) == len(phone.expected) == TRIALS + CATCH
    assert votes(db) == desk.expected | phone.expected
    result = subprocess.run(
        [sys.executable, "-m", "vgan_fast.study", "results", db], capture_output=True, text=True
    )
    assert f"2 raters, {2 * TRIALS} votes" in result.stdout
    assert "secretours over secrettheirs" in result.stdout


def test_both_clips_play_in_step_and_over_and_over(chromium, study):
    db, port = study
    with served(db, port):
        person = Person(chromium, port, DESK)
        person.page.get_by_role("button", name="Begin").click()
        person.page.wait_for_selector("#trial")
        assert person.button("left").get_attribute("aria-disabled") == "true"
        person.wait_for_trial(1)
        clips, seen = person.sheet(), []
        assert len({clip.tobytes() for clip in clips}) == FRAMES  # one of them moves
        deadline = time.monotonic() + 20
        while len(set(seen)) < FRAMES:
            assert time.monotonic() < deadline
            shown = person.screens()
            (moments,) = np.nonzero((clips == shown).all(axis=(1, 2, 3, 4)))
            assert len(moments) == 1, "no moment of both clips"
            seen.append(int(moments[0]))
        boxes = [person.button(side).bounding_box() for side in SIDES]
        assert boxes[0]["width"] == boxes[1]["width"]
        assert boxes[0]["height"] == boxes[1]["height"]
        assert boxes[0]["x"] + boxes[0]["width"] < boxes[1]["x"]


def test_a_reload_in_the_middle_shows_the_same_trial_with_the_same_sides(chromium, study):
    db, port = study
    with served(db, port):
        person = Person(chromium, port, DESK)
        person.page.get_by_role("button", name="Begin").click()
        person.choose(1, "right", person.button("right").click)
        person.wait_for_trial(2)
        key, clips = person.keys[-1], person.sheet()
        person.page.reload()
        person.wait_for_trial(2)
        assert person.keys[-1] == key
        assert np.array_equal(person.sheet(), clips)
        assert len(votes(db)) == 1
        person.choose(2, "left", person.button("left").click)
        person.wait_for_trial(3)
    assert votes(db) == person.expected


def test_an_answer_is_taken_once_and_not_before_both_were_shown(chromium, study):
    db, port = study
    with served(db, port):
        person = Person(chromium, port, DESK)
        person.page.get_by_role("button", name="Begin").click()
        person.page.get_by_text("Watch both videos once.").wait_for()
        early = person.page.evaluate(
            """() => {
                document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
                const left = document.getElementById("left");
                left.click();
                return left.getAttribute("aria-disabled");
            }"""
        )
        assert early == "true"
        person.wait_for_trial(1)
        person.page.wait_for_timeout(300)
        assert not votes(db)
        twice = "document.getElementById('right').click(); document.getElementById('left').click()"
        person.choose(1, "right", lambda: person.page.evaluate(twice))
        person.page.keyboard.press("ArrowLeft")
        person.wait_for_trial(2)
        person.page.keyboard.press("Control+ArrowLeft")
        person.page.keyboard.press("x")
        person.page.wait_for_timeout(300)
    assert votes(db) == person.expected
    assert not person.errors


def test_a_server_that_dies_costs_the_person_nothing(chromium, study):
    db, port = study
    with served(db, port):
        person = Person(chromium, port, DESK)
        person.page.get_by_role("button", name="Begin").click()
        person.choose(1, "left", person.button("left").click)
        person.wait_for_trial(2)
    person.choose(2, "right", person.button("right").click)  # it is dead now
    person.page.get_by_text("The study cannot be reached. Trying again…").wait_for()
    with served(db, port):
        person.wait_for_trial(3)
        assert person.page.get_by_role("alert").inner_text() == ""
    assert votes(db) == person.expected


@pytest.mark.parametrize("turned", [False, True], ids=["upright", "sideways"])
def test_on_a_phone_everything_fits_and_is_large_enough_to_tap(chromium, study, turned):
    db, port = study
    viewport = PHONE["viewport"]
    if turned:
        viewport = {"width": viewport["height"], "height": viewport["width"]}
    with served(db, port):
        person = Person(chromium, port, {**PHONE, "viewport": viewport})
        begin = person.page.get_by_role("button", name="Begin")
        assert begin.bounding_box()["height"] >= 44
        assert person.page.locator("kbd:visible").count() == 0
        begin.tap()
        person.wait_for_trial(1)
        size = person.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        )
        assert size == [viewport["width"], viewport["height"]]  # nothing to scroll
        for side in SIDES:
            box = person.button(side).bounding_box()
            assert min(box["width"], box["height"]) >= 0.4 * min(viewport.values())
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= viewport["width"]
        assert person.page.get_by_role("progressbar").is_visible()
