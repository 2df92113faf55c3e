"""Reports of small sets: pictures of the right frames, figures of the manifest, names as text."""

import dataclasses
import functools
import io
import itertools
import json
import os
import resource
import shutil
import signal
import tarfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
import pytest
from camera_media import HEIGHT, WIDTH, Take, take, write_take
from loader_media import numbers, write_video

from vgan_fast.errors import UserError
from vgan_fast.loaders.cache import MEMORY
from vgan_fast.loaders.decoders import UndecodableError
from vgan_fast.loaders.preparation import report
from vgan_fast.loaders.preparation.assembly import Packing
from vgan_fast.loaders.preparation.outcome import read_manifest, read_rejected
from vgan_fast.loaders.preparation.report import write_report
from vgan_fast.loaders.preparation.run import Plan, plan, run
from vgan_fast.loaders.preparation.stabilise import Cutting
from vgan_fast.loaders.preparation.video import Recipe

SIDE = 64
RECIPE = Recipe(Cutting(frames=16, min_frames=8, size=SIDE))
PACKING = Packing("tar", 100, validation=0.0, test=0.0, seed=0, clip_shape=(16, SIDE, SIDE, 3))
SHAKY, STILL, SHORT = 'walk/<b>&"shaky.avi', "run & <i>/still", "walk/short.avi"
TWINS = ("walk/twin.mp4", "run & <i>/twin.mp4")  # the first is of the same bytes, and comes first


@functools.cache
def taken(name: str) -> Take:
    """What a source holds."""
    if name == STILL:
        return take(1, 14, shift=0, turn=0, zoom=0, noise=0, covered=0.2)
    return take(0, 26, shift=4, turn=1) if name == SHAKY else take(2, 7)


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.text, self.tags = "", Counter()
        self.figures, self.rows = [], []
        self._open = []
        self.folder, self.html = path.parent, path.read_text("utf-8")
        self.feed(self.html[self.html.index("<body>") : self.html.index("</html>")])
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        attributes = dict(attributes)
        if tag == "img":
            if "figure" in self._open:
                self.figures[-1] |= {name: attributes[name] for name in ("src", "alt")}
            return
        self._open.append(tag)
        if tag == "figure":
            self.figures.append({"text": ""})
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self.text += " "

    def handle_data(self, data):
        self.text += data
        if "figure" in self._open:
            self.figures[-1]["text"] += data
        elif self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def figure(self, name: str, start: int) -> dict:
        """The one of those frames of a source."""
        (found,) = (
            figure
            for figure in self.figures
            if name in figure["text"] and f" frames from {start} on" in figure["text"]
        )
        return found

    def tiles(self, figure: dict) -> np.ndarray:
        """Frames of a film strip, which are enlarged to 128 pixels: (rows, N, SIDE, SIDE, 3)."""
        strip = iio.imread(self.folder / figure["src"])[2:, 2:]
        rows, columns = np.array(strip.shape[:2]) // 130
        strip = strip.reshape(rows, 130, columns, 130, 3)[:, :128, :, :128]
        return strip[:, ::2, :, ::2].swapaxes(1, 2)


def filmed(name: str) -> np.ndarray:
    """All frames of a source, as a clip has them that is not stabilised."""
    left = (WIDTH - HEIGHT) // 2
    squares = taken(name).frames[:, :, left : left + HEIGHT]
    return np.stack([cv2.resize(s, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for s in squares])


def stored(out: Path, clip: dict) -> np.ndarray:
    """All frames of a clip."""
    if clip["shard"].endswith(".npy"):
        return np.load(out / clip["shard"])[clip["position"], : clip["frames"]]
    with tarfile.open(out / clip["shard"]) as shard:
        strip = shard.extractfile(f"{clip['key']}.jpg").read()
    return iio.imread(io.BytesIO(strip)).reshape(-1, SIDE, SIDE, 3)


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one.astype(float) - other).mean()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_take(folder / SHAKY, taken(SHAKY))
    write_take(folder / SHORT, taken(SHORT))
    (folder / STILL).mkdir(parents=True)
    for number, frame in enumerate(taken(STILL).frames):
        iio.imwrite(folder / STILL / f"{number}.png", frame)
    for name in TWINS:
        write_video(folder / name, frames=14)
    (folder / "walk/broken.avi").write_bytes(b"RIFF....AVI LIST" + bytes(300))
    return folder


def made(videos: Path, out: Path, format: str) -> Plan:
    recipe, packing = (dataclasses.replace(made, format=format) for made in (RECIPE, PACKING))
    planned = plan([videos], out, recipe, packing)
    run(planned, "local", 1)
    return planned


@pytest.fixture(scope="module")
def planned(videos, tmp_path_factory):
    return made(videos, tmp_path_factory.mktemp("tar") / "set", "tar")


@pytest.fixture(scope="module")
def page(planned):
    return Page(write_report(planned))


SCENES = [{"beach": 0.9, "hut": 0.05}, {"beach": 0.5, "hut": 0.4}, {"hut": 0.3}]


@pytest.fixture(scope="module")
def altered(videos, tmp_path_factory):
    """A set of arrays with scenes, one source of which is gone since; it had a report before."""
    planned = made(videos, tmp_path_factory.mktemp("npy") / "set", "npy")
    clips = list(read_manifest(planned.out))
    with open(planned.out / "manifest.jsonl", "w") as manifest:
        for clip, scenes in zip(clips, SCENES, strict=True):
            manifest.write(json.dumps(clip | {"scenes": scenes}) + "\n")
    (planned.out / "report").mkdir()
    (planned.out / "report/stale.png").touch()
    (planned.out / ".report-killed").mkdir()
    os.rename(videos / SHAKY, videos / "away")
    try:
        return planned, Page(write_report(planned))
    finally:
        os.rename(videos / "away", videos / SHAKY)


def check_strips(planned: Plan, page: Page, names: tuple[str, ...], off: float) -> None:
    """Clips are shown as filmed and as stored, which `off` grey levels are allowed for."""
    clips = [clip for clip in read_manifest(planned.out) if clip["source"] in names]
    assert {clip["source"] for clip in clips} == set(names)
    for clip in clips:
        above, below = page.tiles(page.figure(clip["source"], clip["start"]))
        places = np.linspace(0, clip["frames"] - 1, 8).round().astype(int)
        source = filmed(clip["source"])
        nearest = [int(np.argmin([apart(tile, frame) for frame in source])) for tile in above]
        if clip["source"] == SHAKY:
            assert nearest == (clip["start"] + places).tolist()
            assert apart(above, source[clip["start"] + places]) < 2  # by the source's JPEG
            assert apart(above[0], below[0]) < 5  # by the clip's
            assert apart(above[-1], below[-1]) > 15  # by the camera's motion
        else:
            np.testing.assert_array_equal(above, source[clip["start"] + places])
        assert apart(below, stored(planned.out, clip)[places]) <= off


def test_clips_are_shown_as_filmed_and_below_as_stored(planned, page):
    assert [clip["start"] for clip in read_manifest(planned.out) if clip["source"] == SHAKY] == [
        *(2, 18)
    ]
    check_strips(planned, page, (SHAKY, STILL), 0.5)


def test_arrays_are_shown_as_well(altered):
    planned, page = altered
    check_strips(planned, page, (STILL,), 0)
    check_sheet(planned, page, 0)


def test_the_picture_of_all_strips_holds_each(planned, page):
    everything = iio.imread(page.folder / "before_after.png")
    strips = [iio.imread(page.folder / f"clip_{number:02}.png") for number in (1, 2, 3)]
    for number, strip in enumerate(strips):
        top = number * (len(strip) + 12)
        np.testing.assert_array_equal(everything[top : top + len(strip)], strip)


def check_sheet(planned: Plan, page: Page, off: float) -> None:
    sheet = page.tiles({"src": "contact_sheet.png"}).reshape(-1, SIDE, SIDE, 3)
    clips = list(read_manifest(planned.out))
    assert len(clips) == 3
    for tile, clip in zip(sheet, clips, strict=False):
        assert apart(tile, stored(planned.out, clip)[clip["frames"] // 2]) <= off


def test_the_contact_sheet_holds_the_middle_of_each_clip(planned, page):
    check_sheet(planned, page, 0.5)


def test_rejected_stretches_are_shown_as_filmed(page):
    (strip,) = page.tiles(page.figure(SHORT, 2))
    assert apart(strip, filmed(SHORT)[2:7]) < 2
    (strip,) = page.tiles(page.figure(TWINS[0], 2))
    np.testing.assert_allclose(numbers(strip), 2 + np.linspace(0, 10, 8).round(), atol=0.5)


def test_captions_tell_the_figures_of_the_manifest(planned, page):
    for clip in read_manifest(planned.out):
        text = page.figure(clip["source"], clip["start"])["text"]
        assert f"{clip['frames']} frames from {clip['start']} on" in text
        assert f"moved by {clip['motion']:.2f} pixels" in text
        assert f"error {clip['error_before']:.1f} → {clip['error_after']:.1f} grey" in text
    assert "First frames differ by 0.0" not in page.text


def test_counts_are_those_of_the_manifest(planned, page):
    clips, rejected = list(read_manifest(planned.out)), list(read_rejected(planned.out))
    frames = sum(clip["frames"] for clip in clips)
    lost = sum(stretch.get("frames", 0) for stretch in rejected)
    assert (
        f"{len(clips)} clips {frames} frames in clips {lost} frames in no clip"
        " 4 videos 2 videos left out"
    ) in page.text
    assert "2 clips were stabilised. The other 1 are as filmed" in page.text
    assert [clip["motion"] // 4 for clip in clips] == [2, 1, 0]
    assert "clips 1 0 0 0–0.25 0 0.25–0.5 0 0.5–1 0 1–2 0 2–4 1 4–8 1 8–16 0 16–32" in page.text
    assert "clips 2 0–0.1 0 0.1–0.2 " in page.text
    assert ["train", "3", "100.0 %"] in page.rows
    assert ["walk", "2", "66.7 %"] in page.rows
    assert ["run & <i>", "1", "33.3 %"] in page.rows
    shaky = [clip for clip in clips if clip["source"] == SHAKY]
    (row,) = (row for row in page.rows if row[0] == SHAKY)
    assert row[1:4] == ["2", "24", "0"]
    assert float(row[7]) == pytest.approx(
        sum(clip["motion"] * clip["frames"] for clip in shaky) / 24, abs=0.01
    )
    (row,) = (row for row in page.rows if row[0] == SHORT)
    assert row[1:] == ["0", "0", "5", "–", "–", "–", "–"]


def test_every_reason_is_shown_and_counted(planned, page):
    rejected = list(read_rejected(planned.out))
    reasons = {stretch["reason"] for stretch in rejected}
    assert reasons == {
        "it cannot be decoded",
        "the same bytes as another",
        "the shot is short",
        "too few corners",
    }
    for reason in reasons:
        of_it = [stretch for stretch in rejected if stretch["reason"] == reason]
        frames = sum(stretch.get("frames", 0) for stretch in of_it)
        assert [reason, str(len(of_it)), str(frames or "–")] in page.rows
        assert reason.capitalize() in page.text
    for stretch in rejected:
        assert any(stretch["detail"] in figure["text"] for figure in page.figures)
        if "start" not in stretch:
            why = f"{stretch['reason']} ({stretch['detail']})"
            assert [stretch["source"], why] in page.rows


def test_names_are_text(page):
    assert page.tags["i"] == 0
    assert '<b>&"shaky' not in page.html
    alts = [figure["alt"] for figure in page.figures if "alt" in figure]
    assert sum(SHAKY in alt for alt in alts) == 2
    assert all(set(figure) <= {"text", "src", "alt"} for figure in page.figures)


def test_scenes_are_counted_by_the_best(altered, page):
    rows = [row for row in altered[1].rows if row[0] in ("beach", "hut")]
    assert rows == [["beach", "2", "66.7 %"], ["hut", "1", "33.3 %"]]
    assert "Scenes" not in page.text


def test_a_source_that_is_gone_costs_its_pictures(altered):
    _, page = altered
    for start in (2, 18):
        figure = page.figure(SHAKY, start)
        assert "src" not in figure
        assert "No such file" in figure["text"]


def test_a_report_takes_the_place_of_an_earlier_one(altered):
    planned, page = altered
    assert sorted(path.name for path in page.folder.iterdir()) == [
        *("before_after.png", "clip_03.png", "contact_sheet.png", "index.html"),
        *("rejected_01.png", "rejected_02.png", "rejected_03.png"),
    ]
    assert not list(planned.out.glob(".report-*"))


def first_frames() -> dict[str, report._Film]:
    """Three of each source, still to be decoded."""
    return {
        name: report._Film({"source": name, "start": 0}, np.arange(3))
        for name in (SHAKY, STILL, SHORT)
    }


def test_sources_that_kill_or_hang_a_decoder_cost_their_pictures(planned, monkeypatch):
    monkeypatch.setattr(report, "_filmed", dies_or_hangs)
    monkeypatch.setattr(report, "_SECONDS", 0.5)
    asked = first_frames()
    report._decode(list(asked.values()), planned)
    assert asked[STILL].filmed is None
    assert asked[STILL].missing == "Pillow takes over 0.5 s"
    assert asked[SHAKY].missing == "PyAV crashed (SIGSEGV)"  # and OpenCV reads it
    for name in (SHAKY, SHORT):
        assert apart(asked[name].filmed, filmed(name)[:3]) < 2


def dies_or_hangs(source, decoder, *arguments):
    """Stands in for what decodes in a process of its own."""
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == MEMORY
    if decoder == "PyAV" and source.name.endswith("shaky.avi"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if decoder == "Pillow":
        signal.pause()
    return report._filmed(source, decoder, *arguments)


def test_frames_beyond_the_end_are_missing(videos):
    with pytest.raises(UndecodableError, match="PyAV gives 7 frames, not 8"):
        report._filmed(videos / SHORT, "PyAV", RECIPE, {0, 7})


def test_a_source_that_takes_too_much_memory_is_missing(videos, monkeypatch):
    def greedy(*arguments):
        raise MemoryError

    monkeypatch.setattr(report, "DecodedFrames", greedy)
    with pytest.raises(UndecodableError, match="PyAV needs over 8 GiB"):
        report._filmed(videos / SHORT, "PyAV", RECIPE, {0})


def test_large_clips_are_shown_small(videos):
    large = dataclasses.replace(RECIPE, cutting=dataclasses.replace(RECIPE.cutting, size=200))
    (frame,) = report._filmed(videos / SHORT, "PyAV", large, {0}).values()
    assert frame.shape == (128, 128, 3)


def test_a_shard_that_is_gone_is_named(planned, tmp_path, monkeypatch):
    shutil.copy(planned.out / "manifest.jsonl", tmp_path)
    shutil.copy(planned.out / "rejected.jsonl", tmp_path)
    monkeypatch.setattr(report, "_decode", lambda films, plan: None)
    with pytest.raises(UserError, match=f"{tmp_path}/train/000000.tar:.*prepare it anew"):
        write_report(dataclasses.replace(planned, out=tmp_path))
    assert not (tmp_path / "report").exists()


def test_a_set_without_clips_lists_two_hundred_videos_and_counts_the_others(planned, tmp_path):
    (tmp_path / "manifest.jsonl").touch()
    with open(tmp_path / "rejected.jsonl", "w") as rejected:
        for number in range(203):
            # A name that is no UTF-8, as Python has it.
            told = {"source": f"\udce9{number}.avi", "reason": "it is broken", "detail": "?"}
            rejected.write(json.dumps(told) + "\n")
    page = Page(write_report(dataclasses.replace(planned, out=tmp_path)))
    assert sum(row[0].endswith(".avi") for row in page.rows) == 200
    assert "and 3 more" in page.text
    assert [figure["text"].strip() for figure in page.figures] == [
        rf"\udce9{number}.avi: ?" for number in range(3)
    ]
    assert page.tags["img"] == 0
    assert [path.name for path in page.folder.iterdir()] == ["index.html"]


def record(source: str, start: int, motion: float) -> dict:
    return {"source": source, "start": start, "motion": motion}


def test_chosen_clips_are_of_many_videos_and_from_much_motion_to_none():
    draw = np.random.default_rng(0)
    clips = [
        record(f"{video}.avi", 32 * number, motion + 50 * (video == 7))
        for video in range(40)
        for number, motion in enumerate(draw.gamma(1, 3, 9))
    ]
    clips += [record("still.avi", 32 * number, 0.0) for number in range(50)]
    chosen = report._instructive(clips)
    motions = [clip["motion"] for clip in chosen]
    assert len({clip["source"] for clip in chosen}) == 12
    assert motions == sorted(motions, reverse=True)
    assert motions[0] == max(clip["motion"] for clip in clips)
    assert motions[-1] == 0
    assert [motion < 0.25 for motion in motions].count(True) == 3
    median = np.median([clip["motion"] for clip in clips if clip["motion"] >= 0.25])
    assert any(abs(motion - median) < 0.5 for motion in motions)
    assert chosen == report._instructive(clips)


def test_clips_of_a_few_videos_are_chosen_from_all_of_them():
    one = [record("a.avi", 32 * number, number) for number in range(30)]
    assert len(report._instructive(one)) == 12
    still = [record("a.avi", 32 * number, 0.0) for number in range(30)]
    assert len(report._instructive(still)) == 3
    many = [record(f"{video}.avi", 0, 0.1) for video in range(20)]
    most = Counter(clip["source"] for clip in report._instructive(one + many))
    assert most.pop("a.avi") == 2
    assert len(most) == 3


def test_the_sheet_is_spread_and_strips_are_of_the_beginnings(tmp_path):
    figures = {
        **{"shard": "train/000000.tar", "position": 0, "key": f"{'a' * 16}_0000000"},
        **{"source_sha256": "a" * 64, "sha256": "a" * 64, "rate": None, "frames": 16},
        **{"frame_size": [64, 64], "crop": [0, 0, 64], "transforms": None},
        **{"registration_error": None, "error_before": 1.0, "error_after": 1.0},
    }
    with open(tmp_path / "manifest.jsonl", "w") as manifest:
        for source, number in itertools.product(("a", "b"), range(500)):
            clip = record(source, 1000 * (source == "b") + 16 * number, 0.0) | figures
            manifest.write(json.dumps(clip | {"number": number}) + "\n")
    survey = report._survey(tmp_path, 1000)
    on_sheet = [500 * (clip["source"] == "b") + clip["number"] for clip in survey.sheet]
    assert on_sheet == np.linspace(0, 999, 100).round().tolist()
    assert [(clip["source"], clip["start"]) for clip in survey.early] == [
        *(("a", start) for start in range(0, 300, 16)),
        ("b", 1000),
    ]


def test_examples_are_long_or_early_and_of_several_videos(tmp_path):
    stretches = [  # video, start, frames
        *(("a", 2, 1), ("a", 40, 7), ("a", 900, 50)),
        *(("b", 700, 40), ("b", 1000, 90)),
        *(("c", 10, 400), ("d", 0, 5)),
    ]
    with open(tmp_path / "rejected.jsonl", "w") as rejected:
        for source, start, frames in stretches:
            told = {"source": source, "reason": "short", "start": start, "frames": frames}
            told["detail"] = ""
            rejected.write(json.dumps(told) + "\n")
        rejected.write(json.dumps({"source": "e", "reason": "broken", "detail": ""}) + "\n")
    reasons = report._reasons(tmp_path)
    assert [(reason.stretches, reason.frames) for reason in reasons.values()] == [(7, 593), (1, 0)]
    examples = reasons["short"].examples
    assert [(film.told["source"], film.told["start"]) for film in examples] == [
        *(("c", 10), ("a", 40), ("d", 0))
    ]
    assert examples[0].numbers == [10, 14, 19, 23, 28, 32, 37, 41]
    assert examples[1].numbers == [40, 41, 42, 43, 44, 45, 46]
    assert reasons["broken"].examples[0].numbers == []


def test_bins_end_with_their_bound():
    bars = report._bars([0, 0, 0.1, 0.25, 0.3, 70], (0, 0.25, 64), ("0", "a", "b", "c"))
    assert bars == [("0", 2), ("a", 2), ("b", 1), ("c", 1)]
