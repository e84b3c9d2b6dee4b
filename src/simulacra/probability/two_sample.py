"""A two-sample test without a network: can neighbours tell which of two samples a point is from?

The classifier two-sample test with k nearest neighbours, k the root of the number of points that are
known (Lopez-Paz & Oquab 2017, C2ST-KNN): one half of the points is known, the other asked about, and the
other way round. One half right is what two samples of one distribution get.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def neighbour_accuracy(first: Tensor, second: Tensor) -> float:
    """Held-out accuracy, in [0, 1], between rows (n, d) of two samples whose order means nothing.

    The first n rows of both are taken, n the smaller count; ties count as one half.
    """
    count = min(len(first), len(second))
    rows = torch.cat([first[:count], second[:count]]).double()
    labels = torch.arange(2 * count) // max(count, 1)
    half = torch.arange(2 * count) % max(count, 1) < count // 2
    parts = [
        _right(rows[known], labels[known], rows[~known], labels[~known]) for known in (half, ~half)
    ]
    return float(torch.cat(parts).mean())


def _right(known: Tensor, labels: Tensor, asked: Tensor, answers: Tensor) -> Tensor:
    """How right the vote of the nearest known rows is for each that is asked about: 0, 1/2 or 1."""
    near = min(max(1, math.isqrt(len(known))), len(known))
    distances = torch.cdist(asked, known, compute_mode="donot_use_mm_for_euclid_dist")
    votes = labels.to(known.device)[distances.topk(near, largest=False).indices].double().mean(1)
    said = (votes - 0.5).sign()
    return (said * (2 * answers.to(said) - 1) + 1) / 2
