import re

import pytest

from vgan_fast.errors import UserError
from vgan_fast.stgconvnet.layers import EXPERIMENTS, parse_layers, parse_rates


@pytest.mark.parametrize(
    ("experiment", "shape", "made"),
    [
        ("1", (70, 224, 224), [(10, 32, 32), (4, 11, 11), (4, 6, 6)]),
        ("2", (70, 224, 224), [(24, 75, 75), (13, 1, 1), (14, 1, 1)]),
        ("2b", (30, 100, 100), [(15, 50, 50), (8, 1, 1), (9, 1, 1)]),
        ("3", (70, 100, 100), [(24, 34, 34), (1, 1, 1)]),
        ("4", (70, 150, 150), [(24, 50, 50), (1, 1, 1)]),
    ],
)
def test_sizes_of_the_papers_experiments(experiment, shape, made):
    layers = parse_layers(EXPERIMENTS[experiment], shape)
    assert [layer.made for layer in layers] == made
    assert [layer.given for layer in layers] == [shape, *made[:-1]]
    assert [layer.channels for layer in layers] == [3, *(layer.filters for layer in layers[:-1])]


def test_filters_and_kernels_of_the_papers_experiments():
    told = {
        "1": [(120, (15, 15, 15)), (40, (7, 7, 7)), (20, (2, 3, 3))],
        "2": [(120, (7, 7, 7)), (30, (4, 75, 75)), (5, (2, 1, 1))],
    }
    for experiment, expected in told.items():
        layers = parse_layers(EXPERIMENTS[experiment], (70, 224, 224))
        assert [(layer.filters, layer.kernel) for layer in layers] == expected


def test_a_list_in_words():
    first, second = parse_layers("4@3x5x7/1x2x3+1x2x3 2@*x1x1", (6, 8, 10))
    assert (first.kernel, first.stride) == ((3, 5, 7), (1, 2, 3))
    assert first.padding == ((1, 1), (2, 2), (3, 3))
    assert first.made == (6, 4, 4)
    assert second.kernel == (6, 1, 1)
    assert second.padding == ((0, 0),) * 3
    assert second.stride == (1, 1, 1)
    assert second.made == (1, 4, 4)


def test_same_padding_is_tensorflows():
    (layer,) = parse_layers("1@7/2", (10, 11, 12))
    assert layer.padding == ((2, 3), (3, 3), (2, 3))
    assert layer.made == (5, 6, 6)


def test_a_kernel_as_large_as_the_picture_covers_it():
    covering = parse_layers("2@3 1@2x*x*", (5, 6, 7))[1]
    assert covering.covers
    assert not parse_layers("1@5x6x7", (5, 6, 7))[0].covers  # SAME: it reaches beyond
    assert parse_layers("1@5x6x7+0", (5, 6, 7))[0].covers


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "names no layer"),
        ("120", "'120' is no layer"),
        ("120@7/3 x", "'x' is no layer"),
        ("1@2x3", "is no layer"),
        ("0@3", "between 1 and"),
        ("3@0", "between 1 and"),
        ("3@3/0", "between 1 and"),
        ("99999@3", "between 1 and"),
        ("1@9", "8x16x16 clips are smaller than the 9x9x9 filters of the first layer"),
        ("4@3/3 1@9x1x1+0", "'1@9x1x1+0' is larger than the 3x6x6 values that it sees"),
    ],
)
def test_a_list_that_cannot_be_is_refused_by_name(text, named):
    with pytest.raises(UserError, match=re.escape(named)):
        parse_layers(text, (8, 16, 16))


def test_rates():
    assert parse_rates("1,0.5,0.1", 3) == (1, 0.5, 0.1)
    for text in ("1,2", "1,x,2", "1,0,1", "1,-1,1", "1,inf,1", ""):
        with pytest.raises(UserError, match="must be 3 positive numbers"):
            parse_rates(text, 3)
