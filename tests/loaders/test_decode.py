"""One video to one file of frames: right pixels from either decoder, or one clear reason."""

import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
from loader_media import MARK, frame, numbers, write_video

from vgan_fast.loaders import decode
from vgan_fast.loaders.decode import (
    UndecodableError,
    decode_video,
    frames_by_opencv,
    frames_by_pyav,
)

DECODERS = {"opencv": frames_by_opencv, "pyav": frames_by_pyav}
CODECS = {
    "mpeg4": ("a.mp4", "mpeg4", "yuv420p"),
    "h264": ("a.mkv", "libx264", "yuv420p"),
    "mjpeg": ("a.avi", "mjpeg", "yuvj420p"),
    "vp9": ("a.webm", "libvpx-vp9", "yuv420p"),
    "mpeg2": ("a.mpg", "mpeg2video", "yuv420p"),
    "gif": ("a.gif", "gif", "rgb8"),
}


def load(path) -> np.ndarray:
    array = np.load(path, allow_pickle=False)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    return array


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_in_order_in_colour_and_upright(tmp_path, codec, decoder):
    name, encoder, pix_fmt = CODECS[codec]
    source = write_video(tmp_path / name, encoder, 12, pix_fmt=pix_fmt)
    clip = np.stack(list(DECODERS[decoder](source)))
    assert clip.shape == (12, 48, 48, 3)
    # gif has 8 levels of red and green and 4 of blue: its greys are 36 levels apart
    tolerance = 10 if codec == "gif" else 0.75
    np.testing.assert_allclose(numbers(clip), np.arange(12), atol=tolerance)
    red = clip[:, 2 : MARK - 2, 2 : MARK - 2].mean((0, 1, 2))
    assert red[0] > 180
    assert red[1:].max() < 80


def test_pyav_takes_over_where_opencv_gets_nothing(tmp_path):
    source = write_video(tmp_path / "a.mkv", "libsvtav1", 12, (64, 64))
    assert list(frames_by_opencv(source)) == []  # or this test has lost its subject
    decode_video(source, tmp_path / "frames.npy", 64)
    np.testing.assert_allclose(numbers(load(tmp_path / "frames.npy")), np.arange(12), atol=0.75)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied_once(tmp_path, rotation, decoder):
    source = write_video(tmp_path / "a.mp4", "libx264", 3, (48, 64), rotation=rotation)
    clip = np.stack(list(DECODERS[decoder](source)))
    expected = np.rot90(frame(0, 48, 64), rotation // 90)
    assert clip.shape[1:] == expected.shape
    assert np.abs(clip[0].astype(int) - expected).mean() < 6


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    ("size", "short_side", "stored"),
    [((48, 48), 64, (48, 48)), ((96, 128), 32, (32, 43)), ((128, 96), 64, (85, 64))],
    ids=["small stays", "wide", "tall"],
)
def test_short_side_is_scaled_down_and_aspect_kept(
    tmp_path, monkeypatch, decoder, size, short_side, stored
):
    if decoder == "pyav":
        monkeypatch.setattr(decode, "frames_by_opencv", lambda source: iter(()))
    source = write_video(tmp_path / "a.mp4", "libx264", 3, size)
    decode_video(source, tmp_path / "frames.npy", short_side)
    frames = load(tmp_path / "frames.npy")
    assert frames.shape == (3, *stored, 3)
    expected = cv2.resize(frame(2, *size), stored[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(frames[2].astype(int) - expected).mean() < 3


def test_scaling_down_averages(tmp_path):
    """Of stripes one pixel wide, picking pixels would leave black or white."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"FFV1"), 25, (64, 64))
    writer.write(stripes)
    writer.release()
    decode_video(tmp_path / "a.avi", tmp_path / "frames.npy", 32)
    assert np.abs(load(tmp_path / "frames.npy") - 127.5).max() < 2


def test_frames_are_counted_not_believed(tmp_path):
    whole = write_video(tmp_path / "a.avi", "mjpeg", 40, pix_fmt="yuvj420p")
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    claimed = cv2.VideoCapture(str(cut), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT)
    decode_video(cut, tmp_path / "frames.npy", 64)
    frames = load(tmp_path / "frames.npy")
    assert 10 < len(frames) < 30 < claimed
    np.testing.assert_allclose(numbers(frames), np.arange(len(frames)), atol=0.75)


def test_frames_before_an_error_are_kept(tmp_path, monkeypatch):
    """PyAV raises in the midst of damaged streams; OpenCV only stops."""
    monkeypatch.setattr(decode, "frames_by_opencv", lambda source: iter(()))
    source = write_video(tmp_path / "a.mp4", "libx264", 5)
    real = av.container.InputContainer.decode

    class Failing:
        def __init__(self, container):
            self.streams = container.streams
            self.container = container

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

        def decode(self, video):
            for number, picture in enumerate(real(self.container, video=video)):
                if number == 3:
                    raise av.error.InvalidDataError(1, "damaged")
                yield picture

    opened = av.open(str(source))
    monkeypatch.setattr(av, "open", lambda path: Failing(opened))
    decode_video(source, tmp_path / "frames.npy", 64)
    assert len(load(tmp_path / "frames.npy")) == 3


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def no_index(path):
    """An MP4 that lost its end lost its index, and with it everything."""
    whole = write_video(path.with_name("whole.mp4")).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


BROKEN = {
    "zero bytes": ("a.mp4", lambda path: path.write_bytes(b""), "Invalid data"),
    "text": ("a.mp4", lambda path: path.write_text("not a video" * 99), "Invalid data"),
    "sound only": ("a.mkv", audio_only, "no video stream"),
    "cut off": ("a.mp4", no_index, "Invalid data"),
    "tiny": ("a.mkv", lambda path: write_video(path, "ffv1", 3, (4, 6)), "6x4 pixels"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_has_a_reason(tmp_path, case):
    name, make, reason = BROKEN[case]
    make(tmp_path / name)
    with pytest.raises(UndecodableError, match=reason):
        decode_video(tmp_path / name, tmp_path / "frames.npy", 64)


def test_absurdly_large_frames_are_refused_before_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 2000)
    source = write_video(tmp_path / "a.mp4", "libx264", 3)
    with pytest.raises(UndecodableError, match="48x48 pixels: over 2000"):
        decode_video(source, tmp_path / "frames.npy", 64)


def test_worker_module_stays_light():
    """Every worker imports it: torch would cost each of them seconds."""
    check = (
        "import sys, vgan_fast.loaders.decode;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'nvidia.dali', 'cv2', 'av')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
