"""Images written entry by entry in raster order: how levels enter a network, and the loop that draws.

Rows from above, columns from the left, channels innermost. What a network knows about an image that is
still being drawn is a ``Walk``: it is told each pixel once, and gives the features of the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from simulacra.probability.distributions import categorical_draw
from simulacra.spaces import Images

MOST_ONE_HOT = 32
"""Up to so many levels enter as zeros and a one; more of them as one number in [-1, 1]."""


class Walk(Protocol):
    """A network over images that are being drawn, ``rows`` of them at a time."""

    def next_row(self, row: int, before: Tensor | None) -> None:
        """Begin a row; ``before`` is the network's input for the row above, (rows, W, inputs)."""
        ...

    def put(self, column: int, x: Tensor) -> None:
        """Note the network's input at a column of the row begun, (rows, inputs)."""
        ...

    def at(self, column: int) -> Tensor:
        """The features of a column in the row begun, (rows, features)."""
        ...


def entering_features(space: Images) -> int:
    """How many features ``entering`` gives for each pixel."""
    one_hot = 2 < space.levels <= MOST_ONE_HOT
    return space.channels * (space.levels if one_hot else 1)


def entering(x: Tensor, space: Images, dtype: torch.dtype) -> Tensor:
    """Levels as a network's input, feature f belonging to channel f mod ``space.channels``.

    Dimension 1 of ``x`` are the channels, whatever follows stays; zero is left for the border.
    """
    if 2 < space.levels <= MOST_ONE_HOT:
        ones = functional.one_hot(x.long(), space.levels).to(dtype)
        entered = ones.movedim(-1, 1).flatten(1, 2)
    else:
        entered = x.to(dtype) * (2 / (space.levels - 1)) - 1
    return entered.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else entered


def drawn_in_order(
    space: Images,
    walk: Walk,
    enter: Callable[[Tensor], Tensor],
    tell: Callable[[Tensor], Tensor],
    uniform: Tensor,
    *,
    given: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Draw entry after entry, (rows, *shape); where ``known`` is true, take ``given`` instead.

    ``enter`` is ``entering`` for the walk's network; ``tell`` turns features (rows, features) into
    logits (rows, levels * channels), a level's channels side by side; ``uniform`` (rows, *shape) decides.
    """
    channels, height, width = space.shape
    x = torch.zeros(uniform.shape, dtype=torch.long, device=uniform.device)
    before: Tensor | None = None
    for row in range(height):
        walk.next_row(row, before)
        for column in range(width):
            pixel = x[:, :, row, column]
            for channel in range(channels):
                if channel:
                    walk.put(column, enter(pixel))
                told = tell(walk.at(column))
                logits = told.unflatten(1, (space.levels, channels))[:, :, channel]
                drawn = categorical_draw(logits, uniform[:, channel, row, column])
                if given is not None and known is not None:
                    at = (slice(None), channel, row, column)
                    drawn = torch.where(known[at], given[at].long(), drawn)
                pixel[:, channel] = drawn
            walk.put(column, enter(pixel))
        before = enter(x[:, :, row]).mT
    return x.to(space.dtype)
