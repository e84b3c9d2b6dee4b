"""Class accuracy: does a conditional model draw what it was asked for?

The judge is a classifier of data that the model has not trained on; its accuracy on real data that
it has not trained on either is the floor.
"""

from __future__ import annotations

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.features import FeatureNet
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.reading import Reading
from simulacra.games import Batch

NEEDS = (Sampler,)
NAME = "class accuracy of samples"


def agreement(judge: FeatureNet, samples: Batch) -> tuple[int, int]:
    """How many samples the judge puts in the class of their condition, and how many there are."""
    assert samples.condition is not None
    said = judge.probabilities(samples.x).argmax(1)
    return int((said == samples.condition.cpu()).sum()), len(samples)


def read(case: Case) -> list[Reading]:
    """One reading for a model conditioned on labels; none for others."""
    if case.judge is None or case.labels is None or case.drawn.condition is None:
        return []
    hits, count = agreement(case.judge, Batch(case.drawn.x, case.drawn.condition))
    low, high = wilson(hits, count)
    return [
        Reading(
            name=NAME,
            value=hits / count,
            unit="share",
            better="higher",
            low=low,
            high=high,
            count=count,
            split="test",
            seed=case.seed,
            how=(
                "share of samples that a classifier puts in the class they were asked to be of; it "
                f"learned {case.judge.trained_on}, and its floor is the rest of the test split"
            ),
            floor=case.judge.accuracy,
        )
    ]
