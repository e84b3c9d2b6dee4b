"""Cost: seconds a sample, parameters, and what training took."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.reading import Reading

NEEDS = ()
SAMPLING, PARAMETERS = "sampling time", "parameters"
TRAINING, MEMORY = "training time", "peak memory"


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


def read(case: Case) -> list[Reading]:
    """What is known of sampling, size and training."""
    readings = []
    if isinstance(case.model, Sampler) and case.drawn.seconds:
        times = list(case.drawn.seconds)
        low, high = median_interval(times) or (None, None)
        how = (
            f"median over {len(times)} batches of {case.drawn.at_once} samples each, after one sample "
            f"to warm up, with {torch.get_num_threads()} threads"
        )
        median = float(torch.tensor(times, dtype=torch.float64).quantile(0.5))
        readings.append(
            _reading(case, SAMPLING, median, "s/sample", how, len(times), low, high, "samples")
        )
    if isinstance(case.model, nn.Module):
        size = sum(one.numel() for one in case.model.parameters())
        how = "numbers that training moves by gradients; a closed form's tables are not among them"
        readings.append(_reading(case, PARAMETERS, size, "numbers", how, 1))
    for key, name, unit, how in (
        ("training_seconds", TRAINING, "s", "wall-clock seconds in training, evaluation left out"),
        ("peak_memory_mib", MEMORY, "MiB", "the training process's largest resident memory"),
    ):
        if key in case.cost:
            readings.append(_reading(case, name, case.cost[key], unit, how, 1))
    return readings


def _reading(
    case: Case,
    name: str,
    value: float,
    unit: str,
    how: str,
    count: int,
    low: float | None = None,
    high: float | None = None,
    split: str = "training",
) -> Reading:
    better: Literal["lower"] = "lower"
    return Reading(
        name=name,
        value=float(value),
        unit=unit,
        better=better,
        low=low,
        high=high,
        count=count,
        split=split,
        seed=case.seed,
        how=how,
    )
