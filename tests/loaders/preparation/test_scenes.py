import dataclasses
import os
import pickle
import re
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
from network_media import COLOURS, write_labels, write_network
from onnx import TensorProto, helper, numpy_helper

from vgan_fast.errors import UserError
from vgan_fast.loaders.preparation.scenes import SceneClassifier, SceneFilter, read_labels

PLAIN = {"side": 32, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
LETTERS = tuple("abcdefghi")


@pytest.fixture
def settings(tmp_path):
    network, labels = write_network(tmp_path / "net.onnx"), write_labels(tmp_path / "labels.txt")
    return SceneFilter(network, labels, **PLAIN)


def picture(colour, height=48, width=64):
    return np.full((height, width, 3), 255 * np.array(COLOURS[colour]), np.uint8)


def logits_of(mean):
    """What the network of `network_media` makes of a mean colour."""
    colours = np.array(list(COLOURS.values()))
    return 8 * (2 * colours @ mean - (colours**2).sum(1))


def softmax(logits):
    powers = np.exp(logits)
    return powers / powers.sum()


def write_linear(path, weights, operators=("Flatten", "MatMul"), side=8):
    """Write a network of operators in a row, of which MatMul multiplies by `weights`."""
    nodes = [
        helper.make_node(name, [str(k), *["weights"] * (name == "MatMul")], [str(k + 1)])
        for k, name in enumerate(operators)
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("0", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(str(len(nodes)), TensorProto.FLOAT, [1, None])],
        [numpy_helper.from_array(np.asarray(weights, np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())
    return path


def linear(tmp_path, weights, operators=("Flatten", "MatMul"), **options):
    """Return the settings of such a network, with a label for each output."""
    network = write_linear(tmp_path / "linear.onnx", weights, operators)
    labels = write_labels(tmp_path / "letters.txt", LETTERS[: np.shape(weights)[-1]])
    return SceneFilter(network, labels, **PLAIN | {"side": 8} | options)


def test_every_pixel_has_its_place(tmp_path):
    draws = np.random.default_rng(1)
    frame = draws.integers(0, 256, (8, 8, 3), np.uint8)
    weights = draws.normal(0, 0.2, (192, 5))
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    scores = SceneClassifier(linear(tmp_path, weights, mean=mean, std=std)).scores(frame)
    normal = (frame / 255 - mean) / std
    assert scores.dtype == np.float64
    np.testing.assert_allclose(
        scores, softmax(normal.transpose(2, 0, 1).ravel() @ weights), rtol=1e-4
    )


@pytest.mark.parametrize("ends_in_softmax", [False, True])
@pytest.mark.parametrize("colour", COLOURS)
def test_scores_are_the_networks(settings, ends_in_softmax, colour):
    write_network(settings.model, softmax=ends_in_softmax)
    classifier = SceneClassifier(settings)
    scores = classifier.scores(picture(colour))
    np.testing.assert_allclose(scores, softmax(logits_of(COLOURS[colour])), atol=1e-6)
    told, _ = classifier.verdict(scores)
    assert next(iter(told)) == colour


def test_logits_that_look_like_shares_are_logits(tmp_path):
    settings = linear(tmp_path, np.eye(3), ("GlobalAveragePool", "Flatten", "MatMul"))
    scores = SceneClassifier(settings).scores(picture("red"))
    np.testing.assert_allclose(scores, softmax([1, 0, 0]), rtol=1e-6)


def test_logits_that_sum_to_one_are_logits(tmp_path):
    weights = np.tile((2, -1, 0), (3, 1))  # by which shares become these numbers, whatever they are
    settings = linear(tmp_path, weights, ("GlobalAveragePool", "Flatten", "Softmax", "MatMul"))
    scores = SceneClassifier(settings).scores(picture("red"))
    np.testing.assert_allclose(scores, softmax([2, -1, 0]), rtol=1e-6)


def test_large_logits_overflow_nothing(tmp_path):
    settings = linear(tmp_path, 5000 * np.eye(3), ("GlobalAveragePool", "Flatten", "MatMul"))
    assert SceneClassifier(settings).scores(picture("green")).tolist() == [0, 1, 0]


def test_the_defaults_are_imagenets(tmp_path):
    settings = SceneFilter(tmp_path, tmp_path)
    assert settings.mean == (0.485, 0.456, 0.406)
    assert settings.std == (0.229, 0.224, 0.225)
    assert settings.side == 224


@pytest.mark.parametrize("turned", [False, True])
def test_the_centre_is_looked_at(settings, turned):
    frame = picture("red", 40, 120)
    frame[:, 40:80] = picture("blue", 40, 40)
    scores = SceneClassifier(settings).scores(frame.transpose(1, 0, 2) if turned else frame)
    np.testing.assert_allclose(scores, softmax(logits_of(COLOURS["blue"])), atol=1e-6)


def test_no_pixel_is_skipped_where_the_picture_shrinks(settings):
    frame = picture("blue", 128, 128)
    frame[:, ::4] = frame[:, 3::4] = 255 * np.array(COLOURS["red"])
    scores = SceneClassifier(settings).scores(frame)
    np.testing.assert_allclose(scores, softmax(logits_of(np.array((0.5, 0, 0.5)))), atol=0.01)


def test_small_pictures_are_enlarged_smoothly(tmp_path):
    frame = np.zeros((4, 4, 3), np.uint8)
    frame[:, 2:] = 255
    weights = np.zeros((3, 8, 8, 2))
    weights[0, 0, 3, 0] = weights[0, 0, 4, 1] = 1  # the two pixels beside the edge
    scores = SceneClassifier(linear(tmp_path, weights.reshape(192, 2))).scores(frame)
    np.testing.assert_allclose(scores, softmax([0.25, 0.75]), atol=0.002)


def test_scores_depend_on_nothing_but_the_frame(settings):
    frame = np.random.default_rng(2).integers(0, 256, (50, 70, 3), np.uint8)
    classifier = SceneClassifier(settings)
    first = classifier.scores(frame)
    classifier.scores(picture("red"))
    assert np.array_equal(classifier.scores(frame), first)
    again = SceneClassifier(pickle.loads(pickle.dumps(settings)))
    assert np.array_equal(again.scores(frame), first)


def test_settings_are_keys(settings):
    assert {settings: 1}[pickle.loads(pickle.dumps(settings))] == 1


def test_verdicts(settings):
    keep = dataclasses.replace(settings, keep=("RED", "white", "_red"), threshold=0.9)
    classifier = SceneClassifier(keep)
    told, reason = classifier.verdict(np.array([0.05, 0.02, 0.01, 0.92]))
    assert list(told.items()) == [("white", 0.92), ("red", 0.05), ("green", 0.02), ("blue", 0.01)]
    assert reason is None
    assert classifier.verdict(np.array([0.9, 0.1, 0, 0]))[1] is None
    _, reason = classifier.verdict(np.array([0.05, 0.85, 0.05, 0.05]))
    assert reason == "best is green (0.85), none of red, white reaches 0.9"
    _, reason = classifier.verdict(np.array([0.89, 0.05, 0.05, 0.01]))
    assert reason == "best is red (0.89), none of red, white reaches 0.9"


def test_without_a_threshold_any_probability_will_do_but_none(settings):
    classifier = SceneClassifier(dataclasses.replace(settings, keep=("blue",)))
    assert classifier.verdict(np.array([0.999, 0, 0.001, 0]))[1] is None
    _, reason = classifier.verdict(np.array([1.0, 0, 0, 0]))
    assert reason == "best is red (1.00), none of blue reaches 0"


def test_without_scenes_to_keep_all_are_kept(settings):
    classifier = SceneClassifier(dataclasses.replace(settings, threshold=1.0))
    assert classifier.verdict(np.full(4, 0.25))[1] is None


def test_the_best_five_and_those_to_keep_are_told(tmp_path):
    settings = linear(tmp_path, np.zeros((192, 9)), keep=("i", "b"))
    told, _ = SceneClassifier(settings).verdict(np.arange(9, 0, -1) / 45)
    expected = {"a": 0.2, "b": 0.1778, "c": 0.1556, "d": 0.1333, "e": 0.1111, "i": 0.0222}
    assert list(told.items()) == list(expected.items())


def test_labels_of_places(tmp_path):
    lines = ("/a/airfield 0", "/b/beach_house/indoor 1", "/b/beach 2", "", "/t/train_station  03\r")
    path = write_labels(tmp_path / "labels.txt", lines)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_labels(path) == ["airfield", "beach house/indoor", "beach", "train station"]


def test_labels_of_others(tmp_path):
    lines = ("n02123045 tabby", "café au_lait", "42", "K2", "/m/boats")
    path = write_labels(tmp_path / "labels.txt", lines)
    assert read_labels(path) == ["n02123045 tabby", "café au lait", "42", "K2", "boats"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("a 0", "b 2"), "line 2: ends in 2, but is label 1, counted from 0"),
        (("a 1", "b 2"), "line 1: ends in 1, but is label 0"),
        (("a", "", "b 2"), "line 3: ends in 2, but is label 1"),
        (("a " + "9" * 5000,), "line 1: ends in 99999999999999999999, but is label 0"),
        (("red", "green", "Red", "blue"), "line 3: Red is named already"),
        (("/r/sea_side", "sea side"), "line 2: sea side is named already"),
        (("red", "/r/ 1"), "line 2: is no label"),
        (("red", "g\0r\0"), "line 2: is no label"),
        ((), "is empty; give --scene-labels a file"),
        (("", " \t"), "is empty"),
    ],
)
def test_bad_labels(tmp_path, lines, message):
    path = write_labels(tmp_path / "labels.txt", lines)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}[:,] {re.escape(message)}"):
        read_labels(path)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (("gren",), "--scene gren: is none of the labels in .*; did you mean green?"),
        (("red", "Bleu"), "--scene Bleu: .* did you mean blue?"),
        (("opera",), "--scene opera: is none of the labels in .*labels.txt; give one of those"),
        (("",), "--scene : is none of the labels in"),
    ],
)
def test_scenes_that_have_no_label(settings, keep, message):
    with pytest.raises(UserError, match=message):
        SceneClassifier(dataclasses.replace(settings, keep=keep))


@pytest.mark.parametrize("scene", ["train station/platform", "Train_Station/platform"])
def test_scenes_are_named_as_in_the_file_or_readably(settings, scene):
    write_labels(settings.labels, ("red", "green", "/t/Train_station/platform 2", "white"))
    classifier = SceneClassifier(dataclasses.replace(settings, keep=(scene,), threshold=0.5))
    assert classifier.verdict(np.array([0.2, 0.2, 0.6, 0]))[1] is None
    assert classifier.verdict(np.array([0.2, 0.6, 0.2, 0]))[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"std": (1.0, 0.0, 1.0)}, "--scene-std .*: each must be over 0"),
        ({"std": (1.0, 1.0, float("nan"))}, "--scene-std .*: each must be over 0"),
        ({"threshold": 1.01}, "--scene-threshold 1.01: must be from 0 to 1"),
        ({"threshold": -0.1}, "--scene-threshold -0.1: must be from 0 to 1"),
        ({"threshold": float("nan")}, "--scene-threshold nan: must be from 0 to 1"),
        ({"side": 7}, "--scene-side 7: must be from 8 to 1024"),
        ({"side": 1025}, "--scene-side 1025: must be from 8 to 1024"),
    ],
)
def test_settings_out_of_range(settings, change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(settings, **change)


def test_the_bounds_of_settings_are_in_range(settings):
    dataclasses.replace(settings, side=8, threshold=0.0)
    dataclasses.replace(settings, side=1024, threshold=1.0)


def refused(settings, **change):
    """Return, in one line, why a classifier cannot be made."""
    with pytest.raises(UserError) as error:
        SceneClassifier(dataclasses.replace(settings, **change))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_files_that_cannot_be_read(settings, tmp_path):
    gone, bytes_ = tmp_path / "gone", tmp_path / "bytes.txt"
    bytes_.write_bytes(b"\xff\xfe\xfa")
    reason = f"{gone}: cannot be read (No such file or directory); correct"
    assert refused(settings, model=gone) == f"{reason} --scene-model"
    assert refused(settings, labels=gone) == f"{reason} --scene-labels"
    assert "Is a directory" in refused(settings, model=tmp_path)
    assert refused(settings, labels=bytes_).startswith(f"{bytes_}: is no text")


def test_files_that_are_no_networks(settings, tmp_path):
    whole, broken = settings.model.read_bytes(), tmp_path / "broken.onnx"
    for content in (b"", b"no network", whole[:200], whole[:-1], whole + b"x"):
        broken.write_bytes(content)
        message = refused(settings, model=broken)
        assert message.startswith(f"{broken}: OpenCV cannot read it as ONNX (")
        assert "; export it anew" in message
    write_linear(broken, np.eye(3), ("Wibble",))
    assert "cannot read it as ONNX (Node [Wibble@ai.onnx]" in refused(settings, model=broken)


def test_networks_that_do_not_fit(settings, tmp_path):
    few = write_labels(tmp_path / "few.txt", ("red", "green"))
    assert refused(settings, labels=few) == (
        f"{few}: 2 labels, but {settings.model} has 4 outputs;"
        " give the --scene-labels that belong to it"
    )
    message = refused(settings, side=48)
    assert message.startswith(f"{settings.model}: does not run on pictures of 48 pixels (DNN/Gemm")
    assert message.endswith("give its --scene-side")


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_networks_that_give_no_numbers(tmp_path, weight):
    settings = linear(tmp_path, np.full((192, 3), weight))
    assert ": gives infinities or no numbers" in refused(settings)


def test_a_network_whose_output_nothing_makes(tmp_path):
    settings = linear(tmp_path, np.zeros((192, 3)))
    model = onnx.load(settings.model)
    model.graph.output[0].name = "other"
    onnx.save(model, settings.model)
    assert ": gives infinities or no numbers" in refused(settings)


def test_a_network_that_gives_no_numbers_for_one_frame(tmp_path):
    operators = ("GlobalAveragePool", "Flatten", "MatMul", "Sqrt")
    classifier = SceneClassifier(linear(tmp_path, np.eye(3), operators, mean=(0.3, 0.3, 0.3)))
    assert np.isfinite(classifier.scores(picture("white"))).all()
    with pytest.raises(FloatingPointError, match="gives infinities or no numbers"):
        classifier.scores(picture("red"))


def test_short_memory_is_told_apart(settings):
    classifier = SceneClassifier(settings)

    class Starved:
        def setInput(self, _):  # noqa: N802
            raise cv2.error("std::bad_alloc")

    classifier._network = Starved()
    with pytest.raises(MemoryError, match=r"^std::bad_alloc$"):
        classifier.scores(picture("red"))


def test_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    settings = linear(tmp_path, np.random.default_rng(3).normal(size=(192, 4)))
    expected = SceneClassifier(settings).scores(picture("red"))
    model, data = onnx.load(settings.model), tmp_path / "linear.onnx.data"
    onnx.save(
        model, settings.model, save_as_external_data=True, location=data.name, size_threshold=0
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert np.array_equal(SceneClassifier(settings).scores(picture("red")), expected)
    data.unlink()
    assert "leave its .data file, if it has one, beside it" in refused(settings)


def in_a_process(code, *arguments):
    code = "import sys; from vgan_fast.loaders.preparation import scenes; " + code
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_names_that_are_no_utf8(settings, tmp_path):
    model = settings.model.rename(tmp_path / os.fsdecode(b"m\xe4r.onnx"))
    # Apart, since OpenCV takes its process along.
    done = in_a_process("from pathlib import Path; scenes._load(Path(sys.argv[1]))", model)
    assert done.returncode == 0, done.stderr


def test_importing_it_needs_no_torch_or_dali():
    done = in_a_process("assert not {'torch', 'nvidia'} & set(sys.modules)")
    assert done.returncode == 0, done.stderr
