"""Integers to standard normal numbers and back, each dimension through its own quantiles.

With frequencies f of the values v of one dimension, and u uniform in [0, 1),

    z = Phi^-1(sum_{v < x} f(v) + u f(x))

is standard normal when x has those frequencies, whatever they are, and x is a function of z. So
log p(x) >= E_u [log p(z) + sum_i log f_i(x_i) - log N(z_i; 0, 1)]: with independent standard normal z,
the bound is the model of independent dimensions, exactly (a Gaussian copula: Hoff 2007).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def to_normal_scores(x: Tensor, uniform: Tensor, log_frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """z (n, D) and sum_i log f_i(x_i) - log N(z_i; 0, 1), shape (n,), both float64.

    ``x`` and ``uniform`` are (n, D), ``log_frequencies`` (D, levels).
    """
    frequencies = torch.softmax(log_frequencies.double(), dim=1)
    below = frequencies.cumsum(1) - frequencies
    dimension = torch.arange(x.shape[1], device=x.device)
    own = frequencies[dimension, x.long()]
    quantile = below[dimension, x.long()] + uniform.double() * own
    z = torch.special.ndtri(quantile.clamp(1e-12, 1 - 1e-12))
    slope = own.log() + 0.5 * (z.square() + math.log(2 * math.pi))
    return z, slope.sum(1)


def from_normal_scores(z: Tensor, log_frequencies: Tensor) -> Tensor:
    """The integers x, shape (n, D), that z stands for."""
    upper = torch.softmax(log_frequencies.double(), dim=1).cumsum(1)
    upper[:, -1] = torch.inf  # rounding can leave it just below one
    quantile = torch.special.ndtr(z.double()).T.contiguous()
    return torch.searchsorted(upper, quantile, right=True).T
