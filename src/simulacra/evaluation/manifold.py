"""Precision and recall, density and coverage: are samples real-looking, and are all sorts there?

Balls around each datum reach to its k-th neighbour of its own set.
Precision: the share of samples inside some ball of the real data; recall: the share of real data
inside some ball of the samples, k = 3 (Kynkäänniemi et al. 2019, eq. 2).
Density: how many real balls a sample lies in, divided by k, at best near 1; coverage: the share of
real balls that hold a sample, k = 5 (Naeem et al. 2020, eq. 3 and 4); two sets of one distribution
and size have coverage 1 - 2^-k. A border belongs to its ball in all four.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.intervals import mean_interval, wilson
from simulacra.evaluation.measure import SetMeasure
from simulacra.evaluation.reading import Reading
from simulacra.refusals import Refusal

PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS = 3, 5
COVERAGE = "coverage"
CHUNK = 1000
TIE = 1e-9  # relative to the data's own squares: what rounding may add to a squared distance


@dataclass(frozen=True)
class Manifold:
    """Who lies in whose balls: one entry a sample, or one a real datum."""

    precise: Tensor  # (samples,) bool
    recalled: Tensor  # (real,) bool
    density: Tensor  # (samples,) balls over k
    covered: Tensor  # (real,) bool


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, shape (n, d) and (m, d) to (n, m)."""
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.T
    return squares.clamp(min=0)


def _radii(x: Tensor, *neighbours: int) -> list[Tensor]:
    """Squared distances to the k-th neighbours in the own set, each of shape (n,)."""
    if len(x) <= max(neighbours):
        raise Refusal(
            "NUM-022",
            f"{len(x)} data have no {max(neighbours)} neighbours each",
            way_out="take more data",
        )
    parts = []
    for start in range(0, len(x), CHUNK):
        distances = squared_distances(x[start : start + CHUNK], x)
        distances.diagonal(offset=start).fill_(-1)  # oneself comes first, whatever rounding says
        smallest = distances.topk(max(neighbours) + 1, largest=False).values
        parts.append(smallest[:, list(neighbours)])
    return list(torch.cat(parts).unbind(1))


def compare(fake: Tensor, real: Tensor) -> Manifold:
    """The four measures' entries for features of samples (n, d) and of real data (m, d)."""
    centre = real.double().mean(0)
    fake, real = fake.double().cpu() - centre, real.double().cpu() - centre
    slack = TIE * float(real.square().sum(1).mean())
    near, far = _radii(real, PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS)
    (own,) = _radii(fake, PRECISION_NEIGHBOURS)
    precise, inside = [], []
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = recalled.clone()
    for start in range(0, len(fake), CHUNK):
        rows = slice(start, start + CHUNK)
        distances = squared_distances(fake[rows], real) - slack
        precise.append((distances <= near).any(1))
        inside.append((distances <= far).double().sum(1))
        recalled |= (distances <= own[rows, None]).any(0)
        covered |= (distances <= far).any(0)
    density = torch.cat(inside) / COVERAGE_NEIGHBOURS
    return Manifold(torch.cat(precise), recalled, density, covered)


class Neighbourhoods(SetMeasure):
    """The four readings at equal counts; their intervals hold the other set of data fixed."""

    NEEDS = (Sampler,)
    ROLES = ("samples", "real", "other_real")

    def compute(self) -> list[Reading]:
        samples, real = self.rows("samples"), self.rows("real")
        count = min(len(samples), len(real))
        found = compare(samples[:count], real[:count])
        floor = None
        if self.has("other_real") and len(self.rows("other_real")) >= count:
            floor = compare(self.rows("other_real")[:count], real[:count])
        few, many = f"k = {PRECISION_NEIGHBOURS}", f"k = {COVERAGE_NEIGHBOURS}"
        told = (
            ("precision", "precise", f"share of samples near real data, {few}"),
            ("recall", "recalled", f"share of real data near samples, {few}"),
            ("density", "density", f"real neighbourhoods a sample is in, {many}"),
            (COVERAGE, "covered", f"share of real data with a sample near, {many}"),
        )
        readings = []
        for name, field, how in told:
            entries: Tensor = getattr(found, field)
            other = None if floor is None else float(getattr(floor, field).double().mean())
            share = entries.dtype == torch.bool
            readings.append(
                self.reading(
                    name,
                    float(entries.double().mean()),
                    unit="share" if share else "neighbourhoods",
                    better="higher",
                    count={"samples": count, "real": count},
                    interval=(
                        wilson(int(entries.sum()), len(entries))
                        if share
                        else mean_interval(entries)
                    ),
                    how=f"{how}, {self.provenance.about}".rstrip(", "),
                    floor=other,
                )
            )
        return readings
