"""Scans over rows and diagonals against eq. 3 pixel by pixel, and their gradients."""

import itertools

import pytest
import torch

from simulacra.layers.line_scan import (
    diagonal_lines,
    diagonal_order,
    reordered,
    row_lines,
    scan,
)
from simulacra.layers.spatial_lstm import DiagonalLSTM, RowLSTM

GRIDS = pytest.mark.parametrize("grid", [(4, 5), (5, 3), (1, 4), (4, 1)])
GROUPS = pytest.mark.parametrize("groups", [1, 3])
SIZE, INPUTS, BATCH = 3, 6, 2


def random(*shape, grad=False):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


@GRIDS
def test_skewing_and_unskewing_is_the_identity(grid):
    order = diagonal_order(*grid)
    x = random(2, 3, grid[0] * grid[1], 2)
    skewed = reordered(x, order)
    assert torch.equal(reordered(skewed, order.argsort(1)), x)
    assert torch.equal(reordered(reordered(x, order.argsort(1)), order), x)


@GRIDS
def test_a_column_of_the_skewed_map_is_a_diagonal_from_above(grid):
    height, width = grid
    lines, order = diagonal_lines(height, width), diagonal_order(height, width)
    assert len(lines) == height + width - 1
    for s, line in enumerate(lines):
        pixels = [(i, s - i) for i in range(height) if 0 <= s - i < width]
        assert order[0, line.here].tolist() == [i * width + j for i, j in pixels]
        assert order[1, line.here].tolist() == [i * width + width - 1 - j for i, j in pixels]


@GRIDS
@pytest.mark.parametrize("kind", ["row", "diagonal"])
def test_the_written_out_gradient_is_the_slope(grid, kind):
    lines = row_lines(*grid, 1) if kind == "row" else diagonal_lines(*grid)
    directions, taps = (1, 3) if kind == "row" else (2, 2)
    arguments = (
        random(directions, 4, grid[0] * grid[1], 2, grad=True),
        random(directions, 8, 4, grad=True),
        random(directions, 8, 1, 2, grad=True),
        random(directions, 8, taps * 2, grad=True),
    )
    assert torch.autograd.gradcheck(lambda *given: scan(*given, lines), arguments, fast_mode=True)


def test_a_reordering_has_the_gradient_of_one():
    x = random(2, 2, 6, 2, grad=True)
    assert torch.autograd.gradcheck(lambda x: reordered(x, diagonal_order(2, 3)), (x,))


def cell(sums, before):
    """Eq. 3, from the four sums of one pixel, (batch, 4 size), and the cell before."""
    o, f, i, g = sums.chunk(4, dim=1)
    c = torch.sigmoid(f) * before + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def own_pixel(weight, groups):
    """Mask B: a feature reads its own group and those before it."""
    allowed = torch.zeros_like(weight)
    for write, read in itertools.product(*map(range, weight.shape)):
        allowed[write, read] = read % groups <= write % groups
    return weight * allowed


class Zeros(dict):
    """States by pixel; outside the image they are 0."""

    def __missing__(self, place):
        return torch.zeros(BATCH, SIZE, dtype=torch.float64)


@GRIDS
@GROUPS
@pytest.mark.parametrize("kernel", [3, 5])
def test_row_lstm_is_equation_3_pixel_by_pixel(grid, groups, kernel):
    height, width = grid
    layer = RowLSTM(INPUTS, SIZE, height, width, kernel=kernel, groups=groups).double()
    x, told = random(BATCH, INPUTS, height, width), random(BATCH, 4 * SIZE)
    reach, hidden, cells = kernel // 2, Zeros(), Zeros()
    enter = layer.enter.weight.detach()[:, :, 0]
    across = layer.across.detach()[0].unflatten(1, (kernel, SIZE))
    for i, j in itertools.product(range(height), range(width)):
        sums = layer.enter.bias.detach() + told
        sums = sums + x[:, :, i, j] @ own_pixel(enter[:, :, reach], groups).T
        for left in range(1, min(reach, j) + 1):
            sums = sums + x[:, :, i, j - left] @ enter[:, :, reach - left].T
        for tap in range(kernel):
            sums = sums + hidden[i - 1, j + tap - reach] @ across[:, tap].T
        hidden[i, j], cells[i, j] = cell(sums, cells[i - 1, j])
    told_at_once = layer(x.flatten(2).permute(1, 2, 0), told)
    for i, j in itertools.product(range(height), range(width)):
        there = told_at_once[:, i * width + j].T
        torch.testing.assert_close(there, hidden[i, j], atol=1e-9, rtol=1e-9)


@GRIDS
@GROUPS
def test_diagonal_lstm_is_equation_3_pixel_by_pixel(grid, groups):
    height, width = grid
    layer = DiagonalLSTM(INPUTS, SIZE, height, width, raw=2, groups=groups).double()
    x, told, raw = (
        random(BATCH, k, *more) for k, more in ((INPUTS, grid), (8 * SIZE, ()), (2, grid))
    )
    states = []
    for direction in range(2):
        hidden, cells = Zeros(), Zeros()
        gates = slice(direction * 4 * SIZE, (direction + 1) * 4 * SIZE)
        enter = own_pixel(layer.enter.weight.detach()[gates, :, 0, 0], groups)
        above, beside = layer.across.detach()[direction].split(SIZE, dim=1)
        step = -1 if direction else 1
        for i, j in itertools.product(range(height), range(width)[::step]):
            sums = layer.enter.bias.detach()[gates] + told[:, gates] + x[:, :, i, j] @ enter.T
            if direction:
                sums = sums + raw[:, :, i, j] @ layer.raw.weight.detach().T
            sums = sums + hidden[i - 1, j] @ above.T + hidden[i, j - step] @ beside.T
            hidden[i, j], cells[i, j] = cell(sums, cells[i, j - step])
        states.append(hidden)
    last = [one.flatten(2).permute(1, 2, 0) for one in (x, raw)]
    told_at_once = layer(last[0], told, last[1])
    for i, j in itertools.product(range(height), range(width)):
        there = told_at_once[:, i * width + j].T
        expected = states[0][i, j] + states[1][i - 1, j]
        torch.testing.assert_close(there, expected, atol=1e-9, rtol=1e-9)
