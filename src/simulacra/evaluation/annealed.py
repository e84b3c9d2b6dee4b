"""Annealed importance sampling: how sure log Z is, of densities known up to that constant.

A likelihood made with log Z from chains that go up is too good on average, and nothing in it shows by
how much. Chains that go down from the model's own draws are wrong the other way (Grosse et al. 2015), so
the gap between both bounds the error of each, as far as those draws are the model's.
"""

from __future__ import annotations

from simulacra.contract import Annealed
from simulacra.evaluation.case import Case
from simulacra.evaluation.intervals import around
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.probability.annealing import Partition

GAP = "log partition function, forward-reverse gap"


class Annealing(Measure):
    """The gap between log Z from both sides. Rows are one chain's log Z each, in nats: ``upward`` from
    the start, ``downward`` from the model. ``steps``: the temperatures that a chain passes."""

    NEEDS = (Annealed,)
    ROLES = REQUIRED = ("upward", "downward")

    def __init__(self, steps: int, provenance: Provenance | None = None) -> None:
        super().__init__(provenance)
        self.steps = steps

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None where log Z is exact, or not known at all."""
        found: Partition | None = case.model.partition
        if found is None:
            return []
        measure = cls(found.steps, Provenance(split="train", seed=case.seed))
        return measure.update(upward=found.upward, downward=found.downward).compute()

    def compute(self) -> list[Reading]:
        found = Partition(self.rows("upward"), self.rows("downward"), self.steps)
        return [
            self.reading(
                GAP,
                found.gap,
                unit="nats",
                better="lower",
                count={"forward": len(found.upward), "reverse": len(found.downward)},
                interval=around(found.gap, found.gap_error**2),
                how=(
                    f"{found.text()}: {found.log_partition:.2f} from below (standard error "
                    f"{found.standard_error:.2f}), {found.from_above:.2f} from above; about nought where "
                    "both are right, and by so much at most the likelihood flatters, as far as chains "
                    "begun at training data reached the model's own distribution"
                ),
            )
        ]
