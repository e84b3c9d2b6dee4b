"""What a run is watched by: one number of held-out data, which says whose weights are the best."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simulacra.contract import Density, Kind, Scorer
from simulacra.games import Batch, Game

MEASURED = 512
"""Held-out examples that a measure during training looks at."""


def is_measured(model: object, game: Game) -> bool:
    """Whether a number on held-out data says which of a run's weights are the best."""
    if isinstance(model, Density):
        return model.kind is not Kind.UNNORMALISED
    return isinstance(model, Scorer) and game.keep == "best"


def watched(model: Any, held_out: Batch, device: torch.device) -> Tensor:
    """log p(x) of each datum in nats; of a model without one minus its anomaly score, (n,), higher is
    better."""
    x = held_out.x.to(device)
    if not isinstance(model, Density):
        scores: Tensor = model.anomaly_score(x)
        return -scores.double()
    condition = held_out.condition if model.condition_space is not None else None  # type: ignore[attr-defined]
    return _in_chunks(model, x, condition).double()


def _in_chunks(model: Any, x: Tensor, condition: Tensor | None, size: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    parts = []
    for start in range(0, len(x), size):
        given = None if condition is None else condition[start : start + size].to(x.device)
        part = model.log_prob(x[start : start + size], condition=given, generator=generator)
        parts.append(part.cpu())
    return torch.cat(parts)
