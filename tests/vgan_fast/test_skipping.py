"""`--on-nan`: a step with a number that is not finite comes to nothing, or ends the run."""

import copy
import dataclasses
import math

import pytest
import torch
from fake_graph import FakeGraph

from vgan_fast import autoencoder_step, energy_step, gan_step, train
from vgan_fast.autoencoder_step import AutoencoderStep
from vgan_fast.checkpoint import list_checkpoints, load_state
from vgan_fast.energy_step import EnergyStep
from vgan_fast.future_step import FutureStep
from vgan_fast.gan_step import GANStep
from vgan_fast.settings import Settings
from vgan_fast.skipping import Skipping

TINY = Settings(
    batch_size=4,
    frames=4,
    size=16,
    width=4,
    latent=6,
    device="cpu",
    precision="fp32",
    graph=False,
    on_nan="skip",
)
ENERGY = dataclasses.replace(
    TINY,
    model="stgconvnet",
    mask_penalty=0.0,
    width=64,
    latent=100,
    layers="4@3/2 2@2",
    growth="together",
    langevin_steps=2,
    batch_size=2,
)
PLAIN = {"mask_penalty": 0.0}
BAD = (0, 3, 4, 6)  # calls: the first of those that warm up, the one that captures, and two after
CALLS = 8


def batch(number, settings):
    seeded = torch.Generator().manual_seed(number)
    shape = (settings.batch_size, settings.frames, settings.size, settings.size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded)


@pytest.fixture
def poison(monkeypatch):
    """A number on the device that spoils whatever a step learns from; 0 spoils nothing."""
    value = torch.tensor(0.0)
    spoilt = lambda function: lambda *a, **k: function(*a, **k) + value  # noqa: E731
    for name in ("generator_loss", "discriminator_loss"):
        monkeypatch.setattr(gan_step, name, spoilt(getattr(gan_step, name)))
    monkeypatch.setattr(autoencoder_step.F, "mse_loss", spoilt(torch.nn.functional.mse_loss))
    monkeypatch.setattr(energy_step, "as_values", spoilt(energy_step.as_values))
    return value


def state(step):
    """Weights, buffers and moments, but for the number of Langevin steps, which goes on."""
    kept = [
        value
        for network in step.networks.values()
        for name, value in network.state_dict().items()
        if name != "moment"
    ]
    for optimizer in step.optimizers.values():
        for of_parameter in optimizer.state.values():
            kept += [value for value in of_parameter.values() if isinstance(value, torch.Tensor)]
    return [value.detach().clone() for value in kept]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


KINDS = {
    "gan": (GANStep, {"average": 0.9}, math.nan),
    "infinite": (GANStep, {}, math.inf),
    "sgd": (GANStep, {"optimizer": "sgd", "lr": 0.01}, math.nan),
    "bf16": (GANStep, {"precision": "bf16"}, math.nan),
    "fp16": (GANStep, {"precision": "fp16"}, math.nan),
    "original": (GANStep, {"backend": "reference", "schedule": "original"}, math.nan),
    "future": (FutureStep, {"model": "future", **PLAIN}, math.nan),
    "autoencoder": (AutoencoderStep, {"model": "autoencoder", **PLAIN}, math.nan),
    "energy": (EnergyStep, dataclasses.asdict(ENERGY), math.nan),
}


WITHOUT_GRAPH = {"fp16", "original"}


@pytest.mark.parametrize(
    ("name", "graph"),
    [(name, False) for name in KINDS]
    + [(name, True) for name in sorted(KINDS.keys() - WITHOUT_GRAPH)],
)
def test_a_bad_step_changes_nothing_and_the_next_goes_on(poison, name, graph):
    kind, changes, bad = KINDS[name]
    settings = dataclasses.replace(TINY, **{**changes, "graph": graph})
    step = kind(settings, FakeGraph)
    for call in range(CALLS):
        before = state(step)
        poison.fill_(bad if call in BAD else 0)
        losses = step(batch(call, settings))
        assert any(not value.isfinite() for value in losses.values()) == (call in BAD)
        if call == 0:  # an optimiser's moments begin with the first step: as zeros
            if kind is EnergyStep:  # the first batch's mean is no part of the step
                before = [k if k.dim() or k.any() else k.fill_(step.chains.mean) for k in before]
            of_networks = state(step)[: len(before)]
            assert_same(of_networks, before)
            assert not any(kept.any() for kept in state(step)[len(before) :])
        elif call in BAD:
            assert_same(state(step), before)
        else:
            assert not all(torch.equal(a, b) for a, b in zip(state(step), before, strict=True))
            assert all(kept.isfinite().all() for kept in state(step))
    assert (int(step.skipping.total), int(step.skipping.longest)) == (len(BAD), 2)
    if graph:
        assert step._run._graph.replays == CALLS - 3


def test_good_steps_are_those_without_the_option():
    plain = GANStep(dataclasses.replace(TINY, on_nan="stop", average=0.9))
    skipping = GANStep(dataclasses.replace(TINY, average=0.9))
    for call in range(3):
        given = batch(call, TINY)
        assert_same([*plain(given).values()], [*skipping(given).values()])
    assert_same(state(plain), state(skipping))


def test_a_skipped_first_step_leaves_optimisers_as_new(poison):
    """What follows is what a run does whose random numbers are as far."""
    first, other = GANStep(TINY), GANStep(TINY)
    poison.fill_(math.nan)
    first(batch(0, TINY))
    poison.fill_(0)
    other.random.set_state(first.random.get_state())
    for step in (first, other):
        step(batch(1, TINY))
    assert_same(state(first), state(other))


def test_an_overflow_in_the_weights_alone_is_skipped():
    """Losses are those of before the update."""
    changes = {"model": "autoencoder", "lr": 1e300, "optimizer": "sgd", **PLAIN}
    step = AutoencoderStep(dataclasses.replace(TINY, **changes))
    before = state(step)
    losses = step(batch(0, TINY))
    assert all(value.isfinite() for value in losses.values())
    assert_same(state(step)[: len(before)], before)
    assert int(step.skipping.total) == 1


def test_the_noise_of_chains_goes_on(poison):
    step = EnergyStep(ENERGY)
    poison.fill_(math.nan)
    step(batch(0, ENERGY))
    assert int(step.chains.moment) == ENERGY.langevin_steps


def test_what_was_skipped_is_counted_across_a_resumption(poison):
    step, resumed = GANStep(TINY), GANStep(TINY)
    poison.fill_(math.nan)
    for call in range(2):
        step(batch(call, TINY))
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    resumed(batch(2, TINY))
    assert int(resumed.skipping.total) == 3
    assert int(resumed.skipping.longest) == 1  # a resumed run has all its chances again
    old = step.state_dict()
    del old["skipped"]  # of a run that began without the option
    GANStep(TINY).load_state_dict(old)


def test_the_longest_run_is_of_steps_one_after_the_other():
    skipping, weight = Skipping(torch.device("cpu")), torch.zeros(1)
    given = iter([math.nan, math.nan, 0, math.nan, math.nan, math.nan, 0, math.nan])
    step = skipping.guarded(lambda: {"loss": torch.tensor(next(given))}, lambda: [weight])
    found = []
    for _ in range(8):
        step()
        found.append((int(skipping.total), int(skipping.longest)))
    assert found == [(1, 1), (2, 2), (2, 2), (3, 2), (4, 2), (5, 3), (5, 3), (6, 3)]


ARGUMENTS = [
    *("--frames", 4, "--size", 16, "--width", 4, "--latent", 8, "--batch-size", 4),
    *("--device", "cpu", "--sample-every", 1000),
]


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        train.main.main([str(a) for a in arguments])
    return stop.value.code or 0


@pytest.fixture
def spoilt_calls(poison, monkeypatch):
    """Steps whose losses are NaN, by number from 1."""
    numbers, calls = set(), []
    real = GANStep.__call__

    def spoilt(self, *batch):
        calls.append(1)
        poison.fill_(math.nan if len(calls) in numbers else 0)
        return real(self, *batch)

    monkeypatch.setattr(GANStep, "__call__", spoilt)
    return numbers, calls


def test_a_run_that_skips_says_how_often(tmp_path, capsys, spoilt_calls):
    spoilt_calls[0].update({2, 10, 11})
    out = tmp_path / "run"
    arguments = [*ARGUMENTS, "--steps", 20, "--checkpoint-every", 10, "--out", out]
    assert run(*arguments, "--on-nan", "skip") == 0
    assert "skipped 3 steps" in capsys.readouterr().out
    assert [load_state(path)["task"]["skipped"] for path in list_checkpoints(out)] == [2, 3]


def test_too_many_in_a_row_end_the_run_with_the_last_good_checkpoint(
    tmp_path, capsys, spoilt_calls
):
    spoilt_calls[0].update(range(13, 17))
    out = tmp_path / "run"
    arguments = [*ARGUMENTS, "--steps", 40, "--checkpoint-every", 10, "--out", out]
    assert run(*arguments, "--on-nan", "skip", "--skip-limit", 4) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 4 steps one after the other were skipped by step 20")
    assert "--skip-limit" in error
    # Of steps that were skipped the weights are as good as the last.
    assert [path.name for path in list_checkpoints(out)] == ["step-00000010", "step-00000020"]


def test_a_run_that_stopped_goes_on_with_skipping(tmp_path, capsys, spoilt_calls):
    numbers, calls = spoilt_calls
    numbers.add(20)
    out = tmp_path / "run"
    arguments = [*ARGUMENTS, "--steps", 30, "--checkpoint-every", 15, "--out", out]
    assert run(*arguments) == 2
    assert "is not finite at step 20" in capsys.readouterr().err
    calls[:] = [1] * 15
    assert run("--resume", "--out", out, "--on-nan", "skip") == 0
    assert "skipped 1 steps" in capsys.readouterr().out
