"""`vgan_fast.predict` as its users meet it."""

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from vgan_fast import generate, predict, sampling, train
from vgan_fast.checkpoint import save_checkpoint
from vgan_fast.mixture import LatestCodes
from vgan_fast.networks import build_generator
from vgan_fast.pictures import GAP, SHOWN, with_colours_of
from vgan_fast.sampling import Sampler
from vgan_fast.settings import Settings

TINY = ["--frames", 4, "--size", 16, "--width", 4, "--latent", 8, "--batch-size", 4]
TINY += ["--device", "cpu", "--steps", 2]
SCALE = SHOWN // 16


def run(program, *arguments):
    with pytest.raises(SystemExit) as stop:
        program.main([str(a) for a in arguments])
    return stop.value.code or 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    for name, options in {
        "future": ["--model", "future"],
        "two frames": ["--model", "future", "--condition", 2],
        "two-stream": [],
        "autoencoder": ["--model", "autoencoder", "--mask-penalty", 0],
    }.items():
        assert run(train, *TINY, *options, "--out", runs / name) == 0
    return runs


def noise(seed, frames=1, height=16, width=16):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for seed, name in enumerate(["10.png", "9.png", "below/9.png"]):
        Image.fromarray(noise(seed)[0]).save(folder / name)
    return folder


def predicted(trained, *arguments, model="future"):
    return run(predict, "--checkpoint", trained / model, "--device", "cpu", *arguments)


def test_beside_each_prediction_stands_its_input(trained, images, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 2)  # of three
    out = tmp_path / "futures"
    assert predicted(trained, "--image", images, "--out", out, "--each", "png") == 0
    assert sorted(p.name for p in out.iterdir()) == ["10.png", "9-2.png", "9.png"]
    for name, seed in {"9.png": 1, "10.png": 0, "9-2.png": 2}.items():
        shown = iio.imread(out / name)
        # In a strip the input stands in front of the frames.
        first = shown[GAP : GAP + SHOWN : SCALE, GAP : GAP + SHOWN : SCALE]
        np.testing.assert_array_equal(first, noise(seed)[0])
        assert shown.shape[1] == 5 * (SHOWN + GAP) + GAP


def test_an_animation_shows_all_inputs_with_their_streams(trained, images, tmp_path):
    out = tmp_path / "futures.mp4"  # a GIF would keep frames that differ
    assert predicted(trained, "--image", images, "--out", out, "--streams") == 0
    frames = iio.imread(out, plugin="pyav")
    # Two columns of five clips: the input, the video and three streams.
    assert frames.shape == (4, 2 * (SHOWN + GAP) + GAP, 2 * (5 * SHOWN + GAP) + GAP, 3)


def test_a_prediction_depends_on_its_own_image_alone(trained, images, tmp_path):
    one, all_of_them = tmp_path / "one", tmp_path / "all"
    assert predicted(trained, "--image", images / "9.png", "--out", one, "--each", "png") == 0
    assert predicted(trained, "--image", images, "--out", all_of_them, "--each", "png") == 0
    assert (one / "9.png").read_bytes() == (all_of_them / "9.png").read_bytes()
    assert (one / "9.png").read_bytes() != (all_of_them / "10.png").read_bytes()


def test_a_video_gives_its_first_frames(trained, tmp_path):
    # Grey blocks survive the video's coarser colours.
    frames = noise(0, 6, 4, 4)[..., :1].repeat(3, axis=3).repeat(8, axis=1).repeat(8, axis=2)
    video = tmp_path / "clip.mkv"
    iio.imwrite(video, frames, plugin="pyav", codec="ffv1", fps=10, in_pixel_format="rgb24")
    out = tmp_path / "out.png"
    arguments = ["--image", video, "--out", out]
    assert predicted(trained, *arguments, model="two frames") == 0
    shown = iio.imread(out)[GAP : GAP + SHOWN : SCALE, GAP : GAP + SHOWN : SCALE]
    assert np.abs(shown.astype(int) - frames[1, ::2, ::2]).mean() < 2  # the last of those given


def test_wide_images_are_cut_at_their_middle_and_turned_upright(trained, tmp_path):
    picture = Image.fromarray(
        np.repeat(np.arange(48, dtype=np.uint8)[None, :, None], 3, 2).repeat(16, 0)
    )
    exif = picture.getexif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    arguments = ["--image", tmp_path / "turned.png", "--out", tmp_path / "out.png"]
    assert predicted(trained, *arguments) == 0
    shown = iio.imread(tmp_path / "out.png")[GAP : GAP + SHOWN : SCALE, GAP : GAP + SHOWN : SCALE]
    np.testing.assert_array_equal(shown[:, 3, 0], np.arange(16, 32))


def test_colours_are_matched_to_the_input():
    clip, given = noise(0, 4) // 4 + 100, noise(1, 1) // 2
    matched = with_colours_of(clip, given)
    for channel in range(3):
        ours, theirs = (np.sort(x[..., channel].ravel()) for x in (matched[:1], given))
        assert np.abs(ours.astype(int) - theirs).mean() < 2
    order = np.argsort(clip[1:, ..., 0].ravel(), kind="stable")
    assert (np.diff(matched[1:, ..., 0].ravel()[order].astype(int)) >= 0).all()
    np.testing.assert_array_equal(with_colours_of(clip, clip[:1])[0], clip[0])


def test_matching_colours_changes_the_video_and_not_the_input(trained, images, tmp_path):
    made = {}
    for name, options in {"as it is": [], "matched": ["--match-colours"]}.items():
        out = tmp_path / f"{name}.png"
        assert predicted(trained, "--image", images / "9.png", "--out", out, *options) == 0
        made[name] = iio.imread(out)
    first = np.s_[:, : SHOWN + GAP]
    np.testing.assert_array_equal(made["as it is"][first], made["matched"][first])
    video = np.s_[GAP : GAP + SHOWN, SHOWN + 2 * GAP : 2 * (SHOWN + GAP)]
    contrast = {name: strip[video].std() for name, strip in made.items()}
    assert contrast["matched"] > 2 * contrast["as it is"]


def test_units_are_drawn(trained, images, tmp_path):
    units = tmp_path / "units.png"
    arguments = ["--image", images, "--out", tmp_path / "o.png", "--units", units]
    assert predicted(trained, *arguments) == 0
    assert iio.imread(units).shape[1] == 3 * (SHOWN + GAP) + GAP


def test_a_broken_image_among_many_is_skipped_and_counted(trained, images, tmp_path, capsys):
    (images / "broken.png").write_bytes((images / "9.png").read_bytes()[:60])
    (images / "broken.mp4").write_bytes(b"no video")
    assert predicted(trained, "--image", images, "--out", tmp_path / "o.png") == 0
    said = capsys.readouterr()
    assert "3 predictions" in said.out and "2 skipped" in said.out
    assert f"skipped {images / 'broken.png'}: " in said.err
    assert f"skipped {images / 'broken.mp4'}: " in said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image", "absent.png"], "--image absent.png: no such file or folder"),
        (["--image", "text.txt"], "--image text.txt: neither an image nor a video"),
        (["--image", "empty"], "--image empty: nothing can be read (no image or video there)"),
        (["--image", "broken.png"], "--image broken.png: nothing can be read (no image"),
        (["--image", "i.png", "--out", "o.txt"], "--out o.txt: must end in .gif, .mp4 or .png"),
        (["--image", "i.png", "--units", "u.gif"], "--units u.gif: must end in .png"),
        (["--image", "i.png", "--units", "u.png", "--out", "u.png"], "--units u.png: is --out"),
        (["--image", "i.png", "--units", "/proc/u.png"], "u.png: cannot be written"),
        (["--image", "i.png", "--units", "/proc/u.png"], "choose another --units"),
        (["--image", "i.png", "--units-layer", "1"], "--units-layer is for --units"),
        (
            ["--image", "i.png", "--units", "u.png", "--units-layer", "9"],
            "--units-layer 9: the encoder has 2",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(
    trained, tmp_path, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "broken.png").write_bytes(b"no image")
    Image.fromarray(noise(0)[0]).save(tmp_path / "i.png")
    before = sorted(tmp_path.iterdir())
    assert predicted(trained, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_of_another_model_is_refused_by_either_program(trained, images, tmp_path, capsys):
    assert predicted(trained, "--image", images, model="two-stream") == 2
    assert "is a run of --model two-stream" in capsys.readouterr().err
    assert run(generate, trained / "future", "--out", tmp_path / "o.gif", "--device", "cpu") == 2
    assert "use vgan_fast.predict" in capsys.readouterr().err


def test_an_autoencoder_s_clips_are_generated(trained, tmp_path):
    arguments = ["--out", tmp_path / "o.png", "--device", "cpu", "--count", 3, "--streams"]
    assert run(generate, trained / "autoencoder", *arguments) == 0
    assert iio.imread(tmp_path / "o.png").shape[0] == 3 * (SHOWN + GAP) + GAP


def test_an_autoencoder_s_codes_come_from_its_mixture_and_lie_on_a_line(tmp_path):
    settings = Settings(model="autoencoder", mask_penalty=0.0, frames=4, size=8, width=2, latent=3)
    codes = LatestCodes(3)
    codes.add(torch.tensor([5.0, -7.0, 9.0]) + 0.01 * torch.randn(64, 3))
    networks = {"generator": build_generator(settings), "codes": codes}
    save_checkpoint(tmp_path, 1, networks, {}, settings)
    sampler = Sampler(tmp_path, torch.device("cpu"))
    drawn = sampler.codes(20, seed=0)
    torch.testing.assert_close(drawn, torch.tensor([5.0, -7, 9]).expand(20, 3), atol=0.1, rtol=0)
    way = sampler.codes(3, seed=0, to_seed=1)
    torch.testing.assert_close(way[0], drawn[0])
    torch.testing.assert_close(way[2], sampler.codes(1, seed=1)[0])
    torch.testing.assert_close(way[1], (way[0] + way[2]) / 2)
