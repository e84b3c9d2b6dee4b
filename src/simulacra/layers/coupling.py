"""Affine coupling layers, the networks inside them, and which entries they keep (Dinh et al. 2017).

A mask b, of ones and zeros, says which entries a layer keeps and conditions on (eq. 9):

    y = b * x + (1 - b) * (x * exp(s(b * x)) + t(b * x)),      log |dy/dx| = sum (1 - b) * s.

s = r tanh(raw) with a learned reach r for each entry, so that exp(s) cannot run away; the last layer
of a network starts at zero, so that a new flow is the identity.
"""

from __future__ import annotations

import itertools
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.bijections import Bijection
from simulacra.layers.dropout import Dropout
from simulacra.layers.layout import channels_last

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

CHECKERBOARD, ROWS, COLUMNS = (0, 3), (0, 1), (0, 2)
"""The corners of a 2 x 2 block (reading order) that a mask keeps, on a squeezed grid."""


class AffineCoupling(Bijection):
    """Changes the entries where ``mask`` is 0 as the others tell; x is (n, *mask.shape)."""

    mask: Tensor

    def __init__(self, network: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mask", mask, persistent=False)
        self.reach = nn.Parameter(torch.ones(len(mask), *[1] * (mask.ndim - 1)))

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y and log |dy/dx|, shape (n,)."""
        log_scale, shift = self._scale_and_shift(x, given)
        return torch.addcmul(shift, x, log_scale.exp()), log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        log_scale, shift = self._scale_and_shift(y, given)
        return (y - shift) * torch.exp(-log_scale)

    def _scale_and_shift(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        # A network may run in bfloat16; scales and shifts, and all that follows, do not.
        raw, shift = self.network(x * self.mask, given).to(x.dtype).chunk(2, dim=1)
        free = 1 - self.mask
        return torch.tanh(raw) * (self.reach * free), shift * free


class ResidualNet(nn.Module):
    """Images (n, C, H, W) to (n, 2 C, H, W): 3x3 convolutions in residual blocks, no normalisation."""

    def __init__(
        self, channels: int, hidden: int, blocks: int, *, extra: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.given = nn.Linear(extra, hidden, bias=False) if extra else None
        self.blocks = nn.ModuleList(ResidualBlock(hidden, dropout) for _ in range(blocks))
        self.last = zeroed(nn.Conv2d(hidden, 2 * channels, 3, padding=1))
        channels_last(self)

    def forward(self, x: Tensor, given: Tensor | None) -> Tensor:
        h = self.first(x.contiguous(memory_format=torch.channels_last))
        if self.given is not None and given is not None:
            h = h + self.given(given)[:, :, None, None]
        for block in self.blocks:
            h = block(h)
        # The last layer is small, and what it says is as precise as the likelihood.
        with torch.autocast(h.device.type, enabled=False):
            out: Tensor = self.last(functional.silu(h).to(self.last.weight.dtype))
        return out


class ResidualBlock(nn.Module):
    """h + W2 silu(W1 silu(h)), with W2 starting at zero (Zhang et al. 2019)."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.one = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.two = zeroed(nn.Conv2d(hidden, hidden, 3, padding=1))
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        inner = functional.silu(self.one(functional.silu(h)))
        out: Tensor = h + self.two(self.dropout(inner))
        return out


class VectorNet(nn.Module):
    """Vectors (n, D) to (n, 2 D) by a multilayer perceptron whose last layer starts at zero."""

    def __init__(
        self, size: int, hidden: int, layers: int, *, extra: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        sizes = [size + extra, *[hidden] * layers]
        parts: list[nn.Module] = []
        for inside, outside in itertools.pairwise(sizes):
            parts += [nn.Linear(inside, outside), nn.SiLU(), Dropout(dropout)]
        self.layers = nn.Sequential(*parts, zeroed(nn.Linear(sizes[-1], 2 * size)))

    def forward(self, x: Tensor, given: Tensor | None) -> Tensor:
        out: Tensor = self.layers(x if given is None else torch.cat([x, given], dim=1))
        return out


def zeroed(layer: Layer) -> Layer:
    """The layer with all its weights at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def corner_mask(channels: int, kept: tuple[int, int]) -> Tensor:
    """Keeps two corners of every 2 x 2 block: shape (4 * channels, 1, 1), for a squeezed grid.

    ``CHECKERBOARD`` corners are the paper's checkerboard on the grid before the squeeze (its fig. 3).
    """
    corner = torch.arange(4 * channels) % 4
    return torch.isin(corner, torch.tensor(kept)).float()[:, None, None]


def board_mask(height: int, width: int) -> Tensor:
    """Keeps the dark fields of a checkerboard: shape (1, height, width), for a grid not squeezed."""
    fields = torch.arange(height)[:, None] + torch.arange(width)
    return (fields % 2 == 0).float()[None]


def half_mask(size: int) -> Tensor:
    """Keeps the first half: shape (size,); nothing of a single entry."""
    return (torch.arange(size) < size // 2).float()


def squeeze(x: Tensor) -> Tensor:
    """(n, C, H, W) to (n, 4 C, H/2, W/2); channel 4 c + k is corner k of channel c (sec. 3.6)."""
    if len(x) == 0:  # Torch would hand no rows back with their old shape.
        return x.reshape(0, 4 * x.shape[1], x.shape[2] // 2, x.shape[3] // 2)
    return functional.pixel_unshuffle(x, 2)


def unsqueeze(x: Tensor) -> Tensor:
    """The inverse of ``squeeze``."""
    if len(x) == 0:
        return x.reshape(0, x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3])
    return functional.pixel_shuffle(x, 2)
