"""What comes first in the training of a model that is told attributes: a look at their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from simulacra.games import Batch, Clock, Rewrite, Stage
from simulacra.layers.conditions import ConditionDoor
from simulacra.probability.noise import Noise

LOOKED_AT = 32
"""Batches that tell the spread of numbers."""


def condition_stages(door: ConditionDoor) -> list[Stage]:
    """A round of a few batches, where there are numbers to standardise; else nothing."""
    if not door.learns:
        return []

    def standardise(batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        told = [batch.condition for batch in batches if batch.condition is not None]
        door.fit(torch.cat(told))
        return {}

    return [Stage([Rewrite("standardise conditions", standardise, batches=LOOKED_AT)], rounds=1)]
