"""An LSTM's recurrence over the lines of an image, all positions of a line at once.

A line is a row of the image, or a column of the skewed map (a diagonal). With x the features of a
line's positions and h', c' the states of the line before (van den Oord et al. 2016, eq. 3):

    [o, f, i, g] = [sigmoid, sigmoid, sigmoid, tanh](K_ss * h' + K_is * x),
    c = f c' + i g,      h = o tanh(c).

K_is x is worked out for the whole map at once, K_ss h' takes one product a line. What lies outside the
image has the state 0. Features stand first and images last, (directions, features, positions, batch),
so that each gate of a line is one block of long strips.

The gradient is written out: backwards through time one product a line, and then one product for each
kernel over all lines.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Span = tuple[slice, slice]
"""Positions that read, and the positions that they read, one for one."""


@dataclass(frozen=True)
class Line:
    """A step of the scan: its positions, and for each tap of K_ss who reads what of the line before.

    ``carried`` says whose cell a position goes on with; the first line has neither.
    """

    here: slice
    taps: tuple[Span, ...] = ()
    carried: Span | None = None


def row_lines(height: int, width: int, reach: int) -> tuple[Line, ...]:
    """Position (i, j) reads (i - 1, j - reach), …, (i - 1, j + reach), and carries (i - 1, j)'s cell."""
    return _lines([range(width)] * height, range(-reach, reach + 1))


def diagonal_lines(height: int, width: int) -> tuple[Line, ...]:
    """Position (i, j) reads (i - 1, j), then (i, j - 1), and carries the cell of (i, j - 1).

    Line s holds the pixels (i, s - i), those of the skewed map's column s, and none of its empty places.
    """
    columns = [range(max(0, s - width + 1), min(height, s + 1)) for s in range(height + width - 1)]
    return _lines(columns, range(-1, 1))


def _lines(ranges: Sequence[range], offsets: range) -> tuple[Line, ...]:
    """Lines one after the other, in which coordinate q reads q + offset of the line before."""
    start, lines = 0, [Line(slice(0, len(ranges[0])))]
    for last, now in itertools.pairwise(ranges):
        before, start = start - last.start, start + len(last)
        here = start - now.start
        spans = {}
        for offset in offsets:
            low = max(now.start, last.start - offset)
            high = max(low, min(now.stop, last.stop - offset))
            read = slice(before + low + offset, before + high + offset)
            spans[offset] = slice(here + low, here + high), read
        lines.append(Line(slice(start, start + len(now)), tuple(spans.values()), spans[0]))
    return tuple(lines)


def diagonal_order(height: int, width: int) -> Tensor:
    """Which pixel, in raster order, stands at each position of the diagonals, (2, height * width).

    Row 0 for a scan from left to right, row 1 for one from right to left.
    """
    row, column = torch.arange(height).unsqueeze(1), torch.arange(width)
    order = ((row + column) * height + row).flatten().argsort()
    return torch.stack([row * width + column, row * width + column.flip(0)]).flatten(1)[:, order]


def reordered(x: Tensor, order: Tensor) -> Tensor:
    """Position p of direction d becomes what stood at ``order[d, p]``, for permutations ``order[d]``.

    ``x``: (directions, features, positions, batch). With ``diagonal_order`` this skews a map, with its
    ``argsort`` it undoes that.
    """
    out: Tensor = _Reordered.apply(x, order)  # type: ignore[no-untyped-call]
    return out


def scan(x: Tensor, enter: Tensor, bias: Tensor, across: Tensor, lines: Sequence[Line]) -> Tensor:
    """The hidden states h of all positions, (directions, h, positions, batch).

    ``x``: what enters, (directions, inputs, positions, batch); ``enter``: K_is, (directions, 4h,
    inputs); ``bias``: broadcasts to (directions, 4h, positions, batch); ``across``: K_ss, (directions,
    4h, taps * h). Gates stand in the order o, f, i, g.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(enter.dtype)
        out: Tensor = _Scan.apply(x, enter, bias, across, lines)  # type: ignore[no-untyped-call]
    return out


def lstm_cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """h and c of one step from sums (…, 4h) and the cell before (…, h)."""
    size = cell.shape[-1]
    out, forget, write = torch.sigmoid(gates[..., : 3 * size]).chunk(3, dim=-1)
    cell = torch.addcmul(write * torch.tanh(gates[..., 3 * size :]), forget, cell)
    return out * torch.tanh(cell), cell


class _Reordered(torch.autograd.Function):
    """A permutation's gradient is the inverse permutation; torch would add entry by entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        out = x.new_empty(x.shape)
        for direction, one in enumerate(order):
            torch.index_select(x[direction], 1, one, out=out[direction])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return reordered(gradient, order.argsort(dim=1)), None


@dataclass(frozen=True)
class _States:
    """What eq. 3 gives at every position, each (directions, features, positions, batch).

    ``windows``: the states h' that K_ss meets; ``gates``: o, f, i, g; ``squashed``: tanh(c).
    """

    windows: Tensor
    gates: Tensor
    cells: Tensor
    squashed: Tensor
    hidden: Tensor

    def step(self, line: Line, across: Tensor) -> None:
        """Eq. 3 for one line, whose gates hold K_is * x so far."""
        size, here = self.cells.shape[1], line.here
        gates, cell = self.gates[:, :, here], self.cells[:, :, here]
        for tap, (readers, read) in enumerate(line.taps):
            self.windows[:, tap * size : (tap + 1) * size, readers] = self.hidden[:, :, read]
        if line.taps:
            gates.flatten(2).baddbmm_(across, self.windows[:, :, here].flatten(2))
        gates[:, : 3 * size].sigmoid_()
        gates[:, 3 * size :].tanh_()
        torch.mul(gates[:, 2 * size : 3 * size], gates[:, 3 * size :], out=cell)
        if line.carried is not None:
            readers, read = line.carried
            forget = self.gates[:, size : 2 * size, readers]
            self.cells[:, :, readers].addcmul_(forget, self.cells[:, :, read])
        squashed = torch.tanh(cell, out=self.squashed[:, :, here])
        torch.mul(gates[:, :size], squashed, out=self.hidden[:, :, here])

    def step_back(self, line: Line, across: Tensor, slope: _States) -> None:
        """The gradient of ``step``: ``slope`` holds the loss's with respect to states, and gets more."""
        size, here = self.cells.shape[1], line.here
        gates, squashed = self.gates[:, :, here], self.squashed[:, :, here]
        d_gates, d_hidden, d_cell = (
            one[:, :, here] for one in (slope.gates, slope.hidden, slope.cells)
        )
        out, _, write, new = gates.split(size, dim=1)
        d_out, d_forget, d_write, d_new = d_gates.split(size, dim=1)
        d_cell += torch.ops.aten.tanh_backward(d_hidden * out, squashed)
        torch.mul(d_hidden, squashed, out=d_out)
        torch.mul(d_cell, new, out=d_write)
        torch.ops.aten.tanh_backward.grad_input(d_cell * write, new, grad_input=d_new)
        d_forget.zero_()
        if line.carried is not None:
            readers, read = line.carried
            d_read, forgot = slope.cells[:, :, readers], slice(size, 2 * size)
            torch.mul(d_read, self.cells[:, :, read], out=slope.gates[:, forgot, readers])
            torch.mul(d_read, self.gates[:, forgot, readers], out=slope.cells[:, :, read])
        sigmoids, d_sigmoids = gates[:, : 3 * size], d_gates[:, : 3 * size]
        torch.ops.aten.sigmoid_backward.grad_input(d_sigmoids, sigmoids, grad_input=d_sigmoids)
        if line.taps:
            back = torch.bmm(across.mT, d_gates.flatten(2)).unflatten(2, d_gates.shape[2:])
            for tap, (readers, read) in enumerate(line.taps):
                inside = slice(readers.start - here.start, readers.stop - here.start)
                slope.hidden[:, :, read] += back[:, tap * size : (tap + 1) * size, inside]


class _Scan(torch.autograd.Function):
    """Eq. 3 line after line, and its gradient, the last line first."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, enter: Tensor, bias: Tensor, across: Tensor, lines: Sequence[Line]
    ) -> Tensor:
        size = across.shape[1] // 4
        gates = torch.bmm(enter, x.flatten(2)).unflatten(2, x.shape[2:]).add_(bias)
        windows = gates.new_zeros(len(x), across.shape[2], *x.shape[2:])
        cells, squashed, hidden = (torch.empty_like(gates[:, :size]) for _ in range(3))
        states = _States(windows, gates, cells, squashed, hidden)
        for line in lines:
            states.step(line, across)
        ctx.save_for_backward(x, enter, bias, across, windows, gates, cells, squashed, hidden)
        ctx.lines = lines
        return hidden

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        x, enter, bias, across, *kept = ctx.saved_tensors
        states = _States(*kept)
        slope = _States(
            windows=states.windows,  # not needed
            gates=torch.empty_like(states.gates),
            cells=torch.zeros_like(states.cells),
            squashed=states.squashed,  # not needed
            hidden=gradient.clone(memory_format=torch.contiguous_format),
        )
        for line in reversed(ctx.lines):
            states.step_back(line, across, slope)
        d_gates = slope.gates.flatten(2)
        return (
            torch.bmm(enter.mT, d_gates).view(x.shape),
            torch.bmm(d_gates, x.flatten(2).mT),
            slope.gates.sum_to_size(bias.shape),
            torch.bmm(d_gates, states.windows.flatten(2).mT),
            None,
        )
