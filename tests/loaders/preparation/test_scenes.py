import dataclasses

import numpy as np
import pytest
from network_media import COLOURS, write_labels, write_network

from vgan_fast.errors import UserError
from vgan_fast.loaders.preparation.scenes import SceneClassifier, SceneFilter, read_labels

PLAIN = {"side": 32, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def settings(tmp_path):
    network, labels = write_network(tmp_path / "net.onnx"), write_labels(tmp_path / "labels.txt")
    return SceneFilter(network, labels, **PLAIN)


def picture(colour, height=48, width=64):
    return np.full((height, width, 3), 255 * np.array(COLOURS[colour]), np.uint8)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("colour", COLOURS)
def test_scores_are_the_networks(settings, softmax, colour):
    write_network(settings.model, softmax=softmax)
    scores = SceneClassifier(settings).scores(picture(colour))
    mean, colours = np.array(COLOURS[colour]), np.array(list(COLOURS.values()))
    logits = 8 * (2 * colours @ mean - (colours**2).sum(1))
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert list(COLOURS)[scores.argmax()] == colour


def test_pixels_are_normalised(settings):
    shifted = dataclasses.replace(settings, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    logits = np.log(SceneClassifier(shifted).scores(picture("white")))
    mean = (np.ones(3) - (0.1, 0.2, 0.3)) / (0.5, 0.25, 1)
    colours = np.array(list(COLOURS.values()))
    expected = 8 * (2 * colours @ mean - (colours**2).sum(1))
    np.testing.assert_allclose(logits - logits[0], expected - expected[0], rtol=1e-3)


def test_the_centre_is_looked_at(settings):
    frame = picture("red", 40, 120)
    frame[:, 40:80] = picture("blue", 40, 40)
    scores = SceneClassifier(settings).scores(frame)
    assert list(COLOURS)[scores.argmax()] == "blue"


def test_verdicts(settings):
    keep = dataclasses.replace(settings, keep=("RED", "white"), threshold=0.9)
    classifier = SceneClassifier(keep)
    told, reason = classifier.verdict(np.array([0.92, 0.05, 0.02, 0.01]))
    assert told == {"red": 0.92, "green": 0.05, "blue": 0.02, "white": 0.01}
    assert reason is None
    _, reason = classifier.verdict(np.array([0.05, 0.85, 0.05, 0.05]))
    assert reason == "it is green by 0.85; none of red, white reaches 0.9"
    _, reason = classifier.verdict(np.array([0.89, 0.05, 0.05, 0.01]))
    assert reason
    assert SceneClassifier(settings).verdict(np.full(4, 0.25))[1] is None


def test_the_best_five_and_those_to_keep_are_told(settings, tmp_path):
    classifier = SceneClassifier(settings)
    classifier.labels = [f"scene {k}" for k in range(9)]
    classifier._keep = [8]
    told, _ = classifier.verdict(np.arange(9, 0, -1) / 45)
    assert list(told) == [*(f"scene {k}" for k in range(5)), "scene 8"]


def test_labels_of_places(tmp_path):
    lines = ("/a/airfield 0", "/b/beach_house 1", "/b/beach 2", "/t/train_station/platform 3")
    path = write_labels(tmp_path / "labels.txt", lines)
    assert read_labels(path) == ["airfield", "beach house", "beach", "train station/platform"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": ("gren",)}, "--scene gren: no such label; there are green"),
        ({"std": (1.0, 0.0, 1.0)}, "--scene-std .*: each must be over 0"),
        ({"side": 48}, "net.onnx: does not run on pictures of 48 pixels .*; give its --scene-side"),
    ],
)
def test_bad_settings(settings, change, message):
    with pytest.raises(UserError, match=message):
        SceneClassifier(dataclasses.replace(settings, **change))


def test_bad_files(settings, tmp_path):
    def refused(message, **change):
        with pytest.raises(UserError, match=message):
            SceneClassifier(dataclasses.replace(settings, **change))

    refused("gone.onnx: cannot be read .No such file", model=tmp_path / "gone.onnx")
    refused("gone.txt: cannot be read .No such file", labels=tmp_path / "gone.txt")
    text = tmp_path / "text.onnx"
    text.write_text("no network")
    refused("text.onnx: OpenCV cannot read it as ONNX", model=text)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(settings.model.read_bytes()[:200])
    refused("cut.onnx: OpenCV cannot read it as ONNX", model=cut)
    few = write_labels(tmp_path / "few.txt", ("red", "green"))
    refused("few.txt: 2 labels, but .* has 4 outputs", labels=few)
    twice = write_labels(tmp_path / "twice.txt", ("red", "green", "red", "blue"))
    refused("twice.txt: names red twice", labels=twice)
    refused("empty.txt: is empty", labels=write_labels(tmp_path / "empty.txt", ()))
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    refused("bytes.txt: is no text", labels=tmp_path / "bytes.txt")
