"""Numbers read as waves, too: what lets a network see what is far finer than the whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def octaves(count: int) -> Tensor:
    """pi/2, pi, 2 pi, …, of which networks keep so many."""
    return math.pi / 2 * 2.0 ** torch.arange(count)


def with_waves(x: Tensor, frequencies: Tensor) -> Tensor:
    """Numbers (n, d), and their sines and cosines at (f,) frequencies, (n, d (1 + 2 f)).

    A network learns what is smooth long before what is fine; waves bring the fine into its reach
    (Tancik et al. 2020). Angles are as precise as the frequencies are.
    """
    if not len(frequencies):
        return x
    angles = (x[:, :, None] * frequencies).flatten(1)
    return torch.cat([x, angles.sin(), angles.cos()], dim=1)
