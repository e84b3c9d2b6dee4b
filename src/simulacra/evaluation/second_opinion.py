"""A second opinion: the distances again, in features that owe nothing to labels or to a network.

Supervised features are blind to what labels do not need, and a random network has its own taste. The
principal components of the training data's own numbers (Pearson 1901), at most 64, scaled alike so
that distances stay those of the data, see everything that a Gaussian could see.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.case import MOST_REAL, Case
from simulacra.evaluation.frechet import SANE, UNIT, frechet_distance, variance
from simulacra.evaluation.intervals import around
from simulacra.evaluation.kernel_distance import UNIT as SQUARED_MMD
from simulacra.evaluation.kernel_distance import kernel_distance, with_variance
from simulacra.evaluation.measure import Provenance, SetMeasure
from simulacra.evaluation.networks import flat
from simulacra.evaluation.reading import Reading
from simulacra.spaces import Images, Space

FRECHET, KERNEL = "Fréchet distance, components", "kernel distance, components"
COMPONENTS = 64


class PrincipalComponents:
    """The directions of most variance of a set of elements, at most 64."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.mean, self.directions, self.scale = torch.zeros(1), torch.zeros(1, 1), 1.0

    def fit(self, x: Tensor) -> Self:
        """Learn them from elements (n, *shape)."""
        rows = flat(x, self.space).double()
        self.mean = rows.mean(0)
        centred = rows - self.mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(rows) - 1))
        kept = min(COMPONENTS, int((values > 1e-9 * values.max()).sum()))
        self.directions = vectors[:, -kept:].flip(1)
        self.scale = float(values[-kept:].mean().sqrt())
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Coordinates of elements, shape (n, *shape) to (n, components), float64."""
        return (flat(x, self.space).double() - self.mean) @ self.directions / self.scale


class SecondOpinion(SetMeasure):
    """The two distances of features (n, d) under names of their own."""

    NEEDS = (Sampler,)
    ROLES = ("samples", "real", "other_real")

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """For images; the features of other data are their own numbers already."""
        if not isinstance(case.space, Images):
            return []
        eyes = PrincipalComponents(case.space).fit(case.train.x[:MOST_REAL].cpu())
        about = f"in the first {eyes.directions.shape[1]} principal components of the training data"
        measure = cls(Provenance(seed=case.seed, features="principal components", about=about))
        return measure.update(
            samples=eyes(case.drawn.x[: len(case.other_data)]),
            real=eyes(case.test.x[:MOST_REAL].cpu()),
            other_real=eyes(case.other_data.cpu()),
        ).compute()

    def compute(self) -> list[Reading]:
        samples, real = self.rows("samples"), self.rows("real")
        other = self.rows("other_real") if self.has("other_real") else None
        readings = []
        if min(len(samples), len(real)) >= SANE * samples.shape[1]:
            value = frechet_distance(samples, real)
            low, high = around(value, variance(samples, real))
            readings.append(
                self.reading(
                    FRECHET,
                    value,
                    unit=UNIT,
                    better="lower",
                    count=self.counts(),
                    interval=(max(0.0, low), high),
                    how=f"between Gaussians {self.provenance.about}; biased upward as the floor is",
                    floor=None if other is None else frechet_distance(other, real),
                )
            )
        value, spread = with_variance(samples, real)
        readings.append(
            self.reading(
                KERNEL,
                value,
                unit=SQUARED_MMD,
                better="lower",
                count=self.counts(),
                interval=around(value, spread),
                how=f"unbiased squared MMD with the cubic kernel {self.provenance.about}",
                floor=None if other is None else kernel_distance(other, real),
            )
        )
        return readings
