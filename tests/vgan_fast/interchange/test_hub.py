"""Networks in the layout of Hugging Face, from runs and into every form of theirs."""

import json
import sys

import huggingface_hub
import imageio.v3 as iio
import numpy as np
import pytest
import torch

from tests.vgan_fast.interchange.lively import described, enliven, run_of
from vgan_fast import classify, cpu, evaluate, files, fused, generate, models, predict
from vgan_fast.checkpoint import load_weights, open_weights, save_checkpoint
from vgan_fast.errors import UserError
from vgan_fast.evaluation.detectors import discriminator_of
from vgan_fast.interchange import hub
from vgan_fast.interchange.layout import KINDS
from vgan_fast.interchange.plain import plain_networks
from vgan_fast.sampling import Sampler
from vgan_fast.settings import Settings
from vgan_fast.study.clips import Clips

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Networks of a run: their folders, by role."""
    folder = tmp_path_factory.mktemp("published")
    run_of(folder / "run", frames=16)
    hub.publish(folder / "run", folder)
    return {role: folder / role for role in ("generator", "discriminator")}


def run(program, *arguments):
    """Exit status of a program run in this process."""
    with pytest.raises(SystemExit) as stop:
        program.main.main([str(a) for a in arguments])
    return stop.value.code or 0


def lively(name):
    network = getattr(hub, name)(**described(name).arguments)
    return enliven(network)


def assert_same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", KINDS)
def test_a_network_comes_back_from_its_folder(tmp_path, name):
    network = lively(name)
    network.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    back = getattr(hub, name).from_pretrained(tmp_path)
    assert_same_weights(back, network)
    assert not back.training
    again = tmp_path / "again"
    back.save_pretrained(again)
    for file in ("config.json", "model.safetensors"):
        assert (again / file).read_bytes() == (tmp_path / file).read_bytes()


def test_the_config_holds_the_constructors_arguments(tmp_path):
    lively("FutureGenerator").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "network": "FutureGenerator",
        "shape": {"frames": 4, "size": 16, "width": 4, "latent": 8},
        "mask_bias": 0.0,
        "condition": 2,
        "encoder": "spatial",
    }


def test_the_card_says_how_to_load_it(tmp_path):
    lively("Discriminator").save_pretrained(tmp_path)
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "vgan_fast"
    assert "Discriminator.from_pretrained" in card.text


def test_a_folder_of_another_network_is_refused(tmp_path):
    lively("TwoStreamGenerator").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="of TwoStreamGenerator, not FutureGenerator"):
        hub.FutureGenerator.from_pretrained(tmp_path)


def test_of_a_name_only_the_two_files_are_downloaded(tmp_path, monkeypatch):
    lively("Discriminator").save_pretrained(tmp_path)
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    hub.Discriminator.from_pretrained("somebody/something", revision="v1")
    assert asked == {
        "name": "somebody/something",
        "revision": "v1",
        "allow_patterns": ["config.json", "model.safetensors"],
    }


@pytest.mark.parametrize("name", ["no/such/thing", "somebody/something"])
def test_what_cannot_be_had_is_said_in_one_line(tmp_path, name):
    with pytest.raises(UserError, match="no folder, nor to be had") as refused:
        hub.Discriminator.from_pretrained(name, local_files_only=True, cache_dir=tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", [models, cpu, fused])
@pytest.mark.parametrize("name", ["TwoStreamGenerator", "FutureGenerator", "Discriminator"])
def test_a_folder_loads_into_every_form_of_the_network(tmp_path, form, name):
    network = lively(name)
    network.save_pretrained(tmp_path)
    other = getattr(form, name)(**described(name).arguments)
    load_weights(tmp_path, {KINDS[name].role: other})
    assert_same_weights(other, network)


def samples_of(run_or_folder):
    sampler = Sampler(run_or_folder, CPU)
    (clips,) = sampler.batches(sampler.codes(3, seed=5))
    return {name: clip.clone() for name, clip in clips.items()}


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("model", ["two-stream", "one-stream"])
def test_a_published_generator_makes_what_its_run_makes(tmp_path, model, average):
    run_of(tmp_path / "run", model, average=average)
    (tmp_path / "out").mkdir()
    hub.publish(tmp_path / "run", tmp_path / "out")
    wanted = samples_of(tmp_path / "run")
    assert (wanted["video"][0] - wanted["video"][1]).abs().max() > 0.1
    torch.testing.assert_close(samples_of(tmp_path / "out" / "generator"), wanted)


def test_a_published_future_generator_makes_what_its_run_makes(tmp_path):
    run_of(tmp_path / "run", "future")
    (tmp_path / "out").mkdir()
    hub.publish(tmp_path / "run", tmp_path / "out")
    given = torch.randn(2, 3, 2, 16, 16).tanh()
    made = [
        next(Sampler(tmp_path / name, CPU).batches(given))["video"].clone()
        for name in ("run", "out/generator")
    ]
    torch.testing.assert_close(made[1], made[0])


def test_a_published_discriminator_is_what_the_runs_is(tmp_path):
    networks = run_of(tmp_path / "run", logits="2")
    (tmp_path / "out").mkdir()
    hub.publish(tmp_path / "run", tmp_path / "out")
    folder, settings = open_weights(tmp_path / "out" / "discriminator")
    assert (settings.shape, settings.logits) == (open_weights(tmp_path / "run")[1].shape, "2")
    assert_same_weights(hub.Discriminator.from_pretrained(folder), networks["discriminator"])


def test_an_autoencoders_networks_are_published_as_what_they_are(tmp_path, capsys):
    networks = run_of(tmp_path / "run", "autoencoder")
    out = tmp_path / "out"
    assert run(generate, tmp_path / "run", "--export", "hub", "--out", out) == 0
    assert capsys.readouterr().out == f"decoder, encoder of {tmp_path / 'run'}: {out}\n"
    assert_same_weights(hub.Decoder.from_pretrained(out / "decoder"), networks["generator"])
    assert_same_weights(hub.Encoder.from_pretrained(out / "encoder"), networks["encoder"])
    # Its codes are not N(0, 1), and the mixture over them is the run's.
    assert run(generate, out / "decoder", "--out", tmp_path / "clips.gif") == 2
    assert "holds a Decoder, no generator" in capsys.readouterr().err


def test_programs_take_a_generators_folder_in_place_of_a_run(published, tmp_path, capsys):
    folder = published["generator"]
    assert run(generate, folder, "--out", tmp_path / "clips.gif", "--count", 2, "--streams") == 0
    assert (tmp_path / "clips.gif").is_file()
    few = ["--count", 6, "--training-clips", 8, "--resamples", 3, "--device", "cpu"]
    few += ["--out", tmp_path / "result.json"]
    assert run(evaluate, folder, *few) == 2
    assert "--data" in capsys.readouterr().err
    assert run(evaluate, folder, "--data", "synthetic", *few) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert {row["name"]: row["step"] for row in rows}["generator"] is None


def test_predict_takes_a_folder_in_place_of_a_run(tmp_path):
    run_of(tmp_path / "run", "future", condition=1)
    hub.publish(tmp_path / "run", tmp_path)
    iio.imwrite(tmp_path / "image.png", np.full((20, 20, 3), 99, np.uint8))
    given = ["--image", tmp_path / "image.png", "--out", tmp_path / "made.gif", "--device", "cpu"]
    assert run(predict, "--checkpoint", tmp_path / "generator", *given) == 0
    assert (tmp_path / "made.gif").is_file()


def test_classify_takes_a_discriminators_folder_in_place_of_a_run(published, tmp_path, capsys):
    quick = ["--device", "cpu", "--steps", 2, "--batch-size", 4, "--seeds", 1, "--videos", 40]
    quick += ["--fractions", "1", "--clips-per-video", 1, "--test-videos", 30]
    quick += ["--methods", "logistic"]
    given = ["--data", "synthetic-motions", *quick, "--out", tmp_path / "transfer"]
    assert run(classify, published["discriminator"], *given) == 0
    assert (tmp_path / "transfer" / "results.json").is_file()
    given[-1] = tmp_path / "other"
    assert run(classify, published["generator"], *given) == 2
    assert "holds a TwoStreamGenerator, no discriminator" in capsys.readouterr().err
    assert not given[-1].exists()


def test_a_detector_and_a_study_take_a_folder_in_place_of_a_run(published):
    detector = discriminator_of(published["discriminator"], CPU)
    assert (detector.kind, detector.clips) == ("discriminator", (16, 16, 16))
    clips = Clips(
        [("ours", str(published["generator"]))],
        (),
        foil=False,
        count=2,
        seed=0,
        frames=None,
        size=None,
        device=CPU,
    )
    assert [(one.kind, one.clips.shape) for one in clips] == [("model", (2, 16, 16, 16, 3))]


def test_a_discriminator_of_classes_is_no_programs(tmp_path):
    network = hub.Discriminator(**described("Discriminator", outputs=101, dropout=0.5).arguments)
    network.save_pretrained(tmp_path)
    assert_same_weights(hub.Discriminator.from_pretrained(tmp_path), network)
    with pytest.raises(UserError, match="101 outputs"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "clips.gif"], "--out clips.gif: --export makes a folder"),
        ([], "--out samples.gif: --export makes a folder"),
        (["--out", "."], "not there yet"),
        (["--out", "x", "--count", 3, "--streams"], "leave out --count, --streams"),
    ],
)
def test_what_does_not_go_with_an_export_is_said(
    published, tmp_path, monkeypatch, options, said, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(generate, published["generator"], "--export", "hub", *options) == 2
    assert said in capsys.readouterr().err


def test_a_folder_is_exported_once_more_and_on_the_disk_before_it_has_its_name(
    published, tmp_path, monkeypatch
):
    flushed = []
    monkeypatch.setattr(files, "_flush", lambda path: flushed.append(path.name))
    out = tmp_path / "out"
    assert run(generate, published["generator"], "--export", "hub", "--out", out) == 0
    assert {"config.json", "model.safetensors", "generator"} <= set(flushed)
    for file in ("config.json", "model.safetensors"):
        wanted = (published["generator"] / file).read_bytes()
        assert (out / "generator" / file).read_bytes() == wanted


def test_an_energy_model_is_not_exported(tmp_path):
    settings = Settings.chosen("short", {"model": "stgconvnet", "device": "cpu"})
    save_checkpoint(tmp_path / "run", 1, {"network": torch.nn.Linear(1, 1)}, {}, settings)
    with pytest.raises(UserError, match="nothing without its chains"):
        plain_networks(tmp_path / "run")


@pytest.mark.parametrize(
    ("form", "module", "extra"), [("hub", "huggingface_hub", "hub"), ("onnx", "onnxscript", "onnx")]
)
def test_a_missing_extra_is_named(published, tmp_path, monkeypatch, capsys, form, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "vgan_fast.interchange.hub")
    given = ["--export", form, "--out", tmp_path / "out"]
    assert run(generate, published["generator"], *given) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"pip install 'vgan_fast[{extra}]'" in said
    assert not list(tmp_path.iterdir())
