"""Convolutions that look back only, over whole images and one position at a time.

An image is read in raster order: row by row, and in a row from left to right. A masked convolution at
(i, j) sees the ``above`` rows before i, and in row i the ``reach`` positions before j; of position j
itself it sees what its mask allows (van den Oord et al. 2016a, sec. 3.4). With channels R, G, B every
layer's features are split into as many groups, feature f belonging to group f mod 3:

    mask A (first layer):  group g sees groups before g,
    mask B (all others):   group g sees groups before g and itself.

Right of j and below i there is nothing to see, so kernels hold the rows i - above..i only.

A ``Cursor`` walks such a layer over an image that is still being drawn: what the rows above
contribute is worked out once for a whole row, and a position costs one product with ``reach + 1`` taps.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


def centre_mask(inputs: int, outputs: int, groups: int, kind: Literal["A", "B"]) -> Tensor:
    """Which input a feature sees at its own position: zeros and ones, shape (outputs, inputs)."""
    writer = (torch.arange(outputs) % groups).unsqueeze(1)
    read = (torch.arange(inputs) % groups).unsqueeze(0)
    return ((read < writer) if kind == "A" else (read <= writer)).float()


class MaskedConv2d(nn.Module):
    """(batch, inputs, height, width) to (batch, outputs, height, width), seeing only what came before.

    ``above`` = 0 makes a convolution along the row, ``above`` = ``reach`` = 0 one at the position.
    Rows above are seen ``ahead`` columns to the right, as far as to the left unless it is given; with
    ``stride`` 2 every second position of every second row is kept.
    """

    mask: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        above: int = 0,
        reach: int = 0,
        ahead: int | None = None,
        stride: int = 1,
        groups: int = 1,
        kind: Literal["A", "B"] = "B",
    ) -> None:
        super().__init__()
        self.above, self.reach, self.stride = above, reach, stride
        # In a single row the taps to the right would all be masked: they are left out.
        self.ahead = (reach if above else 0) if ahead is None else ahead
        mask = torch.ones(outputs, inputs, above + 1, reach + 1 + self.ahead)
        mask[:, :, -1, reach] = centre_mask(inputs, outputs, groups, kind)
        mask[:, :, -1, reach + 1 :] = 0
        self.register_buffer("mask", mask, persistent=False)
        self.whole = bool(mask.all())
        # torch's default for convolutions, with the fan-in that is left by the mask.
        bound = 1 / math.sqrt(float(mask.flatten(1).sum(1).max().clamp(min=1)))
        self.weight = nn.Parameter(torch.empty_like(mask).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def masked_weight(self) -> Tensor:
        """The kernel with zeros where nothing may be seen, shape (outputs, inputs, rows, columns)."""
        return self.weight if self.whole else self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        padding = (self.above, self.reach)
        y = functional.conv2d(x, self.masked_weight(), self.bias, self.stride, padding)
        # Padding is the same on both sides; the last rows (and columns) look from beyond the image.
        height, width = (-(-side // self.stride) for side in x.shape[2:])
        y = y[:, :, :height, :width] if y.shape[2:] != (height, width) else y
        # A single input channel is contiguous in both layouts, and would choose the slow one.
        return y.contiguous(memory_format=torch.channels_last) if x.shape[1] == 1 else y

    def cursor(self, rows: int, width: int) -> Cursor:
        return Cursor(self, rows, width)


class Cursor:
    """One masked convolution, walked over ``rows`` images of ``width`` columns in raster order.

    ``next_row`` first, then ``put`` and ``at`` for each column; the inputs of the rows in reach are
    kept, shape (rows, above + 1, reach + width + ahead, inputs), and nothing else. With strides ``at`` is
    asked at the columns that are kept.
    """

    def __init__(self, conv: MaskedConv2d, rows: int, width: int) -> None:
        weight = conv.masked_weight().detach()
        outputs, inputs = weight.shape[:2]
        self.reach, self.width = conv.reach, width
        self.bias = conv.bias.detach()
        self.over = weight[:, :, :-1].contiguous()
        beside = weight[:, :, -1, : conv.reach + 1]
        self.beside = beside.permute(2, 1, 0).reshape(-1, outputs).contiguous()
        across = conv.reach + width + conv.ahead
        self.seen = weight.new_zeros(rows, conv.above + 1, across, inputs)
        self.offset = self.bias.expand(rows, width, outputs)

    def next_row(self) -> None:
        """Step down a row, and work out what all rows above contribute to it."""
        self.seen = functional.pad(self.seen[:, 1:], (0, 0, 0, 0, 0, 1))
        if self.over.shape[2]:
            before = self.seen[:, :-1].permute(0, 3, 1, 2)
            self.offset = functional.conv2d(before, self.over, self.bias)[:, :, 0].mT.contiguous()

    def put(self, column: int, x: Tensor) -> None:
        """Note the layer's input at a column of the present row, shape (rows, inputs)."""
        self.seen[:, -1, column + self.reach] = x

    def at(self, column: int) -> Tensor:
        """The layer's output at a column of the present row, shape (rows, outputs)."""
        window = self.seen[:, -1, column : column + self.reach + 1].flatten(1)
        return torch.addmm(self.offset[:, column], window, self.beside)

    def step(self, column: int, x: Tensor) -> Tensor:
        """``put`` and then ``at``: the output at a column whose own input is seen."""
        self.put(column, x)
        return self.at(column)

    def point(self, x: Tensor) -> Tensor:
        """The output of a layer that sees its own position only: nothing needs to be kept."""
        return torch.addmm(self.bias, x, self.beside)


class RowCursor:
    """A convolution over whole rows i - above..i, walked down ``rows`` images a row at a time."""

    def __init__(self, conv: nn.Conv2d, rows: int, width: int) -> None:
        self.weight = conv.weight.detach()
        self.bias = None if conv.bias is None else conv.bias.detach()
        height, across = conv.kernel_size
        self.reach, self.width, self.stride = across // 2, width, (1, conv.stride[1])
        inputs = conv.in_channels
        self.seen = self.weight.new_zeros(rows, height, width + 2 * self.reach, inputs)

    def row(self, x: Tensor) -> Tensor:
        """The next row, shape (rows, width, inputs), to its output, (rows, width, outputs)."""
        self.seen = functional.pad(self.seen[:, 1:], (0, 0, 0, 0, 0, 1))
        self.seen[:, -1, self.reach : self.reach + self.width] = x
        y = functional.conv2d(self.seen.permute(0, 3, 1, 2), self.weight, self.bias, self.stride)
        return y[:, :, 0].mT
