"""Which videos train and which test."""

import itertools

import numpy as np
import pytest
import torch

from vgan_fast.errors import UserError
from vgan_fast.transfer.data import (
    LabelledClips,
    drawn_test,
    find_splits,
    given_test,
    labelled_part,
)


def videos(labels, prefix="v", classes=("a", "b", "c"), **options):
    clips = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1, 1, 1)
    names = [f"{prefix}{i}" for i in range(len(labels))]
    return LabelledClips(clips, np.array(labels), list(classes), names, **options)


def test_a_drawn_test_set_holds_a_share_of_each_class_and_no_training_video():
    labels = [0] * 20 + [1] * 8 + [2] * 2
    experiment = drawn_test(videos(labels), 0.25)
    for seed in range(3):
        train, test = experiment.divide(seed)
        assert sorted([*train, *test]) == list(range(30))
        assert np.bincount(np.array(labels)[test]).tolist() == [5, 2, 1]
    assert experiment.divide(0)[1].tolist() == experiment.divide(0)[1].tolist()
    assert experiment.divide(0)[1].tolist() != experiment.divide(1)[1].tolist()
    # However large the share, a video of each class is left to train on.
    assert set(np.array(labels)[drawn_test(videos(labels), 0.99).divide(0)[0]]) == {0, 1, 2}


def test_smaller_parts_are_nested_stratified_and_have_every_class():
    labels = np.array([0] * 40 + [1] * 16 + [2] * 3)
    train = np.arange(0, 59)
    parts = [labelled_part(labels, train, f, seed=4) for f in (1, 0.5, 0.25, 0.125)]
    assert parts[0].tolist() == train.tolist()
    for larger, smaller in itertools.pairwise(parts):
        assert set(smaller) < set(larger)
    assert np.bincount(labels[parts[3]]).tolist() == [5, 2, 1]
    assert labelled_part(labels, train, 0.125, seed=5).tolist() != parts[3].tolist()
    few = train[::2]
    assert set(labelled_part(labels, few, 0.5, seed=4)) <= set(few)


def test_given_test_videos_are_matched_by_class_name():
    train = videos([0, 1, 2])
    test = videos([0, 1, 1, 2], "t", classes=("c", "a", "b"))
    experiment = given_test(train, test)
    numbers, tested = experiment.divide(9)
    assert numbers.tolist() == [0, 1, 2]
    assert [experiment.videos.classes[k] for k in experiment.videos.labels[tested]] == list("caab")
    assert experiment.videos.clips[tested].flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: drawn_test(videos([0, 0, 1, 1, 2]), 0.5), "class c: has 1 videos to divide"),
        (lambda: drawn_test(videos([0, 0, 1, 1, 2, 2], in_shards=True), 0.5), "--test"),
        (lambda: given_test(videos([0, 1, 2]), videos([0, 1, 2])), "v0: is in the training set"),
        (lambda: given_test(videos([0, 1, 2]), videos([0, 1], "t")), "class c: has 0 videos in"),
        (
            lambda: given_test(videos([0, 1]), videos([0], "t", classes=("d", "a"))),
            "its class d is not among",
        ),
    ],
)
def test_divisions_that_cannot_be_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.fixture
def lists(tmp_path):
    (tmp_path / "classInd.txt").write_text("1 Archery\n")
    for number in (1, 2, 3):
        for part in ("train", "test"):
            (tmp_path / f"{part}list0{number}.txt").write_text("")
    return tmp_path


def test_a_training_list_of_ucf101_brings_its_test_list(lists):
    def names(*arguments):
        return [(a.name, b.name) for a, b in find_splits(*arguments)]

    of = [(f"trainlist0{k}.txt", f"testlist0{k}.txt") for k in (1, 2, 3)]
    assert names(lists / "trainlist02.txt", None, None) == [of[1]]
    assert names(lists / "trainlist02.txt", None, "3") == [of[2]]
    assert names(lists / "trainlist01.txt", None, "all") == of
    assert names(lists, None, None) == [of[0]]
    mine = lists / "mine.txt"
    assert find_splits(lists / "trainlist01.txt", mine, None) == [(lists / "trainlist01.txt", mine)]
    assert find_splits(mine, None, None) == [(mine, None)]


def test_splits_that_are_not_there_are_refused(lists):
    with pytest.raises(UserError, match=r"--split 2: .*is no training list of UCF101"):
        find_splits(lists / "mine.txt", None, "2")
    with pytest.raises(UserError, match="leave out --test or --split"):
        find_splits(lists, lists / "mine.txt", "1")
    (lists / "testlist03.txt").unlink()
    with pytest.raises(UserError, match=r"testlist03.txt: is not there"):
        find_splits(lists, None, "all")
