"""Two streams of features that look back only, shifted instead of masked, over several scales.

The *down* stream at (i, j) sees the rows above i, the *down-right* one also what stands left of j in row
i, and reads the down stream at every layer (Salimans et al. 2017, fig. 2). Layers are residual and gated,

    x + a * sigmoid(b),    (a, b) = last(drop(act(first(act(x)) + what is read))) + V class,

with act(x) = elu of (x, -x). Between scales both streams are halved by strides and doubled again
(sec. 2.3), and each block on the way back reads what its partner on the way there was given (sec. 2.4).
The first row above is seen as far as the convolutions at full size reach, one column each.

A walk over images that are being drawn works out the down stream once a row and the other one at the new
position only; a scale further down moves at every second position of every second row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.dropout import Dropout
from simulacra.layers.layout import channels_last
from simulacra.layers.masked import MaskedConv2d, RowCursor
from simulacra.spaces import Images

Layer = Callable[[Tensor], Tensor]
Streams = tuple[Tensor, Tensor]


class _Down(nn.Conv2d):
    """Rows i - 1 and i, columns j - 1 to j + 1: a convolution of the down stream."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, (2, 3), stride, padding=(1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)[:, :, : -(-input.shape[2] // self.stride[0])]


def _right(inputs: int, outputs: int, stride: int = 1) -> MaskedConv2d:
    """Rows i - 1 and i, columns j - 1 and j: a convolution of the down-right stream."""
    return MaskedConv2d(inputs, outputs, above=1, reach=1, ahead=0, stride=stride)


def _concatenated_elu(x: Tensor) -> Tensor:
    """elu of x beside elu of -x, twice the channels."""
    return functional.elu(torch.cat([x, -x], dim=1))


class _Block(nn.Module):
    """A gated residual block; its convolutions are given with its input."""

    def __init__(self, channels: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.told = nn.Linear(classes, 2 * channels, bias=False) if classes else None
        self.dropout = Dropout(dropout)

    def said(self, classes: Tensor | None) -> Tensor | None:
        return None if self.told is None else self.told(classes)

    def forward(
        self, x: Tensor, read: Tensor | None, told: Tensor | None, first: Layer, last: Layer
    ) -> Tensor:
        """On whole images, on a row (batch, channels, W), or at one position (batch, channels)."""
        inner = first(_concatenated_elu(x))
        inner = inner if read is None else inner + read
        both = last(self.dropout(_concatenated_elu(inner)))
        both = both if told is None else both + told.reshape(*told.shape, *[1] * (x.ndim - 2))
        signal, gate = both.chunk(2, dim=1)
        return x + signal * torch.sigmoid(gate)


class _Pair(nn.Module):
    """A block of the down stream and one of the down-right stream, which reads the first.

    On the way back both also read what the partner on the way there was given.
    """

    def __init__(self, width: int, dropout: float, classes: int, *, back: bool) -> None:
        super().__init__()
        self.down, self.right = (_Block(width, dropout, classes) for _ in range(2))
        self.down_first, self.down_last = _Down(2 * width, width), _Down(2 * width, 2 * width)
        self.right_first, self.right_last = _right(2 * width, width), _right(2 * width, 2 * width)
        self.link = MaskedConv2d(2 * width, width)
        self.back_down = MaskedConv2d(2 * width, width) if back else None
        self.back_right = MaskedConv2d(2 * width, width) if back else None
        with torch.no_grad():
            self.down_last.weight.mul_(0.1)
            self.right_last.weight.mul_(0.1)

    def forward(
        self, down: Tensor, right: Tensor, partner: Streams | None, classes: Tensor | None
    ) -> Streams:
        read = None
        if self.back_down is not None and partner is not None:
            read = self.back_down(_concatenated_elu(partner[0]))
        told = self.down.said(classes)
        down = self.down(down, read, told, self.down_first, self.down_last)
        read = self.link(_concatenated_elu(down))
        if self.back_right is not None and partner is not None:
            read = read + self.back_right(_concatenated_elu(partner[1]))
        told = self.right.said(classes)
        return down, self.right(right, read, told, self.right_first, self.right_last)


class _PairWalk:
    """A ``_Pair`` over images that are being drawn: ``row`` begins a row, ``at`` gives its columns."""

    def __init__(self, pair: _Pair, rows: int, width: int, classes: Tensor | None) -> None:
        self.pair = pair
        self.told = pair.down.said(classes), pair.right.said(classes)
        self.down = [RowCursor(one, rows, width) for one in (pair.down_first, pair.down_last)]
        self.right = [one.cursor(rows, width) for one in (pair.right_first, pair.right_last)]

    def row(self, down: Tensor, partner: Tensor | None) -> Tensor:
        """The down stream's row, (batch, channels, W), through its block."""
        pair, read = self.pair, None
        if pair.back_down is not None and partner is not None:
            read = _at_points(pair.back_down, _concatenated_elu(partner).mT).mT
        first, last = (_whole_row(one) for one in self.down)
        down = pair.down(down, read, self.told[0], first, last)
        self.linked = _at_points(pair.link, _concatenated_elu(down).mT)
        for cursor in self.right:
            cursor.next_row()
        return down

    def at(self, column: int, right: Tensor, partner: Tensor | None) -> Tensor:
        """The down-right stream's features at a column, (batch, channels), through its block."""
        pair, read = self.pair, self.linked[:, column]
        if pair.back_right is not None and partner is not None:
            read = read + _at_points(pair.back_right, _concatenated_elu(partner))
        first, last = (partial(cursor.step, column) for cursor in self.right)
        out: Tensor = pair.right(right, read, self.told[1], first, last)
        return out


class _Scale(nn.Module):
    """Pairs on the way there, the next scale at half the size, pairs on the way back."""

    def __init__(self, width: int, scales: int, blocks: int, dropout: float, classes: int) -> None:
        super().__init__()
        count = max(1, blocks >> (scales - 1))
        self.there, self.back = (
            nn.ModuleList(_Pair(width, dropout, classes, back=back) for _ in range(count))
            for back in (False, True)
        )
        self.inner = None
        if scales > 1:
            self.inner = _Scale(width, scales - 1, blocks, dropout, classes)
            self.shrink_down, self.shrink_right = _Down(width, width, 2), _right(width, width, 2)
            self.grow_down = nn.ConvTranspose2d(width, width, 2, stride=2)
            self.grow_right = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, down: Tensor, right: Tensor, classes: Tensor | None) -> Streams:
        given: list[Streams] = []
        for pair in self.there:
            given.append((down, right))
            down, right = pair(down, right, None, classes)
        if self.inner is not None:
            low = self.inner(self.shrink_down(down), self.shrink_right(right), classes)
            height, width = down.shape[2:]
            down = down + self.grow_down(low[0])[:, :, :height, :width]
            right = right + self.grow_right(low[1])[:, :, :height, :width]
        for pair in self.back:
            down, right = pair(down, right, given.pop(), classes)
        return down, right


class _ScaleWalk:
    """A ``_Scale`` over images that are being drawn: the scale below moves at every second step."""

    def __init__(self, scale: _Scale, rows: int, width: int, classes: Tensor | None) -> None:
        self.there, self.back = (
            [_PairWalk(one, rows, width, classes) for one in pairs if isinstance(one, _Pair)]
            for pairs in (scale.there, scale.back)
        )
        self.inner = None
        if scale.inner is not None:
            half = -(-width // 2)
            self.inner = _ScaleWalk(scale.inner, rows, half, classes)
            self.shrink_down = RowCursor(scale.shrink_down, rows, width)
            self.shrink_right = scale.shrink_right.cursor(rows, width)
            self.grow_down, self.grow_right = scale.grow_down, scale.grow_right
            self.low_right = scale.grow_right.weight.new_zeros(
                half, rows, len(scale.grow_right.weight)
            )

    def next_row(self, row: int, down: Tensor) -> Tensor:
        """Begin a row: the down stream's features of it, (batch, channels, W), through the scale."""
        self.now, given = row, []
        for pair in self.there:
            given.append(down)
            down = pair.row(down, None)
        if self.inner is not None:
            low = self.shrink_down.row(down.mT).mT
            if row % 2 == 0:
                self.low_down = self.inner.next_row(row // 2, low)
            down = down + _grown_row(self.grow_down, self.low_down, row % 2)[:, :, : down.shape[2]]
            self.shrink_right.next_row()
        for pair in self.back:
            down = pair.row(down, given.pop())
        return down

    def at(self, column: int, right: Tensor) -> Tensor:
        """The down-right stream's features at a column of the row begun, through the scale."""
        given: list[Tensor] = []
        for pair in self.there:
            given.append(right)
            right = pair.at(column, right, None)
        if self.inner is not None:
            self.shrink_right.put(column, right)
            if self.now % 2 == 0 and column % 2 == 0:
                low = self.inner.at(column // 2, self.shrink_right.at(column))
                self.low_right[column // 2] = low
            grow, low = self.grow_right, self.low_right[column // 2]
            right = right + functional.linear(
                low, grow.weight[:, :, self.now % 2, column % 2].T, grow.bias
            )
        for pair in self.back:
            right = pair.at(column, right, given.pop())
        return right


class ShiftedStreams(nn.Module):
    """(batch, inputs, H, W) to features (batch, channels, H, W) of all positions before each one.

    ``blocks`` is the number of pairs of blocks, on either way, at the lowest of ``scales`` scales; each
    larger one has half as many, at least one. ``place`` is a bias for each position.
    """

    def __init__(
        self,
        space: Images,
        inputs: int,
        channels: int,
        scales: int,
        blocks: int,
        dropout: float,
        classes: int,
    ) -> None:
        super().__init__()
        self.enter_down = nn.Conv2d(inputs, channels, (2, 3), padding=(2, 1), bias=False)
        self.enter_right = MaskedConv2d(inputs, channels, above=1, reach=1, kind="A")
        self.place = nn.Parameter(torch.zeros(2, channels, space.height, space.width))
        self.scale = _Scale(channels, scales, blocks, dropout, classes)
        channels_last(self)

    def forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        # Padding by two rows and the first H of them: row i is given rows i - 2 and i - 1.
        down = self.enter_down(x)[:, :, : x.shape[2]]
        down = down.contiguous(memory_format=torch.channels_last)
        right = self.enter_right(x)
        down, right = down + self.place[0].to(down.dtype), right + self.place[1].to(right.dtype)
        told: Tensor = self.scale(down, right, classes)[1]
        return told

    def walk(self, rows: int, classes: Tensor | None) -> StreamsWalk:
        return StreamsWalk(self, rows, classes)


class StreamsWalk:
    """``ShiftedStreams`` over images that are being drawn: a row is begun, then a column at a time."""

    def __init__(self, streams: ShiftedStreams, rows: int, classes: Tensor | None) -> None:
        self.place = streams.place.detach()
        width, inputs = self.place.shape[3], streams.enter_down.in_channels
        self.enter_down = RowCursor(streams.enter_down, rows, width)
        self.enter_right = streams.enter_right.cursor(rows, width)
        self.scale = _ScaleWalk(streams.scale, rows, width, classes)
        self.nothing = self.place.new_zeros(rows, inputs, width)

    def next_row(self, row: int, before: Tensor | None) -> None:
        """Begin a row; ``before`` is the network's input for the row above, (rows, inputs, W)."""
        before = self.nothing if before is None else before
        self.scale.next_row(row, self.enter_down.row(before.mT).mT + self.place[0, :, row])
        self.enter_right.next_row()
        self.here = self.place[1, :, row]

    def at(self, column: int) -> Tensor:
        """The features of a column in the row begun, (rows, channels)."""
        return self.scale.at(column, self.enter_right.at(column) + self.here[:, column])

    def put(self, column: int, x: Tensor) -> None:
        """Note the network's input at a column, (rows, inputs)."""
        self.enter_right.put(column, x)


def _at_points(layer: MaskedConv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution with the features last, at one position or along a row."""
    return functional.linear(x, layer.weight[:, :, 0, 0], layer.bias)


def _whole_row(cursor: RowCursor) -> Layer:
    return lambda y: cursor.row(y.mT).mT


def _grown_row(grow: nn.ConvTranspose2d, low: Tensor, parity: int) -> Tensor:
    """One of the two rows that a row of the scale below grows into, (batch, channels, 2 W)."""
    both = torch.einsum("bcw,cdp->bdwp", low, grow.weight[:, :, parity])
    assert grow.bias is not None
    return both.flatten(2) + grow.bias.unsqueeze(1)
