"""Weight averages of any length, after the training: post-hoc EMA (Karras et al. 2024, sec. 3, app. C).

An average whose weight a round is 1 - 0.5^(fresh / (half-life * examples)), of so many examples in fresh
batches, is a power function of time,

    theta_hat_gamma(t) = integral of p_gamma(tau, t) theta(tau) d tau,  0 to t,
    p_gamma(tau, t) = (gamma + 1) tau^gamma / t^(gamma + 1)             (their eq. 121),

with gamma + 1 = ln 2 / half-life. Two averages are kept as snapshots (i) at several times. One of another
gamma_r at t_r is sum_i x_i theta_hat_i, where x makes the difference of the profiles least,

    || p_r - sum_i x_i p_i ||^2,  so that  A x = b,  A_ij = <p_i, p_j>,  b_i = <p_i, p_r>   (algorithm 3),

with inner products in closed form. For t_a <= t_b (eq. 151)

    <p_a, p_b> = (gamma_a + 1)(gamma_b + 1) / (gamma_a + gamma_b + 1) * t_a^gamma_b / t_b^(gamma_b + 1).

Changed: the x_i sum to one, so that weights which stand still come out as they are (their code divides
by the sum afterwards). And time is exp(age), where each round adds fresh / examples to the age: so a
round's weight is 1 - 0.5^(what it adds / half-life) exactly, from the first round on, whatever a sweep,
which counts as one batch, adds to the examples. Else, and but for the first rounds, exp(age) and the
examples are proportional.

T. Karras, M. Aittala, J. Lehtinen, J. Hellsten, T. Aila, S. Laine. Analyzing and Improving the Training
Dynamics of Diffusion Models. CVPR 2024.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LONGER = 2.5
"""How much longer the second average is: about what the paper's 0.10 is to its 0.05."""
LONGEST = 0.5
"""A second half-life beyond this would hardly leave the start of the training."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """What an average gives weight to: its half-life as a share of the examples, and its age."""

    half_life: float
    age: float

    @property
    def gamma(self) -> float:
        return math.log(2) / self.half_life - 1


def inner_products(one: Sequence[Profile], other: Sequence[Profile], *, now: float) -> Floats:
    """<p_a, p_b> for every a of ``one`` and b of ``other``, with time in units of exp(``now``)."""
    a, b = np.meshgrid(np.arange(len(one)), np.arange(len(other)), indexing="ij")
    gammas = (_numbers(p.gamma for p in one)[a], _numbers(p.gamma for p in other)[b])
    ages = (_numbers(p.age - now for p in one)[a], _numbers(p.age - now for p in other)[b])
    first, last = np.minimum(*ages), np.maximum(*ages)
    later = np.where(ages[0] <= ages[1], gammas[1], gammas[0])
    scale = (gammas[0] + 1) * (gammas[1] + 1) / (gammas[0] + gammas[1] + 1)
    found: Floats = scale * np.exp(later * first - (later + 1) * last)
    return found


def fit(kept: Sequence[Profile], wanted: Profile) -> tuple[Floats, float]:
    """The x_i that make ``wanted`` out of ``kept``, and || p_r - sum_i x_i p_i || / || p_r ||."""
    a = inner_products(kept, kept, now=wanted.age)
    b = inner_products(kept, [wanted], now=wanted.age)[:, 0]
    own = float(inner_products([wanted], [wanted], now=wanted.age)[0, 0])
    # Profiles of length one, and a last row for the sum (a Lagrange multiplier).
    norms = np.sqrt(np.diag(a))
    count = len(kept)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = a / np.outer(norms, norms)
    system[:count, count] = system[count, :count] = 1 / norms
    solved = np.linalg.lstsq(system, np.append(b / norms, 1.0), rcond=None)[0]
    x: Floats = solved[:count] / norms
    left = own - 2 * float(x @ b) + float(x @ a @ x)
    return x, math.sqrt(max(left, 0.0) / own)


def _numbers(values: Any) -> Floats:
    return np.fromiter(values, dtype=np.float64)


def second_half_life(first: float) -> float:
    """The half-life of the average that is kept beside one of half-life ``first``."""
    return first * LONGER if first * LONGER <= LONGEST else first / LONGER


@dataclass
class SecondAverage:
    """The average that a play keeps beside its own, and the age of both.

    ``since``: the age at which an entry was last written rather than learnt. An average from before
    knows nothing of what was written, so that it is of no use for this entry.
    """

    weights: dict[str, Tensor]
    half_life: float
    age: float = 0.0
    since: dict[str, float] = field(default_factory=dict)

    def follow(self, now: Mapping[str, Tensor], share: float) -> None:
        """Go on by a round of ``share`` = fresh / examples."""
        self.age += share
        weight = 1 - 0.5 ** (share / self.half_life)
        torch._foreach_lerp_(list(self.weights.values()), [now[n] for n in self.weights], weight)

    def write(self, name: str, value: Tensor) -> None:
        """Stand at ``value``, as if it had always been."""
        self.weights[name].copy_(value)
        self.since[name] = self.age

    def plain(self) -> dict[str, Any]:
        """All but the tensors."""
        return {"half_life": self.half_life, "age": self.age, "since": dict(self.since)}
