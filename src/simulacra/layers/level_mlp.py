"""A residual perceptron that is conditioned on a noise level and, optionally, on what a datum goes
with: for vectors.

The counterpart of ``layers/unet.py`` for data without a grid, with the same call.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.conditions import condition_reader
from simulacra.layers.dropout import Dropout
from simulacra.layers.unet import LevelEmbedding
from simulacra.layers.waves import octaves, with_waves
from simulacra.spaces import Space

FEW, OCTAVES = 8, 6
"""Vectors of at most so many entries are also read as waves of so many octaves."""


class _Block(nn.Module):
    """A residual block that adds the embedding between its two layers; the last starts at zero."""

    def __init__(self, hidden: int, level: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.first, self.last = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.shift = nn.Linear(level, hidden)
        self.dropout = Dropout(dropout)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        inner = functional.silu(self.first(self.norm(h)) + self.shift(level))
        out: Tensor = h + self.last(self.dropout(inner))
        return out


class LevelMLP(nn.Module):
    """(n, size), log-SNR (n,), what a ``ConditionDoor`` tells or None, to (n, size).

    Few entries are read as waves too: a smooth network alone blurs structures that are far smaller than
    the whole.
    """

    waves: Tensor

    def __init__(
        self,
        size: int,
        hidden: int,
        blocks: int,
        condition: Space | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("waves", octaves(OCTAVES if size <= FEW else 0), persistent=False)
        self.level = LevelEmbedding(hidden)
        self.label = condition_reader(condition, hidden)
        self.enter = nn.Linear(size * (1 + 2 * len(self.waves)), hidden)
        self.blocks = nn.ModuleList(_Block(hidden, hidden, dropout) for _ in range(blocks))
        self.norm, self.leave = nn.LayerNorm(hidden), nn.Linear(hidden, size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, log_snr: Tensor, context: Tensor | None = None) -> Tensor:
        level = self.level(log_snr)
        if self.label is not None and context is not None:
            level = level + self.label(context)
        level = functional.silu(level)
        h = self.enter(with_waves(x, self.waves))
        for block in self.blocks:
            h = block(h, level)
        out: Tensor = self.leave(functional.silu(self.norm(h)))
        return out
