"""Gaussian diffusion: schedules, the forward process, its posterior, and conversions; no networks.

Notation of Ho et al. 2020: beta_t is the variance added in step t = 1..T, alpha_t = 1 - beta_t, and
alpha_bar_t their product, with alpha_bar_0 = 1. Data live in [-1, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "x0", "v"]


def linear_betas(steps: int) -> Tensor:
    """1e-4 to 0.02 for T = 1000 (Ho et al. 2020, sec. 4), scaled to keep alpha_bar_T for other T."""
    scale = 1000 / steps
    return torch.linspace(1e-4 * scale, 0.02 * scale, steps, dtype=torch.float64).clamp(max=0.999)


def cosine_betas(steps: int, offset: float = 0.008) -> Tensor:
    """alpha_bar_t = f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) pi / 2) (Nichol & Dhariwal, 17)."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    f = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


@dataclass(frozen=True)
class Posterior:
    """A Gaussian over x_s: its mean, and its standard deviation (broadcastable)."""

    mean: Tensor
    deviation: Tensor


class Diffusion:
    """The forward process of one schedule; t is a tensor of whole numbers 0..T, one a row."""

    def __init__(self, schedule: str, steps: int) -> None:
        betas = SCHEDULES[schedule](steps)
        self.steps = steps
        self.alpha_bar = torch.cat(
            [torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)]
        )

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped to multiply rows of ``like``."""
        chosen = self.alpha_bar.to(t.device)[t].reshape(-1, *[1] * (like.ndim - 1))
        return chosen.sqrt().to(like.dtype), (1 - chosen).sqrt().to(like.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha_bar_t / (1 - alpha_bar_t)), shape of ``t``; for t >= 1."""
        chosen = self.alpha_bar.to(t.device)[t]
        return torch.log(chosen) - torch.log1p(-chosen)

    def noised(self, x0: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """x_t given x_0 and the noise (Ho et al. 2020, eq. 4)."""
        signal, spread = self.scales(t, x0)
        return signal * x0 + spread * epsilon

    def target(self, x0: Tensor, epsilon: Tensor, t: Tensor, kind: Prediction) -> Tensor:
        """What a network of that kind should predict; v = sqrt(abar) eps - sqrt(1 - abar) x_0."""
        signal, spread = self.scales(t, x0)
        return {"epsilon": epsilon, "x0": x0, "v": signal * epsilon - spread * x0}[kind]

    def origin(self, x_t: Tensor, told: Tensor, t: Tensor, kind: Prediction) -> Tensor:
        """x_0 as the network's prediction implies it."""
        signal, spread = self.scales(t, x_t)
        if kind == "epsilon":
            return (x_t - spread * told) / signal
        return told if kind == "x0" else signal * x_t - spread * told

    def between(self, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, eta: float) -> Posterior:
        """x_s, s < t, from x_t and x_0 (Song et al. 2021, eq. 12 and 16).

        eta = 1 is the posterior q(x_s | x_t, x_0) (Ho et al. 2020, eq. 7 for s = t - 1), eta = 0 is
        deterministic.
        """
        bar = self.alpha_bar.to(t.device)
        shape = (-1, *[1] * (x_t.ndim - 1))
        bar_t, bar_s = bar[t].reshape(shape), bar[s].reshape(shape)
        variance = eta**2 * (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
        epsilon = (x_t - bar_t.sqrt().to(x_t.dtype) * x0) / (1 - bar_t).sqrt().to(x_t.dtype)
        direction = (1 - bar_s - variance).clamp(min=0).sqrt().to(x_t.dtype)
        mean = bar_s.sqrt().to(x_t.dtype) * x0 + direction * epsilon
        return Posterior(mean, variance.sqrt().to(x_t.dtype))

    def posterior_mean_gap(self, t: Tensor) -> Tensor:
        """w_t with KL(q(x_{t-1}|x_t,x_0) || same with x0') = w_t |x_0 - x0'|^2, for t >= 2.

        Equal variances leave the means' distance (Ho et al. 2020, eq. 8), half the difference of the
        signal-to-noise ratios (Kingma et al. 2021, eq. 14).
        """
        bar = self.alpha_bar.to(t.device)
        return 0.5 * (bar[t - 1] / (1 - bar[t - 1]) - bar[t] / (1 - bar[t]))


def discretised_gaussian_log_prob(
    x: Tensor, mean: Tensor, deviation: Tensor, levels: int
) -> Tensor:
    """log mass of N(mean, deviation^2) in the cell of x, integers 0..levels-1 (Ho et al. 2020, eq. 13).

    The first and the last cell reach to infinity, so that the masses sum to one.
    """
    half = 1 / (levels - 1)
    centre = x.to(mean.dtype) * (2 * half) - 1
    upper, lower = (centre + half - mean) / deviation, (centre - half - mean) / deviation
    # In the upper tail, mirror both ends: there log_ndtr loses no digits.
    flip = lower > 0
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    top = torch.where(
        flip & (x == 0) | ~flip & (x == levels - 1), 0.0, torch.special.log_ndtr(upper)
    )
    open_below = flip & (x == levels - 1) | ~flip & (x == 0)
    low = torch.where(open_below, -torch.inf, torch.special.log_ndtr(lower))
    return top + torch.log1p(-torch.exp((low - top).clamp(max=-1e-12)))


def level_mean(y: Tensor, deviation: Tensor, levels: int) -> Tensor:
    """E[x | y] for y = x + N(0, deviation^2), x on the grid of ``levels`` values in [-1, 1].

    Of the two levels around y, equally likely beforehand; good while the noise is small against the
    grid, where the level can be read off y and no network is needed.
    """
    cell = 2 / (levels - 1)
    below = ((y + 1) / cell).floor().clamp(0, levels - 2)
    middle = (below + 0.5) * cell - 1
    share = torch.sigmoid(cell * (y - middle) / deviation.square())
    return (below + share) * cell - 1
