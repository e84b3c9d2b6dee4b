"""Numbers as colours."""

from __future__ import annotations

import torch
from torch import Tensor

HEAT = ((10, 10, 30), (88, 24, 110), (200, 60, 70), (250, 165, 50), (255, 250, 205))
"""From dark to bright, each step lighter than the one before, so that a gray print reads the same."""


def heat(values: Tensor, low: float, high: float) -> Tensor:
    """Numbers as colours of ``HEAT``: ``low`` and less dark, ``high`` and more bright.

    Shape (…) to (…, 3), unsigned bytes.
    """
    stops = torch.tensor(HEAT, dtype=torch.float64)
    place = ((values.double() - low) / max(high - low, 1e-300)).clamp(0, 1) * (len(HEAT) - 1)
    below = place.long().clamp(max=len(HEAT) - 2)
    share = (place - below).unsqueeze(-1)
    return (stops[below] * (1 - share) + stops[below + 1] * share).round().to(torch.uint8)
