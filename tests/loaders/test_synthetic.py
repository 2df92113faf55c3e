import pytest
import torch

from vgan_fast.loaders.synthetic import OBJECTS, SyntheticClips
from vgan_fast.loaders.synthetic_motions import SyntheticMotions


def source(**changes):
    return SyntheticClips(**{"frames": 16, "size": 32, "batch_size": 4, "seed": 5, **changes})


def test_a_clip_is_a_function_of_seed_and_index_alone():
    batch = source(batch_size=6).next_batch()
    again = source(batch_size=2, position=1)
    assert torch.equal(again.next_batch(), batch[2:4])
    assert torch.equal(again.next_batch(), batch[4:6])
    assert again.position == 3
    assert not torch.equal(source(seed=6).next_batch(), batch[:4])


@pytest.mark.parametrize("kind", [SyntheticClips, SyntheticMotions])
def test_ranks_share_each_batch(kind):
    given = {"frames": 4, "size": 16, "seed": 5}
    whole = kind(batch_size=6, **given)
    parts = [kind(batch_size=2, rank=rank, ranks=3, **given) for rank in range(3)]
    for _ in range(3):
        batch = whole.next_batch()
        assert torch.equal(torch.cat([part.next_batch() for part in parts]), batch)
    resumed = kind(batch_size=3, rank=1, ranks=2, position=3, **given)  # on fewer
    assert torch.equal(resumed.next_batch(), whole.next_batch()[3:])


def test_splits_share_no_clip():
    train, held_out = source().next_batch(), source(split="held-out").next_batch()
    assert not any(torch.equal(a, b) for a in train for b in held_out)


def test_batches_are_what_a_loader_promises():
    batch = source(frames=8, size=16).next_batch()
    assert batch.shape == (4, 8, 16, 16, 3)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()


@pytest.fixture(scope="module")
def many():
    return source(batch_size=64).next_batch_with_masks()


def test_only_masked_pixels_move(many):
    clips, cover = many
    clear = (cover == 0).all(dim=1)  # Never touched by an object, (N, H, W).
    assert 0.2 < clear.float().mean() < 0.9
    changes = (clips.float() - clips[:, :1].float()).abs().amax(dim=(1, 4))
    assert changes[clear].max() == 0
    moved = changes.amax(dim=(1, 2))
    assert (moved > 20).float().mean() > 0.95


def test_masked_pixels_show_objects_that_keep_their_colour(many):
    clips, cover = many
    for clip, covered in zip(clips, cover == 1, strict=True):
        _, pixels = clip[covered].unique(dim=0, return_counts=True)
        objects = pixels.topk(min(OBJECTS, len(pixels))).values.sum()
        assert objects > 0.8 * pixels.sum()  # The rest are edges in front of another object.


def test_masks_cover_a_small_moving_part_and_backgrounds_are_textured(many):
    clips, cover = many
    assert 0.05 < cover.mean() < 0.3
    assert cover.min() >= 0
    assert cover.max() <= 1
    centre = (cover * torch.arange(32.0)).sum(dim=(2, 3)) / cover.sum(dim=(2, 3)).clamp(min=1)
    travel = centre.amax(1) - centre.amin(1)
    assert travel.median() > 2
    stills = clips.float().median(dim=1).values
    assert stills.std(dim=(1, 2)).mean() > 10


def test_every_count_of_objects_occurs(many):
    _, cover = many
    areas = cover.sum(dim=(2, 3)).mean(dim=1)
    assert areas.max() > 3 * areas.min()
