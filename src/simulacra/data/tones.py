"""Tones: notes with harmonics that die away in a little noise, drawn from a fixed seed.

    x(t) = a sum_{h=1..8} h^-b cos(2 pi h f t + phase_h) exp(-d h^(1/2) t) + noise

with pitches f from 110 to 880 Hz, equally likely on the scale of octaves. Labels are the octaves.
Nothing above half the rate is in them, so nothing is folded back.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from simulacra.data.raw import Raw, Survey
from simulacra.spaces import Series

NAME = "tones"
DRAWS, SEED, LENGTH, RATE = 4000, 0, 2048, 8000
LOWEST, OCTAVES, HARMONICS, NOISE = 110.0, 3, 8, 0.003
NAMES = ("low", "middle", "high")


def drawn(length: int | None = None) -> Raw:
    """The tones, of ``length`` samples (2048) at 8,000 a second."""
    length = length or LENGTH
    stream = torch.Generator().manual_seed(SEED)
    height = OCTAVES * torch.rand(DRAWS, generator=stream)
    rows = _sounding(LOWEST * 2**height, length, stream)
    return Raw(
        rows.unsqueeze(1),
        Series(1, length, RATE),
        Survey("sounds", Counter({f"{length} samples": DRAWS}), Counter({f"{RATE} Hz": DRAWS})),
        height.long().clamp(max=OCTAVES - 1),
        NAMES,
        source={"origin": "notes with eight harmonics from a fixed seed"},
    )


def _sounding(pitch: Tensor, length: int, stream: torch.Generator) -> Tensor:
    """A tone for each pitch in Hz, (n, length)."""

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((len(pitch), *shape), generator=stream)

    loud, steep, fading = between(0.2, 0.6), between(1.0, 2.0), between(2.0, 10.0)
    phase = between(0.0, 2 * math.pi, HARMONICS)
    time = torch.arange(length) / RATE
    x = NOISE * torch.randn((len(pitch), length), generator=stream)
    for index in range(HARMONICS):
        order = index + 1
        size = loud * order**-steep * (order * pitch < RATE / 2)
        decay = torch.exp(-(fading * math.sqrt(order)).unsqueeze(1) * time)
        angle = 2 * math.pi * order * pitch.unsqueeze(1) * time + phase[:, index, None]
        x += 0.5 * size.unsqueeze(1) * decay * angle.cos()
    return x
