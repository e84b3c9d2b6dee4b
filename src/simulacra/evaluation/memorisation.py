"""Memorisation: do samples lie nearer to the training data than to data the model has never seen?

For each sample the nearest of n training data and the nearest of n held-out data are looked up, n the
same for both. A model that has learnt the distribution is nearer to training data half of the time
(the two-sample idea of Meehan, Chaudhuri & Dasgupta 2020). Copies are samples that lie no farther from
a training datum than a fifth of that datum's distance to its own nearest training neighbour: real data
almost never do, whatever the set. Distances are Euclidean in the data themselves, standardised,
since features may hide a copy or make one up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.manifold import squared_distances
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.networks import flat
from simulacra.evaluation.reading import Reading
from simulacra.probability.noise import mixed
from simulacra.spaces import Images, Space

NEARER, COPIES = "nearer to training data", "copies of training data"
NEAR = 0.2
MOST = 10_000
CHUNK = 500


def nearest(x: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to, and index of, the nearest row of ``among``, each (n,)."""
    centre = among.mean(0)
    x, among = x - centre, among - centre
    found, where = [], []
    for start in range(0, len(x), CHUNK):
        distances = squared_distances(x[start : start + CHUNK], among)
        least = distances.min(1)
        # Rounding of the product form hides what is equal: those few are taken directly.
        exact = (x[start : start + CHUNK] - among[least.indices]).square().sum(1)
        found.append(exact.sqrt())
        where.append(least.indices)
    return torch.cat(found), torch.cat(where)


def standardiser(train: Tensor, space: Space) -> Callable[[Tensor], Tensor]:
    """Elements to rows (n, d) whose distances mean alike in every direction.

    Pixels share their scale: a corner that is almost always black must not count most.
    """
    rows = flat(train, space)
    mean, spread = rows.mean(0), rows.std(0)
    scale = torch.where(spread > 1e-6, spread, 1.0)
    if isinstance(space, Images):
        scale = rows.std().clamp(min=1e-6)
    return lambda x: (flat(x.cpu(), space) - mean) / scale


class Memorisation(Measure):
    """Two readings from rows (n, d): ``samples``, what the model was ``trained`` on, ``held_out``.

    ``other_real`` rows are real data outside the other sets; they give the floor of the copies.
    """

    NEEDS = (Sampler,)
    ROLES = ("samples", "trained", "held_out", "other_real")
    REQUIRED = ("samples", "trained", "held_out")

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None where less than ten data were held out."""
        if min(len(case.valid), len(case.test)) < 10:
            return []
        scaled = standardiser(case.train.x[:MOST].cpu(), case.space)
        given = {
            "samples": scaled(case.drawn.x[:MOST]),
            "trained": scaled(case.train.x[:MOST]),
            "held_out": scaled(case.test.x[:MOST]),
            "other_real": scaled(case.valid.x[:MOST]),
        }
        measure = cls(Provenance(split="training against test", seed=case.seed))
        return measure.update(**given).compute()

    def compute(self) -> list[Reading]:
        samples, trained = self.rows("samples").float(), self.rows("trained").float()
        held_out = self.rows("held_out").float()
        count = min(len(trained), len(held_out))
        stream = torch.Generator().manual_seed(mixed(self.provenance.seed, 87))
        part = trained[torch.randperm(len(trained), generator=stream)[:count]]
        to_trained, _ = nearest(samples, part)
        to_held_out, _ = nearest(samples, held_out[:count])
        ties = int((to_trained == to_held_out).sum())
        nearer = int((to_trained < to_held_out).sum()) + ties // 2
        copied, floor = self.copied(samples, trained), None
        if self.has("other_real"):
            other = self.copied(self.rows("other_real").float(), trained)
            floor = float(other.double().mean())
        counts = {"samples": len(samples), "training data": count, "held out": count}
        return [
            self.reading(
                NEARER,
                nearer / len(samples),
                unit="share",
                better="nearer",
                count=counts,
                interval=wilson(nearer, len(samples)),
                how=(
                    "share of samples whose nearest of as many training data is nearer than their "
                    "nearest held-out datum; one half where nothing was memorised"
                ),
                floor=0.5,
            ),
            self.reading(
                COPIES,
                float(copied.double().mean()),
                unit="share",
                better="lower",
                count={"samples": len(samples), "training data": len(trained)},
                interval=wilson(int(copied.sum()), len(samples)),
                how=(
                    f"share of samples nearer to a training datum than {NEAR:g} of that datum's "
                    "distance to its own nearest training neighbour"
                ),
                floor=floor,
            ),
        ]

    @staticmethod
    def copied(x: Tensor, trained: Tensor) -> Tensor:
        """Which rows of x (n, d) are copies of rows of ``trained``, shape (n,)."""
        distance, which = nearest(x, trained)
        used = which.unique()
        radius = torch.zeros(len(trained))
        radius[used] = nearest_other(trained, used)
        # At most, not below: a datum that stands twice in the training data has no distance to itself.
        return distance <= NEAR * radius[which]


def nearest_other(rows: Tensor, which: Tensor) -> Tensor:
    """For the rows of the given indices, the distance to the nearest other row."""
    found = []
    for part in which.split(CHUNK):
        distances = squared_distances(rows[part], rows)
        distances[torch.arange(len(part)), part] = torch.inf
        least = distances.min(1)
        found.append((rows[part] - rows[least.indices]).square().sum(1).sqrt())
    return torch.cat(found)
