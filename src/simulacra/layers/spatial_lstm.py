"""Row LSTM and Diagonal BiLSTM (van den Oord et al. 2016), over whole images and images being drawn.

Both are eq. 3 (``line_scan``) and differ in what a line is and in the two kernels. K_is is masked, so
that (i, j) sees itself by mask B and nothing later; K_ss reads states of earlier pixels only and needs
no mask. Features are split into ``groups`` as in ``masked``: feature f, and each of its four gates,
belongs to group f mod ``groups``.

The two ``…States`` walk the layers of a network over images that are still being drawn, and keep the
states of a row and of the row above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.line_scan import (
    diagonal_lines,
    diagonal_order,
    lstm_cell,
    reordered,
    row_lines,
    scan,
)
from simulacra.layers.masked import MaskedConv2d


def _entering(inputs: int, size: int, directions: int, reach: int, groups: int) -> MaskedConv2d:
    """K_is of all gates; the bias of forget gates starts one higher (Jozefowicz et al. 2015)."""
    conv = MaskedConv2d(inputs, directions * 4 * size, reach=reach, groups=groups)
    with torch.no_grad():
        conv.bias.unflatten(0, (directions, 4, size))[:, 1] += 1
    return conv


def _across(directions: int, size: int, taps: int) -> nn.Parameter:
    bound = 1 / math.sqrt(taps * size)
    return nn.Parameter(torch.empty(directions, 4 * size, taps * size).uniform_(-bound, bound))


class RowLSTM(nn.Module):
    """Row by row (sec. 3.1): K_is is masked along the row, K_ss reads ``kernel`` states of the row above.

    (inputs, height * width, batch) to (size, height * width, batch).
    """

    def __init__(
        self, inputs: int, size: int, height: int, width: int, *, kernel: int = 3, groups: int = 1
    ) -> None:
        super().__init__()
        self.size, self.grid, self.reach = size, (height, width), kernel // 2
        self.outputs = 4 * size
        self.enter = _entering(inputs, size, 1, self.reach, groups)
        self.across = _across(1, size, kernel)
        self.lines = row_lines(height, width, self.reach)

    def forward(self, x: Tensor, told: Tensor | None = None) -> Tensor:
        """``told``: what a condition adds to all gates of an image, (batch, 4 size)."""
        width = self.grid[1]
        padded = functional.pad(x.unflatten(1, self.grid), (0, 0, self.reach, 0))
        seen = [padded[:, :, tap : tap + width] for tap in range(self.reach + 1)]
        weight = self.enter.masked_weight()[:, :, 0].permute(0, 2, 1).flatten(1)
        bias = self.enter.bias.unsqueeze(1)
        bias = (bias if told is None else bias + told.T).unsqueeze(1)
        entering = torch.cat(seen).flatten(1, 2)
        return scan(entering[None], weight[None], bias[None], self.across, self.lines)[0]


class RowStates:
    """``RowLSTM`` layers over images that are being drawn.

    All states of the row above are known, so what K_ss gives is worked out for a whole row.
    """

    def __init__(self, layers: Sequence[RowLSTM], rows: int, told: Sequence[Tensor | None]) -> None:
        first, width = layers[0], layers[0].grid[1]
        self.reach, self.size = first.reach, first.size
        self.taps = 2 * first.reach + 1
        self.cursors = [layer.enter.cursor(rows, width) for layer in layers]
        self.across = [layer.across.detach()[0].T for layer in layers]
        self.bias = [
            layer.enter.bias.detach() + (0 if said is None else said.unsqueeze(1))
            for layer, said in zip(layers, told, strict=True)
        ]
        shape = (len(layers), rows, width + 2 * self.reach, self.size)
        self.hidden = first.across.detach().new_zeros(shape)
        self.cells = torch.zeros_like(self.hidden)

    def next_row(self, before: Tensor | None) -> None:
        """Begin a row."""
        for index, cursor in enumerate(self.cursors):
            cursor.next_row()
            windows = self.hidden[index].unfold(1, self.taps, 1).mT.flatten(2)
            cursor.offset = windows @ self.across[index] + self.bias[index]
        self.cells_above = self.cells
        self.hidden, self.cells = torch.zeros_like(self.hidden), torch.zeros_like(self.cells)

    def at(self, layer: int, column: int, x: Tensor) -> Tensor:
        """A layer's features (rows, inputs) at a column of the row begun, to its state (rows, size)."""
        self.cursors[layer].put(column, x)
        place = (layer, slice(None), column + self.reach)
        hidden, cell = lstm_cell(self.cursors[layer].at(column), self.cells_above[place])
        self.hidden[place], self.cells[place] = hidden, cell
        return hidden


class DiagonalLSTM(nn.Module):
    """Both diagonal directions (sec. 3.2): h of (i, j) reads the states of (i - 1, j) and (i, j - 1).

    The second direction is the mirror image of the first, and its states are moved down a row before
    they are added: at (i, j) stands what it made of rows up to i - 1.

    (inputs, height * width, batch) to (size, height * width, batch). ``raw``: the width of the network's
    own input, that the second direction of a first layer is shown with no mask (moved down a row, it may
    see it). Features under mask A leave out their own pixel, and nothing stands right of a row's last one
    to report it: the next row would not know it before the first convolution reaches it.
    """

    order: Tensor
    inverse: Tensor

    def __init__(
        self, inputs: int, size: int, height: int, width: int, *, raw: int = 0, groups: int = 1
    ) -> None:
        super().__init__()
        self.size, self.grid = size, (height, width)
        self.outputs = 8 * size
        self.enter = _entering(inputs, size, 2, 0, groups)
        self.raw = nn.Linear(raw, 4 * size, bias=False) if raw else None
        self.across = _across(2, size, 2)
        self.lines = diagonal_lines(height, width)
        order = diagonal_order(height, width)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", order.argsort(dim=1), persistent=False)

    def forward(self, x: Tensor, told: Tensor | None = None, raw: Tensor | None = None) -> Tensor:
        """``told``: what a condition adds to all gates of an image, (batch, 8 size); ``raw``: the
        network's input, (raw, height * width, batch), for a first layer."""
        weight = self.enter.masked_weight()[:, :, 0, 0].unflatten(0, (2, -1))
        if self.raw is not None and raw is not None:
            shown = torch.stack([torch.zeros_like(self.raw.weight), self.raw.weight])
            x, weight = torch.cat([x, raw.to(x.dtype)]), torch.cat([weight, shown], dim=2)
        bias = self.enter.bias.unsqueeze(1)
        bias = (bias if told is None else bias + told.T).unflatten(0, (2, -1)).unsqueeze(2)
        skewed = reordered(x.expand(2, *x.shape), self.order)
        hidden = reordered(scan(skewed, weight, bias, self.across, self.lines), self.inverse)
        width = self.grid[1]
        return hidden[0] + functional.pad(hidden[1, :, :-width], (0, 0, width, 0))


class DiagonalStates:
    """``DiagonalLSTM`` layers over images that are being drawn.

    The first direction goes on from column to column. The second has to wait for the end of a row, and
    then runs over it for all layers at once.
    """

    def __init__(
        self, layers: Sequence[DiagonalLSTM], rows: int, told: Sequence[Tensor | None]
    ) -> None:
        first, width, size = layers[0], layers[0].grid[1], layers[0].size
        self.width = width
        kernels = [one.enter.masked_weight().detach()[:, :, 0, 0] for one in layers]
        enter, enter_mirrored = torch.stack(kernels).mT.chunk(2, dim=2)
        across = torch.stack([one.across.detach() for one in layers]).mT
        self.above, self.above_mirrored = across[:, :, :size].unsqueeze(2).unbind(1)
        self.left, self.right = across[:, :, size:].unbind(1)
        self.step = torch.cat([enter, self.left], dim=1)
        self.enter_mirrored = enter_mirrored.unsqueeze(1)
        self.raw = None if first.raw is None else first.raw.weight.detach().T
        bias = [
            one.enter.bias.detach().unsqueeze(0) + (0 if said is None else said)
            for one, said in zip(layers, told, strict=True)
        ]
        self.bias, self.bias_mirrored = torch.stack(bias).unsqueeze(2).chunk(2, dim=3)
        # One column more, of zeros, for what stands left of the first.
        self.hidden = enter.new_zeros(len(layers), rows, width + 1, size)
        self.cells = torch.zeros_like(self.hidden)
        self.mirrored = self.hidden[:, :, 1:].clone()
        self.seen = enter.new_zeros(len(layers), rows, width, enter.shape[1])

    def next_row(self, before: Tensor | None) -> None:
        """Begin a row; ``before`` is the network's input for the row above, (rows, W, raw)."""
        if before is not None:
            self._back_along(before)
        self.offset = self.hidden[:, :, 1:] @ self.above + self.bias

    def _back_along(self, before: Tensor) -> None:
        """The second direction over the row that has ended, from right to left."""
        gates = self.seen @ self.enter_mirrored + self.mirrored @ self.above_mirrored
        gates = gates + self.bias_mirrored
        if self.raw is not None:
            gates[0] += before @ self.raw
        hidden = cell = torch.zeros_like(self.mirrored[:, :, 0])
        for column in reversed(range(self.width)):
            hidden, cell = lstm_cell(torch.baddbmm(gates[:, :, column], hidden, self.right), cell)
            self.mirrored[:, :, column] = hidden

    def at(self, layer: int, column: int, x: Tensor) -> Tensor:
        """A layer's features (rows, inputs) at a column of the row begun, to its states (rows, size)."""
        self.seen[layer, :, column] = x
        entering = torch.cat([x, self.hidden[layer, :, column]], dim=1)
        gates = torch.addmm(self.offset[layer, :, column], entering, self.step[layer])
        hidden, cell = lstm_cell(gates, self.cells[layer, :, column])
        self.hidden[layer, :, column + 1], self.cells[layer, :, column + 1] = hidden, cell
        return hidden + self.mirrored[layer, :, column]
