"""Tables, column by column and pair by pair: are the marginals right, and what binds two columns?

A marginal's distance is the Kolmogorov-Smirnov statistic of a column of numbers and the total variation
of a category, both from 0 to 1. A pair's association is |r| of ranks (Spearman) for two numbers,
Cramer's V for two categories, and the correlation ratio for one of each, all from 0 to 1; the
distance is the mean absolute difference over pairs.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.probability.noise import mixed
from simulacra.spaces import Table

MARGINALS, PAIRS = "marginals of columns", "associations of columns"
DRAWS = 100
MOST_PAIRS = 300


def kolmogorov_smirnov(x: Tensor, y: Tensor) -> float:
    """The largest gap between the distribution functions of x (n,) and y (m,).

    What is missing lies below all numbers, so that its share counts too.
    """
    x, y = (one.double().nan_to_num(nan=-torch.inf, posinf=torch.inf) for one in (x, y))
    both = torch.cat([x, y]).double().sort().values.contiguous()
    gaps = [
        torch.searchsorted(one.double().sort().values.contiguous(), both, right=True) / len(one)
        for one in (x, y)
    ]
    return float((gaps[0] - gaps[1]).abs().max())


def total_variation(x: Tensor, y: Tensor, categories: int) -> float:
    """Half the sum of absolute differences of shares of two columns of categories."""
    shares = [
        torch.bincount(one.long(), minlength=categories).double() / len(one) for one in (x, y)
    ]
    return float((shares[0] - shares[1]).abs().sum()) / 2


def ranks(x: Tensor) -> Tensor:
    """Ranks from 0, ties sharing their mean, what is missing below all numbers, shape (n,)."""
    x = x.double().nan_to_num(nan=-torch.inf, posinf=torch.inf)
    ordered = x.double().sort().values.contiguous()
    below = torch.searchsorted(ordered, x.double().contiguous())
    upto = torch.searchsorted(ordered, x.double().contiguous(), right=True)
    return (below + upto - 1).double() / 2


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return float((x * y).sum() / scale) if scale > 0 else 0.0


def cramers_v(x: Tensor, y: Tensor, sizes: tuple[int, int]) -> float:
    """Cramer's V of two columns of categories (1946)."""
    table = torch.bincount(x.long() * sizes[1] + y.long(), minlength=sizes[0] * sizes[1])
    counts = table.reshape(sizes).double()
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if min(counts.shape) < 2:
        return 0.0
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    square = ((counts - expected).square() / expected).sum() / counts.sum()
    return float((square / (min(counts.shape) - 1)).sqrt())


def correlation_ratio(numbers: Tensor, categories: Tensor) -> float:
    """The share of a number's spread that categories explain, as a root (Pearson 1905).

    Over the rows in which the number is not missing.
    """
    there = ~numbers.isnan()
    values, categories = numbers[there].double(), categories[there]
    own = torch.nn.functional.one_hot(categories.long()).double()
    counts = own.sum(0)
    means = (own.T @ values)[counts > 0] / counts[counts > 0]
    between = (counts[counts > 0] * (means - values.mean()).square()).sum()
    whole = (values - values.mean()).square().sum()
    return float((between / whole).sqrt()) if whole > 0 else 0.0


class Columns(Measure):
    """Marginals and associations of ``samples`` against ``real`` rows (n, columns) of a table."""

    NEEDS = (Sampler,)
    ROLES = ("samples", "real", "other_real")
    REQUIRED = ("samples", "real")

    def __init__(self, space: Table, provenance: Provenance | None = None) -> None:
        super().__init__(provenance)
        self.space = space

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None of data that are no table."""
        if not isinstance(case.space, Table):
            return []
        measure = cls(case.space, Provenance(seed=case.seed)).update(samples=case.drawn.x)
        return measure.update(real=case.test.x, other_real=case.other_data).compute()

    def compute(self) -> list[Reading]:
        samples, real = self.rows("samples"), self.rows("real")
        other = self.rows("other_real") if self.has("other_real") else None
        counts = {"samples": len(samples), "real": len(real)}
        readings = [
            self.reading(
                MARGINALS,
                self.marginals(samples, real),
                unit="mean distance",
                better="lower",
                count=counts,
                interval=self._interval(self.marginals, samples, real),
                how=(
                    f"mean over {len(self.space.columns)} columns of the Kolmogorov-Smirnov statistic "
                    "(numbers) or total variation (categories); 0 is equal, 1 apart"
                ),
                floor=None if other is None else self.marginals(other, real),
            )
        ]
        if len(self.space.columns) > 1:
            readings.append(
                self.reading(
                    PAIRS,
                    self.associations(samples, real),
                    unit="mean difference",
                    better="lower",
                    count=counts,
                    interval=self._interval(self.associations, samples, real),
                    how=(
                        "mean absolute difference over pairs of columns of Spearman's r, Cramer's V "
                        "or the correlation ratio"
                    ),
                    floor=None if other is None else self.associations(other, real),
                )
            )
        return readings

    def marginals(self, x: Tensor, y: Tensor) -> float:
        """Mean distance of the columns of two sets of rows."""
        found = [
            total_variation(x[:, index], y[:, index], len(column.categories))
            if column.kind == "category"
            else kolmogorov_smirnov(x[:, index], y[:, index])
            for index, column in enumerate(self.space.columns)
        ]
        return sum(found) / len(found)

    def associations(self, x: Tensor, y: Tensor) -> float:
        """Mean absolute difference of the pairs' associations."""
        pairs = list(itertools.combinations(range(len(self.space.columns)), 2))[:MOST_PAIRS]
        gaps = [abs(self._association(x, *pair) - self._association(y, *pair)) for pair in pairs]
        return sum(gaps) / len(gaps)

    def _association(self, x: Tensor, one: int, two: int) -> float:
        kinds = [self.space.columns[index] for index in (one, two)]
        sorts = [column.kind == "category" for column in kinds]
        if all(sorts):
            sizes = (len(kinds[0].categories), len(kinds[1].categories))
            return cramers_v(x[:, one], x[:, two], sizes)
        if any(sorts):
            number, category = (two, one) if sorts[0] else (one, two)
            return correlation_ratio(x[:, number], x[:, category])
        return _correlation(ranks(x[:, one]), ranks(x[:, two]))

    def _interval(self, distance: object, x: Tensor, y: Tensor) -> tuple[float, float]:
        """The bootstrap's interval over samples (Efron 1979), moved by what resampling itself adds."""
        assert callable(distance)
        stream = torch.Generator().manual_seed(mixed(self.provenance.seed, 94))
        value = distance(x, y)
        found = torch.tensor(
            [
                distance(x[torch.randint(len(x), (len(x),), generator=stream)], y)
                for _ in range(DRAWS)
            ],
            dtype=torch.float64,
        )
        low, high = (float(found.quantile(q)) - float(found.mean()) + value for q in (0.025, 0.975))
        return max(0.0, low), high
