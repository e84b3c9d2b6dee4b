"""Pictures keep what the data are: gray, colour, transparency, any number of levels."""

import numpy as np
import pytest
import torch

from simulacra.runs.curves import Curve, chart
from simulacra.runs.pictures import grid, png
from simulacra.spaces import Images


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
