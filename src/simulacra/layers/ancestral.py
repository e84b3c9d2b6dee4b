"""Drawing dimension by dimension: each given those before it; and filling in what is missing.

A ``Walk`` gives the raw numbers of the dimension at a place of its order, and is told the value that
stands there. Ancestral sampling is one walk. Where some values are known, those after an unknown one
have a say in it: particles are drawn, weighted by p(known value | values before), drawn again from
among themselves when the weights become uneven, and one is kept (a particle filter: Gordon, Salmond &
Smith 1993; exact as particles grow in number, and at once where the known stand first).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from simulacra.layers.columns import Columns
from simulacra.probability.distributions import categorical_draw


class Walk(Protocol):
    """A model over rows that are being drawn. ``order`` holds the dimension at every place: (D,), or
    (rows, D) where each row has its own."""

    order: Tensor

    def at(self, place: int) -> Tensor:
        """The raw numbers of the dimension at a place, shape (rows, outputs)."""
        ...

    def put(self, place: int, values: Tensor) -> None:
        """Note the values at a place, shape (rows,)."""
        ...

    def take(self, rows: Tensor) -> None:
        """Go on with these of the rows, by index; some may come twice."""
        ...


def drawn(columns: Columns, walk: Walk, uniform: Tensor) -> Tensor:
    """A row of values for each row of ``uniform``, (rows, D, 2): shape (rows, D)."""
    values = uniform.new_zeros(uniform.shape[:2], dtype=columns.shift.dtype)
    for place in range(columns.dimensions):
        raw = walk.at(place)
        values[:, place] = columns.draw(raw, uniform[:, place], walk.order[..., place])
        walk.put(place, values[:, place])
    return _back(values, walk.order)


def completed(
    columns: Columns, walk: Walk, uniform: Tensor, given: Tensor, known: Tensor
) -> Tensor:
    """``given`` with values drawn where ``known`` is false, both (n, D).

    ``uniform`` is (n, particles, D + 1, 3); the walk has n * particles rows, those of a row together.
    """
    rows, particles = uniform.shape[:2]
    uniform = uniform.flatten(0, 1)
    given, known = (_along(one, walk.order, particles) for one in (given, known))
    values = torch.zeros_like(given)
    log_weights = given.new_zeros(rows, particles)
    for place in range(columns.dimensions):
        raw, dimension = walk.at(place), walk.order[..., place]
        held, stands = known[:, place], given[:, place]
        new = columns.draw(raw, uniform[:, place, :2], dimension)
        values[:, place] = torch.where(held, stands, new)
        if held.any() and particles > 1:
            log_prob = columns.log_prob(stands, raw, dimension)
            log_weights += torch.where(held, log_prob, 0).reshape(rows, particles)
            chosen = _again(log_weights, uniform[:, place, 2].reshape(rows, particles)[:, 0])
            if chosen is not None:
                walk.take(chosen)
                values = values[chosen]
        walk.put(place, values[:, place])
    last = categorical_draw(log_weights, uniform[:, -1, 2].reshape(rows, particles)[:, 0])
    kept = torch.arange(rows, device=last.device) * particles + last
    order = walk.order if walk.order.ndim == 1 else walk.order[kept]
    return _back(values[kept], order)


def _again(log_weights: Tensor, uniform: Tensor) -> Tensor | None:
    """Which particles go on, where fewer than half of a row's count; their weights become equal.

    Systematic (Kitagawa 1996): particle k is where the cumulative weight passes (k + uniform) / K.
    """
    rows, particles = log_weights.shape
    weights = torch.softmax(log_weights.double(), 1)
    uneven = 1 / weights.square().sum(1) < particles / 2
    if not uneven.any():
        return None
    own = torch.arange(particles, device=weights.device)
    level = (own + uniform.double().unsqueeze(1)) / particles
    chosen = torch.searchsorted(weights.cumsum(1), level).clamp(max=particles - 1)
    chosen = torch.where(uneven.unsqueeze(1), chosen, own)
    log_weights[uneven] = 0
    return (chosen + torch.arange(rows, device=weights.device).unsqueeze(1) * particles).flatten()


def _along(x: Tensor, order: Tensor, particles: int) -> Tensor:
    """Dimensions (n, D) put at their places, each row ``particles`` times."""
    x = x.repeat_interleave(particles, 0)
    return x.gather(1, order.expand(x.shape))


def _back(values: Tensor, order: Tensor) -> Tensor:
    """Values by place as values by dimension, both (n, D)."""
    return torch.empty_like(values).scatter(1, order.expand(values.shape), values)
