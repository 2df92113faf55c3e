"""Augmentation: parameters cover their ranges, and every frame of a clip gets the same ones."""

import cv2
import numpy as np
import pytest
import torch

from vgan_fast.errors import UserError
from vgan_fast.loaders.augment import ASPECT, DRAWS, Augmentation
from vgan_fast.loaders.clips import open_clips
from vgan_fast.loaders.epochs import Epochs

EVERYTHING = Augmentation(
    crop=0.4, flip=True, brightness=0.3, contrast=0.2, saturation=0.5, hue=40.0
)
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def drawn(augmentation: Augmentation, count: int = 4000) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0).random((count, DRAWS))
    parameters = [augmentation.parameters(u) for u in draws]
    return {name: np.array([p[name] for p in parameters]) for name in augmentation.varied}


def test_crops_cover_areas_aspects_and_places():
    parameters = drawn(EVERYTHING)
    top_left, bottom_right = parameters["top_left"], parameters["bottom_right"]
    height, width = (bottom_right - top_left).T
    area = height * width
    assert 0.4 - 1e-6 <= area.min() < 0.41
    assert 0.99 < area.max() <= 1 + 1e-6
    np.testing.assert_allclose(np.quantile(area, [0.25, 0.5, 0.75]), [0.55, 0.7, 0.85], atol=0.02)
    aspect = width / height
    assert 1 / ASPECT - 1e-5 <= aspect.min() < 1 / ASPECT + 0.01
    assert ASPECT - 0.02 < aspect.max() <= ASPECT + 1e-5
    assert top_left.min() >= 0
    assert bottom_right.max() <= 1 + 1e-6
    room = 1 - (bottom_right - top_left)
    place = (top_left / np.maximum(room, 1e-6))[area < 0.9]
    assert place.min() < 0.01
    assert place.max() > 0.99
    np.testing.assert_allclose(place.mean(axis=0), 0.5, atol=0.03)


def test_mirrors_and_colours_cover_their_ranges():
    parameters = drawn(EVERYTHING)
    assert set(parameters["mirror"].tolist()) == {0, 1}
    assert abs(parameters["mirror"].mean() - 0.5) < 0.03
    ranges = dict(brightness=(1, 0.3), contrast=(1, 0.2), saturation=(1, 0.5), hue=(0, 40))
    for name, (middle, spread) in ranges.items():
        values = parameters[name]
        assert middle - spread <= values.min() < middle - 0.99 * spread
        assert middle + 0.99 * spread < values.max() <= middle + spread
        np.testing.assert_allclose(values.mean(), middle, atol=0.03 * spread)


def test_parameters_are_independent_of_each_other():
    p = drawn(EVERYTHING)
    height, width = (p["bottom_right"] - p["top_left"]).T
    places = (p["top_left"] / np.maximum(1 - (p["bottom_right"] - p["top_left"]), 1e-6)).T
    colours = (p[name] for name in ("brightness", "contrast", "saturation", "hue"))
    each = np.array([height * width, width / height, *places, p["mirror"], *colours])
    correlation = np.corrcoef(each) - np.eye(len(each))
    assert np.abs(correlation).max() < 0.07  # 4000 draws: standard deviation 0.016


def test_the_smallest_crop_still_has_the_pixels_of_a_clip():
    assert Augmentation().side(32) == 32
    assert Augmentation(crop=0.25).side(32) == 64
    assert Augmentation(crop=0.5).side(32) == 46


@pytest.mark.parametrize(
    "wrong",
    [dict(crop=0), dict(crop=2), dict(brightness=-0.1), dict(contrast=2), dict(hue=float("nan"))],
    ids=str,
)
def test_values_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"--{name} .*: must lie between"):
        Augmentation(**wrong)


def test_only_what_is_asked_for_varies():
    assert Augmentation().varied == []
    assert Augmentation(crop=0.9).varied == ["top_left", "bottom_right"]
    assert Augmentation(flip=True).varied == ["mirror"]
    parameters = drawn(Augmentation(contrast=0.1), 50)
    assert set(parameters) == {"brightness", "contrast", "saturation", "hue"}
    assert np.ptp(parameters.pop("contrast")) > 0.1
    assert [np.unique(values).tolist() for values in parameters.values()] == [[1], [1], [0]]


def scene() -> np.ndarray:
    """A smooth picture of 90x90 with a bright marker left of and above its centre."""
    rows, columns = np.mgrid[:90, :90]
    picture = np.stack([60 + columns, 50 + rows, 120 + 0 * rows], -1).astype(np.uint8)
    return cv2.circle(picture, (35, 30), 9, (235, 215, 200), -1, cv2.LINE_AA)


def opened(folder, augmentation: Augmentation, device: str = "cpu", **changes):
    """Clips of 6 frames, all frames alike, as 32x32."""
    if not (folder / "a.npy").exists():
        np.save(folder / "a.npy", np.broadcast_to(scene(), (4, 6, 90, 90, 3)))
    settings = dict(frames=6, size=32, batch_size=4, seed=5, workers=2, cache="none")
    return open_clips(
        folder,
        decoded=folder / "decoded",
        device=torch.device(device),
        augmentation=augmentation,
        **settings | changes,
    )


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_all_frames_of_a_clip_are_transformed_alike_and_clips_differ(tmp_path, device, cache):
    with opened(tmp_path, EVERYTHING, device, cache=cache) as loader:
        clips = torch.cat([loader.next_batch() for _ in range(4)]).cpu()
    assert clips.shape == (16, 6, 32, 32, 3)
    assert torch.equal(clips, clips[:, :1].expand_as(clips))
    apart = (clips[:, None, 0].float() - clips[None, :, 0].float()).abs().mean((2, 3, 4))
    assert apart[~torch.eye(16, dtype=torch.bool)].min() > 2


def by_hand(augmentation: Augmentation, u: np.ndarray) -> np.ndarray:
    """What becomes of the scene, in OpenCV and plain arithmetic: fp32 (32, 32, 3)."""
    side = augmentation.side(32)
    square = cv2.resize(scene(), (side, side), interpolation=cv2.INTER_AREA)
    neutral = dict(top_left=np.zeros(2), bottom_right=np.ones(2), mirror=0)
    drawn = neutral | dict(brightness=1, contrast=1, saturation=1) | augmentation.parameters(u)
    (top, left), (bottom, right) = drawn["top_left"] * side, drawn["bottom_right"] * side
    # Pixel centres of the crop's 32x32 grid in the square.
    x = left + (np.arange(32) + 0.5) * (right - left) / 32 - 0.5
    y = top + (np.arange(32) + 0.5) * (bottom - top) / 32 - 0.5
    grid = np.meshgrid(np.float32(x), np.float32(y))
    shown = cv2.remap(square, *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    shown = shown[:, ::-1] if drawn["mirror"] else shown
    grey = shown @ np.array([0.299, 0.587, 0.114])
    coloured = grey[..., None] + drawn["saturation"] * (shown - grey[..., None])
    return (drawn["brightness"] * (128 + drawn["contrast"] * (coloured - 128))).clip(0, 255)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(crop=0.4),
        Augmentation(flip=True),
        Augmentation(brightness=0.3),
        Augmentation(contrast=0.5),
        Augmentation(saturation=0.8),
        Augmentation(crop=0.4, flip=True, brightness=0.2, contrast=0.2, saturation=0.5),
    ],
    ids=["crop", "flip", "brightness", "contrast", "saturation", "all"],
)
def test_each_clip_is_what_its_parameters_say(tmp_path, augmentation, device):
    epochs = Epochs([1] * 4, 4, seed=5)
    with opened(tmp_path, augmentation, device) as loader:
        for number in range(3):
            batch = loader.next_batch().cpu().numpy()
            for clip, sample in zip(batch, epochs.batch(number), strict=True):
                expected = by_hand(augmentation, sample.draws)
                assert np.abs(clip[3] - expected).mean() < 2


def test_hue_turns_colours_and_keeps_lightness_and_greys(tmp_path):
    colours = np.zeros((4, 6, 32, 64, 3), np.uint8)
    colours[..., :32, :] = 90  # grey
    colours[..., 32:, :] = (150, 110, 90)
    np.save(tmp_path / "a.npy", colours)
    with opened(tmp_path, Augmentation(hue=90.0)) as loader:
        clips = torch.cat([loader.next_batch() for _ in range(8)])[:, 0].float()
    grey, orange = clips[:, 16, 2], clips[:, 16, -3]
    assert (grey - 90).abs().max() <= 1
    weights = torch.tensor([0.299, 0.587, 0.114])
    assert (orange @ weights - torch.tensor([150.0, 110, 90]) @ weights).abs().max() <= 2
    chroma = orange - (orange @ weights)[:, None]
    assert (chroma[:, 0] > 25).any()  # some hardly turned
    assert (chroma[:, 0] < 5).any()  # some turned far from red


def test_half_of_the_clips_are_mirrored_and_nothing_else(tmp_path):
    with opened(tmp_path, Augmentation()) as loader:
        plain = loader.next_batch()[0]
    with opened(tmp_path, Augmentation(flip=True)) as loader:
        clips = torch.cat([loader.next_batch() for _ in range(10)])
    mirrored = torch.stack([torch.equal(clip, plain.flip(2)) * torch.ones(1) for clip in clips])
    same = torch.stack([torch.equal(clip, plain) * torch.ones(1) for clip in clips])
    assert torch.all(mirrored + same == 1)
    assert 10 < mirrored.sum() < 30


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["none", "host", "gpu"])
def test_clips_of_the_gpu_equal_those_of_the_cpu(tmp_path, cache):
    with opened(tmp_path, EVERYTHING) as loader:
        expected = [loader.next_batch().float() for _ in range(4)]
    with opened(tmp_path, EVERYTHING, "cuda", cache=cache) as loader:
        for batch in expected:
            assert (loader.next_batch().cpu().float() - batch).abs().mean() < 2
