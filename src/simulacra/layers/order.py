"""The order in which dimensions are written: pixel by pixel with R, G, B within, or along time."""

from __future__ import annotations

from torch import Tensor

from simulacra.spaces import Images, Series, Space


def in_order(x: Tensor, space: Space) -> Tensor:
    """Elements (n, *shape) as rows (n, D), the channels of one place side by side."""
    interleaved = isinstance(space, Images | Series)
    return (x.movedim(1, -1) if interleaved else x).flatten(1)


def out_of_order(rows: Tensor, space: Space) -> Tensor:
    """The inverse of ``in_order``: rows (n, D) as (n, *shape)."""
    if not isinstance(space, Images | Series):
        return rows.reshape(len(rows), *space.shape).contiguous()
    channels, *places = space.shape
    return rows.reshape(len(rows), *places, channels).movedim(-1, 1).contiguous()
