"""`vgan_fast.restore` as its users meet it, with a recovery that interpolates over time."""

import sys
from dataclasses import asdict
from types import ModuleType, SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from vgan_fast import restore
from vgan_fast.baselines import interpolation
from vgan_fast.loaders.decoders import Settings as DecoderSettings
from vgan_fast.loaders.decoders import UndecodableError
from vgan_fast.loaders.frames import Frames
from vgan_fast.pictures import GAP, SHOWN

OFF = 10  # what each draw of the recovery adds or takes


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        restore.main.main([str(a) for a in arguments])
    return stop.value.code or 0


@pytest.fixture
def recovery(monkeypatch):
    """A recovery without training, and what it was called with."""
    called = SimpleNamespace(settings=None)

    def recover(clips, occluded, settings, *, samples, report=None):
        assert clips.dtype == np.uint8 and occluded.dtype == bool
        assert occluded.shape == clips.shape[:4]
        called.clips, called.occluded, called.settings = clips, occluded, settings
        called.samples = samples
        for step in range(1, settings.steps + 1):
            report(step, {"energy": 1.0})
        filled = np.stack(
            [interpolation.recover(*pair) for pair in zip(clips, occluded, strict=True)]
        )
        off = np.where(np.arange(samples) % 2, OFF, -OFF).astype(np.float32)
        hidden = occluded[..., None]
        draws = [np.where(hidden, filled + by, clips) for by in off]
        return np.stack(draws).astype(np.float32)

    module = ModuleType("vgan_fast.restoration.recovery")
    module.recover = recover
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return called


@pytest.fixture
def decoding_here(monkeypatch):
    """Videos are decoded in this process: tests of the program itself need not wait for others."""

    def decode_videos(sources, cache, *, short_side, fps, workers, decode):
        found, skipped = [], {}
        for number, source in enumerate(sources):
            file = cache / f"{number}.npy"
            try:
                decode(source.path, file, "PyAV", DecoderSettings(short_side, fps))
            except UndecodableError as error:
                skipped[source.path] = str(error)
            else:
                array = np.load(file, mmap_mode="r")
                found.append(Frames(source.path, file, array.offset, array.shape))
        return found, skipped

    monkeypatch.setattr("vgan_fast.loaders.whole.decode_videos", decode_videos)


def moving(frames=8, height=32, width=48, seed=0):
    """Grey blocks of 8 pixels that brighten slowly: their colours survive a conversion."""
    levels = np.random.default_rng(seed).integers(40, 180, (1, height // 8, width // 8, 1))
    levels = levels + 4 * np.arange(frames)[:, None, None, None]
    return levels.astype(np.uint8).repeat(3, axis=3).repeat(8, axis=1).repeat(8, axis=2)


ENCODED = {}  # by clip: opening an encoder takes longer than most tests


def write(file, clip):
    key = clip.shape, clip.tobytes()
    if key not in ENCODED:
        iio.imwrite(file, clip, plugin="pyav", codec="ffv1", fps=10, in_pixel_format="rgb24")
        ENCODED[key] = file.read_bytes()
    file.write_bytes(ENCODED[key])
    return file


@pytest.fixture
def video(tmp_path):
    return write(tmp_path / "clip.mkv", moving())


@pytest.fixture
def mask(tmp_path):
    """A square of 8 pixels in the lower right of the first frames."""
    folder = tmp_path / "mask"
    folder.mkdir()
    for number in range(8):
        picture = np.zeros((32, 48), np.uint8)
        picture[16:24, 32:40] = 255 * (2 <= number < 5)
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def frames_of(file):
    return iio.imread(file, plugin="pyav").astype(int)


DEVICE = ["--device", "cpu", "--steps", 3]
COMMON = [*DEVICE, "--frames", 8, "--size", 0, "--samples", 4]


def test_the_occluded_are_restored_and_the_visible_stay(
    recovery, decoding_here, video, mask, tmp_path, capsys
):
    out = tmp_path / "out.gif"  # of grey levels, which a palette holds all
    assert run(video, "--mask", mask, *COMMON, "--out", out) == 0
    restored = iio.imread(out)[..., :3].astype(int)
    assert np.abs(restored - moving()).mean() < 2
    assert recovery.occluded[0, 2:5, 16:24, 32:40].all()
    assert recovery.occluded.sum() == 3 * 64
    assert not recovery.clips[recovery.occluded].any()  # nothing of what is behind gets through
    assert recovery.samples == 4
    said = capsys.readouterr()
    assert said.out == f"1 restored, {3 * 64 / (8 * 32 * 48):.1%} of their pixels: {out}\n"
    assert "3/3" in said.err and "energy=1" in said.err  # the bar


def test_the_recovery_itself_is_called_as_it_wants_to_be(decoding_here, video, tmp_path, capsys):
    options = [*COMMON, "--steps", 1, "--langevin-steps", 1, "--layers", "2@7/3 1@*"]
    out = tmp_path / "out.gif"
    assert run(video, "--occlude", "region", *options, "--out", out) == 0
    assert iio.imread(out).shape[:3] == (8, 32, 48)
    assert "0-255" in capsys.readouterr().out


def test_settings_reach_the_recovery(recovery, decoding_here, video, mask, tmp_path):
    options = ["--experiment", 5, "--steps", 7, "--lr", 0.25, "--seed", 3, "--device", "cpu"]
    assert run(video, "--mask", mask, *COMMON, *options, "--out", tmp_path / "o.gif") == 0
    wanted = {"experiment": "5", "steps": 7, "lr": 0.25, "seed": 3, "device": "cpu"}
    wanted |= {"model": "stgconvnet", "frames": 8, "size": 32, "chains": 1}
    assert wanted.items() <= asdict(recovery.settings).items()


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        (["--occlude", "salt-and-pepper", "--share", 0.25], (0.2, 0.3)),
        (["--occlude", "region", "--region", 8], (64 / 1536, 64 / 1536)),
        (["--occlude", "region"], (169 / 1536, 169 / 1536)),  # 0.4 of 32 pixels
        (["--occlude", "frames", "--share", 0.25], (0.25, 0.25)),
        (["--occlude", "frames"], (0.5, 0.5)),
    ],
)
def test_artificial_occlusions_tell_the_errors(
    recovery, decoding_here, video, tmp_path, capsys, options, hidden
):
    out = tmp_path / "out.gif"
    assert run(video, *options, *COMMON, "--out", out) == 0
    assert hidden[0] <= recovery.occluded.mean() <= hidden[1]
    said = capsys.readouterr().out.splitlines()
    truth = moving()[None]
    filled = interpolation.recover(recovery.clips[0], recovery.occluded[0])[None]
    errors = [np.abs(filled + off - truth)[recovery.occluded].mean() for off in (OFF, -OFF, 0)]
    one, mean, rival = (float(said[0].split(": ")[1].split(", ")[i].split()[0]) for i in range(3))
    assert one == pytest.approx((errors[0] + errors[1]) / 2, abs=1)
    assert mean == pytest.approx(errors[2], abs=1)
    assert rival == pytest.approx(errors[2], abs=1)
    assert one > mean + 2


def test_a_seed_gives_each_video_a_mask_of_its_own(recovery, decoding_here, tmp_path):
    videos = [write(tmp_path / f"{n}.mkv", moving(seed=n)) for n in range(2)]
    masks = {}
    for seed in (0, 0, 1):
        options = ["--occlude", "region", "--mask-seed", seed, "--out", tmp_path / "o.gif"]
        assert run(*videos, *COMMON, *options) == 0
        assert (recovery.occluded[0] != recovery.occluded[1]).any()
        if seed in masks:
            np.testing.assert_array_equal(recovery.occluded, masks[seed])
        masks[seed] = recovery.occluded
    assert (masks[0] != masks[1]).any()


def test_a_stretch_is_taken_of_video_and_mask_alike(recovery, decoding_here, video, mask, tmp_path):
    options = [*DEVICE, "--start", 1, "--frames", 7, "--size", 0, "--samples", 1]
    assert run(video, "--mask", mask, *options, "--out", tmp_path / "o.gif") == 0
    shown = ~recovery.occluded[0]
    assert np.abs(recovery.clips[0].astype(int) - moving()[1:8])[shown].mean() < 2
    assert [frame.any() for frame in recovery.occluded[0]] == [False] + 3 * [True] + 3 * [False]


def test_frames_are_scaled_with_their_masks_and_keep_their_aspect(
    recovery, decoding_here, video, mask, tmp_path
):
    options = [*DEVICE, "--frames", 8, "--size", 16, "--samples", 1]
    assert run(video, "--mask", mask, *options, "--out", tmp_path / "o.gif") == 0
    assert recovery.clips.shape == (1, 8, 16, 24, 3)
    wanted = np.zeros((8, 16, 24), bool)
    wanted[2:5, 8:12, 16:20] = True
    np.testing.assert_array_equal(recovery.occluded[0], wanted)


def test_several_videos_have_a_mask_each_though_one_is_broken(recovery, mask, tmp_path, capsys):
    first, last = (write(tmp_path / f"{n}.mkv", moving(seed=n)) for n in range(2))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    masks = []
    for number in range(3):
        picture = np.zeros((32, 48), np.uint8)
        picture[:, 8 * number : 8 * number + 8] = 255
        masks += ["--mask", tmp_path / f"{number}.png"]
        Image.fromarray(picture).save(masks[-1])
    out = tmp_path / "out"
    options = [*COMMON, "--out", out, "--each", "gif"]
    assert run(first, broken, last, *masks, *options) == 0
    assert recovery.clips.shape[0] == 2
    assert recovery.occluded[0, :, :, :8].all() and recovery.occluded[1, :, :, 16:24].all()
    assert recovery.occluded.mean() == pytest.approx(1 / 6)
    assert sorted(file.name for file in out.iterdir()) == ["0.gif", "1.gif"]
    for number in range(2):
        shown = iio.imread(out / f"{number}.gif")[..., :3].astype(int)
        visible = ~recovery.occluded[number]
        assert np.abs(shown - moving(seed=number))[visible].mean() < 2
    said = capsys.readouterr()
    assert f"skipped {broken}: " in said.err
    assert said.out.endswith(f": {out}, 1 skipped\n")
    assert run(first, last, "--mask", mask, *COMMON, "--out", tmp_path / "both.mp4") == 0
    assert frames_of(tmp_path / "both.mp4").shape == (
        8,
        4 * 32 + 2 * GAP,
        2 * (4 * 48 + GAP) + GAP,
        3,
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_strip_shows_what_was_done(recovery, decoding_here, video, mask, tmp_path, known):
    strip = tmp_path / "strip.png"
    how = ["--occlude", "frames", "--share", 0.25] if known else ["--mask", mask]
    options = [*COMMON, "--out", tmp_path / "o.gif", "--strip", strip]
    assert run(video, *how, *options) == 0
    picture = iio.imread(strip).astype(int)
    scale = SHOWN // 32
    height, width = 32 * scale + GAP, 48 * scale + GAP
    assert picture.shape == ((3 + known) * height + GAP, 8 * width + GAP, 3)
    rows = [
        np.stack(
            [
                picture[row * height + GAP : (row + 1) * height : scale][
                    :, column * width + GAP : (column + 1) * width : scale
                ]
                for column in range(8)
            ]
        )
        for row in range(3 + known)
    ]
    hidden = recovery.occluded[0]
    assert np.abs(rows[0] - moving()).mean() < 2
    np.testing.assert_array_equal(rows[1][~hidden], rows[0][~hidden])
    assert (rows[1][hidden] == restore.OCCLUDED).all()
    np.testing.assert_array_equal(rows[2][~hidden], rows[0][~hidden])
    filled = interpolation.recover(recovery.clips[0], hidden)
    assert np.abs(rows[2] - filled)[hidden].max() <= 0.51
    if known:
        assert np.abs(rows[3] - np.abs(filled - rows[0])).max() <= 0.51


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing argument"),
        (["clip.mkv"], "give either --mask or --occlude"),
        (["clip.mkv", "--mask", "mask", "--occlude", "frames"], "give either --mask or --occlude"),
        (["absent.mkv", "--mask", "mask"], "absent.mkv: no such file"),
        (["mask", "--mask", "mask"], "mask: is a folder"),
        (["clip.mkv", "clip.mkv", "--mask", "mask"], "clip.mkv: is named twice"),
        (["broken.mp4", "--mask", "mask"], "broken.mp4: PyAV"),
        (["broken.mp4", "small.mkv", "--mask", "mask", "--frames", "9"], "(as are 1 more)"),
        (["clip.mkv", "--mask", "mask", "--frames", "9"], "clip.mkv: has 8 frames, too few for 9"),
        (["clip.mkv", "--mask", "mask", "--start", "9"], "clip.mkv: it ends before frame 9"),
        (["clip.mkv", "--mask", "absent"], "--mask absent: no such file or folder"),
        (["clip.mkv", "--mask", "broken.mp4"], "--mask broken.mp4: PyAV"),
        (["clip.mkv", "--mask", "wide.png"], "is 64x32 pixels, its video 48x32"),
        (["clip.mkv", "--mask", "black.png"], "--mask black.png: occludes nothing of clip.mkv"),
        (["clip.mkv", "--mask", "white.png"], "--mask white.png: leaves nothing of clip.mkv"),
        (["clip.mkv", "--mask", "short"], "--mask short: has 2 images, too few for 8"),
        (["clip.mkv", "--mask", "mask", "--mask", "mask"], "2 --mask for 1 videos"),
        (["clip.mkv", "--mask", "mask", "--share", "0.5"], "--share is for --occlude"),
        (["clip.mkv", "--mask", "mask", "--region", "5"], "--region is for --occlude region"),
        (["clip.mkv", "--mask", "mask", "--mask-seed", "0"], "--mask-seed is for --occlude"),
        (["clip.mkv", "--occlude", "region", "--share", "0.5"], "--share is for --occlude"),
        (["clip.mkv", "--occlude", "region", "--region", "33"], "--region 33: larger than frames"),
        (["clip.mkv", "--occlude", "frames", "--share", "0"], "occludes nothing of clip.mkv"),
        (["clip.mkv", "--occlude", "frames", "--share", "1"], "leaves nothing of clip.mkv"),
        (["clip.mkv", "--occlude", "frames", "--share", "1.5"], "--share"),
        (["clip.mkv", "--mask", "mask", "--size", "7"], "--size 7: must be 0 or at least 8"),
        (["clip.mkv", "small.mkv", "--occlude", "frames"], "clip.mkv 48x32 and small.mkv 32x32"),
        (["clip.mkv", "--mask", "mask", "--out", "o.txt"], "--out o.txt: must end in"),
        (["clip.mkv", "--mask", "mask", "--out", "/proc/o.mp4"], "/proc/o.mp4: cannot be written"),
        (["clip.mkv", "--mask", "mask", "--out", "dir.mp4"], "dir.mp4: is a folder"),
        (["clip.mkv", "--mask", "mask", "--strip", "s.gif"], "--strip s.gif: must end in .png"),
        (["clip.mkv", "--mask", "mask", "--strip", "/proc/s.png"], "choose another --strip"),
        (["clip.mkv", "--mask", "mask", "--strip", "s.png", "--out", "s.png"], "is --out as well"),
        (["clip.mkv", "--mask", "black.png", "--strip", "black.png"], "--strip black.png: is read"),
        (["clip.mp4", "--mask", "mask", "--out", "clip.mp4"], "clip.mp4: is read or in a mask"),
        (["clip.mkv", "--mask", "mask", "--out", "mask"], "mask/clip.mp4: is read or in a mask"),
        (["clip.mkv", "--mask", "mask", "--strip", "mask/0.png"], "--strip mask/0.png: is read or"),
        (["clip.mp4", "--mask", "mask", "--out", "."], "clip.mp4: is read or in a mask"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    recovery, decoding_here, video, mask, tmp_path, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "small.mkv", moving(width=32))
    (tmp_path / "clip.mp4").write_bytes(b"never read")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "short").mkdir()
    (tmp_path / "dir.mp4").mkdir()
    for name, value, width in [("black", 0, 48), ("white", 255, 48), ("wide", 255, 64)]:
        Image.fromarray(np.full((32, width), value, np.uint8)).save(tmp_path / f"{name}.png")
    for number in range(2):
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(tmp_path / "short" / f"{number}.png")
    before = sorted(tmp_path.rglob("*"))
    frames = [] if "--frames" in arguments else ["--frames", "8"]
    size = [] if "--size" in arguments else ["--size", "0"]
    assert run(*arguments, *frames, *size) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ") and said in error[0]
    assert recovery.settings is None  # before the long work
    assert sorted(tmp_path.rglob("*")) == before
