"""The run that a new user sees first: minutes long, so `pytest -m slow`."""

import subprocess
import sys
import time

import pytest
import torch

from vgan_fast.checkpoint import find_checkpoint
from vgan_fast.device import resolved
from vgan_fast.evaluation.detectors import RandomExtractor, features
from vgan_fast.evaluation.metrics import frechet_distance, mask_auc
from vgan_fast.kernels.frames import normalise_frames
from vgan_fast.loaders.synthetic import SyntheticClips
from vgan_fast.networks import build_generator
from vgan_fast.sampling import draw_latents, load_generator, sample_streams
from vgan_fast.settings import Settings


@pytest.mark.slow
def test_no_argument_at_all_learns_within_five_minutes(tmp_path):
    start = time.monotonic()
    command = [sys.executable, "-m", "vgan_fast.train"]
    if torch.cuda.is_available():  # Where no argument means the paper's long run.
        command += ["--device", "cpu"]
    subprocess.run(command, cwd=tmp_path, check=True)
    if resolved(Settings(device="cpu")).precision == "bf16":
        assert time.monotonic() - start < 300

    checkpoint = find_checkpoint(tmp_path / "runs" / "synthetic-1")
    settings = Settings.load(checkpoint / "settings.json")
    extractor = RandomExtractor()
    clips = SyntheticClips(
        frames=settings.frames, size=settings.size, batch_size=512, seed=1, split="held-out"
    )
    real = features(extractor, [normalise_frames(clips.next_batch()).contiguous()])

    def measured(generator):
        streams = sample_streams(generator, draw_latents(512, settings.latent, 1))
        made = features(extractor, [streams["video"]])
        return frechet_distance(made, real), mask_auc(streams["mask"][:64], streams["video"][:64])

    untrained, _ = measured(build_generator(settings))
    trained, auc = measured(load_generator(checkpoint, settings, torch.device("cpu")))
    assert trained < untrained / 5
    assert auc > 0.7
