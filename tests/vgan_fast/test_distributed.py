"""What processes of a run tell each other, and what those started again go on with."""

import dataclasses
import os

import pytest
import torch

from vgan_fast import train
from vgan_fast.checkpoint import find_checkpoint, list_checkpoints
from vgan_fast.distributed import ALONE, Ranks
from vgan_fast.errors import UserError
from vgan_fast.settings import Settings
from vgan_fast.synchronised import merged

TINY = ["--frames", "4", "--size", "16", "--width", "4", "--latent", "8", "--batch-size", "4"]
TINY += ["--device", "cpu"]


def told(ranks):
    """What one process of several finds out."""
    number = float(ranks.number)
    rows, strided = torch.full((2, 3), number), torch.arange(6.0).view(2, 3).T * (1 + number)
    ranks.average([rows, strided])
    spread = torch.full((3,), number)
    ranks.spread([spread])
    return {
        "mean": rows,
        "strided": strided,
        "means": ranks.means({"a": torch.tensor(number), "b": torch.tensor(2.0)}),
        "largest": ranks.largest(3 if ranks.number else 0),
        "spread": spread,
        "gathered": ranks.gather(torch.tensor([[number], [number + 10]])),
        "own": ranks.own(torch.arange(6.0)),
        "decided": ranks.decided("what", lambda: f"by {ranks.number}"),
        "part": ranks.part(5),
        "together": ranks.together(list(ranks.part(5))),
        "speaks": ranks.speaks(),
    }


def test_what_two_processes_tell_each_other(two):
    first, second = two(told)
    for found in (first, second):
        assert torch.equal(found["mean"], torch.full((2, 3), 0.5))
        assert torch.equal(found["strided"], torch.arange(6.0).view(2, 3).T * 1.5)
        assert found["means"] == {"a": 0.5, "b": 2.0}
        assert found["largest"] == 3
        assert torch.equal(found["spread"], torch.zeros(3))
        assert found["gathered"].tolist() == [[0.0], [10.0], [1.0], [11.0]]
        assert found["decided"] == "by 0"
        assert found["together"] == [0, 1, 2, 3, 4]
    assert [found["own"].tolist() for found in (first, second)] == [[0, 1, 2], [3, 4, 5]]
    assert [*first["part"], *second["part"]] == [0, 1, 2, 3, 4]
    assert sorted(found["speaks"] for found in (first, second)) == [False, True]


def test_a_process_alone_sends_nothing():
    found = told(ALONE)
    assert torch.equal(found["gathered"], torch.tensor([[0.0], [10.0]]))
    assert (found["decided"], found["part"], found["speaks"]) == ("by 0", range(5), True)


def moments(ranks, x):
    own = ranks.own(x)
    variance, mean = torch.var_mean(own, 0, correction=0)
    return merged(mean, variance, ranks)


def test_moments_far_from_zero_are_merged_exactly(two):
    """Means, fp32, a thousand deviations away, and of each process its own."""
    x = torch.randn(64, 5) + torch.tensor([0.0, 1e3, -1e3, 5.0, 1.0])
    x[32:] += 3
    variance, mean = torch.var_mean(x.double(), 0, correction=0)
    for found in two(moments, x):
        torch.testing.assert_close(found[0].double(), mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[1].double(), variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("count", "changes", "said"),
    [
        (3, {}, "--batch-size 8: must be a multiple of the 3 processes"),
        (8, {}, "--batch-size 8: leaves 8 processes one clip each"),
        (2, {"model": "stgconvnet", "frames": 24, "size": 48}, "--model stgconvnet: its chains"),
    ],
)
def test_what_cannot_be_shared_is_refused(count, changes, said):
    settings = Settings.chosen("paper", {"batch_size": 8, **changes})
    store = torch.distributed.HashStore()
    with pytest.raises(UserError, match=said):
        Ranks(0, count, store).share(settings)
    assert ALONE.share(settings) == settings.batch_size


def test_synchronised_norms_take_one_clip_each():
    settings = Settings(batch_size=8, batch_norm="synchronised")
    assert Ranks(0, 8, torch.distributed.HashStore()).share(settings) == 1
    with pytest.raises(UserError, match="--schedule original needs --batch-norm local"):
        dataclasses.replace(settings, schedule="original", backend="reference")


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        train.main.main([str(a) for a in arguments])
    return stop.value.code or 0


@pytest.fixture
def attempt(monkeypatch):
    """Makes this process one that torchrun has started for the so-manieth time."""

    def made(number, job="job"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))

    return made


def test_what_is_started_again_goes_on_from_the_last_whole_checkpoint(tmp_path, attempt, capsys):
    out = tmp_path / "run"
    given = [*TINY, "--preset", "short", "--checkpoint-every", 2, "--out", out]
    attempt(0)
    assert run(*given, "--steps", 6) == 0
    attempt(1)
    assert run(*given, "--steps", 6) == 0  # died after its last step
    assert "had all its 6 steps" in capsys.readouterr().out
    last = list_checkpoints(out)[-1]
    weights = last / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    attempt(2)
    assert run(*given, "--steps", 8) == 0
    said = capsys.readouterr().out
    assert "step-00000006: is missing, truncated or corrupt; set aside" in said
    assert "a process died: going on from" in said
    assert "step-00000004" in said
    assert find_checkpoint(out).name == "step-00000008"
    assert find_checkpoint(last)  # written again


def test_another_job_does_not_go_on_with_a_run(tmp_path, attempt, capsys):
    given = [*TINY, "--steps", 1, "--out", tmp_path]
    attempt(0)
    assert run(*given) == 0
    attempt(1, "another job")
    assert run(*given) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_run_without_a_name_is_found_again(tmp_path, attempt, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attempt(0)
    assert run(*TINY, "--steps", 1) == 0
    attempt(1)
    assert run(*TINY, "--steps", 2) == 0
    assert os.listdir("runs") == ["synthetic-1"]
    assert "going on from runs/synthetic-1/checkpoints/step-00000001" in capsys.readouterr().out
