"""Distributions of the plane that are easy to draw from and shaped like nothing a network gives by
itself: priors for codes (Makhzani et al. 2015, fig. 2 and 4).

Draws take uniform and normal numbers instead of a generator, so that each row keeps its own stream.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PETALS, PETAL_CENTRE, PETAL_LENGTH, PETAL_WIDTH = 10, 1.4, 0.5, 0.1
ROLL_REACH, ROLL_TURNS, ROLL_WIDTH = 3.0, 2.0, 0.05


def petals(uniform: Tensor, normal: Tensor) -> Tensor:
    """Ten Gaussians around the origin, (n,) and (n, 2) to (n, 2): long outwards, narrow across."""
    which = (uniform * PETALS).long().clamp(max=PETALS - 1)
    angle = which * (2 * math.pi / PETALS)
    outwards = PETAL_CENTRE + PETAL_LENGTH * normal[:, 0]
    return _turned(outwards, PETAL_WIDTH * normal[:, 1], angle)


def swiss_roll(uniform: Tensor, normal: Tensor) -> Tensor:
    """A spiral of two turns with even density on the disc that it fills, (n,) and (n, 2) to (n, 2).

    r = 3 sqrt(u) at the angle 4 pi sqrt(u), and a little Gaussian width, so that it has a density.
    """
    root = uniform.sqrt()
    place = _turned(ROLL_REACH * root, torch.zeros_like(root), 2 * math.pi * ROLL_TURNS * root)
    return place + ROLL_WIDTH * normal


def _turned(outwards: Tensor, across: Tensor, angle: Tensor) -> Tensor:
    """Points given along and across a direction."""
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([outwards * cosine - across * sine, outwards * sine + across * cosine], 1)
