import numpy as np
import pytest
import torch

from vgan_fast.errors import UserError
from vgan_fast.models import FutureGenerator
from vgan_fast.pictures import GAP, SHOWN
from vgan_fast.shape import ClipShape
from vgan_fast.units import DIMMED, favourites


@pytest.fixture
def generator():
    """An encoder whose unit 1 answers to red, with the strength of the red; the others are mute."""
    generator = FutureGenerator(ClipShape(frames=8, size=32, width=2))
    first = generator.encoder[0]
    with torch.no_grad():
        for parameter in (first.weight, first.bias):
            parameter.zero_()
        first.weight[1, 0] = 1 / 16
        first.bias[1] = 1.0  # red is in [-1, 1]
    return generator


def squares():
    """Black images with a red square each, at another place and brighter from one to the next."""
    frames = torch.full((4, 3, 1, 32, 32), -1.0)
    for i, (top, left) in enumerate([(0, 0), (0, 16), (16, 0), (16, 16)]):
        frames[i, 0, :, top : top + 12, left : left + 12] = -0.4 + 0.4 * i
    return frames


def test_a_unit_s_images_come_strongest_first_with_their_region_lit(generator):
    picture = favourites(generator, squares(), layer=1, rows=1)
    scale = SHOWN // 32
    assert picture.shape == (SHOWN + 2 * GAP, 4 * (SHOWN + GAP) + GAP, 3)
    for place, number in enumerate([3, 2, 1, 0]):
        left = GAP + place * (SHOWN + GAP)
        shown = picture[GAP : GAP + SHOWN : scale, left : left + SHOWN : scale]
        given = squares()[number, :, 0].permute(1, 2, 0)
        given = ((given + 1) * 127.5).round().numpy()
        top, from_left = [(0, 0), (0, 16), (16, 0), (16, 16)][number]
        inside = np.s_[top + 3 : top + 9, from_left + 3 : from_left + 9]
        np.testing.assert_array_equal(shown[inside], given[inside])


def test_what_a_unit_does_not_answer_to_is_dimmed(generator):
    frames = squares()
    frames[:, 2] = 0.6  # blue everywhere
    picture = favourites(generator, frames, layer=1, rows=1)
    blue = picture[GAP : GAP + SHOWN, GAP : GAP + SHOWN, 2]
    assert set(np.unique(blue)) == {204, round(204 * DIMMED)}
    assert 0.05 < (blue == 204).mean() < 0.4


def test_a_layer_that_is_not_there_is_refused(generator):
    with pytest.raises(UserError, match="--units-layer 4: the encoder has 3"):
        favourites(generator, squares(), layer=4)
