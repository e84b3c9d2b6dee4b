"""Tables, column by column and pair by pair: are the marginals right, and what binds two columns?

A marginal's distance is the Kolmogorov-Smirnov statistic of a column of numbers and the total variation
of a category, both from 0 to 1. A pair's association is r of ranks (Spearman), from -1 to 1, for two
numbers, and from 0 to 1 Cramer's V for two categories and the correlation ratio for one of each; the
distance is the mean absolute difference over pairs: all of them, or of very many a random part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.associations import associations
from simulacra.evaluation.case import Case
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.probability.noise import mixed
from simulacra.spaces import Table

MARGINALS, PAIRS = "marginals of columns", "associations of columns"
DRAWS = 100
MOST_COLUMNS, MOST_CELLS = 100, 20_000_000
"""All pairs are looked at of so many columns, with so many cells of their tables of categories."""


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


def _pairs(columns: int) -> int:
    return columns * (columns - 1) // 2


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
                interval=self._interval(lambda x: self.marginals(x, real), samples),
                how=(
                    f"mean over {len(self.space.columns)} columns of the Kolmogorov-Smirnov statistic "
                    "(numbers) or total variation (categories); 0 is equal, 1 apart"
                ),
                floor=None if other is None else self.marginals(other, real),
            )
        ]
        if len(self.space.columns) > 1:
            readings.append(self._paired(samples, real, other, counts))
        return readings

    def _paired(
        self, samples: Tensor, real: Tensor, other: Tensor | None, counts: dict[str, int]
    ) -> Reading:
        """What binds columns."""
        of_real = self._bound(real)

        def distance(x: Tensor) -> float:
            return float((self._bound(x) - of_real).abs().mean())

        width, every = len(self._seen), len(self.space.columns)
        pairs = f"all {_pairs(every):,} pairs of columns"
        if width < every:
            pairs = (
                f"{_pairs(width):,} of {_pairs(every):,} pairs of columns, of {width} random ones,"
            )
        return self.reading(
            PAIRS,
            distance(samples),
            unit="mean difference",
            better="lower",
            count=counts,
            interval=self._interval(distance, samples),
            how=(
                f"mean absolute difference over {pairs} of Spearman's r, Cramer's V or the "
                "correlation ratio"
            ),
            floor=None if other is None else distance(other),
        )

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
        return float((self._bound(x) - self._bound(y)).abs().mean())

    def _bound(self, x: Tensor) -> Tensor:
        """The association of each pair that is looked at, (pairs,)."""
        seen = self._seen
        found = associations(x[:, seen], [self.space.columns[index] for index in seen])
        one, other = torch.triu_indices(len(seen), len(seen), 1)
        return found[one, other]

    @cached_property
    def _seen(self) -> list[int]:
        """The columns whose pairs are looked at: all, or as many random ones as are soon counted."""
        stream = torch.Generator().manual_seed(mixed(self.provenance.seed, 95))
        order = torch.randperm(len(self.space.columns), generator=stream).tolist()
        chosen, codes, cells = list[int](), 0, 0
        for index in order[:MOST_COLUMNS]:
            size = len(self.space.columns[index].categories)
            cells, codes = cells + size * codes, codes + size
            if cells > MOST_CELLS and len(chosen) > 1:
                break
            chosen.append(index)
        return sorted(chosen)

    def _interval(self, distance: Callable[[Tensor], float], x: Tensor) -> tuple[float, float]:
        """The bootstrap's interval over samples (Efron 1979), moved by what resampling itself adds."""
        stream = torch.Generator().manual_seed(mixed(self.provenance.seed, 94))
        value = distance(x)
        found = torch.tensor(
            [distance(x[torch.randint(len(x), (len(x),), generator=stream)]) for _ in range(DRAWS)],
            dtype=torch.float64,
        )
        low, high = (float(found.quantile(q)) - float(found.mean()) + value for q in (0.025, 0.975))
        return max(0.0, low), high
