"""Folders of anybody's: what is wrong with them is said in one line, before memory is taken."""

import json

import pytest
import safetensors.torch
import torch

from tests.vgan_fast.interchange.lively import described, enliven
from vgan_fast.errors import UserError
from vgan_fast.interchange.layout import CONFIG, WEIGHTS, read_description, read_weights

SHAPE = {"frames": 4, "size": 16, "width": 4, "latent": 8}
HUGE = {"frames": 1024, "size": 1024, "width": 1024, "latent": 65536}
CONFIGS = {
    "TwoStreamGenerator": {"shape": SHAPE, "mask_bias": 0.5},
    "FutureGenerator": {"shape": SHAPE, "condition": 2, "encoder": "spatial"},
    "Discriminator": {"shape": SHAPE, "outputs": 2},
}


def folder_of(path, name="TwoStreamGenerator", **config):
    """A good folder but for what `config` says."""
    path.mkdir(exist_ok=True)
    values = {"network": name, **CONFIGS[name], **config}
    (path / CONFIG).write_text(json.dumps(values))
    weights = enliven(described(name).build()).state_dict()
    safetensors.torch.save_file(weights, path / WEIGHTS)
    return path


def refusal(folder):
    with pytest.raises(UserError) as refused:
        read_description(folder)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 400 and str(folder) in message
    return message


@pytest.mark.parametrize("name", CONFIGS)
def test_a_good_folder_is_described_by_its_config(tmp_path, name):
    made = read_description(folder_of(tmp_path, name))
    assert made.name == name
    assert made.arguments["shape"] == described(name).arguments["shape"]
    assert {key: made.arguments[key] for key in CONFIGS[name] if key != "shape"} == {
        key: value for key, value in CONFIGS[name].items() if key != "shape"
    }


def test_arguments_that_are_left_out_have_their_defaults(tmp_path):
    folder_of(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({"network": "TwoStreamGenerator", "shape": SHAPE}))
    assert read_description(tmp_path).arguments["mask_bias"] == 0.0


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("TwoStreamGenerator", {"network": "os.system"}, "must be one of"),
        ("TwoStreamGenerator", {"network": ["TwoStreamGenerator"]}, "must be one of"),
        ("TwoStreamGenerator", {"__class__": 1}, "'__class__' is no argument"),
        ("TwoStreamGenerator", {"outputs": 1}, "'outputs' is no argument"),
        ("TwoStreamGenerator", {"x" * 5000: 1}, "is no argument"),
        ("TwoStreamGenerator", {"shape": 4}, "'shape' must give"),
        ("TwoStreamGenerator", {"shape": {**SHAPE, "depth": 1}}, "'shape' must give"),
        ("TwoStreamGenerator", {"shape": {"frames": 4}}, "'shape' must give"),
        ("TwoStreamGenerator", {"shape": {**SHAPE, "width": "4"}}, "width must be a whole"),
        ("TwoStreamGenerator", {"shape": {**SHAPE, "width": True}}, "width must be a whole"),
        ("TwoStreamGenerator", {"shape": {**SHAPE, "width": 4.0}}, "width must be a whole"),
        ("TwoStreamGenerator", {"shape": {**SHAPE, "width": -4}}, "width must be a whole"),
        ("TwoStreamGenerator", {"shape": {**SHAPE, "size": 10**30}}, "size must be a whole"),
        ("TwoStreamGenerator", {"shape": {**SHAPE, "size": 24}}, "power of two"),
        ("TwoStreamGenerator", {"mask_bias": "0"}, "'mask_bias' must be a number"),
        ("TwoStreamGenerator", {"mask_bias": float("nan")}, "'mask_bias' must be a number"),
        ("TwoStreamGenerator", {"mask_bias": float("inf")}, "'mask_bias' must be a number"),
        ("FutureGenerator", {"condition": 0}, "'condition' must be a whole"),
        ("FutureGenerator", {"condition": None}, "'condition' must be a whole"),
        ("FutureGenerator", {"encoder": "both"}, "'encoder' must be"),
        ("FutureGenerator", {"encoder": {}}, "'encoder' must be"),
        ("Discriminator", {"outputs": 10**9}, "'outputs' must be a whole"),
        ("Discriminator", {"outputs": [2]}, "'outputs' must be a whole"),
        ("Discriminator", {"dropout": 2}, "'dropout' must be a number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_config_that_is_none_is_refused(tmp_path, name, wrong, said):
    message = refusal(folder_of(tmp_path, name, **wrong))
    assert said in message and CONFIG in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 16000,
        b'{"network": ' + b"9" * 10000 + b"}",
        b'{"network": "TwoStreamGenerator"}',
    ],
    ids=lambda content: content[:20].decode("latin-1"),
)
def test_what_is_no_config_at_all_is_refused(tmp_path, content):
    folder_of(tmp_path)
    (tmp_path / CONFIG).write_bytes(content)
    assert CONFIG in refusal(tmp_path)


def test_a_config_without_end_is_not_read_to_it(tmp_path):
    folder_of(tmp_path)
    with (tmp_path / CONFIG).open("wb") as file:
        file.truncate(2**40)  # a hole: no disk, but all of the memory
    assert "longer than" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("TwoStreamGenerator", {"shape": HUGE}),
        ("FutureGenerator", {"shape": HUGE, "condition": 1024}),
        ("Discriminator", {"shape": HUGE, "outputs": 2**16}),
    ],
)
def test_sizes_that_the_weights_do_not_have_take_no_memory(tmp_path, name, config):
    # There are not the terabytes: building the network would fail with another message.
    assert "does not hold the network" in refusal(folder_of(tmp_path, name, **config))


def changed(folder, change):
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    change(weights)
    safetensors.torch.save_file(weights, folder / WEIGHTS)
    return folder


def permute(weights):
    first = weights["foreground.3.weight"]
    weights["foreground.3.weight"] = first.transpose(0, 1).contiguous()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("foreground.1.running_var"), "'foreground.1.running_var' is missing"),
        (lambda w: w.update(other=torch.zeros(1)), "'other' is F32 of [1], not missing"),
        (permute, "'foreground.3.weight' is F32 of [4, 8, 4, 4, 4], not F32 of [8, 4, 4, 4, 4]"),
        (lambda w: w.update({"head.bias": w["head.bias"].double()}), "F64 of [4], not F32 of [4]"),
        (lambda w: w.clear(), "is missing"),
    ],
    ids=["lacking", "more", "permuted", "double", "none"],
)
def test_weights_of_another_network_are_refused(tmp_path, change, said):
    message = refusal(changed(folder_of(tmp_path), change))
    assert said in message and WEIGHTS in message


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_truncated_weights_are_refused(tmp_path, kept):
    file = folder_of(tmp_path) / WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    assert WEIGHTS in refusal(tmp_path)


def test_a_pickle_in_the_place_of_weights_is_not_loaded(tmp_path):
    file = folder_of(tmp_path) / WEIGHTS
    torch.save(described("TwoStreamGenerator").build().state_dict(), file)
    assert "cannot be read as safetensors" in refusal(tmp_path)


def test_weights_have_the_names_of_a_runs(tmp_path):
    folder = folder_of(tmp_path, "Discriminator")
    stored = safetensors.torch.load_file(folder / WEIGHTS)
    read = read_weights(folder, {"discriminator"})
    assert read.keys() == {f"discriminator.{key}" for key in stored}
    with pytest.raises(UserError, match="holds a Discriminator, no generator"):
        read_weights(folder, {"generator"})
