"""Likelihood: nats a datum, and bits a dimension, of held-out data."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simulacra.contract import Annealed, Density, Kind
from simulacra.evaluation.case import Case, scored
from simulacra.evaluation.intervals import around
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.probability.annealing import Partition
from simulacra.spaces import Measure as Against
from simulacra.spaces import Space, Tokens

NATS, BITS = "negative log-likelihood", "bits per dimension"
PERPLEXITY = "perplexity"
GIVEN = " given conditions"
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


def _floor(case: Case, count: int) -> tuple[float, str] | None:
    """Of the first ``count`` test data, where it is known."""
    if case.truth is not None:
        value = -float(case.truth.log_prob(case.test.x[:count]).mean())
        return value, "what the true density gives the same data"
    if case.noise_floor is not None:
        return case.noise_floor, "the entropy of the pixels' own coin flips"
    return None


class Likelihood(Measure):
    """Nats and bits of ``log_prob`` (n,), in nats; the interval is the normal one over the data.

    ``given``: whether it is log p(x | condition), which is read under names of its own. ``out_of``: how
    many data there were to score. ``floor``: nats a datum that no model can get below, and what they are.
    ``partition``: what ``log_prob`` takes log Z from, where that is an estimate; its variance joins that
    of the data.
    """

    NEEDS = (Density,)
    ROLES = REQUIRED = ("log_prob",)

    def __init__(
        self,
        space: Space,
        kind: Kind,
        provenance: Provenance | None = None,
        *,
        given: bool = False,
        out_of: int | None = None,
        floor: tuple[float, str] | None = None,
        partition: Partition | None = None,
    ) -> None:
        super().__init__(provenance)
        self.space, self.kind, self.given, self.out_of = space, kind, given, out_of
        self.floor, self.partition = floor, partition

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        log_prob = log_probs(case, SHARE * case.seconds)
        measure = cls(
            case.space,
            case.model.kind,
            Provenance.of(case, features=False),
            given=case.conditional,
            out_of=len(case.test),
            floor=_floor(case, len(log_prob)),
            partition=case.model.partition if isinstance(case.model, Annealed) else None,
        )
        return measure.update(log_prob=log_prob).compute()

    def compute(self) -> list[Reading]:
        log_prob = self.rows("log_prob").double()
        against = {
            Against.COUNTING: "",
            Against.LEBESGUE: ", a density, so it may be negative and depends on the data's units",
            Against.MIXED: ", partly a density, so it depends on the data's units",
        }[self.space.measure]
        part = "a random part" if self.out_of and len(log_prob) < self.out_of else "all"
        how = f"mean of -log p(x{' | condition' if self.given else ''}) over {part} of the "
        how += f"{self.provenance.split} split"
        if self.floor is not None:
            how += f"; the floor is {self.floor[1]}, which no model can beat but by chance"
        readings = []
        for name, unit, scale in (
            (NATS, "nats", 1.0),
            (BITS, "bits/dim", 1 / (self.space.dimensions * math.log(2))),
        ):
            values = -log_prob * scale
            readings.append(
                self.reading(
                    name + (GIVEN if self.given else ""),
                    float(values.mean()),
                    unit=unit,
                    kind=self.kind,
                    better="lower",
                    count=len(values),
                    interval=self._interval(values, scale),
                    how=f"{how}{against}; {self._meaning}",
                    floor=None if self.floor is None else self.floor[0] * scale,
                )
            )
        if isinstance(self.space, Tokens):
            readings.append(self._perplexity(log_prob, part))
        return readings

    @property
    def _meaning(self) -> str:
        found = self.partition
        if found is None:
            return MEANING[self.kind]
        return (
            f"{MEANING[self.kind]}: {found.text()}, which makes it too low on average; the reverse "
            f"chains put log Z {found.gap:.2f} nats (standard error {found.gap_error:.2f}) higher"
        )

    def _interval(self, values: Tensor, scale: float) -> tuple[float, float] | None:
        """Of the mean of ``values``, which are nats times ``scale``."""
        if len(values) < 2:
            return None
        variance = float(values.var()) / len(values)
        if self.partition is not None:
            variance += (scale * self.partition.standard_error) ** 2
        return around(float(values.mean()), variance)

    def _perplexity(self, log_prob: Tensor, part: str) -> Reading:
        """exp of the nats a token (Jelinek et al. 1977)."""
        values = -log_prob / self.space.dimensions
        low, high = self._interval(values, 1 / self.space.dimensions) or (None, None)
        return self.reading(
            PERPLEXITY + (GIVEN if self.given else ""),
            float(values.mean().exp()),
            unit="tokens",
            kind=self.kind,
            better="lower",
            count=len(values),
            interval=None if low is None or high is None else (math.exp(low), math.exp(high)),
            how=(
                f"exp of the mean nats a token over {part} of the {self.provenance.split} split; "
                f"a uniform guess has {self.space.vocabulary}; {self._meaning}"
                if isinstance(self.space, Tokens)
                else ""
            ),
        )
