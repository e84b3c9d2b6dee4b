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
from simulacra.evaluation.intervals import around
from simulacra.evaluation.measure import SetMeasure
from simulacra.evaluation.reading import Reading
from simulacra.refusals import Refusal

NAME, UNIT = "Fréchet distance", "squared feature units"
INFINITE, NORMALISED = "Fréchet distance at infinity", "normalised Fréchet distance"
WITHOUT = (
    "Gaussians in the training data's first 100 principal components, one a class where labelled"
)
POINTS = 15
SANE = 2
"""Data a feature, under which a covariance is more noise than data."""


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
    # Any L with L L^T = C1 will do: L^T C2 L has the eigenvalues of C1^1/2 C2 C1^1/2.
    factor, failed = torch.linalg.cholesky_ex(one)
    if failed:
        factor = _power(one, 0.5)
    eigenvalues = torch.linalg.eigvalsh(_symmetric(factor.T @ two @ factor))
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


def extrapolated(x: Tensor, y: Tensor, *, seed: int = 0) -> tuple[float, float]:
    """FD at infinitely many x, and the variance that the fit adds (Chong & Forsyth 2020, sec. 4).

    FD at fifteen counts of x, from a third of them up, is fitted by a line over 1 / count; its value
    at nought is FD without the bias of finite x. That of y stays, the same for every model.
    """
    real = Moments(y.shape[1]).update(y)
    least = max(x.shape[1] + 1, len(x) // 3)
    counts = torch.linspace(least, len(x), POINTS).round().long().tolist()
    stream = torch.Generator().manual_seed(seed)
    found = [
        distance(
            Moments(x.shape[1]).update(x[torch.randperm(len(x), generator=stream)[:count]]), real
        )
        for count in counts
    ]
    over = 1 / torch.tensor(counts, dtype=torch.float64)
    design = torch.stack([torch.ones_like(over), over], 1)
    fitted = torch.linalg.lstsq(design, torch.tensor(found, dtype=torch.float64)[:, None]).solution
    left = torch.tensor(found, dtype=torch.float64) - (design @ fitted)[:, 0]
    spread = torch.linalg.inv(design.T @ design)[0, 0] * left.square().sum() / (POINTS - 2)
    return float(fitted[0]), float(spread)


class FrechetDistance(SetMeasure):
    """FD, FD extrapolated to infinitely many samples, and FD as a share of the way to Gaussians.

    ``samples`` and ``real`` are features, shape (n, d); ``other_real`` the floor's; ``gaussian`` those
    of draws from Gaussians fitted to the data.
    """

    NEEDS = (Sampler,)

    def compute(self) -> list[Reading]:
        samples, real = self.rows("samples"), self.rows("real")
        self._require_enough(min(len(samples), len(real)), samples.shape[1])
        value, spread = frechet_distance(samples, real), variance(samples, real)
        infinite, added = extrapolated(samples, real, seed=self.provenance.seed)
        floor = self._of("other_real")
        control = self._of("gaussian")
        about = f"between Gaussians {self.provenance.about}".rstrip()
        low, high = around(value, spread)
        least, most = around(infinite, spread + added)
        readings = [
            self.reading(
                NAME,
                value,
                unit=UNIT,
                better="lower",
                count=self.counts(),
                interval=(max(0.0, low), high),
                how=(
                    f"{about}; biased upward by finite counts as the floor is; without a model: draws "
                    f"from {WITHOUT}"
                ),
                floor=floor,
                control=control,
            ),
            self.reading(
                INFINITE,
                infinite,
                unit=UNIT,
                better="lower",
                count=self.counts(),
                interval=(least, most),
                how=f"{about}, by a line over 1/count through {POINTS} counts of samples, at nought",
                floor=None if floor is None else self._infinite("other_real"),
            ),
        ]
        if floor is not None and control is not None and control > floor:
            scale = control - floor
            readings.append(
                self.reading(
                    NORMALISED,
                    (value - floor) / scale,
                    unit="(0 real data, 1 Gaussians)",
                    better="lower",
                    count=self.counts(),
                    interval=((low - floor) / scale, (high - floor) / scale),
                    how=f"(FD - floor) / (FD without a model - floor): 0 is real data, 1 {WITHOUT}",
                    floor=0.0,
                    control=1.0,
                )
            )
        return readings

    def _require_enough(self, count: int, dimension: int) -> None:
        if count < SANE * dimension:
            raise Refusal(
                "NUM-020",
                f"{NAME}: {count} data are too few for a covariance of {dimension} features",
                way_out=f"take at least {SANE * dimension}, or read the kernel distance (KID), "
                "which is unbiased at any count",
            )

    def _of(self, role: str) -> float | None:
        if not self.has(role) or len(self.rows(role)) <= self.rows(role).shape[1]:
            return None
        return frechet_distance(self.rows(role), self.rows("real"))

    def _infinite(self, role: str) -> float:
        return extrapolated(self.rows(role), self.rows("real"), seed=self.provenance.seed)[0]
