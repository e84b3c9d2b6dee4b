"""Numbers of contents: which rows are picked, when what stands in a row alone is to decide."""

from __future__ import annotations

import torch
from torch import Tensor


def content_numbers(x: Tensor, seed: int) -> Tensor:
    """A number for each row, (n,) int64, that depends on its content and ``seed`` only."""
    flat = x.flatten(1)
    bits = flat.float().contiguous().view(torch.int32) if x.is_floating_point() else flat
    stream = torch.Generator().manual_seed(seed)
    weights = torch.randint(-(2**62), 2**62, (flat.shape[1],), generator=stream) | 1
    mixed = (bits.long() * weights).sum(1)
    # Low bits of a sum of products depend on low bits only: the end of SplitMix64 (Steele et al. 2014)
    # brings high ones down.
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return mixed ^ ((mixed >> 31) & ((1 << 33) - 1))


def lowest(numbers: Tensor, count: int) -> Tensor:
    """Where the ``count`` lowest numbers stand (fewer, if there are fewer), in order and each once."""
    order = torch.argsort(numbers, stable=True)
    fresh = torch.ones(len(numbers), dtype=torch.bool)
    fresh[1:] = numbers[order][1:] != numbers[order][:-1]
    return order[fresh][:count]
