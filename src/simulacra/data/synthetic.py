"""Rings and grids of Gaussians: data whose modes, and whose density, are known.

Srivastava et al. 2017 (sec. 4.1) count the modes that generators lose on them. Numbers as in Lin et al.
2018 (PacGAN, the configurations of its synthetic experiments): 100,000 draws; eight Gaussians on the unit
circle, deviation 0.01; 25 at the points of {-4, -2, 0, 2, 4}^2, deviation 0.05. They are drawn from a
fixed seed, so everybody has the same ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from simulacra.data.raw import Raw, Survey
from simulacra.probability.mixtures import RoundMixture
from simulacra.spaces import Vectors

DRAWS, SEED = 100_000, 0


def ring() -> RoundMixture:
    """Eight Gaussians on the unit circle."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return RoundMixture.equal(torch.stack([angle.cos(), angle.sin()], 1), 0.01)


def grid() -> RoundMixture:
    """Five times five Gaussians."""
    side: Tensor = torch.arange(-4, 5, 2)
    return RoundMixture.equal(torch.cartesian_prod(side, side), 0.05)


TRUTHS: dict[str, Callable[[], RoundMixture]] = {"ring": ring, "grid": grid}


def drawn(name: str) -> Raw:
    """The data of one of ``TRUTHS``."""
    truth = TRUTHS[name]()
    rows = truth.sample(DRAWS, torch.Generator().manual_seed(SEED))
    return Raw(
        rows,
        Vectors(rows.shape[1]),
        Survey("vectors", Counter({str(rows.shape[1]): len(rows)})),
        source={
            "origin": f"{len(truth.centres)} Gaussians (Srivastava et al. 2017; Lin et al. 2018)"
        },
        truth=truth,
    )
