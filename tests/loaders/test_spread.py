"""Clips spread evenly over each file, to look at all of them."""

import torch
from loader_media import numbers, write_strip

from vgan_fast.loaders.clips import open_clips
from vgan_fast.loaders.epochs import Spread


def test_every_file_gives_its_clips_in_order_and_the_last_batch_wraps_round():
    spread = Spread(files=3, clips=3, batch_size=4)
    assert spread.batches == 3
    samples = [sample for number in range(3) for sample in spread.batch(number)]
    assert [s.file for s in samples] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0]
    assert [round(s.place, 6) for s in samples[:3]] == [0, 0.5, 1]
    assert all(s.place < 1 for s in samples)
    again = spread.batch(3)
    assert [(s.file, s.place) for s in again] == [(s.file, s.place) for s in samples[:4]]
    assert [s.place for s in Spread(2, 1, 2).batch(0)] == [0.5, 0.5]


def test_the_first_clip_begins_with_its_file_and_the_last_ends_with_it(tmp_path):
    for name, frames in (("a", 12), ("b", 20)):
        write_strip(tmp_path / f"{name}.jpg", frames)
    with open_clips(
        tmp_path,
        frames=4,
        size=32,
        batch_size=3,
        seed=0,
        device=torch.device("cpu"),
        decoded=tmp_path / "decoded",
        spread=3,
        cache="none",
    ) as loader:
        for frames in (12, 20):
            clips = loader.next_batch().numpy()
            first = [round(numbers(clip)[0]) for clip in clips]
            assert first == [0, (frames - 3) // 2, frames - 4]
            assert {file.length for file in loader.shown} == {frames}
