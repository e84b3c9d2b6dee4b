"""Orders of dimensions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from simulacra.probability.noise import mixed


def random_order(size: int, *key: int) -> Tensor:
    """A permutation of 0..size-1 that is a pure function of ``key``, whatever the release."""
    return torch.tensor(sorted(range(size), key=lambda i: mixed(*key, i)))


def orders(size: int, count: int, first: Literal["raster", "random"]) -> Tensor:
    """``count`` orders, (count, size), the first of them as it is called and the others random."""
    told = [random_order(size, key) for key in range(count)]
    if first == "raster":
        told[0] = torch.arange(size)
    return torch.stack(told)
