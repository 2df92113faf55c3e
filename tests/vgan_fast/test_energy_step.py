import copy
import dataclasses

import click.testing
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from fake_graph import FakeGraph

from vgan_fast import generate, train
from vgan_fast.checkpoint import list_checkpoints, load_weights
from vgan_fast.device import multiplies_bf16, resolved
from vgan_fast.energy_sampling import ChainSampler
from vgan_fast.energy_step import EnergyStep, as_values, sampler_of, shown
from vgan_fast.errors import UserError
from vgan_fast.graph import WARM_UP, CudaGraph
from vgan_fast.kernels.langevin import normals
from vgan_fast.sampling import Sampler
from vgan_fast.settings import Settings
from vgan_fast.stgconvnet.model import EnergyNetwork

TINY = Settings(
    model="stgconvnet",
    experiment="2",
    layers="6@5/2 4@3x*x*/2x1x1 3@2x1x1",
    mask_penalty=0.0,
    batch_size=2,
    frames=9,
    size=12,
    chains=2,
    langevin_steps=3,
    lr=1e-3,
    device="cpu",
    precision="fp32",
    growth="together",
)


def tiny(make_graph=FakeGraph, **changes):
    return EnergyStep(dataclasses.replace(TINY, **changes), make_graph)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 9, 12, 12, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_step_follows_the_public_codes_loop(backend):
    step = tiny(backend=backend, layer_rates="1,0.5,0.1")
    network = copy.deepcopy(tiny(backend="reference").network)
    network.load_state_dict(step.network.state_dict())
    chains = step.chains.clips.clone()
    adams = [
        torch.optim.Adam(layer.parameters(), lr=1e-3 * factor, betas=(0.5, 0.999))
        for layer, factor in zip(network.convolutions, (1, 0.5, 0.1), strict=True)
    ]
    mean = batch(0).float().mean()
    for i in range(4):
        losses = step(batch(i))
        for k in range(3):
            chains = chains.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(network(chains).sum(), chains)
            noise = normals(chains.shape, 3 * i + k, 0)
            chains = chains - 0.5 * 0.3**2 * (chains - gradient) + 0.3 * noise
        chains = chains.detach()
        data = batch(i).permute(0, 4, 1, 2, 3).float() - mean
        loss = network(chains).mean() - network(data).mean()
        for name, of in (("data", data), ("chains", chains)):
            f = network(of).mean().detach()
            torch.testing.assert_close(losses[f"f_{name}"], f, rtol=1e-3, atol=1e-4)
            energy = (of.square() / 2).mean() - f / of[0].numel()
            torch.testing.assert_close(losses[f"energy_{name}"], energy, rtol=1e-4, atol=1e-4)
        for adam in adams:
            adam.zero_grad()
        loss.backward()
        for adam in adams:
            adam.step()
        torch.testing.assert_close(step.chains.clips, chains, rtol=1e-4, atol=1e-4)
    for ours, expected in zip(step.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=2e-5)


def test_the_learning_gradient_is_that_of_the_likelihood():
    """Of one pixel, whose partition function is a sum over a grid, against finite differences."""
    settings = dataclasses.replace(
        TINY, frames=1, size=1, layers="4@1 2@1", sigma=1.5, chains=4000, metropolis=True,
        langevin_steps=400, step_size=1.0, lr=1e-12, backend="reference",
    )  # fmt: skip
    step = EnergyStep(settings)
    network = step.network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.6)
    data = torch.tensor([[60, 190, 128], [131, 127, 125]], dtype=torch.uint8)
    data = data.view(2, 1, 1, 1, 3)
    step.chains.mean.fill_(127.0)
    values = as_values(data, step.chains.mean).double() / 30  # a few standard deviations off

    axis = torch.linspace(-14, 14, 85, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis, axis).view(-1, 3, 1, 1, 1)
    reference = -grid.square().flatten(1).sum(1) / (2 * 1.5**2)

    def log_likelihood():
        with torch.no_grad():
            partition = torch.logsumexp(network(grid) + reference, 0)
            return network(values).mean() - partition

    expected = []
    for parameter in network.parameters():
        for i in range(parameter.numel()):
            flat, change = parameter.data.view(-1), 1e-5
            flat[i] += change
            above = log_likelihood()
            flat[i] -= 2 * change
            below = log_likelihood()
            flat[i] += change
            expected.append((above - below) / (2 * change))
    expected = torch.stack(expected)

    step.network.float()
    chains = step.draw(step.chains.clips, 400).chains
    step._learn(values.float(), chains, torch.ones(()))
    got = torch.cat([-p.grad.flatten() for p in step.network.parameters()]).double()
    # Of the gradient's mean over chains: by the spread of the chains' own gradients.
    own = torch.func.vmap(
        torch.func.grad(lambda p, x: torch.func.functional_call(step.network, p, x[None]).sum()),
        (None, 0),
    )(dict(step.network.named_parameters()), chains)
    own = torch.cat([own[name].flatten(1) for name, _ in step.network.named_parameters()], 1)
    error = own.double().std(0) / len(own) ** 0.5
    assert error.max() < 0.1
    assert ((got - expected).abs() <= 4.5 * error + 1e-3).all()
    assert expected.abs().max() > 10 * error.max()  # it is no test of noise


def test_layers_come_one_after_the_other():
    step = tiny(growth="layers", steps=6)
    depths, moved = [], []
    for i in range(6):
        before = [layer.weight.clone() for layer in step.network.convolutions]
        step(batch(i))
        depths.append(step.network.depth)
        after = [layer.weight for layer in step.network.convolutions]
        moved.append([not torch.equal(a, b) for a, b in zip(after, before, strict=True)])
    assert depths == [1, 1, 2, 2, 3, 3]
    assert [sum(each) for each in moved] == depths
    again = tiny(growth="layers", steps=60)  # resumed with more to do: no layer is taken off
    again.network.load_state_dict(step.network.state_dict())
    again.chains.load_state_dict(step.chains.state_dict())
    again.load_state_dict(step.state_dict())
    again(batch(6))
    assert again.network.depth == 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"backend": "reference"},
        {"metropolis": True},
        {"reference": "uniform"},
        {"growth": "layers", "steps": 18},
    ],
)
def test_replayed_steps_and_resumed_ones_are_plain_ones_bit_for_bit(changes, recordable):
    graph = changes.get("backend") != "reference"
    plain, replayed = tiny(**changes), tiny(**changes, graph=graph)
    resumed = tiny(**changes, graph=graph)
    steps, captures = changes.get("steps", 9), 0
    for i in range(steps):
        expected, got = plain(batch(i)), replayed(batch(i))
        if i >= 5:
            again = resumed(batch(i))
            assert all(torch.equal(again[name], expected[name]) for name in expected)
        if i == 4:
            for name, network in replayed.networks.items():
                resumed.networks[name].load_state_dict(network.state_dict())
            resumed.load_state_dict(copy.deepcopy(replayed.state_dict()))
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in got)
        captures += graph and replayed.replays and replayed._run._calls == WARM_UP + 1
    assert captures == (3 if "growth" in changes else graph)  # anew for each depth
    for step in (replayed, resumed):
        for name, value in plain.chains.state_dict().items():
            assert torch.equal(step.chains.state_dict()[name], value), name
    assert plain.chains.moment == 3 * steps


@pytest.mark.gpu
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"backend": "fused"},
        {"metropolis": True},
        {"reference": "uniform"},
        {"growth": "layers", "steps": 12},
    ],
)
def test_on_a_gpu_a_graph_takes_the_eager_steps(changes, caplog):
    eager, captured = (
        tiny(CudaGraph, **changes, device="cuda", graph=graph) for graph in (False, True)
    )
    for i in range(12):
        expected, got = eager(batch(i).cuda()), captured(batch(i).cuda())
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-3)
    assert "growth" in changes or captured.replays
    assert not caplog.records
    torch.testing.assert_close(captured.chains.clips, eager.chains.clips, rtol=1e-3, atol=1e-2)
    assert captured.chains.moment == eager.chains.moment == 36


def test_settings_reach_the_sampler():
    step = tiny(reference="uniform", langevin_steps=40, step_size=30.0, lr=1e-12)
    step(batch())
    values = step.chains.clips + step.chains.mean
    assert values.min() >= -1e-3
    assert values.max() <= 255 + 1e-3
    assert values.std() == pytest.approx(255 / 12**0.5, rel=0.05)
    wide = tiny(sigma=5.0, langevin_steps=400, step_size=1.5, lr=1e-12)
    wide(batch())
    assert wide.chains.clips.std() == pytest.approx(5 / (1 - 1.5**2 / 100) ** 0.5, rel=0.05)
    still = tiny(temperature=0.0, langevin_steps=400, lr=1e-12)
    still(batch())
    assert still.chains.clips.abs().max() < 0.1


def test_sampler_and_rates_are_those_of_the_settings():
    given = {"seed": 5, "metropolis": True, "step_size": 0.25, "sigma": 2.0, "temperature": 0.5}
    sampler = sampler_of(dataclasses.replace(TINY, **given), 100.0)
    assert (sampler.seed, sampler.metropolis, sampler.step_size) == (5, True, 0.25)
    assert (sampler.variance, sampler.temperature, sampler.bounds) == (4.0, 0.5, None)
    flat = sampler_of(dataclasses.replace(TINY, reference="uniform"), 100.0)
    assert (flat.variance, flat.bounds) == (None, (-100.0, 155.0))
    graded = dataclasses.replace(TINY, layers=None, frames=16, size=16)
    assert graded.factors_of_rates(3) == pytest.approx((1, 0.3, 0.09))
    assert TINY.factors_of_rates(3) == (1, 1, 1)  # layers of one's own
    one = dataclasses.replace(graded, experiment="1")
    assert one.factors_of_rates(3) == (1, 1, 1)


def test_metropolis_hastings_is_done_in_fp32():
    auto = dataclasses.replace(TINY, precision="auto")
    assert resolved(dataclasses.replace(auto, metropolis=True)).precision == "fp32"
    low = "bf16" if multiplies_bf16(torch.device("cpu")) else "fp32"
    assert resolved(auto).precision == low


def test_pictures_show_data_and_chains():
    step = tiny()
    step(batch())
    made = step.sample(4)
    assert list(made) == ["real", "video"]
    assert {clip.shape for clip in made.values()} == {(4, 3, 9, 12, 12)}
    assert torch.equal(made["video"][0], made["video"][2])
    expected = ((step.chains.clips[1] + step.chains.mean) / 127.5 - 1).clamp(-1, 1)
    torch.testing.assert_close(made["video"][1], expected)
    torch.testing.assert_close(made["real"][1], batch()[1].permute(3, 0, 1, 2) / 127.5 - 1)


def test_values_and_back():
    frames, mean = batch(), torch.tensor(100.0)
    clips = as_values(frames, mean)
    assert clips.shape == (2, 3, 9, 12, 12)
    assert clips.min() >= -100
    back = ((shown(clips, mean) + 1) * 127.5).permute(0, 2, 3, 4, 1).round().to(torch.uint8)
    assert torch.equal(back, frames)


def run(*arguments):
    return click.testing.CliRunner().invoke(train.main, [str(a) for a in arguments])


SMALL = ["--model", "stgconvnet", "--frames", 16, "--size", 16, "--device", "cpu", "--steps", 4]
SMALL += ["--langevin-steps", 2, "--chains", 2, "--checkpoint-every", 2]


def test_a_run_and_its_resumption(tmp_path):
    out = tmp_path / "run"
    done = run(*SMALL, "--experiment", "2", "--out", out)
    assert done.exit_code == 0, done.output
    assert (out / "pictures" / "step-00000004.gif").exists()
    assert len(list_checkpoints(out)) == 2
    more = run("--resume", "--out", out, "--steps", 6)
    assert more.exit_code == 0, more.output
    straight = tmp_path / "straight"
    assert run(*SMALL, "--experiment", "2", "--out", straight, "--steps", 6).exit_code == 0
    ends = [list_checkpoints(folder)[-1] / "weights.safetensors" for folder in (out, straight)]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_generated_clips_are_chains_taken_further(tmp_path):
    run_of, out = tmp_path / "run", tmp_path / "clips"
    assert run(*SMALL, "--experiment", "2", "--out", run_of).exit_code == 0

    def generated(*options):
        asked = [run_of, "--out", out, "--each", "png", "--device", "cpu", *options]
        done = click.testing.CliRunner().invoke(generate.main, [str(a) for a in asked])
        assert done.exit_code == 0, done.output
        return [iio.imread(file) for file in sorted(out.glob("*.png"))]

    first = generated("--count", 5, "--langevin-steps", 3)
    assert len(first) == 5
    again = generated("--count", 5, "--langevin-steps", 3)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    # Of two chains: clips 0, 2 and 4 are from one, with other noise.
    assert not np.array_equal(first[0], first[2])
    for options in (("--langevin-steps", 3, "--seed", 1), ("--langevin-steps", 4)):
        other = generated("--count", 5, *options)
        assert not np.array_equal(first[0], other[0])
    sampler = ChainSampler(run_of, torch.device("cpu"))
    (made,) = sampler.batches(2, 7, 3)  # of 2 and 1 steps
    chains = sampler._chains
    plain = dataclasses.replace(sampler_of(sampler.settings, float(chains.mean)), seed=8)
    expected = plain(sampler._scored, chains.clips, torch.tensor(0), 3).chains
    assert torch.equal(made["video"], shown(expected, chains.mean))
    *_, third = (clips["video"] for clips in sampler.batches(5, 7, 3))
    (alone,) = sampler.batches(5, 7, 3, range(2, 3))  # as another process makes it
    assert torch.equal(alone["video"], third)
    assert not list(sampler.batches(5, 7, 3, range(0)))
    for option in (["--streams"], ["--to-seed", "3"]):
        done = click.testing.CliRunner().invoke(generate.main, [str(run_of), *option])
        assert done.exit_code == 2
        assert "has no generator, but chains" in done.output
    with pytest.raises(UserError, match="an energy model has no generator"):
        Sampler(run_of, torch.device("cpu"))


def test_chains_of_an_unfinished_run_go_on_at_its_depth(tmp_path):
    out, steps = tmp_path / "run", ["--steps", 6, "--growth", "layers"]
    assert run(*SMALL, *steps, "--experiment", "2", "--out", out).exit_code == 0
    clips = torch.randn(2, 3, 16, 16, 16) * 50
    f = []
    for checkpoint in list_checkpoints(out):
        sampler = ChainSampler(checkpoint, torch.device("cpu"))
        f.append(sampler._scored(clips)[0])
        depth = int(checkpoint.name[-1]) // 2
        settings = sampler.settings
        network = EnergyNetwork(settings.network_layers())
        network.depth = depth
        load_weights(checkpoint, {"network": network})
        torch.testing.assert_close(f[-1], network(clips).detach(), rtol=0.05, atol=0)
    assert len(f) == 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--frames", 6], "6x16x16 clips are smaller than the 7x7x7 filters"),
        (["--layers", "junk"], "'junk' is no layer"),
        (["--layer-rates", "1"], "--layer-rates 1: must be 3"),
        (["--step-size", 0], "--step-size"),
        (["--sigma", 0], "--sigma 0.0: must lie between 0.001"),
        (["--step-size", 2], "--step-size 2.0: must be less than twice --sigma 1.0"),
        (["--frames", 0, "--layers", "1@*"], "--frames 0: must lie in"),
        (["--size", -3, "--layers", "1@*"], "--size -3: must lie in"),
        (["--layers", ""], "--layers: names no layer"),
        (["--layers", "3@3+100000"], "its sizes must lie between"),
        (["--backend", "library"], "--backend library: not with"),
        (["--backend", "reference", "--precision", "bf16"], "--precision bf16: not with"),
        (["--metropolis", "--temperature", 0], "--metropolis: needs"),
        (["--metropolis", "--precision", "bf16"], "--metropolis: needs --precision fp32"),
        (["--precision", "fp16"], "--precision fp16: not with --model stgconvnet"),
        (["--loss", "hinge"], "--loss: --model stgconvnet has no discriminator"),
        (["--latent", 7], "--latent: is for"),
        (["--average", 0.9], "--average: not with"),
    ],
)
def test_bad_options_are_named(arguments, named, tmp_path):
    done = run(*SMALL, "--experiment", "2", "--out", tmp_path / "run", *arguments)
    assert done.exit_code == 2
    assert named in done.output
    assert not (tmp_path / "run").exists()


def test_a_chain_that_is_no_number_stops_the_run_and_keeps_the_last_state(tmp_path, monkeypatch):
    out, taken = tmp_path / "run", EnergyStep._train

    def breaking(self, frames):
        if self._done == 7:
            self.chains.clips[1, 0, 3, 2, 2] = np.nan
        return taken(self, frames)

    monkeypatch.setattr(EnergyStep, "_train", breaking)
    options = "--experiment", "2", "--steps", 20, "--backend", "reference"
    done = run(*SMALL, *options, "--checkpoint-every", 3, "--out", out)
    assert done.exit_code == 2
    assert "at step 7" in done.output.splitlines()[-1]
    assert "--step-size" in done.output.splitlines()[-1]
    assert list_checkpoints(out)[-1].name == "step-00000006"
    monkeypatch.undo()
    assert run("--resume", "--out", out, "--steps", 8).exit_code == 0


def test_options_of_one_kind_of_model_are_refused_for_the_other(tmp_path):
    for option, value in (("chains", 4), ("experiment", "2"), ("layers", "1@3"), ("sigma", 2)):
        done = run("--device", "cpu", "--out", tmp_path / "run", f"--{option}", value)
        assert done.exit_code == 2
        assert f"--{option} is for --model stgconvnet" in done.output
    with pytest.raises(UserError, match="--batch-size 1: must be 2 or more"):
        Settings(batch_size=1)
