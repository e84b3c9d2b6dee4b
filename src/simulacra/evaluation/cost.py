"""Cost: seconds a sample, parameters, and what training took."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from simulacra.contract import Kind, Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading

SAMPLING, PARAMETERS = "sampling time", "parameters"
TRAINING, MEMORY = "training time", "peak memory"
KNOWN = (
    (
        "parameters",
        PARAMETERS,
        "numbers",
        "numbers that training moves by gradients; a closed form's tables are not among them",
    ),
    (
        "training_seconds",
        TRAINING,
        "s",
        "wall-clock seconds in training, evaluation left out",
    ),
    ("peak_memory_mib", MEMORY, "MiB", "the training process's largest resident memory"),
)


def median_interval(values: list[float]) -> tuple[float, float] | None:
    """An interval that holds the median with at least 95 %, between two of the ordered values.

    Whatever the distribution; None for fewer than six values, of which no two can promise that.
    """
    ordered, outside, kept = sorted(values), 0.0, None
    for index in range(len(ordered) // 2):
        outside += 2 * math.comb(len(ordered), index) / 2 ** len(ordered)
        if outside > 0.05:
            break
        kept = ordered[index], ordered[-1 - index]
    return kept


class Cost(Measure):
    """What is known of sampling, size and training.

    ``seconds`` are those a sample, one number a batch of ``at_once`` samples; ``known`` are other
    costs by name.
    """

    ROLES = ("seconds",)

    def __init__(
        self,
        provenance: Provenance | None = None,
        *,
        at_once: int = 1,
        known: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(provenance)
        self.at_once, self.known = at_once, known or {}

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        known, seconds, at_once = dict(case.cost), None, 1
        if isinstance(case.model, nn.Module):
            known["parameters"] = sum(one.numel() for one in case.model.parameters())
        if isinstance(case.model, Sampler):
            seconds = torch.tensor(case.drawn.seconds, dtype=torch.float64)
            at_once = case.drawn.at_once
        measure = cls(Provenance(split="training", seed=case.seed), at_once=at_once, known=known)
        return measure.update(seconds=seconds).compute()

    def compute(self) -> list[Reading]:
        readings = []
        if self.has("seconds"):
            times = self.rows("seconds")
            readings.append(
                self.reading(
                    SAMPLING,
                    float(times.quantile(0.5)),
                    unit="s/sample",
                    better="lower",
                    count={"batches": len(times)},
                    interval=median_interval(times.tolist()),
                    split="samples",
                    how=(
                        f"median over {len(times)} batches of {self.at_once} samples each, after one "
                        f"sample to warm up, with {torch.get_num_threads()} threads"
                    ),
                )
            )
        for key, name, unit, how in KNOWN:
            if key in self.known:
                value = self.known[key]
                readings.append(
                    self.reading(
                        name, value, unit=unit, kind=Kind.EXACT, better="lower", count=1, how=how
                    )
                )
        return readings
