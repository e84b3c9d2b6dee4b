"""What binds two columns of a table, for all pairs of them at once.

Two numbers: r of their ranks (Spearman 1904). Two categories: Cramer's V (1946). A number and a category:
the correlation ratio (Pearson 1905), over the rows in which the number is not missing. All are 0 where
a column is constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from simulacra.spaces import Column


def ranks(x: Tensor) -> Tensor:
    """Ranks from 0 along the last dimension, ties sharing their mean; what is missing is below all."""
    x = x.double().nan_to_num(nan=-torch.inf, posinf=torch.inf).contiguous()
    ordered = x.sort().values.contiguous()
    below = torch.searchsorted(ordered, x)
    upto = torch.searchsorted(ordered, x, right=True)
    return (below + upto - 1).double() / 2


def associations(x: Tensor, columns: Sequence[Column]) -> Tensor:
    """Rows (n, columns) to what binds each column to each, (columns, columns); 0 with itself."""
    bound = torch.zeros(len(columns), len(columns), dtype=torch.float64)
    named = [index for index, one in enumerate(columns) if one.kind == "category"]
    numbers = [index for index, one in enumerate(columns) if one.kind != "category"]
    sizes = [len(columns[index].categories) for index in named]
    codes = x[:, named].cpu().long().T.contiguous()
    values = x[:, numbers].cpu().double().T.contiguous()
    at, of = torch.tensor(named, dtype=torch.long), torch.tensor(numbers, dtype=torch.long)
    bound[of[:, None], of] = _spearman(values)
    bound[at[:, None], at] = _cramer(codes, sizes)
    mixed = _ratios(values, codes, sizes)
    bound[of[:, None], at], bound[at[:, None], of] = mixed, mixed.T
    return bound


def _spearman(values: Tensor) -> Tensor:
    """Numbers (r, n) to r of ranks, (r, r)."""
    ranked = ranks(values)
    apart = ranked - ranked.mean(1, keepdim=True)
    length = apart.square().sum(1, keepdim=True).sqrt()
    unit = torch.where(length > 0, apart / length, 0.0)
    return (unit @ unit.T).fill_diagonal_(0.0)


def _cramer(codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Categories (c, n) to Cramer's V, (c, c): chi^2 / n = sum of n_kl^2 / (n_k n_l), less one."""
    count = len(codes)
    found = torch.zeros(count, count, dtype=torch.float64)
    owner = torch.repeat_interleave(torch.arange(count), torch.tensor(sizes, dtype=torch.long))
    start = [sum(sizes[:index]) for index in range(count)]
    flat = codes + torch.tensor(start, dtype=torch.long)[:, None]
    single = torch.bincount(flat.flatten(), minlength=len(owner)).double()
    held = torch.zeros(count).index_add_(0, owner, (single > 0).float())
    for one in range(count - 1):
        first, width = start[one + 1], len(owner) - start[one + 1]
        cells = codes[one] * width + (flat[one + 1 :] - first)
        both = torch.bincount(cells.flatten(), minlength=sizes[one] * width).double()
        own = single[start[one] : first].clamp(min=1)[:, None]
        each = (both.reshape(-1, width).square() / own).sum(0) / single[first:].clamp(min=1)
        square = torch.zeros(count, dtype=torch.float64).index_add_(0, owner[first:], each) - 1
        least = torch.minimum(held[one], held) - 1
        v = (square.clamp(min=0) / least.clamp(min=1)).sqrt()
        found[one, one + 1 :] = torch.where(least > 0, v, 0.0)[one + 1 :]
    return found + found.T


def _ratios(values: Tensor, codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Numbers (r, n) and categories (c, n) to correlation ratios, (r, c)."""
    there = (~values.isnan()).double()
    # From the least number, so that a constant column is one in floating point too.
    least = values.nan_to_num(nan=torch.inf).amin(1, keepdim=True) if values.numel() else values
    values = torch.where(there > 0, values - least, 0.0)
    apart = (values - values.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)) * there
    whole = apart.square().sum(1)
    found = torch.zeros(len(values), len(codes), dtype=torch.float64)
    for index, size in enumerate(sizes):
        sums = torch.zeros(len(values), size, dtype=torch.float64)
        counts = sums.index_add(1, codes[index], there)
        between = (sums.index_add(1, codes[index], apart).square() / counts.clamp(min=1)).sum(1)
        found[:, index] = torch.where(whole > 0, (between / whole).clamp(max=1).sqrt(), 0.0)
    return found
