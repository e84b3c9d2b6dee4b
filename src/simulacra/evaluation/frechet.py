"""The Fréchet distance between Gaussians fitted to the features of samples and of real data.

    FD = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)

(Dowson & Landau 1982; Heusel et al. 2017, eq. 6) in float64, the root's trace from the eigenvalues of
a symmetric matrix. Finite counts bias it upward, so it only compares at equal counts, and comes with
the distance of real data to other real data.
Its interval is the delta method's (Rippl, Munk & Sturm 2016): a datum x of the first set moves FD by

    2 (m1 - m2) . (x - m1) + (x - m1)^T (1 - T) (x - m1) - its mean,

T = C1^-1/2 (C1^1/2 C2 C1^1/2)^1/2 C1^-1/2 the optimal map from one Gaussian to the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.intervals import around
from simulacra.evaluation.reading import Reading
from simulacra.refusals import Refusal

NEEDS = (Sampler,)
NAME = "Fréchet distance"


@dataclass
class Moments:
    """Count, mean (d,) and scatter (d, d) of features that come in batches, in float64."""

    dimension: int
    count: int = 0
    mean: Tensor = field(init=False)
    scatter: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean = torch.zeros(self.dimension, dtype=torch.float64)
        self.scatter = torch.zeros((self.dimension, self.dimension), dtype=torch.float64)

    def update(self, features: Tensor) -> Moments:
        """Take in a batch, shape (n, d) (Chan, Golub & LeVeque 1979)."""
        rows = features.double().cpu()
        if not len(rows):
            return self
        mean = rows.mean(0)
        centred, shift = rows - mean, mean - self.mean
        total = self.count + len(rows)
        self.scatter += centred.T @ centred
        self.scatter += torch.outer(shift, shift) * (self.count * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.count = total
        return self

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, shape (d, d); it needs more data than dimensions."""
        if self.count <= self.dimension:
            raise Refusal(
                "NUM-020",
                f"{self.count} data cannot fill a covariance of {self.dimension} features",
                way_out="take more data, or read the kernel distance (KID), which needs none",
            )
        return self.scatter / (self.count - 1)


def distance(first: Moments, second: Moments) -> float:
    """FD of two sets of features from their moments."""
    one, two = first.covariance, second.covariance
    root = _power(one, 0.5)
    eigenvalues = torch.linalg.eigvalsh(_symmetric(root @ two @ root))
    overlap = eigenvalues.clamp(min=0).sqrt().sum()
    shift = (first.mean - second.mean).square().sum()
    # Rounding alone can lead below nought.
    return max(0.0, float(shift + one.trace() + two.trace() - 2 * overlap))


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """FD between features x (n, d) and y (m, d)."""
    return distance(Moments(x.shape[1]).update(x), Moments(y.shape[1]).update(y))


def variance(x: Tensor, y: Tensor) -> float:
    """The variance of FD over draws of both sets; what finite counts add to FD is not in it."""
    first, second = Moments(x.shape[1]).update(x), Moments(y.shape[1]).update(y)
    moved = ((x, first, second), (y, second, first))
    return sum(float(_influence(*one).var()) / len(one[0]) for one in moved)


def _influence(x: Tensor, own: Moments, other: Moments) -> Tensor:
    """How far each datum of ``x`` moves FD, up to a constant, shape (n,)."""
    root, inverse = _power(own.covariance, 0.5), _power(own.covariance, -0.5)
    transport = inverse @ _power(_symmetric(root @ other.covariance @ root), 0.5) @ inverse
    centred = x.double() - own.mean
    return 2 * centred @ (own.mean - other.mean) + (centred * (centred - centred @ transport)).sum(
        1
    )


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """A power of a positive semidefinite matrix; what rounding leaves of its null space stays null."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > values.max() * len(values) * torch.finfo(values.dtype).eps
    powers = torch.where(kept, values.clamp(min=1e-300) ** exponent, 0.0)
    power: Tensor = (vectors * powers) @ vectors.T
    return power


def read(case: Case) -> list[Reading]:
    """FD of the samples, its interval, its floor, and what one Gaussian over pixels comes to."""
    value = frechet_distance(case.fake, case.real)
    low, high = around(value, variance(case.fake, case.real))
    return [
        Reading(
            name=NAME,
            value=value,
            unit="squared feature units",
            better="lower",
            low=max(0.0, low),
            high=high,
            count=case.counts,
            split="test",
            seed=case.seed,
            how=(
                f"between Gaussians {case.eyes}; biased upward by finite counts as the floor is; without "
                "a model: draws from a Gaussian of the training images' mean and full covariance"
            ),
            floor=frechet_distance(case.other_real, case.real),
            control=None if case.gaussian is None else frechet_distance(case.gaussian, case.real),
        )
    ]
