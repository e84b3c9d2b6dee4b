"""Likelihood: nats a datum, and bits a dimension, of held-out data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simulacra.contract import Density, Kind
from simulacra.evaluation.case import Case, scored
from simulacra.evaluation.intervals import mean_interval
from simulacra.evaluation.reading import Reading
from simulacra.spaces import Measure

NEEDS = (Density,)
NATS, BITS = "negative log-likelihood", "bits per dimension"
GIVEN = " given labels"
SHARE = 0.3

MEANING = {
    Kind.EXACT: "the exact value",
    Kind.LOWER: "from a lower bound of log p, so the true value is at most this",
    Kind.ESTIMATE: "an estimate that promises no direction",
    Kind.UNNORMALISED: "without its unknown constant, so comparable to no other model",
}


def log_probs(case: Case, seconds: float) -> Tensor:
    """log p of the first test data, in nats, shape (n,), float64."""
    model: Density = case.model

    def score(x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        return model.log_prob(x, condition=condition, generator=generator)

    return scored(score, case.test, conditional=case.conditional, seed=case.seed, seconds=seconds)


def read(case: Case) -> list[Reading]:
    """Two readings of the same thing; the interval is the normal one over the data."""
    return readings_of(log_probs(case, SHARE * case.seconds), case)


def readings_of(log_prob: Tensor, case: Case) -> list[Reading]:
    """The readings of log p(x), or of log p(x | label) under names of their own."""
    kind, space = case.model.kind, case.space
    given = GIVEN if case.conditional else ""
    against = {
        Measure.COUNTING: "",
        Measure.LEBESGUE: ", a density, so it may be negative and depends on the data's units",
        Measure.MIXED: ", partly a density, so it depends on the data's units",
    }[space.measure]
    part = "all" if len(log_prob) == len(case.test) else "a random part"
    how = f"mean of -log p(x{' | label' if given else ''}) over {part} of the test split"
    readings = []
    for name, unit, scale in (
        (NATS, "nats", 1.0),
        (BITS, "bits/dim", 1 / (space.dimensions * math.log(2))),
    ):
        values = -log_prob * scale
        low, high = mean_interval(values) if len(values) > 1 else (None, None)
        readings.append(
            Reading(
                name=name + given,
                value=float(values.mean()),
                unit=unit,
                kind=kind,
                better="lower",
                low=low,
                high=high,
                count=len(values),
                split="test",
                seed=case.seed,
                how=f"{how}{against}; {MEANING[kind]}",
            )
        )
    return readings
