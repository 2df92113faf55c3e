import numpy as np
import pytest
import torch

from vgan_fast.baselines.markov_field import Field, Weights, fit_weights, recover
from vgan_fast.errors import UserError

TILES = 8  # along each side of a volume of equal tiles, each with one hole


def tiled(tile, hole):
    """A volume of TILES^3 equal tiles (t, h, w), and where each is occluded, its hole.

    What surrounds a hole is visible, so that holes are independent draws of the same distribution.
    """
    repeat = (TILES, TILES, TILES)
    values = torch.from_numpy(np.tile(tile, repeat)).float()
    occluded = np.tile(hole, repeat)
    return values.unsqueeze(3).expand(-1, -1, -1, 3).contiguous(), occluded


def draws_of_holes(values, hole):
    """Of a drawn volume the holes' sites (draws, sites), in the order of the tile's."""
    t, h, w = hole.shape
    tiles = values.reshape(TILES, t, TILES, h, TILES, w, 3).permute(0, 2, 4, 6, 1, 3, 5)
    return tiles.reshape(-1, t, h, w)[:, torch.from_numpy(hole)].double().numpy()


def gibbs(tile, hole, potential, weights, burn_in=30, rounds=20, apart=5):
    values, occluded = tiled(tile, hole)
    values[torch.from_numpy(occluded)] = 100
    field, generator = Field(occluded, potential, weights), torch.Generator().manual_seed(0)
    drawn = []
    for round_ in range(rounds):
        for _ in range(apart if round_ else burn_in):
            values = field.sweep(values, generator)
        drawn.append(draws_of_holes(values, hole))
    return np.concatenate(drawn)


def neighbours(shape, site):
    """Sites next to `site` within a lattice of this shape, and whether in time."""
    for axis in range(3):
        for step in (-1, 1):
            other = list(site)
            other[axis] += step
            if 0 <= other[axis] < shape[axis]:
                yield tuple(other), axis == 0


def gaussian(tile, hole, weights):
    """Mean and covariance of the L2 field without ends in the hole, by a dense inverse."""
    sites = [tuple(site) for site in np.argwhere(hole)]
    precision, pull = np.zeros((len(sites), len(sites))), np.zeros(len(sites))
    for row, site in enumerate(sites):
        for other, in_time in neighbours(tile.shape, site):
            weight = 2 * (weights.time if in_time else weights.space)
            precision[row, row] += weight
            if hole[other]:
                precision[row, sites.index(other)] -= weight
            else:
                pull[row] += weight * tile[other]
    return np.linalg.solve(precision, pull), np.linalg.inv(precision)


def surrounded(shape, seed=0, low=60, high=190):
    """A tile with a hole of this shape amid visible sites of random levels."""
    hole = np.pad(np.ones(shape, bool), 1)
    return np.random.default_rng(seed).integers(low, high, hole.shape), hole


def check_gaussian(drawn, mean, covariance):
    deviations = np.sqrt(np.diag(covariance))
    errors = (drawn.mean(0) - mean) / deviations
    assert np.abs(errors).max() < 5 / np.sqrt(len(drawn))
    got = np.cov(drawn.T) / np.outer(deviations, deviations)
    expected = covariance / np.outer(deviations, deviations)
    assert np.abs(got - expected).max() < 7 / np.sqrt(len(drawn))


def test_l2_draws_have_the_gaussian_s_mean_and_covariance():
    tile, hole = surrounded((2, 2, 2))
    weights = Weights(space=0.004, time=0.02)
    drawn = gibbs(tile, hole, "l2", weights)
    check_gaussian(drawn, *gaussian(tile, hole, weights))


def test_the_draw_at_once_has_the_gaussian_s_mean_and_covariance():
    tile, hole = surrounded((2, 3, 2))
    weights = Weights(space=0.004, time=0.02)
    values, occluded = tiled(tile, hole)
    field, generator = Field(occluded, "l2", weights), torch.Generator().manual_seed(0)
    values[torch.from_numpy(occluded)] = torch.nan  # What occluded pixels hold must not matter.
    drawn = [draws_of_holes(field.gaussian_draw(values, generator), hole) for _ in range(12)]
    check_gaussian(np.concatenate(drawn), *gaussian(tile, hole, weights))


def test_a_field_ends_where_the_clip_does():
    """Of three pixels the first and the last are drawn: each has one neighbour."""
    values = torch.zeros(1, 1, 3, 3)
    values[:, :, 1] = 120
    field = Field(np.array([[[True, False, True]]]), "l2", Weights(space=0.005, time=1))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([field.sweep(values, generator)[0, 0, ::2] for _ in range(1500)]).double()
    drawn = drawn.movedim(2, 1).flatten(0, 1)
    check_gaussian(drawn.numpy(), np.full(2, 120), np.eye(2) * 100)
    at_once = torch.stack([field.gaussian_draw(values, generator)[0, 0, ::2] for _ in range(1500)])
    check_gaussian(at_once.movedim(2, 1).flatten(0, 1).numpy(), np.full(2, 120), np.eye(2) * 100)


@pytest.mark.parametrize("potential", ["l1", "l2"])
@pytest.mark.parametrize("pair", [(2, 1, 1), (1, 2, 1), (1, 1, 2)], ids=["time", "rows", "columns"])
def test_pairs_have_the_field_s_distribution(potential, pair):
    """Against the density of both pixels, summed over a grid of half levels.

    Levels from end to end and weights so small that the ends cut off much.
    """
    tile, hole = surrounded(pair, seed=3, low=0, high=256)
    weights = Weights(0.006, 0.02) if potential == "l1" else Weights(2e-5, 8e-5)
    drawn = gibbs(tile, hole, potential, weights, burn_in=20, rounds=15, apart=4)

    grid = np.arange(0.25, 255, 0.5)
    x, y = np.meshgrid(grid, grid, indexing="ij")

    def energy(difference, in_time):
        weight = weights.time if in_time else weights.space
        return weight * (np.abs(difference) if potential == "l1" else np.square(difference))

    first, last = (tuple(site) for site in np.argwhere(hole))
    total = energy(x - y, pair[0] == 2)
    for site, value in ((first, x), (last, y)):
        for other, in_time in neighbours(tile.shape, site):
            if not hole[other]:
                total = total + energy(value - tile[other], in_time)
    density = np.exp(total.min() - total)
    density /= density.sum()
    for site in (0, 1):
        cumulative = np.cumsum(density.sum(1 - site))
        got = np.searchsorted(np.sort(drawn[:, site]), grid + 0.25) / len(drawn)
        assert np.abs(got - cumulative).max() < 2 / np.sqrt(len(drawn))
    below = [np.mean((drawn[:, 0] < level) & (drawn[:, 1] < level)) for level in (70, 128, 180)]
    expected = [density[(x < level) & (y < level)].sum() for level in (70, 128, 180)]
    np.testing.assert_allclose(below, expected, atol=2.5 / np.sqrt(len(drawn)))


def test_l1_draws_between_equal_neighbours():
    """Pieces of no width and of no slope: four equal neighbours and two others."""
    tile, hole = surrounded((1, 1, 1))
    tile[1, 0, 1] = tile[1, 2, 1] = tile[1, 1, 0] = tile[1, 1, 2] = 80
    tile[0, 1, 1], tile[2, 1, 1] = 20, 200
    drawn = gibbs(tile, hole, "l1", Weights(0.01, 0.04), burn_in=1, apart=1)
    grid = np.arange(0.25, 255, 0.5)
    energy = 0.04 * np.abs(grid - 80) + 0.04 * (np.abs(grid - 20) + np.abs(grid - 200))
    cumulative = np.cumsum(np.exp(-energy)) / np.exp(-energy).sum()
    got = np.searchsorted(np.sort(drawn[:, 0]), grid + 0.25) / len(drawn)
    assert np.abs(got - cumulative).max() < 2 / np.sqrt(len(drawn))


def field_draw(potential, weights, shape=(14, 24, 24), sweeps=60):
    """A clip drawn of the field with nothing visible, uint8."""
    generator = torch.Generator().manual_seed(1)
    values = torch.rand((*shape, 3), generator=generator) * 255
    field = Field(np.ones(shape, bool), potential, weights)
    for _ in range(sweeps):
        values = field.sweep(values, generator)
    return values.floor().clamp(max=255).byte().numpy()


@pytest.mark.parametrize(
    ("potential", "weights"),
    [("l1", Weights(0.04, 0.07)), ("l2", Weights(0.0004, 0.0015))],
    ids=["l1", "l2"],
)
def test_the_fit_finds_the_weights_of_a_field(potential, weights):
    clip = field_draw(potential, weights)
    fits = {
        "all visible": np.zeros(clip.shape[:3], bool),
        "a tenth occluded": np.random.default_rng(0).random(clip.shape[:3]) < 0.1,
    }
    for name, occluded in fits.items():
        hidden = clip.copy()
        hidden[occluded] = np.random.default_rng(1).integers(0, 256, (occluded.sum(), 3))
        fitted = fit_weights(hidden, occluded, potential, seed=0)
        assert fitted.space == pytest.approx(weights.space, rel=0.1), name
        assert fitted.time == pytest.approx(weights.time, rel=0.1), name


def test_the_fit_where_no_site_has_all_its_neighbours():
    clip = field_draw("l2", Weights(0.0004, 0.0015), shape=(12, 16, 16))
    occluded = np.zeros(clip.shape[:3], bool)
    occluded[::2] = True
    still = fit_weights(clip, occluded, "l2", seed=0)
    assert still.time == still.space  # Nothing shows how frames follow each other.
    occluded[1] = occluded[2] = occluded[4] = False
    some = fit_weights(clip, occluded, "l2", seed=0)  # Frames 1 to 5 are visible.
    assert some.time > 1.5 * some.space
    occluded[:] = True
    occluded[:, 3, 5] = False
    alone = fit_weights(clip, occluded, "l2", seed=0)  # One pixel, in all frames.
    assert alone.space == alone.time


@pytest.mark.parametrize("potential", ["l1", "l2"])
def test_a_constant_clip_is_recovered_to_a_level(potential):
    clip = np.full((6, 8, 8, 3), (0, 90, 255), np.uint8)
    occluded = np.random.default_rng(0).random(clip.shape[:3]) < 0.3
    drawn = recover(clip, occluded, potential=potential, sweeps=3, samples=2, seed=0)
    assert np.abs(drawn - clip)[:, occluded].max() < 6
    assert np.abs(drawn - clip)[:, occluded].mean() < 1


@pytest.mark.parametrize("potential", ["l1", "l2"])
def test_noise_couples_hardly(potential):
    """Levels at random: what is drawn has their spread, not their mean."""
    clip = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    occluded = np.zeros(clip.shape[:3], bool)
    occluded[:, 4:9, 4:9] = True
    drawn = recover(clip, occluded, potential=potential, sweeps=20, samples=4, seed=0)
    assert drawn[:, occluded].std() > 0.88 * 73.6


def test_colours_part_the_occluded_sites_and_hold_no_neighbours():
    occluded = np.random.default_rng(0).random((5, 6, 7)) < 0.7
    marked = torch.zeros(7, 8, 9, dtype=torch.int64)  # The padded volume.
    colours = Field(occluded, "l1", Weights(1, 1)).colours
    for colour, sites in enumerate(colours, 1):
        marked.view(-1)[sites] = colour
        assert len(sites.unique()) == len(sites) > 40
    np.testing.assert_array_equal(marked[1:-1, 1:-1, 1:-1].numpy() > 0, occluded)
    for axis in range(3):
        size = marked.shape[axis] - 1
        near, far = marked.narrow(axis, 0, size), marked.narrow(axis, 1, size)
        assert not ((near > 0) & (near == far)).any()


@pytest.mark.parametrize("potential", ["l1", "l2"])
def test_recovery_leaves_the_visible_and_repeats_by_seed(potential):
    random = np.random.default_rng(0)
    clip = random.integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    occluded = random.random(clip.shape[:3]) < 0.5
    given = clip.copy()
    drawn = recover(clip, occluded, potential=potential, sweeps=4, samples=3, seed=7)
    np.testing.assert_array_equal(clip, given)
    assert drawn.shape == (3, *clip.shape) and drawn.dtype == np.float32
    np.testing.assert_array_equal(drawn[:, ~occluded], np.stack([clip[~occluded]] * 3))
    assert drawn.min() >= 0 and drawn.max() <= 255
    for one, other in ((0, 1), (1, 2)):
        assert (drawn[one] != drawn[other])[occluded].mean() > 0.99
    clip[occluded] = 0
    again = recover(clip, occluded, potential=potential, sweeps=4, samples=3, seed=7)
    np.testing.assert_array_equal(again, drawn)  # Whatever was there.
    other = recover(clip, occluded, potential=potential, sweeps=4, samples=3, seed=8)
    assert (other != drawn)[:, occluded].mean() > 0.99


@pytest.mark.parametrize("potential", ["l1", "l2"])
def test_large_holes_are_filled_to_their_middle(potential):
    """A slope, 44 of 64 pixels of it occluded throughout, after one sweep; then frames missing."""
    slope = np.broadcast_to(np.linspace(20, 230, 64)[None, None, :, None], (4, 48, 64, 3))
    clip = slope.astype(np.uint8)
    occluded = np.zeros(clip.shape[:3], bool)
    occluded[:, 4:44, 10:54] = True
    drawn = recover(clip, occluded, potential=potential, sweeps=1, samples=1, seed=0)[0]
    assert np.abs(drawn - clip)[occluded].mean() < 6
    times = np.broadcast_to(np.linspace(20, 230, 40)[:, None, None, None], (40, 8, 8, 3))
    clip = times.astype(np.uint8)
    occluded = np.zeros(clip.shape[:3], bool)
    occluded[8:32] = True
    clip[occluded] = 0
    drawn = recover(clip, occluded, potential=potential, sweeps=1, samples=1, seed=0)[0]
    assert np.abs(drawn - times)[occluded].mean() < 12


def test_nothing_occluded_gives_the_clip():
    clip = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    occluded = np.zeros(clip.shape[:3], bool)
    drawn = recover(clip, occluded, potential="l1", sweeps=1, samples=2, seed=0)
    np.testing.assert_array_equal(drawn, np.stack([clip, clip]))


def test_errors_name_what_is_wrong():
    clip, occluded = np.zeros((4, 4, 4, 3), np.uint8), np.zeros((4, 4, 4), bool)
    settings = {"potential": "l1", "sweeps": 1, "samples": 1, "seed": 0}
    with pytest.raises(UserError, match="every pixel of the clip is occluded"):
        recover(clip, ~occluded, **settings)
    scattered = np.indices(occluded.shape).sum(0) % 2 == 0
    with pytest.raises(UserError, match="no two neighbouring pixels are visible"):
        recover(clip, scattered, **settings)
    with pytest.raises(ValueError, match=r"uint8 \(T, H, W, 3\), got float64 \(4, 4, 4, 3\)"):
        recover(clip / 2, occluded, **settings)
    with pytest.raises(ValueError, match=r"bool \(4, 4, 4\), got bool \(3, 4, 4\)"):
        recover(clip, occluded[1:], **settings)
    with pytest.raises(ValueError, match="got int64"):
        recover(clip, occluded.astype(np.int64), **settings)
    for wrong in ({"potential": "l3"}, {"sweeps": 0}, {"samples": 0}):
        with pytest.raises(ValueError, match="potential 'l1' or 'l2', sweeps >= 1 and samples"):
            recover(clip, occluded, **settings | wrong)
