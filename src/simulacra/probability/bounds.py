"""Bounds on log p(x), in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def importance_weighted(log_weights: Tensor) -> Tensor:
    """log (1/k) sum_i w_i over dimension 1, shape (batch, k) to (batch,) (Burda et al. 2016, eq. 8).

    With k = 1 it is the evidence lower bound; it does not fall with k in expectation.
    """
    return torch.logsumexp(log_weights, dim=1) - math.log(log_weights.shape[1])
