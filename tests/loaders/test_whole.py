"""Stretches of frames at their own shape."""

import numpy as np
import pytest
from loader_media import frame, numbers, write_video

from vgan_fast.loaders.decode import decode_source
from vgan_fast.loaders.decoders import Settings, UndecodableError
from vgan_fast.loaders.whole import AS_FILMED, read_clips


def test_a_stretch_is_read_of_every_video_and_broken_ones_are_told(tmp_path):
    wide = write_video(tmp_path / "wide.mp4", frames=20, size=(48, 96))
    tall = write_video(tmp_path / "tall.mp4", frames=12, size=(96, 48))
    small = write_video(tmp_path / "small.mp4", frames=12, size=(16, 32))
    short = write_video(tmp_path / "short.mp4", frames=11)
    ended = write_video(tmp_path / "ended.mp4", frames=6)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    clips, told = read_clips(
        [wide, short, tall, broken, small, ended], start=7, frames=5, short_side=24, workers=2
    )
    assert [clip.source for clip in clips] == [wide, tall, small]
    assert [clip.filmed for clip in clips] == [(48, 96), (96, 48), (16, 32)]
    # Scaled down with the aspect kept, and never enlarged.
    shapes = [clip.frames.shape for clip in clips]
    assert shapes == [(5, 24, 48, 3), (5, 48, 24, 3), (5, 16, 32, 3)]
    for clip in clips:
        assert clip.frames.dtype == np.uint8
        np.testing.assert_allclose(numbers(clip.frames), [7, 8, 9, 10, 11], atol=0.5)
    assert told.keys() == {short, broken, ended}
    assert told[short] == "has 11 frames, too few for 5 from frame 7 on"
    assert told[ended] == "it ends before frame 7 (the first is 0)"


def test_frames_may_stay_as_filmed(tmp_path):
    video = write_video(tmp_path / "v.mp4", frames=4, size=(48, 80))
    (clip,), _ = read_clips([video], start=0, frames=4, short_side=AS_FILMED, workers=1)
    assert clip.frames.shape == (4, 48, 80, 3)
    wanted = np.stack([frame(number, 48, 80) for number in range(4)])
    assert np.abs(clip.frames.astype(int) - wanted).mean() < 3


@pytest.mark.parametrize("decoder", ["PyAV", "OpenCV"])
@pytest.mark.parametrize(
    ("start", "most", "wanted"), [(0, 2, [0, 1]), (3, 2, [3, 4]), (3, None, [3, 4, 5]), (5, 9, [5])]
)
def test_a_stretch_is_decoded(tmp_path, decoder, start, most, wanted):
    video = write_video(tmp_path / "v.mp4", frames=6)
    target = tmp_path / "v.npy"
    decode_source(video, target, decoder, Settings(48, None), start=start, most=most)
    np.testing.assert_allclose(numbers(np.load(target)), wanted, atol=0.5)


def test_a_stretch_beyond_the_end_is_told(tmp_path):
    video = write_video(tmp_path / "v.mp4", frames=6)
    with pytest.raises(UndecodableError, match="it ends before frame 6"):
        decode_source(video, tmp_path / "v.npy", "PyAV", Settings(48, None), start=6, most=2)
