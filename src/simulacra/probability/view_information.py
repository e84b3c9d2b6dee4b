"""What a class that is read off one view of a datum tells of the class that is read off another.

A reader q gives chances of classes, p = q(. | v(x)) and p' = q(. | v'(x)). The information of the two
classes is at least

    B = E sum_k p_k log p'_k - sum_k u_k log u_k,     u = E p

with E over data (Barber & Agakov 2003, eq. 3). B is a sum over classes, so what it gains where one class
becomes two, or two become one, is told by these classes alone: moves of the kind that lead clusters out
of where no slope does (Ueda, Nakano, Ghahramani & Hinton 2000).

Chances are logs of shape (2 n, K): n data in one view, then in another. Both ways are averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Move:
    """``split`` becomes two classes, ``kept`` and ``freed`` one; B would gain so many nats."""

    gain: float
    split: int
    kept: int
    freed: int


def information_of_views(chances: Tensor) -> Tensor:
    """B, nats, a scalar."""
    return _terms(chances).sum()


def gains_of_splits(chances: Tensor, halves: Tensor) -> Tensor:
    """What B would gain, nats, (K,), were each class alone two; ``halves``: logs of chances of either,
    given the class, (2 n, K, 2)."""
    joint = chances[:, :, None] + halves
    parts: Tensor = _terms(joint.flatten(1)).unflatten(0, (-1, 2))
    return parts.sum(1) - _terms(chances)


def gains_of_merges(chances: Tensor) -> Tensor:
    """What B would gain, nats, (K, K), were two classes alone one; nought for a class and itself."""
    both = torch.logaddexp(chances[:, :, None], chances[:, None, :])
    merged: Tensor = _terms(both.flatten(1)).unflatten(0, chances.shape[1:] * 2)
    terms = _terms(chances)
    return merged - terms[:, None] - terms


def best_move(splits: Tensor, merges: Tensor) -> Move:
    """The move by which B gains most; three classes have a part in it."""
    count = len(splits)
    nobody = torch.full((), -math.inf)
    whole = splits.cpu()[:, None, None] + merges.cpu()
    split, kept, freed = (torch.arange(count).reshape(shape) for shape in _AXES)
    valid = (kept < freed) & (split != kept) & (split != freed)
    at = int(torch.where(valid, whole, nobody).argmax())
    split_class, pair = divmod(at, count * count)
    return Move(float(whole.flatten()[at]), split_class, *divmod(pair, count))


_AXES = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))


def _terms(chances: Tensor) -> Tensor:
    """Each class's part of B, (K,)."""
    one, other = chances.chunk(2)
    told = 0.5 * (one.exp() * other + other.exp() * one).mean(0)
    # In logarithms, since the slope of p log p is infinite where p is nought.
    used = chances.logsumexp(0) - math.log(len(chances))
    return told - used.exp() * used
