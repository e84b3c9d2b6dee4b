"""Fully connected networks whose outputs for a dimension see the dimensions before it, and no other.

Every unit has a degree, the last place of the order that it may see (Germain et al. 2015, sec. 3): the
inputs of a dimension have its place, a hidden unit sees units of its own degree or a lower one, an output
those below its own place, and inputs are connected to outputs directly in the same way. Orders and
degrees of ``masks`` different networks are kept; all share the weights.

A ``Steps`` walks such a network over rows that are being drawn: a unit is worked out once, as soon as all
that it sees is there, so drawing D dimensions costs what one pass costs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.dropout import Dropout
from simulacra.layers.orders import random_order


class MaskedLinear(nn.Module):
    """(batch, inputs) to (batch, outputs), through the weights that a mask of zeros and ones leaves."""

    def __init__(self, inputs: int, outputs: int, seen: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(seen, 1.0))
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # In the mask's type: with mixed precision half of the traffic is saved.
        y: Tensor = functional.linear(x, self.weight.to(mask.dtype) * mask)
        return y


class MaskedMLP(nn.Module):
    """(batch, D, inputs) to (batch, D, outputs); output i sees inputs that stand before it.

    ``orders`` (masks, D) has the dimension at each place; ``extra`` numbers (a class) are seen by all.
    """

    orders: Tensor
    places: Tensor

    def __init__(
        self,
        orders: Tensor,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        extra: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        masks, dimensions = orders.shape
        self.inputs, self.outputs, self.hidden = inputs, outputs, tuple(hidden)
        self.register_buffer("orders", orders, persistent=False)
        self.register_buffer("places", orders.argsort(1), persistent=False)
        degrees = [_degrees(masks, layer, size, dimensions) for layer, size in enumerate(hidden)]
        for layer, degree in enumerate(degrees):
            self.register_buffer(f"degrees{layer}", degree, persistent=False)
        sizes = [dimensions * inputs, *hidden, dimensions * outputs]
        self.layers = nn.ModuleList(
            MaskedLinear(size, following, size / 2) for size, following in itertools.pairwise(sizes)
        )
        self.direct = MaskedLinear(sizes[0], sizes[-1], sizes[0] * 2.0)
        self.biases = nn.ParameterList(torch.zeros(size) for size in sizes[1:])
        self.told = nn.ModuleList(nn.Linear(extra, size, bias=False) for size in sizes[1:] if extra)
        self.dropout = Dropout(dropout)
        self._kept: tuple[object, list[Tensor], Tensor] | None = None

    def degrees(self, mask: int) -> list[Tensor]:
        """Of the inputs, every hidden layer, and the outputs."""
        held = [self.get_buffer(f"degrees{layer}")[mask] for layer in range(len(self.hidden))]
        place = self.places[mask]
        entering, leaving = (place.repeat_interleave(k) for k in (self.inputs, self.outputs))
        return [entering, *held, leaving]

    def masks(self, mask: int) -> tuple[list[Tensor], Tensor]:
        """Zeros and ones for every layer's weight, and for the direct connections; the last are kept."""
        device, dtype = self.direct.weight.device, self.direct.weight.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        key = (mask, dtype, device)
        if self._kept is None or self._kept[0] != key:
            *inside, leaving = self.degrees(mask)
            told = [b[:, None] >= a for a, b in itertools.pairwise(inside)]
            told.append(leaving[:, None] > inside[-1])
            direct = (leaving[:, None] > inside[0]).to(dtype)
            self._kept = (key, [one.to(dtype) for one in told], direct)
        return self._kept[1], self._kept[2]

    def forward(self, x: Tensor, mask: int = 0, extra: Tensor | None = None) -> Tensor:
        masks, direct = self.masks(mask)
        x = h = x.flatten(1)
        for index, layer in enumerate(self.layers):
            h = layer(h, masks[index]) + self._constant(index, extra)
            if index < len(self.hidden):
                h = self.dropout(functional.relu(h))
        raw: Tensor = (h + self.direct(x, direct)).unflatten(1, (-1, self.outputs))
        return raw

    def _constant(self, layer: int, extra: Tensor | None) -> Tensor:
        """What a layer adds whatever is read, (outputs,) or (batch, outputs)."""
        constant: Tensor = self.biases[layer]
        return constant if extra is None else constant + self.told[layer](extra)

    def steps(self, rows: int, mask: int = 0, extra: Tensor | None = None) -> Steps:
        return Steps(self, rows, mask, extra)


class Steps:
    """One network over ``rows`` rows. Units stand in the order of their degrees, so that what one of
    them sees is a prefix of the layer before."""

    def __init__(self, network: MaskedMLP, rows: int, mask: int, extra: Tensor | None) -> None:
        self.order = network.orders[mask]
        self.inputs, self.outputs = network.inputs, network.outputs
        degrees = network.degrees(mask)
        sorted_by = [degree.argsort(stable=True) for degree in degrees]
        self.weights = [
            layer.get_parameter("weight").detach()[after][:, before].contiguous()
            for layer, (before, after) in zip(
                network.layers, itertools.pairwise(sorted_by), strict=True
            )
        ]
        self.direct = network.direct.weight.detach()[sorted_by[-1]][:, sorted_by[0]]
        self.constants = [
            network._constant(index, extra).detach()[..., units]
            for index, units in enumerate(sorted_by[1:])
        ]
        # The number of units of each layer with a degree below t, for t = 0..D.
        levels = torch.arange(len(self.order) + 1, device=self.order.device)
        self.below = [
            torch.searchsorted(degree[units].contiguous(), levels).tolist()
            for degree, units in zip(degrees, sorted_by, strict=True)
        ]
        self.units = [self.direct.new_zeros(rows, len(units)) for units in sorted_by[:-1]]

    def at(self, place: int) -> Tensor:
        """The outputs at a place, shape (rows, outputs)."""
        own = slice(place * self.outputs, (place + 1) * self.outputs)
        seen, top = self.below[0][place], self.below[-2][place]
        raw = self.constants[-1][..., own] + self.units[0][:, :seen] @ self.direct[own, :seen].T
        return torch.addmm(raw, self.units[-1][:, :top], self.weights[-1][own, :top].T)

    def put(self, place: int, read: Tensor) -> None:
        """Note the inputs at a place, (rows, inputs), and work out all units that waited for them."""
        self.units[0][:, place * self.inputs : (place + 1) * self.inputs] = read
        for index in range(1, len(self.units)):
            seen, own = (
                self.below[index - 1][place + 1],
                slice(*self.below[index][place : place + 2]),
            )
            if own.start < own.stop:
                weight, constant = self.weights[index - 1][own, :seen], self.constants[index - 1]
                new = self.units[index - 1][:, :seen] @ weight.T + constant[..., own]
                self.units[index][:, own] = functional.relu(new)

    def take(self, rows: Tensor) -> None:
        """Go on with these of the rows, by index."""
        self.units = [one[rows] for one in self.units]
        self.constants = [one if one.ndim == 1 else one[rows] for one in self.constants]


def _degrees(masks: int, layer: int, size: int, dimensions: int) -> Tensor:
    """Degrees 0..D-2 spread evenly over the units of a layer, (masks, size); the first mask has them
    sorted, the others shuffled."""
    even = torch.arange(size) * max(dimensions - 1, 1) // size
    shuffled = [even[random_order(size, mask, layer + 1)] for mask in range(1, masks)]
    return torch.stack([even, *shuffled])
