"""DiT: a transformer over the patches of an image, conditioned on a noise level and, optionally, what
a datum goes with.

The counterpart of ``layers/unet.py``, with the same call (Peebles & Xie 2023). Level and class enter
every block by adaLN-zero (their sec. 3.2): from their embedding c, a linear layer tells a shift, a
scale and a gate for each of attention and perceptron,

    h <- h + gate_1 attention((1 + scale_1) norm(h) + shift_1),    the same for the perceptron,

and it starts at zero, so that each block starts as the identity, and the whole at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.attention import attended, heads_of
from simulacra.layers.conditions import channels_beside, condition_reader, with_beside
from simulacra.layers.dropout import Dropout
from simulacra.layers.unet import LevelEmbedding
from simulacra.spaces import Images, Space

MOST_TOKENS = 64
"""Patches grow until an image has at most so many."""


class DiTBlock(nn.Module):
    """One block on h (n, tokens, width), told by c (n, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)
        self.tell = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.tell.weight)
        nn.init.zeros_(self.tell.bias)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        told = self.tell(functional.silu(c)).unsqueeze(1).chunk(6, dim=-1)
        shift, scale, gate, more_shift, more_scale, more_gate = told
        h = h + gate * self._attended(self.norm(h) * (1 + scale) + shift)
        inner = functional.gelu(self.widen(self.norm(h) * (1 + more_scale) + more_shift))
        out: Tensor = h + more_gate * self.narrow(self.dropout(inner))
        return out

    def _attended(self, h: Tensor) -> Tensor:
        parts = self.read(h).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = attended(query, key, value)
        written: Tensor = self.write(found.transpose(1, 2).flatten(2))
        return written


class DiT(nn.Module):
    """(n, C, H, W), log-SNR (n,), what a ``ConditionDoor`` tells or None, to (n, outputs x C, H, W).

    Patches have sides that are a power of two, as small as ``MOST_TOKENS`` allows; images whose sides
    they do not divide are padded with zeros. Places are learned (the paper's are fixed waves).
    """

    def __init__(
        self,
        space: Images,
        width: int,
        blocks: int,
        condition: Space | None = None,
        dropout: float = 0.0,
        *,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.patch = _patch(space)
        self.rows, self.columns = (-(-side // self.patch) for side in (space.height, space.width))
        self.size = (space.height, space.width)
        self.beside = channels_beside(condition)
        numbers = space.channels * self.patch**2
        self.level = LevelEmbedding(width)
        self.label = condition_reader(condition, width)
        self.enter = nn.Linear(numbers + self.beside * self.patch**2, width)
        self.places = nn.Parameter(0.02 * torch.randn(self.rows * self.columns, width))
        heads = heads_of(width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.tell, self.leave = nn.Linear(width, 2 * width), nn.Linear(width, outputs * numbers)
        for last in (self.tell, self.leave):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, log_snr: Tensor, context: Tensor | None = None) -> Tensor:
        c = self.level(log_snr)
        if self.label is not None and context is not None:
            c = c + self.label(context)
        h = self.enter(self.patches(with_beside(x, context, self.beside))) + self.places
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.tell(functional.silu(c)).unsqueeze(1).chunk(2, dim=-1)
        return self.image(self.leave(self.norm(h) * (1 + scale) + shift))

    def patches(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, tokens, numbers of a patch)."""
        p = self.patch
        right, below = self.columns * p - x.shape[3], self.rows * p - x.shape[2]
        x = functional.pad(x, (0, right, 0, below))
        x = x.reshape(len(x), x.shape[1], self.rows, p, self.columns, p)
        return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def image(self, tokens: Tensor) -> Tensor:
        """The inverse of ``patches``."""
        p = self.patch
        x = tokens.reshape(len(tokens), self.rows, self.columns, -1, p, p)
        x = x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), x.shape[3], self.rows * p, -1)
        return x[:, :, : self.size[0], : self.size[1]].contiguous()


def _patch(space: Images) -> int:
    patch = 1
    while -(-space.height // patch) * -(-space.width // patch) > MOST_TOKENS:
        patch *= 2
    return patch
