"""From integers to reals and back, with the change of units that this owes.

Uniform dequantisation (Theis et al. 2016, sec. 3.1): for integers x and u uniform in [0, 1)^D,
log p(x) = log E_u[p(x + u)] >= E_u[log p(x + u)]; a density of x + u is a lower bound for x.
The logit front door (Dinh et al. 2017, sec. 4.1): y = logit(alpha + (1 - 2 alpha) (x + u) / levels).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from simulacra.probability.noise import Noise
from simulacra.spaces import Images


def dequantised(x: Tensor, noise: Noise) -> Tensor:
    """x + u as float32, u uniform in [0, 1); the bound needs no further term."""
    return x.float() + noise.uniform(*x.shape[1:])


def quantised(y: Tensor, space: Images) -> Tensor:
    """Reals near [0, levels) floored and cut to elements of ``space``."""
    return y.floor().clamp(0, space.levels - 1).to(space.dtype)


def to_logits(y: Tensor, levels: int, alpha: float = 0.05) -> tuple[Tensor, Tensor]:
    """y in [0, levels) through the logit, and log |d logit / dy| summed over a row, shape (batch,)."""
    share = alpha + (1 - 2 * alpha) * y / levels
    z = torch.logit(share)
    # d z / d share = 1 / (share (1 - share)), and softplus(z) + softplus(-z) = -log(share (1 - share))
    log_slope = functional.softplus(z) + functional.softplus(-z)
    log_slope = log_slope + math.log((1 - 2 * alpha) / levels)
    return z, log_slope.flatten(1).sum(1)


def from_logits(z: Tensor, levels: int, alpha: float = 0.05) -> Tensor:
    """The inverse of ``to_logits``: reals in about [0, levels)."""
    return (torch.sigmoid(z) - alpha) / (1 - 2 * alpha) * levels
