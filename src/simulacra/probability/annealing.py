"""Annealed importance sampling: log Z from both sides, for densities known up to that constant.

Between a start p_0 that can be drawn from, whose Z_0 is known, and the p_1 = p*_1 / Z_1 in question lie
p*_beta, 0 = beta_0 < … < beta_K = 1. A chain goes up, x_0 ~ p_0, x_k ~ T_beta_k(. | x_{k-1}), and

    w = prod_k p*_beta_k(x_{k-1}) / p*_beta_{k-1}(x_{k-1}),    E w = Z_1 / Z_0          (Neal 2001),

so log(Z_0 mean w) lies below log Z_1 on average (Jensen), and a likelihood made with it flatters. From an
exact draw of p_1 the same chain goes down, and E 1/w = Z_0 / Z_1 bounds log Z_1 from above (bidirectional
Monte Carlo: Grosse, Ghahramani & Adams 2015). Where both agree, both are right; where draws of p_1 are
only a chain's, the upper side is as good as that chain.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from simulacra.probability.noise import Noise

SHARPNESS = 4.0


class Path(Protocol):
    """What annealing needs of a model; see ``contract.Annealed``."""

    @property
    def start_log_partition(self) -> Tensor: ...

    def start(self, noise: Noise) -> Tensor: ...

    def step(self, x: Tensor, beta: Tensor, noise: Noise) -> Tensor: ...

    def log_annealed(self, x: Tensor, betas: Tensor) -> Tensor: ...


def sigmoid_betas(steps: int) -> Tensor:
    """beta_0 = 0 to beta_K = 1, K = ``steps``, closest at the ends (Grosse et al. 2015)."""
    rise = torch.sigmoid(SHARPNESS * torch.linspace(-1, 1, steps + 1, dtype=torch.float64))
    betas: Tensor = (rise - rise[0]) / (rise[-1] - rise[0])
    return betas


@torch.no_grad()
def anneal_up(path: Path, noise: Noise, betas: Tensor) -> tuple[Tensor, Tensor]:
    """log Z_0 + log w of a chain for each row of ``noise``, shape (rows,), float64, and where it ends."""
    x = path.start(noise)
    log_weights = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for before, after in itertools.pairwise(betas):
        log_weights += _rise(path, x, before, after)
        x = path.step(x, after, noise)
    return path.start_log_partition.double() + log_weights, x


@torch.no_grad()
def anneal_down(path: Path, x: Tensor, noise: Noise, betas: Tensor) -> Tensor:
    """log Z_0 + log w of the chains that go down from draws ``x`` of p_1, shape (rows,), float64."""
    log_weights = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for after, before in itertools.pairwise(betas.flip(0)):
        x = path.step(x, after, noise)
        log_weights += _rise(path, x, before, after)
    return path.start_log_partition.double() + log_weights


def anneal_both_ways(
    path: Path, x: Tensor, noise: Noise, *, steps: int, settling: int
) -> tuple[Tensor, Tensor]:
    """Log weights of chains up from the start, and down from ``x`` after ``settling`` moves of it, each
    shape (rows,): what a ``Partition`` is made of."""
    betas = sigmoid_betas(steps)
    upward = anneal_up(path, noise, betas)[0]
    for _ in range(settling):
        x = path.step(x, betas[-1], noise)
    return upward, anneal_down(path, x, noise, betas)


def _rise(path: Path, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """log p*_after(x) - log p*_before(x), shape (n,), float64."""
    lower, upper = (
        path.log_annealed(x, torch.stack([before, after]).to(x.device)).double().unbind(1)
    )
    return upper - lower


@dataclass(frozen=True)
class Partition:
    """What chains along ``steps`` temperatures say of log Z, in nats: each row one chain's estimate.

    ``upward``: log Z_0 + log w of the chains from the start, shape (chains,); ``downward``: of those from
    draws of the model itself, shape (chains,).
    """

    upward: Tensor
    downward: Tensor
    steps: int

    @property
    def log_partition(self) -> float:
        """log Z from the chains that go up: low on average."""
        return _log_mean_exp(self.upward)

    @property
    def from_above(self) -> float:
        """log Z from the chains that go down: high on average, as far as they start from the model."""
        return -_log_mean_exp(-self.downward)

    @property
    def gap(self) -> float:
        """How far the two sides lie apart."""
        return self.from_above - self.log_partition

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / sum w^2 of the chains that go up (Kong 1992)."""
        return _effective(self.upward)

    @property
    def standard_error(self) -> float:
        """Of ``log_partition``: sd(w) / (mean(w) sqrt(chains)), by the delta method."""
        return _standard_error(self.upward)

    @property
    def gap_error(self) -> float:
        """The standard error of ``gap``."""
        return math.hypot(_standard_error(self.upward), _standard_error(-self.downward))

    def text(self) -> str:
        """Half a sentence on how log Z was made."""
        return (
            f"log Z by annealed importance sampling, {len(self.upward):,} chains of {self.steps:,} "
            f"temperatures, effective sample size {self.effective_sample_size:.3g}"
        )

    def numbers(self) -> dict[str, float]:
        """What a ledger says of it."""
        return {
            "log Z (nats)": self.log_partition,
            "standard error (nats)": self.standard_error,
            "reverse over forward (nats)": self.gap,
        }


def _log_mean_exp(values: Tensor) -> float:
    return float(torch.logsumexp(values.double(), 0)) - math.log(len(values))


def _effective(log_weights: Tensor) -> float:
    share = torch.softmax(log_weights.double(), 0)
    return float(1 / share.square().sum())


def _standard_error(log_weights: Tensor) -> float:
    """sqrt(var(w) / n) / mean(w), from n / ESS = 1 + var(w) / mean(w)^2."""
    count = len(log_weights)
    if count < 2:
        return math.inf
    spread = max(count / _effective(log_weights) - 1, 0.0)
    return math.sqrt(spread / (count - 1))
