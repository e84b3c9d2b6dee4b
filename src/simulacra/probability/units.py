"""Units: nats, bits per dimension."""

from __future__ import annotations

import math

from torch import Tensor

from simulacra.spaces import Space


def bits_per_dimension(log_prob: Tensor, space: Space) -> Tensor:
    """-log_prob / (D ln 2): nats a datum into bits a dimension of ``space``."""
    return -log_prob / (space.dimensions * math.log(2))
