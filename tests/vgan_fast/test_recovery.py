import dataclasses

import click.testing
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from fake_graph import FakeGraph

from vgan_fast.errors import UserError
from vgan_fast.restoration.recovery import RecoveryStep, recover
from vgan_fast.settings import Settings

SETTINGS = Settings(
    model="stgconvnet",
    experiment="4",
    layers="32@3/1 1@*",
    mask_penalty=0.0,
    batch_size=1,
    frames=8,
    size=12,
    chains=1,
    langevin_steps=5,
    step_size=0.5,
    steps=250,
    lr=0.003,
    device="cpu",
    precision="fp32",
)


def waves(count=1):
    """Clips uint8 (N, 8, 12, 12, 3): stripes that move."""
    t, y, x = np.meshgrid(np.arange(8), np.arange(12), np.arange(12), indexing="ij")
    clips = [127 + 90 * np.sin((x + y + 2 * t + i) * np.pi / 6) for i in range(count)]
    return np.stack([np.stack([clip, clip / 2, 255 - clip], -1) for clip in clips]).astype(np.uint8)


def hidden(count=1, share=0.4):
    return np.random.default_rng(0).random((count, 8, 12, 12)) < share


def step_of(clips, occluded, make_graph=FakeGraph, **changes):
    given = torch.as_tensor(clips), torch.as_tensor(occluded)
    return RecoveryStep(dataclasses.replace(SETTINGS, **changes), *given, make_graph)


def test_recovered_pixels_come_near_the_truth_which_it_has_not_seen():
    clips, occluded = waves(), hidden()
    seen = np.where(occluded[..., None], np.uint8(0), clips)
    samples = recover(seen, occluded, SETTINGS, samples=4)
    assert samples.shape == (4, *clips.shape)
    assert samples.dtype == np.float32
    shown = np.broadcast_to(~occluded[None], samples.shape[:-1])
    assert np.array_equal(samples[shown], np.broadcast_to(clips, samples.shape)[shown])
    assert samples.min() >= 0
    assert samples.max() <= 255

    def error(of):
        return np.abs(of - clips.astype(float))[occluded].mean()

    mean = clips[~occluded].mean()
    assert error(samples.mean(0)) < 0.3 * error(np.full_like(clips, mean))
    assert 0.3 < np.abs(samples[0] - samples[1])[0][occluded[0]].mean() < 10  # they are draws


def test_what_hidden_pixels_hold_does_not_matter():
    clips, occluded = waves(), hidden()
    settings = dataclasses.replace(SETTINGS, steps=3)
    drawn = [
        recover(np.where(occluded[..., None], np.uint8(fill), clips), occluded, settings, samples=2)
        for fill in (0, 255)
    ]
    assert np.array_equal(drawn[0], drawn[1])


def test_seeds_repeat_and_differ():
    clips, occluded = waves(), hidden()
    settings = dataclasses.replace(SETTINGS, steps=2)
    first, again, other = (
        recover(clips, occluded, dataclasses.replace(settings, seed=seed), samples=1)
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_step_holds_the_visible_moves_the_hidden_and_lets_chains_run():
    clips, occluded = waves(2), hidden(2)
    step = step_of(clips, occluded)
    values = step.chains.completed.clone()
    chains = step.chains.clips.clone()
    losses = step()
    moved = (step.chains.completed != values).any(1).numpy()
    assert not moved[~occluded].any()
    assert moved[occluded].all()
    assert (step.chains.clips != chains).all()
    assert step.chains.mean == pytest.approx(clips[~occluded].mean(), rel=1e-5)
    assert set(losses) == {"f_data", "f_chains", "energy_data", "energy_chains"}


def test_it_learns_from_the_completed_clips():
    clips, occluded = waves(), hidden()
    step, expected = step_of(clips, occluded), step_of(clips, occluded)
    step()
    drawn = expected.draw(
        torch.cat([expected.chains.completed, expected.chains.clips]), 5, expected._fixed
    ).chains
    expected._learn(drawn[:1], drawn[1:], torch.ones(()))
    for ours, of in zip(step.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(ours, of)


def test_replayed_steps_are_plain_ones(recordable):
    clips, occluded = waves(), hidden()
    plain, replayed = step_of(clips, occluded), step_of(clips, occluded, graph=True)
    for _ in range(7):
        expected, got = plain(), replayed()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert replayed.replays
    assert torch.equal(replayed.chains.completed, plain.chains.completed)


def test_nothing_visible_and_no_number_are_named():
    clips = waves()
    with pytest.raises(UserError, match="everything is occluded"):
        recover(clips, np.ones(clips.shape[:4], bool), SETTINGS, samples=1)
    wild = dataclasses.replace(SETTINGS, lr=1e30, steps=30)
    with pytest.raises(UserError, match=r"not finite at step \d+: .*lower --lr or --step-size"):
        recover(clips, hidden(), wild, samples=1)


def test_losses_are_reported_on_the_way():
    told = []
    settings = dataclasses.replace(SETTINGS, steps=25)
    recover(waves(), hidden(), settings, samples=1, report=lambda done, of: told.append((done, of)))
    assert [done for done, _ in told] == list(range(1, 26))
    assert all(np.isfinite(list(of.values())).all() for _, of in told)


def test_the_program_restores_a_video(tmp_path):
    pytest.importorskip("av")  # as on a bare GPU machine, where no video is read
    from vgan_fast import restore

    video, out, strip = tmp_path / "v.mp4", tmp_path / "restored.mp4", tmp_path / "strip.png"
    frames = waves()[0].repeat(4, 1).repeat(4, 2)
    iio.imwrite(video, frames, plugin="pyav", codec="libx264", fps=12)
    options = ["--occlude", "frames", "--frames", 8, "--size", 16, "--steps", 4, "--samples", 2]
    options += ["--langevin-steps", 2, "--device", "cpu", "--out", out, "--strip", strip]
    done = click.testing.CliRunner().invoke(restore.main, [str(a) for a in (video, *options)])
    assert done.exit_code == 0, done.output
    assert iio.imread(out, plugin="pyav").shape == (8, 16, 16, 3)
    assert iio.imread(strip).ndim == 3
    assert "mean absolute error" in done.output.lower()
    short = ["--frames", 5, *options[4:]]
    done = click.testing.CliRunner().invoke(
        restore.main, [str(a) for a in (video, "--occlude", "frames", *short)]
    )
    assert done.exit_code == 2
    assert "5x16x16 clips are smaller than the 7x7x7 filters" in done.output
