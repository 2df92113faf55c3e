from dataclasses import replace

import imageio.v3 as iio
import pytest
import torch
from lua_networks import FRAMES, SIZE, Lua, run
from torch7_writer import written

from vgan_fast import classify, evaluate, generate, predict
from vgan_fast.checkpoint import find_checkpoint
from vgan_fast.classifier_step import load_discriminator
from vgan_fast.device import resolved
from vgan_fast.errors import UserError
from vgan_fast.interchange import torch7_runs
from vgan_fast.interchange.torch7_runs import run_of_torch7
from vgan_fast.sampling import Sampler
from vgan_fast.settings import Settings


@pytest.fixture
def saved(tmp_path):
    """A file of one of the networks, and its tree."""

    def saved(kind, *arguments, seed=0):
        tree = getattr(Lua(seed), kind)(*arguments)
        file = tmp_path / f"{kind}.t7"
        file.write_bytes(written(tree))
        return file, tree

    return saved


def call(program, *arguments):
    with pytest.raises(SystemExit) as ended:
        program.main([str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.parametrize("kind", ["two_stream", "one_stream", "conditional"])
def test_the_sampler_makes_the_original_s_clips(saved, kind):
    file, tree = saved(kind)
    sampler = Sampler(run_of_torch7(file), torch.device("cpu"))
    if kind == "conditional":
        codes = torch.rand(4, 3, 1, SIZE, SIZE) * 2 - 1
    else:
        codes = sampler.codes(4, seed=3)
    with torch.no_grad():
        expected = run(tree, codes[:, :, 0] if kind == "conditional" else codes)
    (clips,) = sampler.batches(codes)
    assert torch.allclose(clips["video"], expected, atol=1e-4, rtol=0)


def test_generate(saved, tmp_path, capsys):
    file, _ = saved("two_stream")
    out = tmp_path / "clips.gif"
    assert call(generate.main, file, "--out", out, "--count", 4, "--device", "cpu") == 0
    assert len(iio.imread(out)) == FRAMES
    assert "4 clips of 8 frames" in capsys.readouterr().out


def test_predict(saved, tmp_path):
    file, _ = saved("conditional")
    image, out = tmp_path / "image.png", tmp_path / "future.gif"
    iio.imwrite(image, torch.randint(256, (SIZE, SIZE, 3), dtype=torch.uint8).numpy())
    arguments = ["--checkpoint", file, "--image", image, "--out", out, "--device", "cpu"]
    assert call(predict.main, *arguments) == 0
    assert len(iio.imread(out)) == FRAMES


def test_evaluate_needs_real_clips(saved, tmp_path, capsys):
    generator, discriminator = saved("two_stream")[0], saved("discriminator")[0]
    given = [generator, "--count", 4, "--training-clips", 4, "--resamples", 2, "--device", "cpu"]
    given += ["--detector-run", discriminator, "--out", tmp_path / "result.json"]
    assert call(evaluate.main, *given) == 2
    assert "error: --data: name real clips" in capsys.readouterr().err
    assert call(evaluate.main, *given, "--data", "synthetic") == 0
    assert (tmp_path / "result.json").is_file()


@torch.no_grad()
def test_what_classify_starts_from(saved):
    file, tree = saved("discriminator")
    checkpoint = find_checkpoint(run_of_torch7(file))
    settings = resolved(replace(Settings.load(checkpoint / "settings.json"), device="cpu"))
    clips = torch.rand(2, 3, FRAMES, SIZE, SIZE) * 2 - 1
    made = load_discriminator(checkpoint, settings)(clips)
    assert torch.allclose(made, run(tree, clips).flip(1), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_classify(saved, tmp_path):
    file, _ = saved("discriminator")
    given = ["--data", "synthetic-motions", "--videos", 80, "--test-videos", 40, "--steps", 1]
    given += ["--methods", "fine-tuned,logistic", "--fractions", "1", "--seeds", 1]
    assert call(classify.main, file, *given, "--out", tmp_path / "out", "--device", "cpu") == 0
    assert (tmp_path / "out" / "table.md").is_file()


def test_what_a_file_does_not_hold_is_said(saved, tmp_path, capsys):
    out = ["--out", tmp_path / "out.gif", "--device", "cpu"]
    cases = [
        (generate.main, [saved("discriminator")[0]], "holds no generator, but discriminator"),
        (generate.main, [saved("conditional")[0]], "use vgan_fast.predict"),
        (generate.main, [saved("one_stream")[0], "--streams"], "has one stream only"),
        (generate.main, [tmp_path / "absent.t7"], "does not exist"),
    ]
    for program, arguments, message in cases:
        assert call(program, *arguments, *out) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    broken = tmp_path / "broken.t7"
    broken.write_bytes(saved("two_stream")[0].read_bytes()[:-9])
    assert call(generate.main, broken, *out) == 2
    assert "broken.t7: byte" in capsys.readouterr().err
    assert not (tmp_path / "out.gif").exists()
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)  # nothing beside the files


def test_a_file_is_imported_once_and_again_when_it_changes(saved, tmp_path, monkeypatch):
    file, _ = saved("two_stream", seed=1)
    first = run_of_torch7(file)
    with monkeypatch.context() as patched:
        patched.setattr(torch7_runs, "import_torch7", None)
        assert run_of_torch7(file) == first
    weights = find_checkpoint(first) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run_of_torch7(file) == first and find_checkpoint(first)
    saved("two_stream", seed=2)
    second = run_of_torch7(file)
    assert second != first and find_checkpoint(second) and find_checkpoint(first)


def test_a_cache_that_cannot_be_written_is_one_line(saved, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert call(generate.main, saved("two_stream")[0], "--out", tmp_path / "x.gif") == 2
    error = capsys.readouterr().err
    assert "set XDG_CACHE_HOME" in error and error.count("\n") == 1
