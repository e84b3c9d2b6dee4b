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

from simulacra.probability.samplers import Level, Spacing, spaced

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


@dataclass(frozen=True, eq=False)
class Scales:
    """Noise levels of a batch's rows: ``signal`` and ``spread`` multiply them, ``log_snr`` is (n,)."""

    signal: Tensor
    spread: Tensor
    log_snr: Tensor

    @classmethod
    def of(cls, level: Level, like: Tensor) -> Scales:
        """One level for all rows of ``like``; it has noise."""
        one = like.new_ones(len(like))
        shaped = one.reshape(-1, *[1] * (like.ndim - 1))
        return cls(shaped * level.signal, shaped * level.spread, one * level.log_snr)

    @classmethod
    def preserving(cls, log_snr: Tensor, like: Tensor) -> Scales:
        """Variance-preserving, of log-SNR (n,): signal^2 = sigmoid(log-SNR)."""
        shaped = log_snr.double().reshape(-1, *[1] * (like.ndim - 1))
        signal, spread = shaped.sigmoid().sqrt(), (-shaped).sigmoid().sqrt()
        return cls(signal.to(like), spread.to(like), log_snr)

    def noised(self, x0: Tensor, epsilon: Tensor) -> Tensor:
        """x_t given x_0 and the noise (Ho et al. 2020, eq. 4)."""
        return self.signal * x0 + self.spread * epsilon

    def target(self, x0: Tensor, epsilon: Tensor, kind: Prediction) -> Tensor:
        """What a network of that kind should predict; v = signal eps - spread x_0."""
        if kind == "v":
            return self.signal * epsilon - self.spread * x0
        return epsilon if kind == "epsilon" else x0

    def origin(self, x_t: Tensor, told: Tensor, kind: Prediction) -> Tensor:
        """x_0 as the network's prediction implies it."""
        if kind == "epsilon":
            return (x_t - self.spread * told) / self.signal
        return told if kind == "x0" else self.signal * x_t - self.spread * told

    def legible(self, x_t: Tensor, x0: Tensor, levels: int) -> Tensor:
        """x_0 cut to the data's range; the nearest level where noise is too weak to hide it."""
        quarter_cell, sigma = 0.5 / (levels - 1), self.spread / self.signal
        weak = sigma < quarter_cell
        x0 = x0.clamp(-1, 1)
        if not bool(weak.any()):
            return x0
        return torch.where(weak, level_mean(x_t / self.signal, sigma, levels), x0)


TRACE = 0.0016
"""Of a variance of one, the data's at 0.8 T of the linear schedule."""


class Diffusion:
    """The forward process of one schedule; t is a tensor of whole numbers 0..T, one a row."""

    def __init__(self, schedule: str, steps: int) -> None:
        betas = SCHEDULES[schedule](steps)
        self.steps = steps
        self.alpha_bar = torch.cat(
            [torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas, 0)]
        )

    def level(self, t: int) -> Level:
        """The noise level of one t, 0 <= t <= T."""
        bar = float(self.alpha_bar[t])
        return Level(math.sqrt(bar), math.sqrt(1 - bar))

    def times(self, count: int, *, quadratic: bool = False) -> list[int]:
        """t_1 > t_2 > … > 0, ``count`` steps, evenly from T, or tau_i = c i^2 (Song et al. 2021, DDIM,
        app. D.2) from where noise drowns the data, 0.8 T of the linear schedule, as their code does."""
        top = self.drowned if quadratic else self.steps
        count, power = min(count, top), 2 if quadratic else 1
        left = range(count, -1, -1)
        # Where squares would meet, one after the other.
        return [max(index, round(top * (index / count) ** power)) for index in left]

    @property
    def drowned(self) -> int:
        """The first time at which no more than ``TRACE`` of the variance is the data's, or the last."""
        return min(int((self.alpha_bar > TRACE).sum()), self.steps)

    def path(self, count: int, spacing: Spacing) -> list[Level]:
        """From the noisiest level down to none, in ``count`` steps."""
        if spacing in ("time", "quadratic"):
            return [self.level(t) for t in self.times(count, quadratic=spacing == "quadratic")]
        return spaced(self.level(self.steps).sigma, self.level(1).sigma, count, spacing)

    def scales(self, t: Tensor, like: Tensor) -> Scales:
        """The levels of t (n,), t >= 1, shaped to multiply rows of ``like``."""
        bar = self.alpha_bar.to(t.device)[t]
        shaped = bar.reshape(-1, *[1] * (like.ndim - 1))
        log_snr = torch.log(bar) - torch.log1p(-bar)
        return Scales(shaped.sqrt().to(like), (1 - shaped).sqrt().to(like), log_snr)

    def variances(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """beta-tilde_t and beta_t, t (n,), of the step to t - 1, shaped to multiply rows of ``like``.

        beta-tilde_1 is nought, and beta-tilde_2 stands for it (Nichol & Dhariwal 2021, sec. 3.1).
        """
        bar = self.alpha_bar.to(t.device)
        beta, place = 1 - bar[t] / bar[t - 1], t.clamp(min=min(2, self.steps))
        narrow = (1 - bar[place - 1]) / (1 - bar[place]) * (1 - bar[place] / bar[place - 1])
        shape = (-1, *[1] * (like.ndim - 1))
        return narrow.reshape(shape).to(like), beta.reshape(shape).to(like)

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


def readable_sigma(levels: int) -> float:
    """So weak a noise that a step between two levels is eight deviations of it: a level can be read."""
    return 2 / (levels - 1) / 8


def levels_log_prob(x: Tensor, y: Tensor, deviation: float, levels: int) -> Tensor:
    """log p(x | y), y a level with noise of that deviation, all levels being as likely beforehand
    (Kingma et al. 2021, sec. 3.3); x integers 0..levels-1, both of one shape."""
    grid = torch.linspace(-1, 1, levels, dtype=y.dtype, device=y.device)
    logits = -0.5 * ((y.unsqueeze(-1) - grid) / deviation).square()
    told = torch.log_softmax(logits, dim=-1)
    return told.gather(-1, x.long().unsqueeze(-1)).squeeze(-1)


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
