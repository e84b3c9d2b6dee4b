"""Dropout whose draws belong to the whole batch, over all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Dropout(nn.Module):
    """Srivastava et al. 2014: entries become 0 with probability ``rate``, others grow by 1 / (1 - rate).

    Every process draws for the whole batch and uses its own part of it, so that a split batch trains
    as a whole one.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        split = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        kept = torch.empty_like(x)
        if split:
            world, rank = dist.get_world_size(), dist.get_rank()
            # The first dimension is the slowest in every layout: rows are drawn one after the other.
            whole = torch.cat([kept] * world).bernoulli_(1 - self.rate)
            kept = whole[rank * len(x) : (rank + 1) * len(x)]
        else:
            kept.bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)
