"""Networks in the layout of Hugging Face, from runs and into every form of theirs."""

import json

import huggingface_hub
import pytest
import torch
from lively import described, enliven, run_of

from vgan_fast import cpu, fused, generate, models
from vgan_fast.checkpoint import load_weights, open_weights
from vgan_fast.errors import UserError
from vgan_fast.interchange import hub
from vgan_fast.interchange.layout import KINDS
from vgan_fast.sampling import Sampler

CPU = torch.device("cpu")


def run(program, *arguments):
    """Exit status of a program run in this process."""
    with pytest.raises(SystemExit) as stop:
        program.main([str(a) for a in arguments])
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
