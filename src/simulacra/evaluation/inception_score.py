"""The Inception score, with the house classifier in Inception's place.

    IS = exp E_x KL(p(y|x) | p(y)),   p(y) = E_x p(y|x)              (Salimans et al. 2016, sec. 4)

From 1 to the number of classes: high where each sample is clearly of one class and all classes occur.
All samples are taken at once (the published mean over ten splits is lower by finite counts). Blind to
copies, and to what varies within a class; only comparable in the very same classifier.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.intervals import around
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading

NAME = "Inception score"


def surprise(probabilities: Tensor) -> Tensor:
    """KL(p(y|x) | p(y)) of each row, shape (n, classes) to (n,), nats."""
    rows = probabilities.double()
    marginal = rows.mean(0)
    return (torch.xlogy(rows, rows) - torch.xlogy(rows, marginal)).sum(1)


def inception_score(probabilities: Tensor) -> float:
    """IS of p(y|x), shape (n, classes)."""
    return math.exp(float(surprise(probabilities).mean()))


class InceptionScore(Measure):
    """IS of ``samples``, p(y|x) of shape (n, classes), beside that of ``real`` data."""

    NEEDS = (Sampler,)
    ROLES = ("samples", "real")
    REQUIRED = ("samples",)

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None where no labels taught a classifier."""
        net = case.features
        if net.labels is None or net.kind != "classifier":
            return []
        measure = cls(Provenance.of(case))
        measure.update(samples=net.probabilities(case.drawn.x))
        return measure.update(real=net.probabilities(case.test.x)).compute()

    def compute(self) -> list[Reading]:
        gained = surprise(self.rows("samples"))
        # The marginal moves with the samples too, but to first order that cancels.
        low, high = around(float(gained.mean()), float(gained.var()) / len(gained))
        floor = inception_score(self.rows("real")) if self.has("real") else None
        return [
            self.reading(
                NAME,
                math.exp(float(gained.mean())),
                unit="classes",
                better="higher",
                count={role: len(self.rows(role)) for role in self.ROLES if self.has(role)},
                interval=(math.exp(low), math.exp(high)),
                how=(
                    "exp E KL(p(y|x) | p(y)) by the ruler's classifier in Inception's place, all "
                    "samples at once; not comparable to published scores, and blind to copies"
                ),
                floor=floor,
            )
        ]
