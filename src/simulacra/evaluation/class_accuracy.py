"""Class accuracy: does a conditional model draw what it was asked for?

The judge is a classifier of data that the model has not trained on; its accuracy on real data that
it has not trained on either is the floor.
"""

from __future__ import annotations

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.features import FeatureNet
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading

NAME = "class accuracy of samples"


class ClassAccuracy(Measure):
    """Share of samples that a judge puts in the class they were asked to be of.

    ``said`` are the judge's classes (n,), ``asked`` those that were asked for (n,).
    """

    NEEDS = (Sampler,)
    ROLES = REQUIRED = ("said", "asked")

    def __init__(self, judge: FeatureNet, provenance: Provenance | None = None) -> None:
        super().__init__(provenance)
        self.judge = judge

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """One reading for a model conditioned on labels; none for others."""
        if case.judge is None or case.labels is None or case.drawn.condition is None:
            return []
        seen = Provenance(seed=case.seed, features=case.judge.identity)
        said = case.judge.probabilities(case.drawn.x).argmax(1)
        return cls(case.judge, seen).update(said=said, asked=case.drawn.condition).compute()

    def compute(self) -> list[Reading]:
        said, asked = self.rows("said"), self.rows("asked")
        hits, count = int((said == asked).sum()), len(said)
        return [
            self.reading(
                NAME,
                hits / count,
                unit="share",
                better="higher",
                count={"samples": count},
                interval=wilson(hits, count),
                how=(
                    "share of samples that a classifier puts in the class they were asked to be of; it "
                    f"learned {self.judge.trained_on}, and its floor is the rest of the test split"
                ),
                floor=self.judge.accuracy,
            )
        ]
