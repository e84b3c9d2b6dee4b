"""Fully connected networks whose outputs for an entry see the entries before it only (MADE).

Germain et al. 2015 give every unit a degree m; a hidden unit sees units of degrees up to its own, and
the outputs of entry i see hidden units of degrees below i (eq. 12 and 13). Here units stand sorted by
degree, so that every unit sees a first part of the layer below, and a masked matrix is a staircase:
it is multiplied in strips, each as wide as its longest step, which skip most of what the mask would
make zero. And when entries are found one after the other, each hidden unit is worked out only once,
as soon as all that it sees is known: D steps that cost one pass together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.dropout import Dropout

WHOLE = 2**18
"""A matrix of so many entries is quicker in strips than whole."""


class MaskedLinear(nn.Module):
    """(n, inputs) to (n, outputs); output j sees the first ``sees[j]`` inputs, which never falls.

    A strip has a ``wall``, what all of its rows see, and ``steps``, what only some do.
    """

    def __init__(self, inputs: int, sees: Tensor, *, zero: bool = False) -> None:
        super().__init__()
        self.inputs = inputs
        self.strips = _strips(len(sees), inputs)
        for index, (start, stop) in enumerate(self.strips):
            low, high = int(sees[start]), int(sees[stop - 1])
            if len(self.strips) == 1:
                # A small product is quickest whole.
                low, high = 0, inputs
            mask = (torch.arange(high) < sees[start:stop, None]).float()
            weight = _weight(mask, zero=zero)
            self.register_parameter(f"wall{index}", _parameter(weight[:, :low]))
            self.register_parameter(f"steps{index}", _parameter(weight[:, low:]))
            self.register_buffer(f"mask{index}", mask[:, low:].clone(), persistent=False)
        self.bias = nn.Parameter(torch.zeros(len(sees)))

    def forward(self, x: Tensor) -> Tensor:
        parts = [self._product(x, index) for index in range(len(self.strips))]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _product(self, x: Tensor, index: int) -> Tensor:
        """The outputs of one strip."""
        bias = self.bias[slice(*self.strips[index])]
        parts, start = self._parts(index), 0
        if len(parts) == 1:
            width = parts[0].shape[1]
            return functional.linear(x if width == self.inputs else x[:, :width], parts[0], bias)
        y = bias.expand(len(x), -1)
        for weight in parts:
            stop = start + weight.shape[1]
            y = torch.addmm(y, x[:, start:stop], weight.T)
            start = stop
        return y

    def _parts(self, index: int) -> list[Tensor]:
        """A strip's wall and masked steps, as far as it has them."""
        wall, steps = getattr(self, f"wall{index}"), getattr(self, f"steps{index}")
        parts = [] if wall is None else [wall]
        return parts if steps is None else [*parts, steps * getattr(self, f"mask{index}")]

    def matrix(self) -> Tensor:
        """The whole masked matrix, shape (outputs, inputs)."""
        rows = []
        for index, (start, stop) in enumerate(self.strips):
            row = torch.cat([self.bias.new_zeros(stop - start, 0), *self._parts(index)], dim=1)
            rows.append(functional.pad(row, (0, self.inputs - row.shape[1])))
        return torch.cat(rows)


def _parameter(weight: Tensor) -> nn.Parameter | None:
    """None where there is nothing to learn."""
    return nn.Parameter(weight.clone()) if weight.numel() else None


def _strips(outputs: int, inputs: int) -> list[tuple[int, int]]:
    """Eight strips of rows, or one where the whole is small."""
    count = min(8, outputs) if outputs * inputs >= WHOLE else 1
    bounds = [outputs * index // count for index in range(count + 1)]
    return list(itertools.pairwise(bounds))


def _weight(mask: Tensor, *, zero: bool) -> Tensor:
    """He's uniform weights (He et al. 2015) for as many inputs as a row sees."""
    if zero:
        return torch.zeros_like(mask)
    seen = mask.sum(1, keepdim=True).clamp(min=1)
    return torch.empty_like(mask).uniform_(-1, 1) * mask * (3 / seen).sqrt()


class AutoregressiveNet(nn.Module):
    """Entries (n, D) to (n, D, outputs); those of entry i depend on the entries before it only.

    ``extra`` numbers a row, which every entry sees, may be given. Without hidden ``layers`` the
    outputs are linear. The last layer starts at zero.
    """

    def __init__(
        self,
        size: int,
        outputs: int,
        hidden: int,
        layers: int,
        *,
        extra: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.size, self.outputs = size, outputs
        entry = torch.arange(size)
        degree = torch.arange(hidden) * max(size - 1, 1) // hidden
        self.hidden = nn.ModuleList()
        width, reach = size, degree + 1
        for _ in range(layers):
            self.hidden.append(MaskedLinear(width, reach))
            width, reach = hidden, torch.searchsorted(degree, degree, right=True)
        seen = torch.searchsorted(degree, entry) if layers else entry
        # Where hidden units of a degree begin; the last entry is seen by nobody.
        self.begins = torch.searchsorted(degree, torch.arange(size + 1)).tolist()
        self.last = MaskedLinear(width, seen.repeat_interleave(outputs), zero=True)
        self.first_given = nn.Linear(extra, hidden, bias=False) if extra and layers else None
        self.last_given = nn.Linear(extra, size * outputs, bias=False) if extra else None
        if self.last_given is not None:
            nn.init.zeros_(self.last_given.weight)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        h = x
        for index, layer in enumerate(self.hidden):
            h = layer(h)
            if index == 0 and self.first_given is not None and given is not None:
                h = h + self.first_given(given)
            h = self.dropout(functional.relu(h))
        out = self.last(h)
        if self.last_given is not None and given is not None:
            out = out + self.last_given(given)
        told: Tensor = out.unflatten(1, (self.size, self.outputs))
        return told

    @torch.no_grad()
    def solve(
        self, y: Tensor, given: Tensor | None, invert: Callable[[int, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """x, shape (n, D), with x_i = invert(i, y_i, the outputs for entry i), entry by entry."""
        rows = len(y)
        matrices = [layer.matrix() for layer in [*self.hidden, self.last]]
        offsets = self._offsets(given, rows)
        values = [y.new_zeros(rows, matrix.shape[1]) for matrix in matrices]
        for entry in range(self.size):
            if entry and self.hidden:
                self._advance(entry - 1, values, matrices, offsets)
            seen = self.begins[entry] if self.hidden else entry
            own = slice(entry * self.outputs, (entry + 1) * self.outputs)
            told = values[-1][:, :seen] @ matrices[-1][own, :seen].T + offsets[-1][:, own]
            values[0][:, entry] = invert(entry, y[:, entry], told)
        return values[0]

    def _offsets(self, given: Tensor | None, rows: int) -> list[Tensor]:
        """Each layer's bias together with what is given, shape (rows, outputs)."""
        layers: list[MaskedLinear] = [*self.hidden, self.last]
        offsets = [layer.bias.expand(rows, -1) for layer in layers]
        if given is not None:
            if self.first_given is not None:
                offsets[0] = offsets[0] + self.first_given(given)
            if self.last_given is not None:
                offsets[-1] = offsets[-1] + self.last_given(given)
        return offsets

    def _advance(
        self, degree: int, values: list[Tensor], matrices: list[Tensor], offsets: list[Tensor]
    ) -> None:
        """Work out the hidden units of ``degree``, which is the last entry that they see."""
        units = slice(self.begins[degree], self.begins[degree + 1])
        for index in range(len(self.hidden)):
            seen = degree + 1 if index == 0 else units.stop
            weight = matrices[index][units, :seen]
            found = values[index][:, :seen] @ weight.T + offsets[index][:, units]
            values[index + 1][:, units] = functional.relu(found)
