import hashlib

import pytest
import torch
from torch import nn

from vgan_fast.checkpoint import find_checkpoint, load_weights, save_checkpoint
from vgan_fast.errors import UserError
from vgan_fast.evaluation.detectors import (
    Detector,
    discriminator_of,
    random_detector,
    torchscript_detector,
)
from vgan_fast.networks import build_discriminator, build_generator
from vgan_fast.settings import Settings

CPU = torch.device("cpu")
SIZES = dict(frames=4, size=16, width=4, latent=8, device="cpu", precision="fp32")


class Scores(nn.Module):
    def forward(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return clips.mean((2, 3, 4)), clips.flatten(1)[:, :5]


class Corner(nn.Module):
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return clips[:, :, 0, 0]


BAD_OUTPUTS = ["three dimensions", "a scalar", "one column", "logits that are no numbers"]


class Wrong(nn.Module):
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.mean()


@pytest.fixture
def script(tmp_path):
    def saved(network):
        file = tmp_path / "detector.pt"
        torch.jit.script(network).save(str(file))
        return file, hashlib.sha256(file.read_bytes()).hexdigest()

    return saved


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = Settings(**SIZES)
    networks = {
        "generator": build_generator(settings),
        "discriminator": build_discriminator(settings),
    }
    save_checkpoint(folder, 1, networks, {}, settings)
    return folder


def test_the_random_detector_is_what_it_always_was():
    """Numbers on record were made by it; some of its features were taken down then."""
    detector = random_detector(CPU)
    clips = torch.linspace(-1, 1, 3 * 16 * 16 * 16).view(1, 3, 16, 16, 16)
    features, logits = detector(clips)
    assert features.shape == (1, 512)
    assert features.dtype == torch.float64
    assert logits is None
    some = [0.1626567, 0.5336554, 0.1358845, 0.1577969, -0.0029615, 0.0015680]
    assert features[0, [0, 1, 128, 129, 256, 384]].tolist() == pytest.approx(some, abs=1e-6)
    assert detector.label == f"random:{detector.sha256[:8]}"
    assert random_detector(CPU).sha256 == detector.sha256


def test_a_file_is_refused_before_its_code_is_looked_at(script, monkeypatch):
    file, sha = script(Scores())
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=f"carries code.*--trust {sha}"):
        torchscript_detector(file, None, None, CPU)
    with pytest.raises(UserError, match=f"SHA-256 is {sha}, not the trusted"):
        torchscript_detector(file, "0" * 64, None, CPU)
    with pytest.raises(UserError, match="not the trusted"):
        torchscript_detector(file, sha[:16], None, CPU)


def test_the_bytes_loaded_are_those_hashed(script, monkeypatch):
    """A file exchanged between the check and the loading is not loaded."""
    file, sha = script(Scores())
    real = hashlib.sha256

    def exchange(content=b""):
        file.write_bytes(b"other code")
        return real(content)

    monkeypatch.setattr(hashlib, "sha256", exchange)
    detector = torchscript_detector(file, sha.upper(), None, CPU)
    features, logits = detector(torch.zeros(2, 3, 4, 8, 8))
    assert features.shape == (2, 3)
    assert logits.shape == (2, 5)
    assert detector.label == f"torchscript:{sha[:8]}"


def test_what_is_no_torchscript_or_not_there_gets_one_line(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, file)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="is no TorchScript file"):
        torchscript_detector(file, sha, None, CPU)
    with pytest.raises(UserError, match="cannot be read"):
        torchscript_detector(tmp_path / "absent.pt", sha, None, CPU)


class Side(nn.Module):
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return torch.cat([clips.mean((2, 3, 4)), torch.full((len(clips), 1), clips.shape[4])], 1)


def test_frames_are_scaled_for_a_file():
    clips = torch.tensor([0.25, -0.5]).view(2, 1, 1, 1, 1).expand(2, 3, 4, 8, 8)
    features, _ = Detector("torchscript", "", Side(), resize=5)(clips)
    assert features[:, 3].tolist() == [5, 5]
    torch.testing.assert_close(features[:, 0], torch.tensor([0.25, -0.5]).double())


class Narrow(nn.Module):
    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.mean((2, 3, 4))[:, :1]


class Unsure(nn.Module):
    def forward(self, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = clips.mean((2, 3, 4))
        return features, features * torch.nan


@pytest.mark.parametrize("network", [Corner(), Wrong(), Narrow(), Unsure()], ids=BAD_OUTPUTS)
def test_what_a_file_makes_must_be_features(script, network):
    file, sha = script(network)
    with pytest.raises(UserError, match=r"must make finite features \(2, D\)"):
        torchscript_detector(file, sha, None, CPU)(torch.zeros(2, 3, 4, 8, 8))


def test_a_file_that_fails_on_the_clips_gets_one_line(script):
    file, sha = script(nn.Conv3d(5, 1, 1))
    with pytest.raises(UserError, match=r"fails on clips \(2, 3, 4, 8, 8\).*--detector-size"):
        torchscript_detector(file, sha, None, CPU)(torch.zeros(2, 3, 4, 8, 8))


def test_the_discriminator_s_features_are_those_before_its_last_layer(run):
    detector = discriminator_of(run, CPU)
    clips = torch.randn(3, 3, 4, 16, 16).clamp(-1, 1)
    features, logits = detector(clips)
    network = build_discriminator(Settings(**SIZES, backend="reference"))
    load_weights(find_checkpoint(run), {"discriminator": network})
    network.eval()
    seen = []
    network.layers[-1].register_forward_hook(lambda _, given, __: seen.append(given[0]))
    network(clips)
    torch.testing.assert_close(features, seen[0].mean((2, 3, 4)).double())
    assert logits is None
    assert detector.clips == (4, 16, 16)
    assert detector.label.startswith("discriminator:")


def test_clips_that_a_detector_does_not_take_are_named(run):
    random_detector(CPU).check(16, 8)
    with pytest.raises(UserError, match="takes clips from 9 frames of 8x8 on, the runs make 8 of"):
        random_detector(CPU).check(8, 16)
    with pytest.raises(UserError, match="takes 4 frames of 16x16, the runs make 4 of 32x32"):
        discriminator_of(run, CPU).check(4, 32)


def test_a_run_without_discriminator_is_refused(tmp_path):
    settings = Settings(**SIZES, model="autoencoder", mask_penalty=0.0)
    save_checkpoint(tmp_path, 1, {"generator": build_generator(settings)}, {}, settings)
    with pytest.raises(UserError, match="has no discriminator"):
        discriminator_of(tmp_path, CPU)
