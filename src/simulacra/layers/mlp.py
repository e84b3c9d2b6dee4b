"""Fully connected networks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from simulacra.layers.dropout import Dropout


def multilayer_perceptron(sizes: Sequence[int], *, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of the given sizes with SiLU between them; the last one is plain."""
    parts: list[nn.Module] = []
    for index, (size, following) in enumerate(itertools.pairwise(sizes)):
        parts.append(nn.Linear(size, following))
        if index < len(sizes) - 2:
            parts.append(nn.SiLU())
            if dropout:
                parts.append(Dropout(dropout))
    return nn.Sequential(*parts)
