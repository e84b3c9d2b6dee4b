"""The kernel distance (KID): the unbiased squared maximum mean discrepancy of features.

    k(x, y) = (x . y / d + 1)^3                                         (Binkowski et al. 2018, sec. 4)
    MMD^2 = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean k(x_i, y_j)
                                                                        (Gretton et al. 2012, eq. 3)

No bias at any count, so it may fall below nought. The reading takes all data at once (its variance
in closed form, first and second order); ``in_subsets`` is the published habit of many small draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.intervals import around
from simulacra.evaluation.measure import SetMeasure
from simulacra.evaluation.reading import Reading
from simulacra.refusals import Refusal

NAME, UNIT = "kernel distance", "(squared MMD)"
CHUNK = 1000


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """k of every pair, shape (n, d) and (m, d) to (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


@dataclass(frozen=True)
class _Pairs:
    """Sums of k over the pairs of two sets: by row (n,), by column (m,), and of squares."""

    rows: Tensor
    columns: Tensor
    squares: float
    each: int  # pairs in a row

    @property
    def mean(self) -> float:
        return float(self.rows.mean()) / self.each

    def alone(self) -> float:
        """The variance of k that neither member of a pair explains by itself."""
        count = len(self.rows) * self.each
        by_row = float((self.rows / self.each).var())
        by_column = float((self.columns * len(self.columns) / count).var())
        return max(0.0, self.squares / count - self.mean**2 - by_row - by_column)


def _pairs(x: Tensor, y: Tensor, *, same: bool) -> _Pairs:
    rows, columns, squares = [], torch.zeros(len(y), dtype=torch.float64), 0.0
    for start in range(0, len(x), CHUNK):
        values = kernel(x[start : start + CHUNK], y)
        if same:
            values.diagonal(offset=start).zero_()
        rows.append(values.sum(1))
        columns += values.sum(0)
        squares += float(values.square().sum())
    return _Pairs(torch.cat(rows), columns, squares, len(y) - 1 if same else len(y))


def with_variance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """MMD^2 of features x (n, d) and y (m, d), and its variance over draws of both sets."""
    x, y = x.double().cpu(), y.double().cpu()
    if min(len(x), len(y)) < 2:
        raise Refusal(
            "NUM-021", "a kernel distance of a single datum", way_out="take at least two of each"
        )
    inside, outside = _pairs(x, x, same=True), _pairs(y, y, same=True)
    across = _pairs(x, y, same=False)
    value = inside.mean + outside.mean - 2 * across.mean
    moved_x = inside.rows / inside.each - across.rows / len(y)
    moved_y = outside.rows / outside.each - across.columns / len(x)
    first = 4 * float(moved_x.var()) / len(x) + 4 * float(moved_y.var()) / len(y)
    second = 2 * inside.alone() / len(x) ** 2 + 2 * outside.alone() / len(y) ** 2
    second += 4 * across.alone() / (len(x) * len(y))
    # Rows' means are noisy themselves: the first order as estimated holds the second one twice.
    return value, max(first - second, second)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """MMD^2 of features x (n, d) and y (m, d); may be negative."""
    return with_variance(x, y)[0]


def in_subsets(
    x: Tensor, y: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation over random subsets of ``size`` of each (the published protocol)."""
    size = min(size, len(x), len(y))
    stream = torch.Generator().manual_seed(seed)
    values = [
        kernel_distance(
            x[torch.randperm(len(x), generator=stream)[:size]],
            y[torch.randperm(len(y), generator=stream)[:size]],
        )
        for _ in range(subsets)
    ]
    spread = torch.tensor(values, dtype=torch.float64)
    return float(spread.mean()), float(spread.std()) if subsets > 1 else 0.0


class KernelDistance(SetMeasure):
    """KID of features of samples (n, d) against real ones (m, d), and that of other real ones."""

    NEEDS = (Sampler,)
    ROLES = ("samples", "real", "other_real")

    def compute(self) -> list[Reading]:
        value, variance = with_variance(self.rows("samples"), self.rows("real"))
        floor = None
        if self.has("other_real"):
            floor = kernel_distance(self.rows("other_real"), self.rows("real"))
        about = f"unbiased squared MMD with the cubic kernel {self.provenance.about}".rstrip()
        return [
            self.reading(
                NAME,
                value,
                unit=UNIT,
                better="lower",
                count=self.counts(),
                interval=around(value, variance),
                how=f"{about}; noise can make it negative",
                floor=floor,
            )
        ]
