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
    terms = _terms(chances)
    # Row by row: all pairs at once would be K times as many numbers.
    merged = [_terms(torch.logaddexp(chances, one[:, None])) for one in chances.T]
    return torch.stack(merged) - terms[:, None] - terms


def best_move(splits: Tensor, merges: Tensor) -> Move:
    """The move by which B gains most; three classes have a part in it."""
    count = len(splits)
    if count < 3:
        raise ValueError(f"a move takes three classes, and there are {count}")
    splits, pairs = splits.cpu(), merges.cpu().triu(1)
    pairs = pairs.masked_fill(torch.ones_like(pairs).tril() > 0, -math.inf)
    moves = []
    # Whatever two classes are merged, one of the best three splits is of another.
    for split in splits.topk(3).indices.tolist():
        left = pairs.clone()
        left[split], left[:, split] = -math.inf, -math.inf
        kept, freed = divmod(int(left.argmax()), count)
        moves.append(Move(float(splits[split] + left[kept, freed]), split, kept, freed))
    return max(moves, key=lambda move: move.gain)


def _terms(chances: Tensor) -> Tensor:
    """Each class's part of B, (K,)."""
    one, other = chances.chunk(2)
    told = 0.5 * (one.exp() * other + other.exp() * one).mean(0)
    # In logarithms, since the slope of p log p is infinite where p is nought.
    used = chances.logsumexp(0) - math.log(len(chances))
    return told - used.exp() * used
