import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from vgan_fast.errors import UserError
from vgan_fast.evaluation.real import RealClips, choose_split
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.loaders.synthetic_motions import SyntheticMotions
from vgan_fast.settings import Settings

SETTINGS = Settings(frames=4, size=16, width=4, device="cpu", precision="fp32", graph=False)


def together(real, first, count):
    return torch.cat([streams["video"] for streams in real.batches(first, count)])


@pytest.fixture
def shard(tmp_path):
    """Eleven clips, told apart by their brightness, in one file."""
    clips = np.broadcast_to(
        np.arange(11, dtype=np.uint8)[:, None, None, None, None] * 20, (11, 4, 16, 16, 3)
    )
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "clips.npy", clips)
    return tmp_path / "set"


def test_synthetic_clips_are_held_out_or_those_of_the_run(tmp_path):
    real = RealClips(SETTINGS, "held-out", tmp_path)
    assert real.held_out
    assert math.isinf(real.count)
    clips = together(real, 0, 70)
    assert clips.shape == (70, 3, 4, 16, 16)
    assert clips.min() >= -1
    assert torch.equal(together(real, 66, 4), clips[66:])
    trained_on = RealClips(dataclasses.replace(SETTINGS, seed=3), "train", tmp_path)
    assert not trained_on.held_out
    for got, seed, split in ((real, 1000, "held-out"), (trained_on, 3, "train")):
        source = SyntheticClips(frames=4, size=16, batch_size=5, seed=seed, split=split)
        wanted = source.next_batch().permute(0, 4, 1, 2, 3).float()
        frames = (together(got, 0, 5) + 1) * 127.5
        torch.testing.assert_close(frames, wanted, rtol=0, atol=1e-3)


def test_motions_are_held_out_as_other_synthetic_clips_are(tmp_path):
    assert choose_split("synthetic-motions") == "held-out"
    real = RealClips(dataclasses.replace(SETTINGS, data="synthetic-motions"), "held-out", tmp_path)
    assert real.fingerprint == SyntheticMotions.fingerprint
    source = SyntheticMotions(frames=4, size=16, batch_size=3, seed=1000, split="held-out")
    wanted = source.next_batch().permute(0, 4, 1, 2, 3).float()
    torch.testing.assert_close((together(real, 0, 3) + 1) * 127.5, wanted, rtol=0, atol=1e-3)


def test_every_clip_of_files_comes_once_and_unvaried(shard, tmp_path):
    varied = dataclasses.replace(SETTINGS, data=str(shard), brightness=0.9, flip=True, crop=0.3)
    real = RealClips(varied, "train", tmp_path / "frames")
    assert real.count == 11
    assert not real.held_out
    first, second = together(real, 0, 5), together(real, 5, 6)
    found = torch.cat([first, second])
    assert found.std((1, 2, 3, 4)).max() < 1e-6
    brightness = ((found.mean((1, 2, 3, 4)) + 1) * 127.5).round().sort().values
    assert brightness.tolist() == [20.0 * i for i in range(11)]


def test_splits_are_those_that_the_data_have(shard, tmp_path):
    assert choose_split("synthetic") == "held-out"
    assert choose_split(str(shard)) == "train"
    prepared = tmp_path / "prepared"
    for name in ("train", "validation"):
        (prepared / name).mkdir(parents=True)
        np.save(prepared / name / "clips.npy", np.load(shard / "clips.npy")[: len(name)])
    (prepared / "preparation.json").write_text(json.dumps({}))
    (prepared / "test").mkdir()
    assert choose_split(str(prepared)) == "validation"  # Nothing is in test.
    settings = dataclasses.replace(SETTINGS, data=str(prepared))
    assert RealClips(settings, "validation", tmp_path / "frames").count == len("validation")
    assert RealClips(settings, "validation", tmp_path / "frames").held_out
    assert RealClips(settings, "train", tmp_path / "frames").count == len("train")


@pytest.mark.parametrize(
    ("data", "split", "named"),
    [
        ("synthetic", "test", "--split test"),
        ("files", "validation", "--split validation"),
        ("files", "held-out", "--split held-out"),
    ],
)
def test_a_split_that_is_not_there_is_named(shard, tmp_path, data, split, named):
    data = "synthetic" if data == "synthetic" else str(shard)
    with pytest.raises(UserError, match=named):
        RealClips(dataclasses.replace(SETTINGS, data=data), split, tmp_path)
