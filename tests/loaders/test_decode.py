"""One source to one file of frames: right pixels and times by each decoder, or one reason."""

import gc
import os
import subprocess
import sys
import weakref
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from loader_media import FIRST, MARK, STEP, frame, numbers, write_video
from PIL import Image

from vgan_fast.loaders import decode, decoders
from vgan_fast.loaders.decode import decode_source
from vgan_fast.loaders.decoders import (
    Picture,
    Settings,
    UndecodableError,
    frames_by_opencv,
    frames_by_pillow,
    frames_by_pyav,
)

NATIVE = Settings(short_side=64, fps=None)
DECODERS = {"OpenCV": frames_by_opencv, "PyAV": frames_by_pyav}
both_decoders = pytest.mark.parametrize("decoder", DECODERS)
# name, encoder, pixel format, and how far frame numbers may be off
CODECS = {
    "mpeg4": ("a.mp4", "mpeg4", "yuv420p", 0.75),
    "h264": ("a.mkv", "libx264", "yuv420p", 0.75),
    "mjpeg": ("a.avi", "mjpeg", "yuvj420p", 0.75),
    "vp9": ("a.webm", "libvpx-vp9", "yuv420p", 0.75),
    "mpeg2": ("a.mpg", "mpeg2video", "yuv420p", 0.75),
    # gif has 8 levels of red and green and 4 of blue: its greys are 36 levels apart
    "gif": ("a.gif", "gif", "rgb8", 10),
    "h264 10 bits": ("a.mkv", "libx264", "yuv420p10le", 0.75),
    "ffv1 10 bits": ("a.mkv", "ffv1", "yuv420p10le", 0.3),
    "ffv1 4:2:2 10 bits": ("a.mkv", "ffv1", "yuv422p10le", 0.3),
    "prores": ("a.mov", "prores_ks", "yuv422p10le", 0.3),
}
GREYS = {"8 bits": "gray", "10 bits": "gray10le", "16 bits": "gray16le"}


def decode_by(decoder, source, settings=NATIVE) -> tuple[np.ndarray, float | None]:
    """Decode into a file beside the source; return its frames and their rate."""
    target = source.with_name("frames.npy")
    rate = decode_source(source, target, decoder, settings)
    array = np.load(target, allow_pickle=False)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    return array, rate


def stub(monkeypatch, times, rate) -> None:
    """Let the decoder "stub" yield frames 0, 1, … with these time stamps in seconds."""

    def pictures(source, settings):
        for number, time in enumerate(times):
            yield Picture(frame(number % 50), (48, 48), time, rate)

    monkeypatch.setitem(decode.DECODERS, "stub", pictures)


@both_decoders
@pytest.mark.parametrize("codec", CODECS)
def test_every_frame_in_order_in_colour_and_upright(tmp_path, codec, decoder):
    name, encoder, pix_fmt, tolerance = CODECS[codec]
    source = write_video(tmp_path / name, encoder, 12, pix_fmt=pix_fmt)
    clip, rate = decode_by(decoder, source)
    assert clip.shape == (12, 48, 48, 3)
    assert rate == pytest.approx(25)
    np.testing.assert_allclose(numbers(clip), np.arange(12), atol=tolerance)
    red = clip[:, 2 : MARK - 2, 2 : MARK - 2].mean((0, 1, 2))
    assert red[0] > 180
    assert red[1:].max() < 80


@both_decoders
@pytest.mark.parametrize("bits", GREYS)
def test_grey_sources(tmp_path, bits, decoder):
    source = write_video(tmp_path / "a.mkv", "ffv1", 5, pix_fmt=GREYS[bits])
    clip, _ = decode_by(decoder, source)
    assert np.ptp(clip.astype(int), axis=-1).max() == 0
    np.testing.assert_allclose(numbers(clip), np.arange(5), atol=0.1)


@both_decoders
@pytest.mark.parametrize("size", [(49, 64), (48, 63), (51, 77)])
def test_odd_sizes(tmp_path, size, decoder):
    source = write_video(tmp_path / "a.mkv", "ffv1", 3, size, pix_fmt="yuv444p")
    clip, _ = decode_by(decoder, source)
    assert clip.shape == (3, *size, 3)
    assert np.abs(clip[2].astype(int) - frame(2, *size)).mean() < 1


@both_decoders
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    ("tag", "luma"),
    [(1, (0.2126, 0.0722)), (6, (0.299, 0.114)), (9, (0.2627, 0.0593)), (2, (0.299, 0.114))],
    ids=["BT.709", "BT.601", "BT.2020", "untagged"],
)
def test_colours_by_the_matrix_and_the_range_that_the_stream_names(
    tmp_path, tag, luma, full, decoder
):
    colour = np.array([200, 60, 30])
    (of_red, of_blue), (red, green, blue) = luma, colour / 255
    y = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    cb, cr = (blue - y) / (2 - 2 * of_blue), (red - y) / (2 - 2 * of_red)
    levels = (255 * y, 128 + 255 * cb, 128 + 255 * cr)
    if not full:
        levels = (16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        picture = av.VideoFrame(64, 48, "yuv420p")
        for plane, level in zip(picture.planes, levels, strict=True):
            plane.update(bytes([round(level)]) * plane.buffer_size)
        for tagged in (stream.codec_context, picture):
            tagged.colorspace, tagged.color_range = tag, 2 if full else 1
        container.mux(stream.encode(picture))
        container.mux(stream.encode())
    clip, _ = decode_by(decoder, tmp_path / "a.mkv")
    assert np.abs(clip[0].astype(int) - colour).max() <= 2


def test_the_decoders_agree_to_the_bit(tmp_path):
    source = write_video(tmp_path / "a.mp4", "libx264", 5)
    clips = [decode_by(decoder, source)[0] for decoder in DECODERS]
    np.testing.assert_array_equal(*clips)


def test_pyav_reads_av1(tmp_path):
    """OpenCV 5.0 opens it and gets nothing from it."""
    source = write_video(tmp_path / "a.mkv", "libsvtav1", 12, (64, 64))
    clip, _ = decode_by("PyAV", source)
    np.testing.assert_allclose(numbers(clip), np.arange(12), atol=0.75)


@both_decoders
@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied_once(tmp_path, rotation, decoder):
    source = write_video(tmp_path / "a.mp4", "libx264", 3, (48, 64), rotation=rotation)
    clip, _ = decode_by(decoder, source)
    expected = np.rot90(frame(0, 48, 64), rotation // 90)
    assert clip.shape[1:] == expected.shape
    assert np.abs(clip[0].astype(int) - expected).mean() < 6


@both_decoders
@pytest.mark.parametrize(
    ("aspect", "rotation", "stored"),
    [
        (Fraction(2, 1), 0, (48, 128)),
        (Fraction(3, 4), 0, (48, 48)),
        (Fraction(2, 1), 90, (128, 48)),
        (Fraction(2, 1), 180, (48, 128)),
        (Fraction(11, 1), 0, (48, 64)),
        (Fraction(1, 11), 0, (48, 64)),
    ],
    ids=["wide", "narrow", "turned", "upside down", "absurdly wide", "absurdly narrow"],
)
def test_pixels_are_made_square(tmp_path, aspect, rotation, stored, decoder):
    source = write_video(
        tmp_path / "a.mp4", "libx264", 3, (48, 64), rotation=rotation, aspect=aspect
    )
    clip, _ = decode_by(decoder, source, Settings(short_side=128, fps=None))
    assert clip.shape == (3, *stored, 3)
    upright = np.rot90(frame(2, 48, 64), rotation // 90)
    expected = cv2.resize(upright, stored[::-1])
    assert np.abs(clip[2].astype(int) - expected).mean() < 6


@both_decoders
@pytest.mark.parametrize(
    ("size", "short_side", "stored"),
    [((48, 48), 64, (48, 48)), ((96, 128), 32, (32, 43)), ((128, 96), 64, (85, 64))],
    ids=["small stays", "wide", "tall"],
)
def test_short_side_is_scaled_down_and_aspect_kept(tmp_path, decoder, size, short_side, stored):
    source = write_video(tmp_path / "a.mp4", "libx264", 3, size)
    clip, _ = decode_by(decoder, source, Settings(short_side, fps=None))
    assert clip.shape == (3, *stored, 3)
    expected = cv2.resize(frame(2, *size), stored[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(clip[2].astype(int) - expected).mean() < 3


def test_scaling_down_averages(tmp_path):
    """Of stripes one pixel wide, picking pixels would leave black or white."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"FFV1"), 25, (64, 64))
    writer.write(stripes)
    writer.release()
    clip, _ = decode_by("OpenCV", tmp_path / "a.avi", Settings(short_side=32, fps=None))
    assert np.abs(clip - 127.5).max() < 2


VARIABLE = [1000, 1040, 1080, 1160, 1240, 1280, 1440, 1480, 1520, 1640]  # milliseconds


@both_decoders
@pytest.mark.parametrize(
    ("name", "encoder"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9")]
)
@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        # moments 0, 40, 80, …, 680; the last frame, 120 after the one before, counts 60 more
        (25, [0, 1, 2, 2, 3, 3, 4, 5, 5, 5, 6, 6, 7, 8, 8, 9, 9, 9]),
        (10, [0, 2, 3, 5, 6, 7, 9]),  # 0, 100, 200, …; 700 is not before 640 + 60
        (1, [0]),
    ],
    ids=["25 fps", "10 fps", "1 fps"],
)
def test_fps_takes_the_frame_nearest_in_time(tmp_path, name, encoder, fps, expected, decoder):
    source = write_video(tmp_path / name, encoder, times=VARIABLE)
    clip, rate = decode_by(decoder, source, Settings(64, fps))
    # 300 ms is 20 from frames 5 (280) and 140 from frame 6 (440), and so on
    np.testing.assert_allclose(numbers(clip).round(), expected)
    assert rate == fps


@both_decoders
def test_native_rate_of_variable_frames_is_measured(tmp_path, decoder):
    source = write_video(tmp_path / "a.mp4", "libx264", times=VARIABLE)
    clip, rate = decode_by(decoder, source)
    np.testing.assert_allclose(numbers(clip).round(), np.arange(len(VARIABLE)))
    assert rate == pytest.approx(9 / 0.64, rel=0.08)  # the claimed one has a share of the last


@both_decoders
@pytest.mark.parametrize(("fps", "step"), [(25, 1), (12.5, 2), (5, 5), (50, 0.5)])
def test_fps_of_a_constant_rate(tmp_path, fps, step, decoder):
    source = write_video(tmp_path / "a.mp4", "libx264", 20)
    clip, _ = decode_by(decoder, source, Settings(64, fps))
    # Halfway between two frames the earlier one is taken.
    expected = np.floor(np.arange(0, 19.4, step))
    np.testing.assert_allclose(numbers(clip).round(), expected)


def test_an_avi_with_b_frames_has_no_times_for_its_last_frames(tmp_path):
    """What OpenCV gives for them is 0: decode order stands in."""
    source = write_video(tmp_path / "a.avi", "mpeg4", 12, options={"bf": "2"})
    times = [picture.time for picture in frames_by_opencv(source, NATIVE)]
    assert min(np.diff(times)) < 0  # or this test has lost its subject
    clip, _ = decode_by("OpenCV", source, Settings(64, 25))
    np.testing.assert_allclose(numbers(clip).round(), np.arange(12))


NAN = float("nan")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 0.1, 0.2, 0.3], [0, 1, 2, 3]),
        ([None, None, None, None], [0, 1, 2, 3]),
        ([7, 7.2, None, 7.3], [0, 1, 1, 2, 3]),
        ([7, 7.2, 7.1, 7.9], [0, 1, 1, 2, 3]),
        ([7, 7.2, 7.2, 7.3], [0, 1, 1, 2, 3]),
        ([7, 7.2, 1e12, 1e12 + 0.1], [0, 1, 1, 2, 3]),
        ([7, 7.2, NAN, 7.4], [0, 1, 1, 2, 3]),
        ([-1e17, 0, 0.1, 0.2], [0, 1, 2, 3]),
        ([0, 0, 0, 0], [0, 1, 2, 3]),
    ],
    ids=["right", "none", "missing", "back", "still", "leap", "nan", "far past", "all zero"],
)
def test_decode_order_stands_in_for_wrong_time_stamps(tmp_path, monkeypatch, times, expected):
    """At 10 frames a second, from the first wrong one on; what was before it stays."""
    stub(monkeypatch, times, 10.0)
    clip, _ = decode_by("stub", tmp_path / "a.mp4", Settings(64, 10))
    if times[1] == 7.2:
        # moment 0.1 is halfway between 0 and 0.2: the earlier frame
        expected = [0, 0, 1, 2, 3]
    np.testing.assert_allclose(numbers(clip), expected)


@pytest.mark.parametrize(
    ("times", "claimed", "rate"),
    [
        ([0, 0.1, 0.2], 10.05, 10.05),
        ([0, 0.1, 0.2], 25.0, 10),
        ([0, 0.1, 0.2], None, 10),
        ([None, None], 25.0, 25),
        ([None, None], None, None),
        ([5], 25.0, 25),
        ([5], None, None),
    ],
    ids=["rounded", "lie", "measured", "claimed", "unknown", "one frame", "one frame of no rate"],
)
def test_rate_of_what_is_stored(tmp_path, monkeypatch, times, claimed, rate):
    stub(monkeypatch, times, claimed)
    assert decode_by("stub", tmp_path / "a.mp4")[1] == (rate and pytest.approx(rate))


def test_fps_without_time_stamps_or_rate_is_refused(tmp_path, monkeypatch):
    stub(monkeypatch, [None, None], None)
    with pytest.raises(UndecodableError, match=r"neither time stamps nor a frame rate.*--fps"):
        decode_by("stub", tmp_path / "a.mp4", Settings(64, 25))


def test_a_single_frame_is_stored_once(tmp_path, monkeypatch):
    stub(monkeypatch, [5], None)
    clip, rate = decode_by("stub", tmp_path / "a.mp4", Settings(64, 25))
    assert (len(clip), rate) == (1, 25)


@pytest.mark.parametrize("claimed", [0, -5, 1001, 1e17, -1e17, NAN, float("inf")])
def test_absurd_rates_are_unknown(claimed):
    assert decoders.usable_rate(claimed) is None
    assert decoders.usable_rate(1000) == 1000


@pytest.mark.parametrize("fps", [None, 25], ids=["native", "25 fps"])
def test_too_many_frames_are_refused(tmp_path, monkeypatch, fps):
    monkeypatch.setattr(decode, "MAX_FRAMES", 10)
    stub(monkeypatch, [number / 25 for number in range(10)], 25.0)
    assert len(decode_by("stub", tmp_path / "a.mp4", Settings(64, fps))[0]) == 10
    stub(monkeypatch, [number / 25 for number in range(11)], 25.0)
    with pytest.raises(UndecodableError, match="over 10 frames: cut it into shorter files"):
        decode_by("stub", tmp_path / "a.mp4", Settings(64, fps))


def test_a_gap_is_refused_before_it_is_filled(tmp_path, monkeypatch):
    """Of ten seconds at a thousand frames each, not one is written."""
    monkeypatch.setattr(decode, "MAX_FRAMES", 100)
    stub(monkeypatch, [0, 9.9], 25.0)
    with pytest.raises(UndecodableError, match="over 100 frames"):
        decode_by("stub", tmp_path / "a.mp4", Settings(64, 1000))
    assert (tmp_path / "frames.npy").stat().st_size < 1000


def test_two_frames_are_held_at_a_time(tmp_path, monkeypatch):
    """What was yielded long ago must be free to go."""
    alive = []

    def pictures(source, settings):
        for number in range(20):
            pixels = frame(number)
            alive.append(weakref.ref(pixels))
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= 3  # two, and this one
            yield Picture(pixels, (48, 48), number / 25, 25.0)

    monkeypatch.setitem(decode.DECODERS, "stub", pictures)
    decode_by("stub", tmp_path / "a.mp4", Settings(64, 5))


@both_decoders
def test_frames_are_counted_not_believed(tmp_path, decoder):
    whole = write_video(tmp_path / "a.avi", "mjpeg", 40, pix_fmt="yuvj420p")
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    claimed = cv2.VideoCapture(str(cut), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT)
    clip, _ = decode_by(decoder, cut)
    assert 10 < len(clip) < 30 < claimed
    np.testing.assert_allclose(numbers(clip), np.arange(len(clip)), atol=0.75)


@both_decoders
@pytest.mark.parametrize("fps", [None, 25], ids=["native", "25 fps"])
def test_a_header_that_claims_millions_of_frames(tmp_path, decoder, fps):
    source = write_video(tmp_path / "a.avi", "mjpeg", 12, pix_fmt="yuvj420p")
    data = bytearray(source.read_bytes())
    millions = (50_000_000).to_bytes(4, "little")
    for chunk, offset in ((b"avih", 16), (b"strh", 32)):  # dwTotalFrames, dwLength
        at = data.index(chunk) + 8 + offset
        data[at : at + 4] = millions
    source.write_bytes(data)
    claimed = cv2.VideoCapture(str(source), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT)
    assert claimed > 1e7  # or this test has lost its subject
    clip, rate = decode_by(decoder, source, Settings(64, fps))
    np.testing.assert_allclose(numbers(clip), np.arange(12), atol=0.75)
    assert rate == 25


def fail_after(monkeypatch, source, frames, error) -> None:
    """Let PyAV raise the error after that many frames of the source."""
    real = av.container.InputContainer.decode

    class Failing:
        def __init__(self, container):
            self.streams, self.format = container.streams, container.format
            self.container = container

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

        def decode(self, stream):
            for number, picture in enumerate(real(self.container, stream)):
                if number == frames:
                    raise error
                yield picture

    opened = av.open(str(source))
    monkeypatch.setattr(av, "open", lambda path: Failing(opened))


def test_frames_before_an_error_are_kept(tmp_path, monkeypatch):
    """PyAV raises in the midst of damaged streams; OpenCV only stops."""
    source = write_video(tmp_path / "a.mp4", "libx264", 5)
    fail_after(monkeypatch, source, 3, av.error.InvalidDataError(1, "damaged"))
    assert len(decode_by("PyAV", source)[0]) == 3


def test_memory_running_out_is_no_end_of_the_video(tmp_path, monkeypatch):
    source = write_video(tmp_path / "a.mp4", "libx264", 5)
    fail_after(monkeypatch, source, 3, MemoryError())
    with pytest.raises(MemoryError):
        decode_by("PyAV", source)


def test_opencv_is_spared_a_name_that_is_no_utf_8(tmp_path):
    """It would kill the process; PyAV reads the file."""
    source = tmp_path / os.fsdecode(b"\xff.mp4")
    write_video(tmp_path / "a.mp4", frames=5).rename(source)
    with pytest.raises(UndecodableError, match="file of this name"):
        decode_by("OpenCV", source)
    assert len(decode_by("PyAV", source)[0]) == 5


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
        decode_by("PyAV", tmp_path / name)
    with pytest.raises(UndecodableError, match=r"OpenCV cannot open it|6x4 pixels"):
        decode_by("OpenCV", tmp_path / name)


@both_decoders
def test_absurdly_large_frames_are_refused_before_they_are_held(tmp_path, monkeypatch, decoder):
    monkeypatch.setattr(decoders, "MAX_PIXELS", 2000)
    source = write_video(tmp_path / "a.mp4", "libx264", 3)
    with pytest.raises(UndecodableError, match="48x48 pixels: over 2000"):
        next(DECODERS[decoder](source, NATIVE))


@both_decoders
def test_frames_absurdly_large_once_square_are_refused(tmp_path, monkeypatch, decoder):
    monkeypatch.setattr(decoders, "MAX_PIXELS", 4000)
    source = write_video(tmp_path / "a.mp4", "libx264", 3, aspect=Fraction(2, 1))
    with pytest.raises(UndecodableError, match="96x48 pixels: over 4000"):
        decode_by(decoder, source)


def picture_folder(tmp_path, suffix=".png", count=12):
    """Images whose natural order is not the order of their names."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(count):
        Image.fromarray(frame(number)).save(folder / f"frame{number}{suffix}")
    return folder


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".bmp", ".webp", ".tif", ".tiff"])
def test_images_of_a_folder_in_natural_order(tmp_path, suffix):
    folder = picture_folder(tmp_path, suffix)
    (folder / "notes.txt").write_text("no image")
    Image.fromarray(frame(41)).save(folder / ".hidden.png")
    (folder / "below").mkdir()
    Image.fromarray(frame(40)).save(folder / "below" / "frame0.png")
    clip, rate = decode_by("Pillow", folder)
    np.testing.assert_allclose(numbers(clip), np.arange(12), atol=0.75)
    assert clip[:, :8, :8, 0].min() > 180
    assert rate is None


@pytest.mark.parametrize("kind", ["grey", "grey 16", "colour 16", "alpha", "palette", "one bit"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_images_of_many_kinds(tmp_path, kind, suffix):
    folder = tmp_path / "frames"
    folder.mkdir()
    colour = frame(10)
    path = folder / f"a{suffix}"
    expected = colour.astype(int)
    if kind == "colour 16":
        cv2.imwrite(str(path), colour[..., ::-1].astype(np.uint16) * 257)
    elif kind == "grey 16":
        Image.fromarray(colour[..., 1].astype(np.uint16) * 257).save(path)
        expected = expected[..., 1:2]
    elif kind == "grey":
        Image.fromarray(colour[..., 1]).save(path)
        expected = expected[..., 1:2]
    elif kind == "alpha":
        clear = np.zeros((48, 48, 1), np.uint8)
        Image.fromarray(np.concatenate([colour, clear], -1)).save(path)
    elif kind == "palette":
        Image.fromarray(colour).quantize(8).save(path)
    else:
        Image.fromarray(colour[..., 0] > 100).save(path)
        expected = (expected[..., :1] > 100) * 255
    clip, _ = decode_by("Pillow", folder)
    assert clip.shape == (1, 48, 48, 3)
    assert np.abs(clip[0] - expected).max() <= 2


def test_images_of_floats_are_refused(tmp_path):
    Image.fromarray(np.full((48, 48), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UndecodableError, match="32 bits"):
        decode_by("Pillow", tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_a_viewer_does(tmp_path, orientation):
    """EXIF's orientations 1 to 8, and what is done to the pixels to undo each."""
    upright = frame(10, 48, 64)
    upright[20:30, :20] = 255
    undone = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, 3),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undone)).save(tmp_path / "a.png", exif=exif)
    clip, _ = decode_by("Pillow", tmp_path)
    np.testing.assert_array_equal(clip[0], upright)


def test_a_broken_image_is_left_out_and_said(tmp_path, caplog):
    folder = picture_folder(tmp_path, count=5)
    (folder / "frame1.png").write_bytes((folder / "frame1.png").read_bytes()[:60])
    (folder / "frame3.png").write_text("no image")
    clip, _ = decode_by("Pillow", folder)
    np.testing.assert_allclose(numbers(clip), [0, 2, 4])
    (record,) = caplog.records
    assert "frames: 2 of 5 images cannot be read and are left out" in record.getMessage()
    assert "frame1.png" in record.getMessage()


@pytest.mark.parametrize("count", [0, 2])
def test_a_folder_without_a_good_image_has_a_reason(tmp_path, count):
    for number in range(count):
        (tmp_path / f"{number}.png").write_text("no image")
    with pytest.raises(UndecodableError, match="0.png: cannot identify" if count else "no image"):
        decode_by("Pillow", tmp_path)


def test_a_folder_that_is_gone_has_a_reason(tmp_path):
    """Not an error of the file that is written, as an OSError would be."""
    with pytest.raises(UndecodableError, match="No such file"):
        decode_by("Pillow", tmp_path / "gone")


def test_images_have_no_times(tmp_path):
    with pytest.raises(UndecodableError, match=r"no time stamps: .*--fps.*--stride"):
        next(frames_by_pillow(picture_folder(tmp_path), Settings(64, 25)))


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    Image.new("1", (14_000, 14_000)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(UndecodableError, match="14000x14000 pixels: over"):
        decode_by("Pillow", tmp_path)


def test_worker_module_stays_light():
    """Every worker imports it: torch would cost each of them seconds."""
    check = (
        "import sys, vgan_fast.loaders.decode;"
        "sys.exit(any(name in sys.modules for name in"
        " ('torch', 'nvidia.dali', 'cv2', 'av', 'PIL.Image')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


assert FIRST + 49 * STEP < 256  # frame numbers up to 49 are readable
