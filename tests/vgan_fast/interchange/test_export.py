"""Exported programs, run by their own runtimes."""

import numpy as np
import onnxruntime
import pytest
import torch

from tests.vgan_fast.interchange.lively import described, enliven, run_of
from vgan_fast import models
from vgan_fast.interchange import export
from vgan_fast.interchange.export import export_networks, write_onnx, write_pt2
from vgan_fast.shape import ClipShape

STREAMS = ["video", "foreground", "mask", "background"]
# Name, input of a batch, outputs.
INTERFACES = {
    "TwoStreamGenerator": ("codes", (8,), STREAMS),
    "OneStreamGenerator": ("codes", (8,), ["video"]),
    "FutureGenerator": ("frames", (3, 2, 16, 16), STREAMS),
    "Discriminator": ("clips", (3, 4, 16, 16), ["logits"]),
    "Encoder": ("clips", (3, 4, 16, 16), ["codes"]),
    "Decoder": ("codes", (8,), STREAMS),
}


def batch(count, shape):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count)).tanh()


@torch.no_grad()
def outputs_of(network, given):
    """What the plain network makes, in evaluation mode."""
    if not isinstance(network, models.TwoStreamGenerator):
        return [network(given)]
    of = network.streams(given)
    return [of.video, of.foreground, of.mask, of.background]


def written(name, write, file):
    """A network that has been written, in evaluation mode."""
    network = enliven(described(name).build()).eval()
    write(described(name), network, file)
    assert b"models.py" not in file.read_bytes()  # no folder of the machine that wrote it
    return network


def assert_onnx_gives(file, network, interface, counts=(1, 5)):
    takes, shape, gives = interface
    session = onnxruntime.InferenceSession(file)
    assert [of.name for of in session.get_inputs()] == [takes]
    assert [of.name for of in session.get_outputs()] == gives
    for count in counts:
        given = batch(count, shape)
        wanted = outputs_of(network, given)
        for made, right in zip(session.run(None, {takes: given.numpy()}), wanted, strict=True):
            np.testing.assert_allclose(made, right, rtol=0, atol=1e-4)
    assert_differ(wanted[0])


def assert_differ(values):
    """From clip to clip: else a program that ignores its input would pass."""
    assert (values[0] - values[1]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["TwoStreamGenerator", "FutureGenerator"])
def test_onnx_gives_what_the_network_gives_for_a_batch_of_any_size(tmp_path, name):
    network = written(name, write_onnx, tmp_path / "it.onnx")
    assert_onnx_gives(tmp_path / "it.onnx", network, INTERFACES[name])
    assert len(list(tmp_path.iterdir())) == 1


def test_weights_that_onnx_cannot_hold_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_ONNX_LIMIT", 1000)
    network = written("Discriminator", write_onnx, tmp_path / "it.onnx")
    (tmp_path / "moved").mkdir()
    for file in ("it.onnx", "it.onnx.data"):
        (tmp_path / file).rename(tmp_path / "moved" / file)
    assert_onnx_gives(tmp_path / "moved" / "it.onnx", network, INTERFACES["Discriminator"])


@pytest.mark.parametrize("name", [name for name in INTERFACES if name != "Decoder"])
def test_a_saved_program_gives_what_the_network_gives_for_a_batch_of_any_size(tmp_path, name):
    network = written(name, write_pt2, tmp_path / "it.pt2")
    program = torch.export.load(tmp_path / "it.pt2").module()
    for count in (1, 5):
        given = batch(count, INTERFACES[name][1])
        with torch.no_grad():
            made = program(given)
        wanted = outputs_of(network, given)
        made = [made] if isinstance(made, torch.Tensor) else list(made)
        torch.testing.assert_close(made, wanted, rtol=0, atol=1e-6)
    assert_differ(wanted[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OneStreamGenerator", "Encoder", "Decoder"])
def test_onnx_of_the_other_networks_as_well(tmp_path, name):
    network = written(name, write_onnx, tmp_path / "it.onnx")
    assert_onnx_gives(tmp_path / "it.onnx", network, INTERFACES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TwoStreamGenerator", "FutureGenerator", "Discriminator"])
def test_onnx_at_the_papers_size(tmp_path, name):
    paper = ClipShape(width=128 if name == "FutureGenerator" else 64)
    one = described(name, shape=paper)
    network = enliven(one.build()).eval()
    write_onnx(one, network, tmp_path / "it.onnx")
    takes, shape, gives = INTERFACES[name]
    shape = {"codes": (100,), "frames": (3, 2, 64, 64), "clips": (3, 32, 64, 64)}[takes]
    assert_onnx_gives(tmp_path / "it.onnx", network, (takes, shape, gives), counts=(1, 2))


def test_a_run_is_written_network_by_network(tmp_path):
    networks = run_of(tmp_path / "run")
    made = export_networks(tmp_path / "run", tmp_path, "pt2")
    assert [file.name for file in made] == ["generator.pt2", "discriminator.pt2"]
    codes, clips = batch(3, (8,)), batch(3, (3, 4, 16, 16))
    with torch.no_grad():
        video = torch.export.load(made[0]).module()(codes)[0]
        logits = torch.export.load(made[1]).module()(clips)
        # The run's networks are in another form, which adds in another order.
        torch.testing.assert_close(video, networks["generator"](codes)[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits, networks["discriminator"](clips), rtol=1e-5, atol=1e-5)


def test_a_network_in_training_mode_is_refused(tmp_path):
    network = described("Discriminator").build()
    with pytest.raises(ValueError, match="training mode"):
        write_pt2(described("Discriminator"), network, tmp_path / "it.pt2")
    assert not list(tmp_path.iterdir())
