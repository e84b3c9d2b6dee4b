"""The classifier two-sample test (C2ST): can a fresh classifier tell samples from real data?

Equal counts of samples and of real data that neither the model nor the feature net has learnt from are
cut into two halves; a small classifier learns one half and is asked about the other, and the other
way round (Lopez-Paz & Oquab 2017). One half right is what a perfect model gets; more says that there
is a difference, though not which. Few data are halved several times over, since what a classifier
learns from a hundred data hangs on which hundred it saw. Both sides are elements of the same space, so
no file format or rounding can give samples away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.networks import Classifier, train_classifier
from simulacra.evaluation.reading import Reading
from simulacra.probability.noise import global_noise, mixed
from simulacra.refusals import Refusal
from simulacra.spaces import Space

NAME = "two-sample classifier"
LEAST, MOST = 100, 2000
PASSES, FEWEST, MOST_EXAMPLES = 30, 4000, 20_000
ENOUGH, HALVINGS = 1500, 4
"""So many judgements are asked for, by halving the data again, at most so many times."""


class TwoSample(Measure):
    """Held-out accuracy of a fresh classifier between ``samples`` and ``real`` elements of a space.

    ``other_real`` elements in the samples' place give the floor.
    """

    NEEDS = (Sampler,)
    ROLES = ("samples", "real", "other_real")
    REQUIRED = ("samples", "real")

    def __init__(
        self, space: Space, provenance: Provenance | None = None, *, halvings: int | None = None
    ) -> None:
        super().__init__(provenance)
        self.space, self.halvings = space, halvings

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """Refused where too few real data were held out."""
        measure = cls(case.space, Provenance(seed=case.seed))
        measure.update(samples=case.drawn.x[:MOST], real=case.test.x[:MOST])
        return measure.update(other_real=case.other_data[:MOST]).compute()

    def compute(self) -> list[Reading]:
        samples, real = self.rows("samples"), self.rows("real")
        count = min(len(samples), len(real))
        if count < LEAST:
            raise Refusal(
                "NUM-025",
                f"{NAME}: {count} data of each sort teach a classifier nothing",
                way_out=f"take at least {LEAST} samples and as many held-out data",
            )
        right = self._right(samples[:count], real[:count])
        floor = None
        if self.has("other_real") and len(self.rows("other_real")) >= count:
            floor = self._right(self.rows("other_real")[:count], real[:count])
        return [
            self.reading(
                NAME,
                right,
                unit="accuracy",
                better="lower",
                count={"samples": count, "real": count},
                # Halving again asks about the same data: it steadies the number, no more.
                interval=wilson(round(right * 2 * count), 2 * count),
                how=(
                    "a fresh classifier's accuracy between samples and real data, each half judged by "
                    "one taught on the other half; 0.5 is what a perfect model gets"
                ),
                floor=floor,
            )
        ]

    def _right(self, samples: Tensor, real: Tensor) -> float:
        """The share of both that the classifier puts right, over the halves of every halving."""
        judgements = 2 * len(samples)
        halvings = self.halvings or min(HALVINGS, math.ceil(ENOUGH / judgements))
        hits = sum(self._hits(samples, real, halving) for halving in range(halvings))
        return hits / (halvings * judgements)

    def _hits(self, samples: Tensor, real: Tensor, halving: int) -> int:
        """How many of both the classifier puts right, over the two halves."""
        x = torch.cat([samples, real])
        labels = torch.cat([torch.ones(len(samples)), torch.zeros(len(real))]).long()
        stream = torch.Generator().manual_seed(mixed(self.provenance.seed, 88, halving))
        order = torch.randperm(len(samples), generator=stream)
        # Both halves hold as many of either sort.
        halves = [torch.cat([part, part + len(samples)]) for part in order.chunk(2)]
        hits = 0
        for fold, (taught, asked) in enumerate((halves, halves[::-1])):
            with global_noise(mixed(self.provenance.seed, 89, halving, fold)):
                net = Classifier(self.space, 2)
            seed = mixed(self.provenance.seed, 90, halving, fold)
            examples = min(max(FEWEST, PASSES * len(taught)), MOST_EXAMPLES)
            train_classifier(net, x[taught], labels[taught], seed, examples=examples)
            with torch.no_grad():
                said = torch.cat([net(part).argmax(1) for part in x[asked].split(500)])
            hits += int((said == labels[asked]).sum())
        return hits
