"""Pictures keep what the data are: gray, colour, transparency, any number of levels."""

import numpy as np
import pytest
import torch

from simulacra.runs.curves import Curve, chart
from simulacra.runs.heat import HEAT, heat
from simulacra.runs.maps import Scale, lines, picture, strangest
from simulacra.runs.pictures import PLAIN, SOFT, grid, has_picture, on_plane, png, scatter
from simulacra.spaces import Column, Images, Table, Tokens, Vectors


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_extremes_are_black_and_white(channels, levels):
    space = Images(channels, 2, 3, levels)
    x = torch.zeros((2, *space.shape), dtype=space.dtype)
    x[1] = levels - 1
    if channels == 4:
        x[0, 3] = levels - 1
    picture = np.asarray(grid(x, space, columns=2, pixels=9))
    assert picture[1, 1].tolist() == [0, 0, 0]
    assert picture[1, 6].tolist() == [255, 255, 255]
    assert png(grid(x, space))[:4] == b"\x89PNG"


def test_pixels_stay_squares_of_whole_size():
    space = Images(1, 4, 4, 2)
    picture = grid(torch.ones((4, 1, 4, 4), dtype=torch.uint8), space, columns=2, pixels=110)
    assert picture.size == (110, 110)


def test_a_chart_draws_every_curve_and_nothing_is_nothing():
    drawn = chart(
        [Curve("a<b", [(0, 1.0), (1, 0.5)]), Curve("c", [(0, 2.0), (1, float("nan"))])], "t"
    )
    assert drawn.count("<polyline") == 2
    assert "a&lt;b" in drawn
    assert "nan" not in drawn
    assert chart([], "t") == ""


def test_heat_gets_lighter_from_end_to_end_and_is_cut_there():
    shades = heat(torch.linspace(-1, 3, 41), 0.0, 2.0).double()
    assert tuple(shades[0].tolist()) == tuple(shades[10].tolist()) == HEAT[0]
    assert tuple(shades[30].tolist()) == tuple(shades[40].tolist()) == HEAT[-1]
    lightness = shades @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    assert (lightness[10:31].diff() > 0).all()
    assert heat(torch.ones(3), 1.0, 1.0).shape == (3, 3)


@pytest.mark.parametrize(("channels", "levels"), [(1, 2), (3, 256), (1, 65536)])
def test_each_strange_image_stands_above_its_map(channels, levels):
    space = Images(channels, 2, 2, levels)
    x = torch.zeros((9, *space.shape), dtype=space.dtype)
    maps = torch.zeros(x.shape, dtype=torch.float64)
    maps[4, 0, 1, 0] = 5.0
    which = strangest(maps.flatten(1).sum(1))
    assert len(which) == 8
    assert which[0] == 4
    scale = Scale(0.0, 5.0, "nats")
    drawn = np.asarray(picture(x[which], maps[which], scale, space, pixels=25))
    assert drawn.shape == (7, 25, 3)
    assert drawn[2, 1].tolist() == [0, 0, 0]
    assert drawn[5, 1].tolist() == list(HEAT[-1])
    assert drawn[4, 1].tolist() == drawn[5, 5].tolist() == list(HEAT[0])


def test_maps_of_a_table_are_columns():
    space = Table((Column("=a,b"), Column("c")))
    told = lines(
        torch.tensor([3.0]), torch.tensor([[1.0, 2.0]]), space, source="-log p", unit="nats"
    )
    assert list(told) == ['index,score (-log p),"\'=a,b (nats)",c (nats)', "0,3,1,2"]


def coloured(picture, colour):
    """(rows, columns) of the pixels of a colour."""
    return np.argwhere((np.asarray(picture) == colour).all(-1))


def test_points_stand_where_they_are_and_strays_on_the_edge():
    real = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    x = torch.tensor([[0.0, 0.5], [900.0, 0.0]])
    drawn = scatter(x, real, pixels=201)
    gray, green = coloured(drawn, SOFT), coloured(drawn, PLAIN)
    assert len(gray)
    assert abs(gray[:, 0] - 100).max() <= 2
    assert gray[:, 1].min() < 25
    assert gray[:, 1].max() > 175
    inside = green[green[:, 1] < 190]
    assert inside.mean(0).tolist() == pytest.approx([60, 100], abs=2)
    assert (green[:, 1] >= 198).any()
    assert coloured(scatter(x[:1], real, pixels=201), SOFT).tolist() == gray.tolist()


def test_only_images_and_the_plane_have_pictures():
    plane = Table((Column("a"), Column("b")))
    assert [on_plane(space) for space in (Vectors(2), plane)] == [True, True]
    mixed = Table((Column("a"), Column("b", "category", ("x", "y"))))
    assert not any(has_picture(space) for space in (Vectors(3), mixed, Tokens(2, 5)))
    assert has_picture(Images(3, 4, 4))
