"""DALI's decoder: on a CPU with the codecs it has there, on a GPU with H.264."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
from loader_media import numbers, write_video

from vgan_fast.loaders import decoders, nvdec
from vgan_fast.loaders.decode import decode_source
from vgan_fast.loaders.decoders import Settings, UndecodableError, frames_by_pyav
from vgan_fast.loaders.nvdec import frames_by_nvdec

CPU = Settings(short_side=64, fps=None)
CODECS = {
    "vp9": ("a.webm", "libvpx-vp9", "yuv420p"),
    "vp8": ("a.mkv", "libvpx", "yuv420p"),
    "mjpeg": ("a.mkv", "mjpeg", "yuvj420p"),
}
TIMES = [0, 40, 80, 160, 200, 360, 400, 440]  # milliseconds


def compare(source, settings) -> None:
    """Frames, times and sizes are PyAV's."""
    ours, theirs = list(frames_by_nvdec(source, settings)), list(frames_by_pyav(source, settings))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.pixels.shape == (*one.square, 3)
        assert one.square == decoders.stored_size(other.square, settings.short_side)
        scaled = cv2.resize(other.pixels, one.square[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(one.pixels.astype(int) - scaled).mean() < 2
        assert one.time - ours[0].time == pytest.approx(other.time - theirs[0].time, abs=1e-3)
        assert one.rate == other.rate


@pytest.mark.parametrize("count", [1, 15, 16, 17, 41])
@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_in_order_in_colour_and_in_time(tmp_path, codec, count):
    name, encoder, pix_fmt = CODECS[codec]
    source = write_video(tmp_path / name, encoder, count, (48, 64), pix_fmt=pix_fmt)
    compare(source, CPU)
    clip = np.stack([picture.pixels for picture in frames_by_nvdec(source, CPU)])
    np.testing.assert_allclose(numbers(clip), np.arange(count), atol=0.75)


@pytest.mark.parametrize("aspect", [None, Fraction(2, 1)], ids=["square", "wide"])
@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
@pytest.mark.parametrize("short_side", [32, 200])
def test_frames_are_upright_square_and_scaled(tmp_path, rotation, aspect, short_side):
    source = write_video(
        tmp_path / "a.mp4", "mjpeg", 3, (96, 128), "yuvj420p", rotation=rotation, aspect=aspect
    )
    compare(source, Settings(short_side, None))


def test_scaling_down_averages(tmp_path):
    """Of stripes one pixel wide, picking pixels would leave black or white."""
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    path = tmp_path / "a.mkv"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (128, 128))
    writer.write(stripes)
    writer.release()
    (picture,) = frames_by_nvdec(path, CPU)
    assert np.abs(picture.pixels[:, 2:-2] - 127.5).max() < 20


def test_variable_rate_is_resampled_by_time(tmp_path):
    source = write_video(tmp_path / "a.webm", "libvpx-vp9", times=TIMES)
    settings = Settings(64, fps=25)
    stored = []
    for decoder in ("NVDEC", "PyAV"):
        decode_source(source, tmp_path / "frames.npy", decoder, settings)
        stored.append(np.load(tmp_path / "frames.npy", allow_pickle=False))
    # 120 ms is halfway from frame 2 (80) to 3 (160): the earlier one
    expected = [0, 1, 2, 2, 3, 4, 4, 4, 5, 5, 6, 7]
    for clip in stored:
        np.testing.assert_allclose(numbers(clip).round(), expected)


def test_what_it_cannot_decode_is_left_to_others(tmp_path):
    with pytest.raises(UndecodableError, match="NVDEC: "):
        next(frames_by_nvdec(write_video(tmp_path / "a.mp4", "libx264", 3), CPU))
    (tmp_path / "b.mp4").write_text("no video")
    with pytest.raises(UndecodableError, match=r"NVDEC: .*Invalid data"):
        next(frames_by_nvdec(tmp_path / "b.mp4", CPU))


def test_pictures_that_differ_from_pyavs_are_refused(tmp_path, monkeypatch):
    """As those of a decoder that turned them by itself would."""
    source = write_video(tmp_path / "a.webm", "libvpx-vp9", 3)
    monkeypatch.setattr(nvdec, "quarter_turns", lambda frame: 2)
    with pytest.raises(UndecodableError, match="grey levels from PyAV"):
        next(frames_by_nvdec(source, CPU))


def test_no_driver_is_seen_without_a_process(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(nvdec.ctypes, "CDLL", absent)
    assert not nvdec.is_there()
    monkeypatch.setattr(nvdec.ctypes, "CDLL", lambda name: None)
    assert nvdec.is_there()


@pytest.mark.gpu
@pytest.mark.parametrize("rotation", [0, 90])
def test_h264_on_a_gpu(tmp_path, rotation):
    assert nvdec.is_there()
    source = write_video(tmp_path / "a.mp4", "libx264", 41, (240, 320), rotation=rotation)
    compare(source, Settings(64, fps=None, device="cuda"))
