"""Layers of attention over the entries of images and sequences, and where these entries stand.

A layer adds to h what heads of attention found, and then what two linear layers make of it (Vaswani et
al. 2017, eq. 1 and 2), both of the normalised h (pre-norm and GELU as in Radford et al. 2019). Places
are learned vectors; queries and keys are also turned by angles in proportion to theirs (Su et al.
2021).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.dropout import Dropout
from simulacra.spaces import Images, Tokens

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Places(nn.Module):
    """Where the entries of a sequence stand: learned vectors, and angles for queries and keys."""

    query: Tensor
    key: Tensor

    def __init__(self, space: Images | Tokens, width: int, head: int) -> None:
        super().__init__()
        sizes = (space.length,) if isinstance(space, Tokens) else grid(space)
        self.axes = nn.ParameterList(nn.Parameter(0.02 * torch.randn(n, width)) for n in sizes)
        where = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).reshape(
            -1, len(sizes)
        )
        self.where = where
        turning = where[:, :2].float()
        carried = torch.cat([turning.new_full((1, turning.shape[1]), -1.0), turning[:-1]])
        self.register_buffer("query", angles_of(turning, sizes, head), persistent=False)
        self.register_buffer("key", angles_of(carried, sizes, head), persistent=False)

    def forward(self) -> Tensor:
        """A vector for each entry, (length, width)."""
        return torch.stack([axis[self.where[:, i]] for i, axis in enumerate(self.axes)]).sum(0)


def grid(space: Images) -> tuple[int, int, int]:
    """The sizes that entries of an image are ordered by: rows, columns, channels."""
    return (space.height, space.width, space.channels)


def angles_of(where: Tensor, sizes: tuple[int, ...], head: int) -> Tensor:
    """cos and sin of each entry's angles, (2, length, head / 2), axes one after the other.

    Of the frequencies of an axis the first turns by one radian a step, the last by about one over all.
    """
    count = head // 2 // where.shape[1]
    angles = [
        where[:, axis, None] * float(sizes[axis]) ** (-torch.arange(count) / max(count, 1))
        for axis in range(where.shape[1])
    ]
    flat = torch.cat(angles, dim=1)
    flat = functional.pad(flat, (0, head // 2 - flat.shape[1]))
    return torch.stack([flat.cos(), flat.sin()])


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs (x_i, x_{i + head/2}) turned by the entries' angles; x is (…, length, head)."""
    cos, sin = angles.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def attended(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k' / sqrt(d)) v over (batch, heads, length, d), the type that of ``query``.

    With gradients a processor is asked in float32: its kernel for those of bfloat16 takes six times as
    long at 50 entries and still half as long again at 800.
    """
    slow = query.device.type == "cpu" and torch.is_grad_enabled() and query.requires_grad
    if not slow:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    own, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, key, value = query.to(wide), key.to(wide), value.to(wide)
    with torch.autocast("cpu", enabled=False):
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return found.to(own)


def heads_of(width: int, size: int = 32) -> int:
    """Heads of about ``size`` entries each, as many as divide the width."""
    return next(count for count in range(max(1, width // size), 0, -1) if width % count == 0)


class AttentionLayer(nn.Module):
    """One layer on (batch, length, width); how its queries meet keys is the caller's business."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mixing = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)
        for layer in (self.read, self.write, self.widen, self.narrow):
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            for layer in (self.write, self.narrow):
                layer.weight.mul_((2 * layers) ** -0.5)

    def forward(self, h: Tensor, attend: Attend) -> Tensor:
        parts = self.read(self.before_attention(h)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        found = attend(query, key, value).transpose(1, 2).flatten(2)
        h = h + self.dropout(self.write(found))
        mixed = self.narrow(functional.gelu(self.widen(self.before_mixing(h))))
        out: Tensor = h + self.dropout(mixed)
        return out
