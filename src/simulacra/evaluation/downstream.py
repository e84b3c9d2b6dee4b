"""Train on synthetic, test on real, for tables: can samples stand in for rows when a column is predicted?

One column is the target: the last category of 2 to 50 values, else the last of numbers. Gradient-boosted
trees (scikit-learn's histogram ones) learn it from the other columns of samples alone and are judged on
real test rows, by accuracy or by R^2 = 1 - sum (y - f)^2 / sum (y - mean)^2. The floor is the same taught
on as many real training rows; the control says the most frequent value, or the mean (Esteban et al.
2017; Xu et al. 2019, sec. 5).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.intervals import around, wilson
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.probability.noise import mixed
from simulacra.refusals import shown
from simulacra.spaces import Table

NAME = "column predicted from samples"
FEWEST = 20
"""Rows to learn from; fewer teach trees nothing."""
MOST_CLASSES = 50
TREES, ROUNDS = 300, 100
"""Trees in all (each round grows one a class), and rounds at most."""
MOST_CODES = 255
"""Categories that the trees tell apart as such; of more, the codes are taken as numbers."""


def target_of(space: Table) -> int | None:
    """Which column is predicted; None where neither a usable category nor a number is there."""
    categories = [
        index
        for index, column in enumerate(space.columns)
        if column.kind == "category" and 2 <= len(column.categories) <= MOST_CLASSES
    ]
    numbers = [
        index
        for index, column in enumerate(space.columns)
        if column.kind == "real" and not column.missing
    ]
    usable = categories or numbers
    return usable[-1] if usable else None


class Downstream(Measure):
    """How well a column of ``real`` rows is predicted by trees that learned from ``samples``.

    ``other_real`` rows, as many as samples, teach the floor and what the control says. All have shape
    (n, columns).
    """

    NEEDS = (Sampler,)
    REQUIRED = ("samples", "real")
    ROLES = (*REQUIRED, "other_real")

    def __init__(self, space: Table, provenance: Provenance | None = None) -> None:
        super().__init__(provenance)
        self.space = space
        target = target_of(space)
        self.target = 0 if target is None else target
        self.able = target is not None and len(space.columns) > 1
        self.classifies = space.columns[self.target].kind == "category"

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None of data that are no table."""
        if not isinstance(case.space, Table):
            return []
        stream = torch.Generator().manual_seed(mixed(case.seed, 97))
        count = min(len(case.train), len(case.drawn.x))
        which = torch.randperm(len(case.train), generator=stream)[:count]
        measure = cls(case.space, Provenance(seed=case.seed))
        measure.update(samples=case.drawn.x[:count], real=case.test.x)
        return measure.update(other_real=case.train.x[which]).compute()

    def compute(self) -> list[Reading]:
        """None of a table without a target and others to predict it from, and of too few rows."""
        samples, real = self._ordered("samples"), self._ordered("real")
        if not self.able or len(samples) < FEWEST or len(real) < 2:
            return []
        value, interval = self._judged(real, self._said(samples, real))
        floor = control = None
        if self.has("other_real"):
            other = self._ordered("other_real")
            floor = self._judged(real, self._said(other, real))[0]
            control = self._judged(real, self._guess(other, real))[0]
        name = shown(self.space.columns[self.target].name)
        guess = "the most frequent value" if self.classifies else "the mean"
        return [
            self.reading(
                NAME,
                value,
                unit="accuracy" if self.classifies else "R²",
                better="higher",
                count={"samples": len(samples), "real": len(real)},
                interval=interval,
                how=(
                    f"how well trees taught on {len(samples):,} samples predict the column {name} of "
                    "real rows from the others; real data: taught on as many training rows; without "
                    f"a model: {guess}"
                ),
                floor=floor,
                control=control,
            )
        ]

    def _ordered(self, role: str) -> np.ndarray:
        """Rows in an order of their own, so that sums do not depend on how they came."""
        rows = self.rows(role).double().numpy()
        return rows[np.lexsort(rows.T)]

    def _said(self, taught: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """What trees taught on some rows say of the target of others."""
        others = np.arange(len(self.space.columns)) != self.target
        wanted = taught[:, self.target]
        if (wanted == wanted[0]).all():
            return np.full(len(asked), wanted[0])
        trees = self._trees(len(np.unique(wanted)), others)
        said: np.ndarray = trees.fit(taught[:, others], wanted).predict(asked[:, others])
        return said

    def _trees(self, classes: int, others: np.ndarray) -> Any:
        # A second to import, and only needed here.
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        columns = [column for column, one in zip(self.space.columns, others, strict=True) if one]
        choices: dict[str, Any] = {
            "categorical_features": [
                column.kind == "category" and len(column.categories) <= MOST_CODES
                for column in columns
            ],
            "early_stopping": False,
            "random_state": self.provenance.seed,
        }
        if not self.classifies:
            return HistGradientBoostingRegressor(max_iter=ROUNDS, **choices)
        rounds = min(ROUNDS, TREES // (classes if classes > 2 else 1))
        return HistGradientBoostingClassifier(max_iter=rounds, **choices)

    def _guess(self, taught: np.ndarray, asked: np.ndarray) -> np.ndarray:
        wanted = taught[:, self.target]
        best = np.bincount(wanted.astype(int)).argmax() if self.classifies else wanted.mean()
        return np.full(len(asked), float(best))

    def _judged(self, real: np.ndarray, said: np.ndarray) -> tuple[float, tuple[float, float]]:
        """Accuracy with Wilson's interval, or R^2 with that of a ratio of means (delta method)."""
        wanted = real[:, self.target]
        if self.classifies:
            hits = int((said == wanted).sum())
            return hits / len(wanted), wilson(hits, len(wanted))
        errors, spread = (wanted - said) ** 2, (wanted - wanted.mean()) ** 2
        if spread.mean() <= 0:
            return 0.0, (0.0, 0.0)
        share = errors.mean() / spread.mean()
        variance = (errors - share * spread).var(ddof=1) / len(wanted) / spread.mean() ** 2
        low, high = around(1 - float(share), float(variance))
        return 1 - float(share), (low, min(1.0, high))


def classes_of(x: Tensor, space: Table) -> tuple[Tensor, tuple[str, ...], str] | None:
    """The target's value in each row (n, columns), the values' names, and the column's own.

    None where the target is a number.
    """
    target = target_of(space)
    if target is None or space.columns[target].kind != "category":
        return None
    column = space.columns[target]
    return x[:, target].long(), column.categories, column.name
