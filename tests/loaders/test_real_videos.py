"""The set of real videos against an independent decode; VGAN_FAST_TEST_VIDEOS names its folder."""

import os
from pathlib import Path

import av
import numpy as np
import pytest

from vgan_fast.loaders.cache import decode_videos
from vgan_fast.loaders.decode import decode_source
from vgan_fast.loaders.decoders import Settings
from vgan_fast.loaders.search import VIDEO_SUFFIXES, Source

FOLDER = os.environ.get("VGAN_FAST_TEST_VIDEOS")
pytestmark = pytest.mark.skipif(not FOLDER, reason="VGAN_FAST_TEST_VIDEOS is not set")
PATHS = {
    path.relative_to(FOLDER).as_posix(): path
    for path in (sorted(Path(FOLDER).rglob("*")) if FOLDER else ())
    if path.suffix.lower() in VIDEO_SUFFIXES
}
SHORT_SIDE = 96
FPS = 10.0

BROKEN = {
    "odd/moviepy_test_video.mp4": "1x1 pixels: under 8 a side",
    "odd/streamio_broken.mp4": "PyAV: Invalid data found when processing input;"
    " OpenCV cannot open it",
    "odd/streamio_empty.flv": "PyAV: Invalid data found when processing input;"
    " OpenCV cannot open it",
}
GOOD = [name for name in PATHS if name not in BROKEN]
COUNTS = {
    "static/bgslib_video02.avi": 748,
    "static/car-detection.mp4": 377,
    "static/flower.webm": 150,
    "odd/dvrscan_traffic_camera_vfr.mp4": 576,
    "odd/decord_video_90.mov": 3,
    "odd/torchcodec_h265_video.mp4": 10,
}
# Quarter turns, counter-clockwise, that bring a stored frame upright.
TURNS = {"odd/decord_video_90.mov": -1}
# Its time stamps step back, B-frames being packed: decode order at the nominal rate is right.
RATES = {"static/bgslib_video02.avi": 25}
RESAMPLED = [
    *("static/bgslib_video02.avi", "static/flower.webm", "odd/dvrscan_traffic_camera_vfr.mp4"),
    *("odd/decord_video_90.mov", "odd/torchcodec_h265_video.mp4", "action/signer_a/again.mkv"),
    "handheld/libopenshot_run.mp4",
]
LARGE = ("odd/dvrscan_traffic_camera_vfr.mp4", "texture/fire_pot0.avi")


def decoded(names, cache, fps):
    sources = [Source(PATHS[name], "video") for name in names]
    videos, skipped = decode_videos(sources, cache, short_side=SHORT_SIDE, fps=fps, workers=2)
    names = {path: name for name, path in PATHS.items()}
    return (
        {names[video.source]: video for video in videos},
        {names[path]: reason for path, reason in skipped.items()},
    )


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    return decoded(PATHS, tmp_path_factory.mktemp("native"), None)


@pytest.fixture(scope="module")
def resampled(tmp_path_factory):
    return decoded(RESAMPLED, tmp_path_factory.mktemp("resampled"), FPS)


@pytest.fixture(scope="module")
def independent():
    """Decode a file by PyAV alone: its times, and three upright frames of full size by number."""
    known = {}

    def of(name: str) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        if name not in known:
            times, kept, last = [], {}, None
            with av.open(str(PATHS[name])) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for last in container.decode(stream):
                    if len(times) in (0, stream.frames // 2 or 25):
                        kept[len(times)] = last
                    times.append(last.time)
            kept[len(times) - 1] = last
            turns = TURNS.get(name, 0)
            images = {
                number: np.rot90(picture.to_ndarray(format="rgb24"), turns)
                for number, picture in kept.items()
            }
            known[name] = np.array(times) - times[0], images
        return known[name]

    return of


def averaged(pixels: np.ndarray, size: int) -> np.ndarray:
    """Scale the first axis to `size` by the mean over what each new pixel covers."""
    sums = np.concatenate([np.zeros_like(pixels[:1]), pixels.cumsum(0)])
    whole, part = np.divmod(np.linspace(0, len(pixels), size + 1), 1)
    whole = np.minimum(whole.astype(int), len(pixels) - 1)
    part = np.append(part[:-1], 1)[:, None, None]
    return np.diff(sums[whole] + part * pixels[whole], axis=0) * size / len(pixels)


def difference(image: np.ndarray, frame: np.ndarray) -> float:
    """Mean absolute difference in grey levels, after scaling the image to the frame's size."""
    height, width = frame.shape[:2]
    scaled = averaged(averaged(image.astype(float), height).swapaxes(0, 1), width).swapaxes(0, 1)
    return float(np.abs(scaled - frame).mean())


def check(frames: np.ndarray, images: dict[int, np.ndarray]) -> None:
    """The frames are those of the images, and none is its neighbour's."""
    for number, image in images.items():
        assert difference(image, frames[number]) < 2
        for other in {max(0, number - 1), min(number + 1, len(frames) - 1)} - {number}:
            if np.any(frames[other] != frames[number]):
                assert difference(image, frames[number]) < difference(image, frames[other])


def test_every_file_is_decoded_or_has_one_clear_line(native):
    videos, skipped = native
    assert list(videos) == GOOD
    assert skipped == BROKEN
    assert {name: videos[name].length for name in COUNTS} == COUNTS


@pytest.mark.parametrize("name", GOOD)
def test_frames_match_an_independent_decode(native, independent, name):
    video = native[0][name]
    times, images = independent(name)
    assert video.length == len(times)
    frames = video.read(0, video.length)
    check(frames, images)
    height, width = images[0].shape[:2]
    assert min(frames.shape[1:3]) == SHORT_SIDE
    assert frames.shape[2] / frames.shape[1] == pytest.approx(width / height, rel=0.01)
    span = (len(times) - 1) / RATES[name] if name in RATES else times[-1]
    assert video.rate == pytest.approx((len(times) - 1) / span, rel=0.01)


@pytest.mark.parametrize("name", [name for name in GOOD if name not in LARGE])
def test_pyav_gives_the_same(tmp_path, independent, name):
    settings = Settings(SHORT_SIDE, fps=None, threads=2)
    decode_source(PATHS[name], tmp_path / "frames.npy", "PyAV", settings)
    times, images = independent(name)
    frames = np.load(tmp_path / "frames.npy", allow_pickle=False)
    assert len(frames) == len(times)
    check(frames, images)


@pytest.mark.parametrize("name", RESAMPLED)
def test_frames_are_those_nearest_in_time(native, resampled, independent, name):
    every, sampled = native[0][name], resampled[0][name]
    times, _ = independent(name)
    if name in RATES:
        times = np.arange(len(times)) / RATES[name]
    end = times[-1] + (times[-1] - times[-2]) / 2
    moments = np.arange(0, end - 1e-6, 1 / FPS)
    # argmin takes the first of equals, the earlier frame; rounding makes equals equal.
    nearest = np.abs(moments[:, None] - times).round(6).argmin(1)
    assert sampled.length == len(moments)
    assert sampled.rate == FPS
    expected = every.read(0, every.length)[nearest]
    np.testing.assert_array_equal(sampled.read(0, sampled.length), expected)
