"""Halving and doubling the sides of images with a blur, as products with band matrices.

The blur is [1, 3, 3, 1], along each axis (Karras et al. 2020, app. B). Doubled, a row is

    y_2i = (x_{i-1} + 3 x_i) / 4,    y_2i+1 = (3 x_i + x_{i+1}) / 4,

and halved, y_i = (x_{2i-1} + 3 x_2i + 3 x_2i+1 + x_2i+2) / 8. What would reach beyond an edge is left
out, the rest in its place. Without a blur each is its nearest, y_2i = y_2i+1 = x_i, and the mean of its
two, as in Karras et al. 2018. A matrix an axis takes sides of any length, an odd one's last row included,
and for the sides modelled here costs less than a filter of every channel, in double backward too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Weights = tuple[float, float, float, float]

BLUR = (1.0, 3.0, 3.0, 1.0)


NEAREST = (0.0, 1.0, 1.0, 0.0)


def halving(large: int, small: int, weights: Weights = BLUR) -> Tensor:
    """The matrix (small, large) from a row to half of it."""
    return _shares(_band(large, small, weights).T)


def doubling(small: int, large: int, weights: Weights = BLUR) -> Tensor:
    """The matrix (large, small) from a row to its double."""
    return _shares(_band(large, small, weights))


def _band(large: int, small: int, weights: Weights) -> Tensor:
    """(large, small): how much the places 2i - 1 to 2i + 2 have to do with place i."""
    away = torch.arange(large)[:, None] - 2 * torch.arange(small)[None] + 1
    weight = torch.tensor(weights)[away.clamp(0, 3)]
    return torch.where((away >= 0) & (away <= 3), weight, 0.0)


def _shares(matrix: Tensor) -> Tensor:
    return matrix / matrix.sum(1, keepdim=True)


class Resampling(nn.Module):
    """Images (n, C, *before) to (n, C, *after), of about twice or half the sides."""

    down: Tensor
    across: Tensor

    def __init__(
        self, before: tuple[int, int], after: tuple[int, int], *, blur: bool = True
    ) -> None:
        super().__init__()
        weights = BLUR if blur else NEAREST
        for name, old, new in zip(("down", "across"), before, after, strict=True):
            matrix = doubling(old, new, weights) if new > old else halving(old, new, weights)
            self.register_buffer(name, matrix, persistent=False)
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, _ = x.shape
        # With the channels of a pixel side by side, both products run along rows of memory.
        rows = self.across.to(x) @ x.permute(0, 2, 3, 1)
        flat = self.down.to(x) @ rows.reshape(count, height, channels * self.after[1])
        return flat.reshape(count, *self.after, channels).permute(0, 3, 1, 2)
