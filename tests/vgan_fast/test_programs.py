"""`vgan_fast.train` and `vgan_fast.generate` as their users meet them."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import click
import imageio.v3 as iio
import numpy as np
import pytest
import safetensors.torch
import torch

from vgan_fast import generate, sampling, train
from vgan_fast.checkpoint import find_checkpoint, list_checkpoints, save_checkpoint
from vgan_fast.networks import build_generator
from vgan_fast.settings import Settings

TINY = [
    "--frames",
    "4",
    "--size",
    "16",
    "--width",
    "4",
    "--latent",
    "8",
    "--batch-size",
    "4",
    "--device",
    "cpu",
]


def run(program, *arguments):
    """Exit status of a program run in this process."""
    with pytest.raises(SystemExit) as stop:
        program.main([str(a) for a in arguments])
    return stop.value.code or 0


def start(*arguments):
    """A training program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "vgan_fast.train", *TINY, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(folder):
    return safetensors.torch.load_file(find_checkpoint(folder) / "weights.safetensors")


def assert_same_weights(first, second):
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Six steps, with a checkpoint at three."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    arguments = [*TINY, "--steps", 6, "--checkpoint-every", 3, "--sample-every", 3, "--out", out]
    assert run(train.main, *arguments) == 0
    return out


def test_a_run_leaves_checkpoints_pictures_and_scalars(trained):
    assert [p.name for p in list_checkpoints(trained)] == ["step-00000003", "step-00000006"]
    assert {p.name for p in (trained / "pictures").iterdir()} == {
        f"step-0000000{step}.{suffix}" for step in (3, 6) for suffix in ("gif", "png")
    }
    animation = iio.imread(trained / "pictures" / "step-00000006.gif")
    assert animation.shape[0] == 4
    info = iio.immeta(trained / "pictures" / "step-00000006.gif")
    assert info["loop"] == 0  # Played for ever.
    # Four columns (video, foreground, mask, background) of 128 pixels, four rows.
    assert animation.shape[1:3] == (4 * 130 + 2, 4 * 130 + 2)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained)).Reload().Tags()
    assert {"loss/d_real", "loss/d_fake", "loss/g", "loss/mask", "speed/clips/s"} <= set(
        events["scalars"]
    )
    assert events["images"] == ["samples"]


def test_resume_is_bit_for_bit_the_run_that_never_stopped(trained, tmp_path):
    out = tmp_path / "halves"
    common = [*TINY, "--checkpoint-every", 3, "--sample-every", 3, "--out", out]
    assert run(train.main, *common, "--steps", 3) == 0
    changed = ["--steps", 6, "--precision", "auto", "--no-graph"]
    assert run(train.main, "--resume", "--out", out, *changed) == 0
    assert_same_weights(out, trained)
    states = [
        torch.load(find_checkpoint(o) / "state.pt", weights_only=True) for o in (out, trained)
    ]
    assert states[0]["position"] == states[1]["position"] == 6
    assert torch.equal(states[0]["task"]["random"], states[1]["task"]["random"])


def test_killed_runs_resume_from_their_last_checkpoint(trained, tmp_path):
    out = tmp_path / "killed"
    process = start("--steps", 100000, "--checkpoint-every", 3, "--out", out, "--keep", 99999)
    wait_for(process, lambda: (out / "checkpoints" / "step-00000003").exists())
    process.kill()
    process.wait()
    for later in list_checkpoints(out)[1:]:  # What it did beyond step 3 before the kill came.
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    assert run(train.main, "--resume", "--out", out, "--steps", 6) == 0
    assert_same_weights(out, trained)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_signal_saves_and_leaves(tmp_path, number):
    out = tmp_path / "stopped"
    process = start("--steps", 100000, "--sample-every", 2, "--out", out)
    wait_for(process, lambda: list(out.glob("pictures/*.png")))
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--resume" in stdout
    assert "Traceback" not in stderr
    assert find_checkpoint(out)


def test_a_damaged_write_is_one_line_wherever_it_happens(trained, tmp_path):
    """A file size limit of the system: TensorBoard, pictures and checkpoints all run into it."""
    code = """
import resource, sys
from vgan_fast import train
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
train.main(sys.argv[2:])
"""
    for limit in (10, 20_000, 100_000):
        out = tmp_path / str(limit)
        options = [*TINY, "--steps", 30, "--checkpoint-every", 5, "--sample-every", 10]
        result = subprocess.run(
            [sys.executable, "-c", code, *map(str, [limit, *options, "--out", out])],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert "error: " in result.stderr
        assert "the disk is full" in result.stderr
        assert not list(out.glob("*/.*"))


def test_dry_run_and_refused_options_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(train.main, *TINY, "--dry-run") == 0
    assert "generator" in capsys.readouterr().out
    assert run(train.main, *TINY, "--frames", 3) == 2
    assert run(train.main, *TINY, "--dry-run", "--data", "absent") == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "12"], "--frames 12"),
        (["--size", "20"], "--size 20"),
        (["--size", "1024"], "--frames 4"),
        (["--batch-size", "1"], "--batch-size 1"),
        (["--steps", "0"], "--steps 0"),
        (["--lr", "0"], "--lr 0"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr-d", "-1"], "--lr-d -1"),
        (["--average", "1"], "--average 1"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", str(2**70)], "--seed"),
        (["--mask-bias", "inf"], "--mask-bias inf"),
        (["--batch-size", "1000000000"], "--batch-size"),
        (["--loss", "hinge", "--logits", "2"], "--loss hinge needs --logits 1"),
        (["--loss", "wasserstein"], "--loss"),
        (["--schedule", "original"], "--backend reference"),
        (
            ["--schedule", "original", "--backend", "reference", "--precision", "bf16"],
            "--schedule original is for fp32 tensors: use --precision fp32 or tf32",
        ),
        (["--backend", "fused", "--precision", "fp16"], "use --backend auto or --precision bf16"),
        (["--precision", "tf32"], "--precision tf32: needs a GPU"),
        (["--graph"], "--graph: CUDA graphs need a GPU; leave the option out on a CPU"),
        (["--graph", "--backend", "reference"], "--graph: not with --backend reference"),
        (["--graph", "--precision", "fp16"], "--graph: not with --precision fp16"),
        (["--model", "one-stream", "--mask-bias", "-1"], "--model one-stream"),
        (["--condition", "2"], "--condition is for --model future"),
        (["--model", "autoencoder", "--encoder", "latent"], "--encoder is for --model future"),
        (["--model", "future", "--condition", "4"], "--condition 4: must leave some of the 4"),
        (["--model", "future", "--condition", "0"], "--condition 0"),
        (["--model", "future", "--average", "0.9"], "--average: not with --model future"),
        (["--model", "future", "--reconstruction-weight", "-1"], "--reconstruction-weight -1"),
        (["--model", "autoencoder", "--loss", "hinge"], "--loss: --model autoencoder has no"),
        (["--model", "autoencoder", "--mask-penalty", "1"], "--mask-penalty: not with --model"),
        (["--history", "--steps", "9"], "--history: goes with --out alone"),
        (["--data", "no-such-folder"], "no-such-folder"),
        (["--flip"], "--flip is for files: name some with --data"),
        (["--fps", "10"], "--fps is for files"),
        (["--data", "synthetic-motions", "--flip"], "--flip is for files"),
        (["--data", ".", "--crop", "0"], "--crop 0.0"),
        (["--data", ".", "--hue", "200"], "--hue 200"),
        (["--data", ".", "--fps", "0"], "--fps 0"),
        (["--data", ".", "--stride", "0"], "--stride 0"),
        (["--data", ".", "--workers", "0"], "--workers 0"),
        (["--data", ".", "--cache", "disk"], "--cache"),
        (["--steps", "many"], "--steps"),
        (["--stepz", "1"], "--stepz"),
        (["--resume"], "--resume: no run"),
        (["--resume", "--preset", "paper"], "--preset"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_get_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(train.main, *TINY, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_where_there_is_none(capsys):
    assert run(train.main, "--device", "cuda") == 2
    assert "--device cuda" in capsys.readouterr().err


def test_an_existing_run_is_not_overwritten(trained, capsys):
    assert run(train.main, *TINY, "--steps", 9, "--out", trained) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_settings(trained, capsys):
    assert run(train.main, "--resume", "--out", trained, "--width", 8, "--steps", 9) == 2
    assert "--width 8" in capsys.readouterr().err
    assert run(train.main, "--resume", "--out", trained) == 2
    assert "has all its 6 steps" in capsys.readouterr().err
    assert run(train.main, "--resume", "--out", find_checkpoint(trained), "--steps", 9) == 2
    assert "is a checkpoint; give its run" in capsys.readouterr().err


def test_a_resumed_run_may_leave_its_graph():
    settings = Settings(device="cuda", graph=True)
    assert not train._resumed(settings, {"graph": False}).graph


def test_a_damaged_checkpoint_is_refused_and_the_previous_one_named(trained, tmp_path, capsys):
    import shutil

    out = tmp_path / "damaged"
    shutil.copytree(trained, out)
    file = find_checkpoint(out) / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert run(train.main, "--resume", "--out", out, "--steps", 9) == 2
    error = capsys.readouterr().err
    assert "step-00000006/weights.safetensors" in error
    assert "step-00000003" in error
    assert run(generate.main, out, "--out", tmp_path / "x.gif") == 2
    assert not (tmp_path / "x.gif").exists()


def test_a_full_disk_ends_with_one_line_and_whole_checkpoints(tmp_path, monkeypatch, capsys):
    out = tmp_path / "full"
    real = torch.save
    saves = []

    def fills_up(*arguments, **options):
        saves.append(1)
        if len(saves) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "save", fills_up)
    assert run(train.main, *TINY, "--steps", 6, "--checkpoint-every", 2, "--out", out) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert "the disk is full" in error
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000002"]


@pytest.mark.parametrize(
    ("checkpoint_every", "named"),
    [(2, "the weights of the"), (1000, "the loss '")],
    ids=["weights", "loss"],
)
def test_what_is_not_finite_stops_the_run_and_is_never_saved(
    tmp_path, capsys, checkpoint_every, named
):
    arguments = [*TINY, "--steps", 40, "--lr", "1e30", "--checkpoint-every", checkpoint_every]
    assert run(train.main, *arguments, "--out", tmp_path / "nan") == 2
    error = capsys.readouterr().err
    assert named in error
    assert "not finite" in error
    assert not list_checkpoints(tmp_path / "nan")


def test_the_data_s_folder_is_no_place_for_a_run(tmp_path, capsys):
    assert run(train.main, *TINY, "--data", tmp_path, "--out", tmp_path) == 2
    assert "holds the data; choose another folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, click.Abort])
def test_ctrl_c_before_the_first_step_is_one_line(tmp_path, monkeypatch, capsys, error):
    def interrupted(*_, **__):
        raise error

    monkeypatch.setattr("vgan_fast.gan_step.GANStep.__init__", interrupted)
    assert run(train.main, *TINY, "--out", tmp_path / "o") == 130
    assert capsys.readouterr().err.strip() == "error: interrupted"


def test_lack_of_memory_is_one_line(tmp_path, monkeypatch, capsys):
    def short(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")

    monkeypatch.setattr("vgan_fast.gan_step.GANStep.__call__", short)
    assert run(train.main, *TINY, "--out", tmp_path / "memory") == 2
    assert "error: out of memory: lower --batch-size" in capsys.readouterr().err


def test_changed_files_are_said_on_resume(tmp_path, capsys):
    strips, out = tmp_path / "strips", tmp_path / "out"
    strips.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (4 * 16, 16, 3), np.uint8)
    for name in "ab":
        iio.imwrite(strips / f"{name}.jpg", noise)
    assert run(train.main, *TINY, "--data", strips, "--steps", 2, "--out", out) == 0
    iio.imwrite(strips / "c.jpg", noise)
    assert run(train.main, "--resume", "--steps", 3, "--out", out) == 0
    assert "the files are not those of the checkpoint" in capsys.readouterr().out


def test_clips_are_cut_and_varied_as_the_options_say(tmp_path, monkeypatch):
    """From the command line down to the loader; decoded videos go where they are told to."""
    from vgan_fast.loaders import clips

    opened = []
    real = clips.open_clips

    def remember(*arguments, **settings):
        opened.append(settings)
        return real(*arguments, **settings)

    monkeypatch.setattr(clips, "open_clips", remember)
    iio.imwrite(
        tmp_path / "a.gif",
        np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8),
        duration=40,
    )
    arguments = ["--data", tmp_path / "a.gif", "--steps", 1, "--out", tmp_path / "out"]
    arguments += ["--decoded", tmp_path / "decoded", "--fps", 12.5, "--stride", 2]
    arguments += ["--start", "fixed", "--crop", 0.5, "--flip", "--brightness", 0.1]
    arguments += ["--contrast", 0.2, "--saturation", 0.3, "--hue", 9, "--cache", "none"]
    assert run(train.main, *TINY, *arguments, "--workers", 1, "--min-frames", 3) == 0
    (settings,) = opened
    augmentation = settings.pop("augmentation")
    assert vars(augmentation) == dict(
        crop=0.5, flip=True, brightness=0.1, contrast=0.2, saturation=0.3, hue=9
    )
    expected = dict(
        fps=12.5, stride=2, start="fixed", cache="none", workers=1, min_frames=3, position=0
    )
    assert expected.items() <= settings.items()
    assert len(list((tmp_path / "decoded").glob("*.npy"))) == 1
    assert not (tmp_path / "out" / "frames").exists()


def test_a_run_resumes_from_another_cache_bit_for_bit(tmp_path):
    strips = tmp_path / "strips"
    strips.mkdir()
    random = np.random.default_rng(0)
    for name in "abcdefg":
        noise = random.integers(0, 256, (6 * 32, 32, 3), np.uint8)
        iio.imwrite(strips / f"{name}.jpg", noise)
    common = ["--data", strips, "--crop", 0.5, "--hue", 20, "--flip"]
    assert run(train.main, *TINY, *common, "--steps", 5, "--out", tmp_path / "whole") == 0
    halves = ["--cache", "none", "--steps", 3, "--out", tmp_path / "halves"]
    assert run(train.main, *TINY, *common, *halves) == 0
    rest = ["--cache", "host", "--steps", 5, "--workers", 3, "--out", tmp_path / "halves"]
    assert run(train.main, "--resume", *rest) == 0
    assert_same_weights(tmp_path / "halves", tmp_path / "whole")


def test_profile_writes_a_trace_and_trains_no_further(tmp_path, capsys):
    assert run(train.main, *TINY, "--profile", "--out", tmp_path / "p") == 0
    assert (tmp_path / "p" / "trace.json").stat().st_size > 10_000
    assert "Self CPU" in capsys.readouterr().out


def test_the_history_of_a_run_is_drawn_and_nothing_else_done(
    trained, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(train, "--history") == 2
    assert "--history: no run in ./runs holds a checkpoint" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    assert run(train, "--history", "--out", trained) == 0
    picture = trained / "history.png"
    after = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path != picture}
    picture_bytes = picture.read_bytes()
    picture.unlink()
    assert {k: v for k, v in after.items() if k != trained} == {
        k: v for k, v in before.items() if k != trained
    }
    shown = iio.imread(picture_bytes)
    assert shown.shape[0] > 600
    assert shown.shape[2] == 3
    # The samples, grey ones, are in it, and gaps between them.
    assert (shown[-200:-100].min(axis=(1, 2)) < 200).mean() > 0.9
    assert run(train, "--history", "--out", tmp_path) == 2
    assert f"{tmp_path}: holds no history" in capsys.readouterr().err
    assert run(train, "--history", "--out", tmp_path / "absent") == 2
    assert "absent: no such run" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    shutil.copytree(trained, damaged)
    strip = sorted((damaged / "pictures").glob("*.png"))[0]
    for content in (b"", strip.read_bytes()[:60]):
        strip.write_bytes(content)
        assert run(train, "--history", "--out", damaged) == 2
        assert f"{strip}: is missing or damaged" in capsys.readouterr().err
    assert not (damaged / "history.png").exists()


@pytest.mark.parametrize("model", ["future", "autoencoder"])
def test_runs_of_other_models_resume_bit_for_bit(model, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = [*TINY, "--preset", "short", "--model", model, "--checkpoint-every", 2]
    assert run(train, *given, "--steps", 4, "--out", whole) == 0
    assert run(train, *given, "--steps", 2, "--out", cut) == 0
    assert run(train, "--resume", "--steps", 4, "--out", cut) == 0
    assert_same_weights(whole, cut)
    settings = Settings.load(find_checkpoint(whole) / "settings.json")
    assert settings.average == 0  # the preset's does not apply


def test_one_stream_and_deterministic_runs(tmp_path):
    arguments = ["--model", "one-stream", "--deterministic", "--steps", 2, "--out", tmp_path / "o"]
    try:
        assert run(train.main, *TINY, *arguments) == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert iio.imread(tmp_path / "o/pictures/step-00000002.gif").shape[2] == 130 + 2


@pytest.mark.parametrize("suffix", ["gif", "mp4", "png"])
def test_generate_one_picture_of_all_clips(trained, tmp_path, suffix):
    out = tmp_path / f"samples.{suffix}"
    assert run(generate.main, trained, "--out", out, "--count", 5, "--seed", 3) == 0
    picture = iio.imread(out, plugin="pyav") if suffix == "mp4" else iio.imread(out)
    if suffix == "png":
        assert picture.shape == (5 * 130 + 2, 4 * 130 + 2, 3)
    else:
        assert picture.shape[:3] == (4, 2 * 130 + 2, 3 * 130 + 2)
    assert picture.std() > 1
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_generate_is_seeded_and_a_longer_list_begins_with_the_shorter(trained, tmp_path):
    def clips(name, *arguments):
        out = tmp_path / name
        assert run(generate.main, trained, "--out", out, "--each", "png", *arguments) == 0
        return [iio.imread(p) for p in sorted(out.iterdir())]

    short, long = clips("short", "--count", 2), clips("long", "--count", 4)
    other = clips("other", "--count", 2, "--seed", 1)
    assert len(short) == 2
    assert len(long) == 4
    assert np.array_equal(short, long[:2])
    assert not np.array_equal(short, other)
    way = clips("way", "--count", 3, "--to-seed", 1)
    assert np.array_equal(way[0], short[0])
    assert np.array_equal(way[2], other[0])
    assert not np.array_equal(way[1], way[0])


def test_an_mp4_that_is_too_large_is_refused_in_one_line(trained, tmp_path, capsys):
    out = tmp_path / "large.mp4"
    assert run(generate.main, trained, "--out", out, "--count", 1000, "--streams") == 2
    assert "too many for MP4" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_generate_streams_side_by_side(trained, tmp_path):
    out = tmp_path / "streams.png"
    assert run(generate.main, trained, "--out", out, "--count", 1, "--streams") == 0
    strip = iio.imread(out)
    assert strip.shape[1] == 4 * (4 * 128 + 2) + 2  # Four frames, each four streams wide.


def test_generate_refuses_what_it_cannot_read_or_write(trained, tmp_path, capsys):
    assert run(generate.main, tmp_path) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert run(generate.main, tmp_path / "absent") == 2
    assert "absent" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(generate.main, trained, "--out", tmp_path / "file") == 2
    assert "is a file" in capsys.readouterr().err
    assert run(generate.main, trained, "--out", tmp_path / "x.webm") == 2
    assert "must end in .gif" in capsys.readouterr().err
    assert run(generate.main, trained, "--out", tmp_path / "x.gif", "--count", 2000) == 2
    assert "--count 2000" in capsys.readouterr().err
    assert run(generate.main, trained, "--out", tmp_path / "file" / "x.gif") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_latents_along_the_arc_keep_their_length():
    way = sampling.draw_latents(9, 100, 0, 1)
    lengths = way.norm(dim=1)
    ends = lengths[[0, -1]]
    assert lengths.min() > 0.97 * ends.min()
    steps = way.diff(dim=0).norm(dim=1)
    torch.testing.assert_close(steps, steps.mean().expand(8), rtol=0.15, atol=0)
    assert torch.equal(
        sampling.draw_latents(3, 5, 0, 0), sampling.draw_latents(1, 5, 0).expand(3, 5)
    )


@pytest.mark.parametrize("model", ["two-stream", "one-stream"])
def test_what_the_kernels_trained_generates_where_they_do_not_run(model, tmp_path):
    sizes = dict(frames=2, size=8, width=4, latent=8, average=0.9, model=model, mask_penalty=0.0)
    settings = Settings(backend="fused", device="cpu", precision="fp32", **sizes)
    networks = {name: build_generator(settings) for name in ("generator", "averaged")}
    save_checkpoint(tmp_path / "run", 1, networks, {}, settings)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    clips = tmp_path / "clips.png"
    command = [sys.executable, "-m", "vgan_fast.generate", tmp_path / "run", "--count", "2"]
    subprocess.run([*command, "--out", clips], env=environment, check=True, capture_output=True)
    assert clips.stat().st_size > 0


@pytest.mark.parametrize(
    ("precision", "native", "wanted"),
    [("bf16", True, True), ("bf16", False, False), ("fp32", True, False)],
)
def test_clips_are_made_in_a_run_s_bf16_where_the_device_multiplies_it(
    monkeypatch, precision, native, wanted
):
    monkeypatch.setattr(sampling, "multiplies_bf16", lambda device: native)
    with sampling.autocast_of(Settings(precision=precision, device="cpu"), torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") == wanted
