"""Adversarial losses: what a critic lowers and what a generator does, as functions of logits.

Real data have logits c(x), made ones c(y). ``smooth`` is one-sided label smoothing (Salimans et al. 2016,
sec. 3.4): real data count as real with the weight 1 - ``smooth`` only, made ones wholly as made.

    saturating       log D(x) + log(1 - D(y)), D = sigmoid(c), by both  (Goodfellow et al. 2014, eq. 1)
    non-saturating   the generator raises log D(y) instead                   (ibid., sec. 3)
    least-squares    (c(x) - 1)^2 / 2 + c(y)^2 / 2; (c(y) - 1)^2 / 2         (Mao et al. 2017, eq. 9)
    hinge            max(0, 1 - c(x)) + max(0, 1 + c(y)); -c(y)              (Lim & Ye 2017)
    wasserstein      c(y) - c(x); -c(y)                                      (Arjovsky et al. 2017, eq. 2)
    relativistic     softplus(c(y) - c(x)); softplus(c(x) - c(y)), in pairs  (Huang et al. 2024, eq. 2)

Where a critic is the best there is, its ``chance`` of data, D*(x) = p(x) / (p(x) + q(x)), can be read
off: sigmoid(c) of the first two, c itself by least squares, and sigmoid(c - a constant) of the
relativistic one, whose pairs tell c(x) - c(y) only. The other two have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Name = Literal[
    "saturating", "non-saturating", "least-squares", "hinge", "wasserstein", "relativistic"
]


@dataclass(frozen=True)
class Pair:
    """Losses of logits (n,), real then made; the critic's takes ``smooth`` too. Means, in nats or units.

    ``chance``: from logits of data and logits of made ones to D of either. ``has_level``: whether a
    constant added to all logits changes anything. ``compares``: whether the generator's looks at data.
    """

    critic: Callable[[Tensor, Tensor, float], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    chance: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    smooths: bool = False
    has_level: bool = True
    compares: bool = False


def _cross_entropy(real: Tensor, made: Tensor, smooth: float) -> Tensor:
    value = functional.softplus(-real).mean() + functional.softplus(made).mean()
    return value + smooth * real.mean() if smooth else value  # softplus(c) - softplus(-c) = c


def _squares(real: Tensor, made: Tensor, smooth: float) -> Tensor:
    return 0.5 * ((real - (1 - smooth)).square().mean() + made.square().mean())


def _sigmoids(real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(real), torch.sigmoid(made)


def _centred_sigmoids(real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    return _sigmoids(real - (level := balance(real, made)), made - level)


def balance(real: Tensor, made: Tensor) -> Tensor:
    """b, such that D = sigmoid(c - b) is 1/2 on average over both, as D* is; by bisection."""
    logits = torch.cat([real, made]).double()
    low, high = logits.min(), logits.max()
    for _ in range(40):
        middle = (low + high) / 2
        above = torch.sigmoid(logits - middle).mean() > 0.5
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return ((low + high) / 2).to(real.dtype)


LOSSES: dict[str, Pair] = {
    "saturating": Pair(
        _cross_entropy, lambda real, made: -functional.softplus(made).mean(), _sigmoids, True
    ),
    "non-saturating": Pair(
        _cross_entropy, lambda real, made: functional.softplus(-made).mean(), _sigmoids, True
    ),
    "least-squares": Pair(
        _squares,
        lambda real, made: 0.5 * (made - 1).square().mean(),
        lambda real, made: (real.clamp(0, 1), made.clamp(0, 1)),
        True,
    ),
    "hinge": Pair(
        lambda real, made, _: (1 - real).relu().mean() + (1 + made).relu().mean(),
        lambda real, made: -made.mean(),
    ),
    "wasserstein": Pair(
        lambda real, made, _: made.mean() - real.mean(),
        lambda real, made: -made.mean(),
        has_level=False,
    ),
    "relativistic": Pair(
        lambda real, made, _: functional.softplus(made - real).mean(),
        lambda real, made: functional.softplus(real - made).mean(),
        _centred_sigmoids,
        has_level=False,
        compares=True,
    ),
}


def accuracy(name: str, real: Tensor, made: Tensor) -> Tensor:
    """The share that a critic tells right: of single data where its logits have a zero, else of pairs."""
    if name in ("relativistic", "wasserstein"):
        return (real > made).float().mean()
    zero = 0.5 if name == "least-squares" else 0.0
    return ((real > zero).float().mean() + (made < zero).float().mean()) / 2
