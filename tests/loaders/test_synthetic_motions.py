"""The labelled synthetic set: motions tell its classes, single frames do not."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from vgan_fast.loaders.synthetic_motions import CLASSES, SyntheticMotions


def source(**changes):
    return SyntheticMotions(**{"frames": 16, "size": 16, "batch_size": 4, "seed": 5, **changes})


@pytest.fixture(scope="module")
def many():
    clips, labels = source(batch_size=3000).next_batch_with_labels()
    return clips.numpy(), labels.numpy()


def test_a_clip_and_its_label_are_functions_of_seed_and_index_alone():
    clips, labels = source(batch_size=6).next_batch_with_labels()
    again = source(batch_size=2, position=1)
    for part in (slice(2, 4), slice(4, 6)):
        more, of_them = again.next_batch_with_labels()
        assert torch.equal(more, clips[part])
        assert torch.equal(of_them, labels[part])
    assert torch.equal(source(batch_size=6).next_batch(), clips)
    assert not torch.equal(source(batch_size=6, seed=6).next_batch(), clips)
    others = source(batch_size=6, split="held-out").next_batch()
    assert not any(torch.equal(a, b) for a in clips for b in others)


def test_every_class_is_as_frequent(many):
    counts = np.bincount(many[1], minlength=len(CLASSES))
    least, most = binom.interval(0.9999, len(many[1]), 1 / len(CLASSES))
    assert (counts >= least).all()
    assert (counts <= most).all()


def told_right(model, features, labels):
    """Share of the second half told right after training on the first."""
    half = len(labels) // 2
    return (
        model.fit(features[:half], labels[:half]).predict(features[half:]) == labels[half:]
    ).sum()


def paths(clips):
    """Where the moving part is from frame to frame, as angles: (N, T, 2)."""
    moving = np.abs(clips - np.median(clips, axis=1, keepdims=True).astype(float)).sum(-1)
    turn = np.exp(2j * np.pi * np.arange(clips.shape[2]) / clips.shape[2])
    return np.angle(np.stack([moving.sum(2) @ turn, moving.sum(3) @ turn], axis=-1))


def motion(clips):
    """Statistics of the displacements of the moving part's centre."""
    steps = np.angle(np.exp(1j * np.diff(paths(clips), axis=1)))
    x, y = steps[..., 0], steps[..., 1]
    turning = x[:, :-1] * y[:, 1:] - y[:, :-1] * x[:, 1:]
    of = [np.median(x, 1), np.median(y, 1), np.abs(x).mean(1), np.abs(y).mean(1)]
    return np.stack([*of, np.median(turning, 1)], axis=1)


@pytest.mark.parametrize("moment", ["first", "last", "any"])
def test_a_classifier_of_single_frames_stays_at_chance(many, moment):
    clips, labels = many
    number = {"first": 0, "last": 15, "any": np.random.default_rng(0).integers(16, size=3000)}
    frames = clips[np.arange(3000), number[moment]].reshape(3000, -1) / 255.0
    right = told_right(LogisticRegression(C=1e-2, max_iter=200), frames, labels)
    least, most = binom.interval(0.999, 1500, 1 / len(CLASSES))
    assert least <= right <= most


def test_a_simple_statistic_of_motion_tells_the_classes(many):
    clips, labels = many
    right = told_right(LinearDiscriminantAnalysis(), motion(clips), labels)
    assert right > 0.5 * 1500


@pytest.mark.parametrize("moment", [0, 7, 15])
def test_objects_are_anywhere_at_every_moment_in_every_class(moment):
    """The mean cover by column and row is flat, class by class."""
    clips = source(batch_size=2000)
    labels = clips.next_batch_with_labels()[1]
    clips.position = 0
    cover = clips.next_batch_with_masks()[1][:, moment]
    for label in range(len(CLASSES)):
        of_class = cover[labels == label]
        for axis in (1, 2):
            by_place = of_class.mean(axis)
            error = by_place.std(0) / len(by_place) ** 0.5
            assert ((by_place.mean(0) - by_place.mean()).abs() < 4.5 * error).all()
