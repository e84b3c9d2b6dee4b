"""Numbers read as waves, too: what lets a network see what is far finer than the whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def with_waves(x: Tensor, octaves: int) -> Tensor:
    """Numbers (n, d), and the sines and cosines of pi/2 x, pi x, 2 pi x, … of so many octaves, (n, d (1 +
    2 octaves)).

    A network learns what is smooth long before what is fine; waves bring the fine into its reach
    (Tancik et al. 2020).
    """
    if not octaves:
        return x
    lengths = math.pi / 2 * 2.0 ** torch.arange(octaves, device=x.device, dtype=x.dtype)
    angles = (x[:, :, None] * lengths).flatten(1)
    return torch.cat([x, angles.sin(), angles.cos()], dim=1)
