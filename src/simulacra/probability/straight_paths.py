"""Straight paths from noise to data, the ODE that has their distributions, and its density; no
networks.

A path is x_t = (1 - t) x_0 + t x_1, with x_0 ~ N(0, I), x_1 data and t in [0, 1] (Lipman et al. 2023,
eq. 22 with sigma_min = 0; Liu et al. 2023, eq. 1). The ODE dx/dt = v(x, t) with v = E[x_1 - x_0 | x_t]
has the same distribution as x_t at every t, so it turns noise into data, and (Chen et al. 2018, eq. 8)

    log p(x_1) = log N(x_0; 0, I) - int_0^1 div v(x_t, t) dt.

With S = t^2 + (1 - t)^2, the variance of x_t for data of unit variance, a network F of variance one
gives

    v = (2 t - 1) / S x_t + F / sqrt(S),    E[x_1 | x_t] = x_t + (1 - t) v = t / S x_t + (1 - t) /
    sqrt(S) F,

which is the preconditioning of Karras et al. 2022 (their eq. 7, sigma = (1 - t) / t, sigma_data = 1):
what F has to say is of the same size at all t, and at t = 1 the last is x_1 itself, whatever F says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from simulacra.probability.samplers import Denoiser, Guess, Level

Spacing = Literal["uniform", "cosine"]
Solver = Literal["euler", "midpoint", "heun", "rk4"]
Field = Callable[[Tensor, float], Tensor]
"""v(x, t): rows x (n, …) and one time to slopes (n, …)."""

NEAREST = 1e-4
"""The nearest to 0 and 1 that a network is told t to be."""
EVALUATIONS: dict[str, int] = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def log_snr(t: Tensor) -> Tensor:
    """log(t^2 / (1 - t)^2) of the path at t, finite at both ends; shape of ``t``."""
    t = t.clamp(NEAREST, 1 - NEAREST)
    return 2 * (t.log() - torch.log1p(-t))


def _spread_over(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def placed(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """x_t, for a t of each row, (n,)."""
    t = _spread_over(t, x1)
    return (1 - t) * x0 + t * x1


def cheapest(x0: Tensor, x1: Tensor) -> Tensor:
    """Which row of x0 goes to each of x1, at the least sum of squared distances."""
    cost = torch.cdist(x1.flatten(1).float(), x0.flatten(1).float()).square()
    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1], device=x0.device)


def scale(x: Tensor, t: Tensor) -> Tensor:
    """sqrt(S), the deviation of x_t, shaped to divide rows of ``x``."""
    t = _spread_over(t, x)
    return (t.square() + (1 - t).square()).sqrt()


def velocity(told: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """v at x_t, from what the network F told."""
    s, t = scale(x, t), _spread_over(t, x)
    return (2 * t - 1) / s.square() * x + told / s


def origin(told: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """E[x_1 | x_t], from what the network F told."""
    s, t = scale(x, t), _spread_over(t, x)
    return t / s.square() * x + (1 - t) / s * told


def spaced(place: Tensor, spacing: Spacing) -> Tensor:
    """Places in [0, 1] as times in [0, 1]: 'cosine' has more of them near both ends."""
    return place if spacing == "uniform" else (1 - torch.cos(math.pi * place)) / 2


def times(steps: int, spacing: Spacing = "uniform") -> list[float]:
    """0 = t_0 < … < t_steps = 1."""
    place = torch.arange(steps + 1, dtype=torch.float64) / steps
    return [float(t) for t in spaced(place, spacing)]


def level(t: float) -> Level:
    """The path at t as a Gaussian diffusion's noise level: signal t, spread 1 - t."""
    return Level(t, 1 - t)


def denoiser(field: Field) -> Denoiser:
    """E[x_1 | x_t] of a velocity, which walks of Gaussian diffusion call x_0."""
    return lambda x, at: Guess(x + at.spread * field(x, at.signal))


def solved(field: Field, x: Tensor, path: Sequence[float], solver: Solver) -> Tensor:
    """x carried along dx/dt = field(x, t) over the times of ``path``, forwards or backwards."""
    for now, following in itertools.pairwise(path):
        x = x + (following - now) * _slope(field, x, now, following, solver)
    return x


def _slope(field: Field, x: Tensor, now: float, following: float, solver: Solver) -> Tensor:
    """The slope of one step: of order 1 (Euler), 2 (midpoint, Heun) or 4 (Kutta 1901)."""
    step, half = following - now, (now + following) / 2
    first = field(x, now)
    if solver == "euler":
        return first
    if solver == "heun":
        return (first + field(x + step * first, following)) / 2
    second = field(x + step / 2 * first, half)
    if solver == "midpoint":
        return second
    third = field(x + step / 2 * second, half)
    last = field(x + step * third, following)
    return (first + 2 * second + 2 * third + last) / 6


def curvature(field: Field, x: Tensor, steps: int) -> float:
    """int E|(x_1 - x_0) - v(x_t, t)|^2 dt a dimension, along the ODE from the noise x (Liu et al. 2023,
    eq. 5)."""
    start, slopes = x, []
    for index in range(steps):
        slope = field(x, (index + 0.5) / steps)
        slopes.append(slope)
        x = x + slope / steps
    way = x - start
    return float(torch.stack([(way - slope).square().mean() for slope in slopes]).mean())


def divergence(slope: Tensor, x: Tensor, probe: Tensor | None) -> Tensor:
    """div of ``slope``, a function of ``x`` row by row, shape (n,).

    Without a probe exactly, one dimension after the other; with a probe v of mean 0 and variance 1 as
    v . (dslope/dx) v, which has that expectation (Hutchinson 1990).
    """
    if probe is not None:
        (moved,) = torch.autograd.grad((slope * probe).sum(), x)
        return (moved * probe).flatten(1).sum(1)
    flat, total = slope.flatten(1), x.new_zeros(len(x))
    for index in range(flat.shape[1]):
        (moved,) = torch.autograd.grad(flat[:, index].sum(), x, retain_graph=True)
        total = total + moved.flatten(1)[:, index]
    return total


def log_density(
    field: Field, x: Tensor, path: Sequence[float], solver: Solver, probe: Tensor | None
) -> Tensor:
    """log p(x) in nats, x standing at t = 1, shape (n,); ``path`` leads down from 1 to 0.

    The divergence is a further entry of the state, so that one solver carries both.
    """

    @torch.enable_grad()
    def both(state: Tensor, t: float) -> Tensor:
        here = state[:, :-1].reshape(x.shape).detach().requires_grad_()
        slope = field(here, t)
        grown = divergence(slope, here, probe)
        return torch.cat([slope.flatten(1), grown[:, None]], dim=1).detach()

    start = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
    end = solved(both, start, path, solver)
    noise, grown = end[:, :-1], end[:, -1]
    normal = 0.5 * (noise.square() + math.log(2 * math.pi)).sum(1)
    # Going down, the integral has been taken with its sign turned.
    return grown - normal
