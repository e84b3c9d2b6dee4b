"""Rows of a table as real numbers of about unit variance, whatever their columns are, and back.

Real columns enter as (x - shift) / scale. A category enters through its quantiles with noise
(``probability/quantiles.py``), so that it is standard normal by itself. Where a number may be missing,
whether it is enters as a category of two does, beside the number itself, which is a standard normal
u where there is none:

    log p(x) >= E_u [log p(z) - log N(u)],    by Jensen, since p(missing, …) = int p(z) du.

So a table of real columns keeps its exact density; categories and missing numbers make it a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from simulacra.layers.front_door import as_device
from simulacra.probability.noise import Noise
from simulacra.probability.quantiles import from_normal_scores, to_normal_scores
from simulacra.spaces import Space, Table

NEVER = -1e4
"""The log-frequency of what cannot be: finite, since weight averages subtract it from itself."""


def real_size(space: Space) -> int:
    """How many real numbers an element becomes: one a dimension, and one for each that may be missing."""
    return space.dimensions + (len(space.may_miss) if isinstance(space, Table) else 0)


def real_shape(space: Space) -> tuple[int, ...]:
    """The shape of those reals: that of the element, but for the rows of a table."""
    return (real_size(space),) if isinstance(space, Table) else space.shape


class TableReals(nn.Module):
    """Rows (n, columns) as z (n, ``real_size``): the columns in their order, then who is missing."""

    shift: Tensor
    scale: Tensor
    log_frequencies: Tensor
    levels: Tensor
    named: Tensor
    may_miss: Tensor

    def __init__(self, space: Table) -> None:
        super().__init__()
        self.space = space
        columns = list(enumerate(space.columns))
        named = [index for index, column in columns if column.kind == "category"]
        missing = [index for index, column in columns if column.missing]
        levels = [len(space.columns[index].categories) for index in named] + [2] * len(missing)
        for name, values in (("named", named), ("may_miss", missing), ("levels", levels)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)
        self.register_buffer("shift", torch.zeros(len(columns)))
        self.register_buffer("scale", torch.ones(len(columns)))
        start = torch.full((len(levels), max(levels, default=0)), NEVER)
        for row, count in enumerate(levels):
            start[row, :count] = -math.log(count)
        self.register_buffer("log_frequencies", start)

    @property
    def free_parameters(self) -> int:
        """Frequencies, each dimension's but one."""
        return int((self.levels - 1).sum())

    def enter(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """z, and log |dz / dx| with minus the log-density of the noise, shape (n,).

        Without ``noise``: the middle of every cell.
        """
        x = as_device(x, self).to(self.shift.dtype)
        absent = x.isnan()
        z = (x - self.shift) / self.scale
        slope = torch.where(absent, 0.0, -self.scale.log()).sum(1)
        if len(self.may_miss):
            size = len(self.shift)
            filled = torch.zeros_like(z) if noise is None else noise.normal(size).to(z)
            z = torch.where(absent, filled, z)
            density = 0.5 * (filled.square() + math.log(2 * math.pi))
            slope = slope + torch.where(absent, density, 0.0).sum(1)
        if not len(self.levels):
            return z, slope
        integers = self._integers(x, absent)
        uniform = torch.full(integers.shape, 0.5)
        if noise is not None:
            uniform = noise.uniform(len(self.levels))
        scores, gained = to_normal_scores(integers, uniform.to(x.device), self.log_frequencies)
        scores = scores.to(z.dtype)
        categories = len(self.named)
        z = z.index_copy(1, self.named, scores[:, :categories])
        return torch.cat([z, scores[:, categories:]], dim=1), slope + gained.to(slope.dtype)

    def leave(self, z: Tensor) -> Tensor:
        """The rows that z stands for."""
        size, categories = len(self.shift), len(self.named)
        x = z[:, :size] * self.scale + self.shift
        if len(self.levels):
            scores = torch.cat([z[:, self.named], z[:, size:]], dim=1)
            integers = from_normal_scores(scores, self.log_frequencies)
            integers = torch.minimum(integers, self.levels - 1)
            x = x.index_copy(1, self.named, integers[:, :categories].to(x.dtype))
            absent = torch.zeros_like(x, dtype=torch.bool)
            absent[:, self.may_miss] = integers[:, categories:] == 1
            x = torch.where(absent, torch.nan, x)
        return x.to(self.space.dtype)

    def known(self, x: Tensor, known: Tensor) -> Tensor:
        """Which entries of z the known ones of x determine, (n, columns) to (n, ``real_size``)."""
        return torch.cat([known & ~as_device(x, self).isnan(), known[:, self.may_miss]], dim=1)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor], prior_weight: float = 0.5) -> None:
        """Means and deviations of what is there, and frequencies, in which a uniform prior counts as
        ``prior_weight`` data."""
        total = torch.zeros_like(self.shift, dtype=torch.float64)
        square, rows = total.clone(), total.clone()
        counts = torch.zeros_like(self.log_frequencies, dtype=torch.float64)
        for batch in batches:
            x = as_device(batch, self).double()
            absent = x.isnan()
            rows += (~absent).sum(0)
            total += x.nan_to_num().sum(0)
            square += x.nan_to_num().square().sum(0)
            if len(self.levels):
                integers = self._integers(x, absent).T
                counts.scatter_add_(1, integers, torch.ones_like(integers, dtype=torch.float64))
        mean = total / rows.clamp(min=1)
        deviation = (square / rows.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        # A column of one value has no deviation to divide by, and categories have quantiles instead.
        fine = (deviation > 1e-6 * (1 + mean.abs())).index_fill(0, self.named, False)
        self.shift.copy_(mean.index_fill(0, self.named, 0.0))
        self.scale.copy_(torch.where(fine, deviation, 1.0))
        if len(self.levels):
            there = torch.arange(counts.shape[1], device=counts.device) < self.levels[:, None]
            counts = torch.where(there, counts + prior_weight / self.levels[:, None], 0.0)
            log_share = (counts / counts.sum(1, keepdim=True)).log()
            self.log_frequencies.copy_(log_share.clamp(min=NEVER))

    def _integers(self, x: Tensor, absent: Tensor) -> Tensor:
        """Categories, then 1 where a number is missing, shape (n, len(levels))."""
        return torch.cat([x[:, self.named].long(), absent[:, self.may_miss].long()], dim=1)
