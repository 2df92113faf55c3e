"""The sampler against distributions that are known, and on the kernel against the plain loop."""

import math

import pytest
import torch

from tests.kernels.equivalence import DEVICE
from vgan_fast.kernels import dispatch
from vgan_fast.kernels.langevin import normals
from vgan_fast.stgconvnet.fast import FastEnergyNetwork
from vgan_fast.stgconvnet.langevin import Langevin
from vgan_fast.stgconvnet.layers import parse_layers
from vgan_fast.stgconvnet.model import EnergyNetwork


def moment_of(number=0):
    return torch.tensor(number)


def flat(chains):
    """A model whose f is 0: chains follow the reference."""
    return torch.zeros(len(chains)), torch.zeros_like(chains)


def field(precision):
    """A model f = -x' A x / 2 of clips of few values."""

    def scored(chains):
        x = chains.flatten(1)
        gradient = -x @ precision
        return (x * gradient).sum(1) / 2, gradient.view_as(chains)

    return scored


def drawn(sampler, scored, shape, steps, kept=60, apart=5, moment=None):
    """Values (count, chain values) of chains after `steps` steps, and of `kept` moments after."""
    moment = moment_of() if moment is None else moment
    chains = sampler(scored, torch.zeros(shape), moment, steps).chains
    all_of_them = []
    for _ in range(kept):
        chains = sampler(scored, chains, moment, apart).chains
        all_of_them.append(chains.flatten(1))
    return torch.stack(all_of_them).double()


def assert_within_sampling_error(values, expected, spread):
    """The mean over moments and chains, by the spread of the chains' own means."""
    means = values.mean(0)  # of each chain: independent of one another
    error = means.std(0) / len(means) ** 0.5
    assert ((means.mean(0) - expected).abs() <= spread * error + 1e-9).all()


def test_reference_and_fused_sampler_agree_step_by_step(monkeypatch):
    layers = parse_layers("6@5/2 4@3x*x*/2x1x1+1x0x0 3@2x1x1+1x0x0", (9, 12, 11))
    plain, quick = EnergyNetwork(layers).to(DEVICE), FastEnergyNetwork(layers).to(DEVICE)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.1)
    quick.load_state_dict(plain.state_dict())
    chains = torch.randn(2, 3, 9, 12, 11, device=DEVICE) * 30
    fixed = torch.rand(2, 1, 9, 12, 11, device=DEVICE) < 0.3
    before = dispatch.launches["langevin_step"]
    moments = moment_of().to(DEVICE), moment_of().to(DEVICE)
    reference, fused = chains, chains
    for _ in range(12):
        reference = Langevin(impl="reference", seed=3)(
            plain.frozen(), reference, moments[0], 1, fixed
        ).chains
        fused = Langevin(impl="triton", seed=3)(quick.frozen(), fused, moments[1], 1, fixed).chains
        assert (fused - reference).norm() / reference.norm() <= 1e-5
        assert torch.equal(fused[fixed.expand_as(fused)], chains[fixed.expand_as(chains)])
    assert dispatch.launches["langevin_step"] == before + 12
    assert not torch.equal(reference, chains)
    assert moments[0] == moments[1] == 12


def test_a_step_is_the_equation():
    chains, gradient = torch.randn(2, 3, 2, 4, 5), torch.randn(2, 3, 2, 4, 5)
    sampler = Langevin(step_size=0.4, variance=2.5, temperature=0.7, seed=5)
    got = sampler(lambda _: (None, gradient), chains, moment_of(8), 1).chains
    noise = normals(chains.shape, 8, 5)
    expected = chains - 0.4**2 / 2 * (chains / 2.5 - gradient) + 0.4 * 0.7**0.5 * noise
    torch.testing.assert_close(got, expected)


def test_chains_of_the_reference_alone_are_normal():
    sampler = Langevin(step_size=0.5, variance=4.0)
    values = drawn(sampler, flat, (300, 3, 1, 2, 2), 200)
    assert_within_sampling_error(values, 0.0, 5)
    # The chain x <- (1 - d²/2s²) x + d n has the variance s² / (1 - d²/4s²).
    assert_within_sampling_error(values**2, 4 / (1 - 0.25 / 16), 5)


def test_mean_and_covariance_of_a_small_field():
    torch.manual_seed(1)
    root = torch.randn(6, 6) / 3
    precision = root @ root.T + torch.diag(torch.linspace(0.2, 1, 6))
    sampler = Langevin(step_size=0.2, variance=2.0)
    values = drawn(sampler, field(precision), (400, 3, 1, 1, 2), 400, kept=50, apart=20)
    covariance = torch.linalg.inv(precision + torch.eye(6) / 2).double()
    assert_within_sampling_error(values, 0.0, 5)
    products = values[..., :, None] * values[..., None, :]
    # The step's bias: a factor of 1 / (1 - d²/4 times the precision) along its axes.
    biased = torch.linalg.inv(torch.eye(6) - 0.01 * (precision + torch.eye(6) / 2)).double()
    assert_within_sampling_error(products.flatten(2), (covariance @ biased).flatten(), 5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_metropolis_hastings_takes_the_bias_of_large_steps_away(temperature):
    shape, step = (600, 1, 1, 1, 1), 1.2
    plain = Langevin(step_size=step, temperature=temperature)
    corrected = Langevin(step_size=step, temperature=temperature, metropolis=True)
    biased = drawn(plain, flat, shape, 50)
    assert (biased**2).mean() > 1.4 * temperature
    unbiased = drawn(corrected, flat, shape, 50)
    assert_within_sampling_error(unbiased**2, temperature, 4)
    assert_within_sampling_error(unbiased**4, 3 * temperature**2, 5)
    # The same of a model: N(0, 1 / (1 + 3)).
    scored = field(torch.tensor([[3.0]]))
    small = Langevin(step_size=0.7, temperature=temperature, metropolis=True)
    assert_within_sampling_error(drawn(small, scored, shape, 50) ** 2, temperature / 4, 4)


def test_metropolis_hastings_is_the_textbook_loop():
    precision = torch.tensor([[2.0, 0.8, 0.0], [0.8, 1.5, -0.5], [0.0, -0.5, 3.0]])
    scored, step, temperature = field(precision), 1.1, 0.8
    chains = torch.randn(50, 3, 1, 1, 1)
    sampler = Langevin(step_size=step, temperature=temperature, variance=2.0, metropolis=True)
    moment = moment_of(5)
    got = sampler(scored, chains, moment, 12)

    def target(x):
        f, gradient = scored(x)
        flat = x.flatten(1).double()
        log = (f.double() - flat.square().sum(1) / 4) / temperature
        return log, (gradient - x / 2).flatten(1).double()

    def log_proposal(to, x, slope):
        off = to.flatten(1).double() - x.flatten(1).double() - step**2 / 2 * slope
        return -off.square().sum(1) / (2 * step**2 * temperature)

    x, accepted = chains, []
    for number in range(5, 17):
        log, slope = target(x)
        noise = normals(x.shape, number, 0)
        moved = x + step**2 / 2 * slope.float().view_as(x) + step * temperature**0.5 * noise
        moved_log, moved_slope = target(moved)
        ratio = (
            moved_log - log + log_proposal(x, moved, moved_slope) - log_proposal(moved, x, slope)
        )
        uniform = torch.special.ndtr(normals((50,), -1 - number, 0).double())
        keep = uniform < ratio.exp()
        accepted.append(keep.double().mean())
        x = torch.where(keep[:, None, None, None, None], moved, x)
    assert 0.2 < torch.stack(accepted).mean() < 0.8
    torch.testing.assert_close(got.chains, x, rtol=1e-4, atol=1e-4)
    assert got.accepted.item() == pytest.approx(torch.stack(accepted).mean().item(), abs=1e-6)
    assert moment == 17


def test_metropolis_hastings_beside_held_pixels():
    # Of two values with a precision of [[2, 1], [1, 2]] one is held at 3: the other is N(-1.5, .5).
    scored = field(torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    sampler = Langevin(step_size=0.9, metropolis=True)
    chains = torch.tensor([3.0, 0.0]).expand(600, 2)[:, None, None, None].contiguous()
    fixed = torch.tensor([True, False])[None, None, None, None]
    moment, seen = moment_of(), []
    for _ in range(60):
        chains = sampler(scored, chains, moment, 5, fixed).chains
        seen.append(chains.flatten(1).double())
    values = torch.stack(seen[10:])
    assert (values[..., 0] == 3).all()
    assert_within_sampling_error(values[..., 1:], -1.5, 4)
    assert_within_sampling_error((values[..., 1:] + 1.5) ** 2, 0.5, 4)


def test_the_share_of_accepted_steps():
    moment = moment_of()
    shape = (200, 1, 1, 1, 1)
    for step, low, high in ((0.01, 0.999, 1.0), (1.2, 0.7, 0.95), (3.0, 0.0, 0.5)):
        sampler = Langevin(step_size=step, metropolis=True)
        accepted = sampler(flat, torch.randn(shape), moment, 50).accepted
        assert low <= accepted <= high, step


def test_at_temperature_0_chains_go_to_the_mode_and_stay():
    goal = torch.linspace(-4, 4, 12).view(1, 3, 1, 2, 2)
    sampler = Langevin(temperature=0.0)

    def scored(chains):
        return None, goal.expand_as(chains)  # f = goal x: the mode of f - x²/2 is the goal

    chains = sampler(scored, torch.zeros(2, 3, 1, 2, 2), moment_of(), 500).chains
    torch.testing.assert_close(chains, goal.expand_as(chains), rtol=0, atol=1e-4)


def test_a_flat_reference_is_uniform_between_its_bounds():
    sampler = Langevin(step_size=0.8, variance=None, bounds=(-2.0, 3.0))
    values = drawn(sampler, flat, (300, 1, 1, 1, 2), 200)
    assert values.min() >= -2
    assert values.max() <= 3
    for power, expected in ((1, 0.5), (2, (27 + 8) / 15)):
        assert_within_sampling_error(values**power, expected, 5)
    counts = torch.histc(values.float(), 10, -2, 3) / values.numel()
    assert (counts - 0.1).abs().max() < 0.01


def test_steps_taken_in_two_calls_are_those_taken_in_one():
    sampler = Langevin(seed=7)
    once, twice = moment_of(), moment_of()
    chains = torch.randn(2, 3, 2, 3, 4)
    whole = sampler(flat, chains, once, 9).chains
    first = sampler(flat, chains, twice, 4).chains
    assert torch.equal(sampler(flat, first, twice, 5).chains, whole)
    other = Langevin(seed=8)(flat, chains, moment_of(), 9).chains
    assert not torch.allclose(other, whole, atol=0.1)


def test_what_is_not_defined_is_refused():
    for changes in ({"temperature": 0.0}, {"bounds": (-1.0, 1.0)}):
        with pytest.raises(ValueError, match="Metropolis-Hastings needs"):
            Langevin(metropolis=True, **changes)


def test_a_rejected_chain_stays_while_others_go_on():
    # A wall: f is -inf above 0, and each chain's proposal beyond it is refused.
    def scored(chains):
        outside = (chains.flatten(1) > 0).any(1)
        return torch.where(outside, -math.inf, 0.0), torch.zeros_like(chains)

    sampler = Langevin(step_size=1.0, metropolis=True)
    values = drawn(sampler, scored, (400, 1, 1, 1, 1), 50) + 0.0
    assert values.max() <= 0
    # Half of a normal: its mean square is 1 nonetheless.
    assert_within_sampling_error(values**2, 1.0, 5)
