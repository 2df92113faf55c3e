import pytest
import torch

from benchmarks.metric_sensitivity import (
    DAMAGES,
    blur,
    frame_detector,
    freeze,
    held_out,
    measured,
    noise,
    seen_by,
    shuffle,
    verdicts,
)
from vgan_fast.evaluation.detectors import random_detector
from vgan_fast.evaluation.metrics import frechet_distance

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def distances():
    detectors = {"random": random_detector(CPU), "frames": frame_detector()}
    return [row[:3] for row in measured(detectors, frames=16, size=16, count=96)]


@pytest.mark.parametrize("damage", ["noise", "blur", "shuffle", "freeze"])
def test_more_damage_is_farther_and_seen(distances, damage):
    """By the random detector, beyond the distance between real clips."""
    floor = distances[0][2]["random"]
    of = [d["random"] for name, _, d in distances if name == damage]
    assert len(of) == 4
    assert of == sorted(of)
    assert of[-1] > 1.3 * floor


def test_single_frames_do_not_tell_a_shuffle_or_the_direction_of_time(distances):
    floor = distances[0][2]["frames"]
    for damage in ("shuffle", "reverse"):
        of = [d["frames"] for name, _, d in distances if name == damage]
        assert of == pytest.approx([floor] * len(of), rel=1e-4)


def test_the_distance_between_real_clips_falls_with_their_count():
    detector = random_detector(CPU)
    of = [
        frechet_distance(
            seen_by(detector, held_out(16, 16, 0, n)), seen_by(detector, held_out(16, 16, n, n))
        )
        for n in (12, 48, 192)
    ]
    assert of[0] > 1.5 * of[1] > 1.5**2 * of[2]


def test_damages_do_what_they_say():
    random = torch.Generator().manual_seed(0)
    clips = torch.rand(3, 3, 8, 16, 16) * 2 - 1
    assert (noise(clips, 0.1, random) - clips).std() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(freeze(clips, 0.5, random)[:, :, :4], clips[:, :, :4])
    assert not freeze(clips, 0.5, random)[:, :, 4:].diff(dim=2).any()
    assert torch.equal(freeze(clips, 1, random), clips[:, :, :1].expand_as(clips))
    shuffled = shuffle(clips, 0.5, random)
    moved = (shuffled != clips).any(1).any(-1).any(-1)
    assert 0 < moved.sum(1).max() <= 4
    for of, was in zip(shuffled, clips, strict=True):
        order = [next(t for t in range(8) if torch.equal(of[:, i], was[:, t])) for i in range(8)]
        assert sorted(order) == list(range(8))
    spot = torch.zeros(1, 3, 2, 33, 33)
    spot[..., 16, 16] = 1
    smooth = blur(spot, 2, random)
    torch.testing.assert_close(smooth.sum((3, 4)), torch.ones(1, 3, 2))
    profile = smooth[0, 0, 0].sum(0)
    places = torch.arange(33) - 16
    assert float((profile * places**2).sum()) == pytest.approx(4, rel=0.05)
    torch.testing.assert_close(smooth, smooth.mT)


def test_verdicts_name_the_first_strength_beyond_the_floor():
    rows = [("none", "", {"d": 1.0})]
    of = {"noise": [1, 2, 3, 4], "blur": [3, 2, 1, 4], "freeze": [1, 1, 1, 1]}
    rows += [(name, f"s{i}", {"d": v}) for name, vs in of.items() for i, v in enumerate(vs)]
    lines = verdicts(rows, {"d": 1.5})
    assert len(lines) == len(DAMAGES)
    assert lines[0] == "| noise | s1 |"
    assert lines[1] == "| blur | s0, not monotone |"
    assert "| freeze | not at all |" in lines
