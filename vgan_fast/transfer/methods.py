"""The ways to a classifier: trained from a body or from nothing, and regression on features."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from vgan_fast.classifier_step import ClassifierStep
from vgan_fast.kernels.frames.reference import normalise_frames
from vgan_fast.models import Discriminator
from vgan_fast.sampling import autocast_of
from vgan_fast.settings import Settings
from vgan_fast.transfer.data import LabelledClips

EVALUATED = 64  # clips at a time
INVERSE_PENALTY = 1e-3  # C of the logistic regression, on standardised features
ITERATIONS = 1000  # most of its solver


def trained_probabilities(
    videos: LabelledClips,
    train: np.ndarray,
    test: np.ndarray,
    settings: Settings,
    pretrained: Discriminator | None,
    progress: Callable[[], object],
) -> np.ndarray:
    """Train a classifier; the probabilities of the classes for each test clip.

    Batches go through the training videos in a new order each epoch, one of a video's clips drawn
    at a time.

    Args:
        videos: all.
        train, test: numbers of those to train on and of those to test on.
        settings: with steps, batch size, learning rate and seed of this training, resolved.
        pretrained: whose body to start from; None for a fresh one.
        progress: called after each step.

    Returns:
        fp32 (len(test), K, classes).
    """
    step = ClassifierStep(settings, len(videos.classes), pretrained)
    labels = torch.from_numpy(videos.labels)
    for numbers, clips in _batches(train, videos.clips.shape[1], settings):
        step(
            videos.clips[numbers, clips].to(step.device),
            labels[numbers].to(step.device),
        )
        progress()
    probabilities = step.probabilities(_all_clips(videos, test, step.device))
    return probabilities.view(len(test), -1, len(videos.classes)).numpy()


def frozen_features(
    videos: LabelledClips, discriminator: Discriminator, settings: Settings
) -> np.ndarray:
    """What the discriminator's last layer takes, flattened: fp32 (V, K, features).

    In evaluation mode: normalised by the statistics that its training left.
    """
    numbers = np.arange(len(videos.labels))
    made = []
    device = torch.device(settings.device)
    with torch.no_grad(), autocast_of(settings, device):
        for frames in _all_clips(videos, numbers, device):
            body = discriminator.layers[:-1](normalise_frames(frames))
            made.append(body.float().flatten(1).cpu().numpy())
    return np.concatenate(made).reshape(len(numbers), -1, made[0].shape[1])


def regressed_probabilities(
    features: np.ndarray, videos: LabelledClips, train: np.ndarray, test: np.ndarray
) -> np.ndarray:
    """Logistic regression on standardised features of every training clip, as above."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    clips = features.shape[1]
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=ITERATIONS)
    )
    model.fit(features[train].reshape(-1, features.shape[2]), videos.labels[train].repeat(clips))
    probabilities = model.predict_proba(features[test].reshape(-1, features.shape[2]))
    return probabilities.reshape(len(test), clips, -1)


def _batches(
    train: np.ndarray, clips: int, settings: Settings
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers of videos and of a clip of each, batch after batch; few videos are repeated."""
    random = np.random.default_rng([settings.seed, 2])
    waiting = np.empty(0, np.int64)
    for _ in range(settings.steps):
        while len(waiting) < settings.batch_size:
            waiting = np.concatenate([waiting, random.permutation(train)])
        numbers, waiting = np.split(waiting, [settings.batch_size])
        yield numbers, random.integers(clips, size=len(numbers))


def _all_clips(
    videos: LabelledClips, numbers: np.ndarray, device: torch.device
) -> Iterator[Tensor]:
    """Every clip of the videos of these numbers, in order, uint8 (n, T, H, W, 3) on the device."""
    clips = videos.clips.shape[1]
    video, clip = numbers.repeat(clips), np.tile(np.arange(clips), len(numbers))
    for first in range(0, len(video), EVALUATED):
        part = slice(first, first + EVALUATED)
        yield videos.clips[video[part], clip[part]].to(device)
