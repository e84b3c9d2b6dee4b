"""The likelihood of the probability flow: a denoiser as a continuous normalising flow.

The equation of ``probability/samplers.py`` in u = log sigma, dy/du = y - x_0(y, sigma), carries a density
along (Song et al. 2021, eq. 13 and 39):

    log p_low(y) = log p_high(y(high)) + int_low^high (D - tr dx_0/dy) du,

D the dimensions, p_high a Gaussian. It is solved by Heun's method in steps even in u, as many for every
row, so that a row's number is its own; an error in each step of order h^3 leaves one of order h^2, and
what half the steps say differs by about three times the error. The trace is exact, by one derivative a
dimension, or estimated with one probe of signs a row, v^T (dx_0/dy) v (Hutchinson; Song et al., app.
D.2).

For elements of a grid the flow ends at a noise so weak that levels can be read, z = x + low n, and

    log P(x) >= E log p_low(z) + log P(x | z) - log q(z | x),

with equality as reading becomes sure. Numbers are estimates: no direction is promised once the
equation is solved in steps.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from simulacra.probability.diffusion import levels_log_prob, readable_sigma
from simulacra.probability.noise import Noise
from simulacra.probability.samplers import Denoiser, Level

EXACT = 64
"""So many dimensions at most have their trace taken exactly."""


def flow_log_prob(
    denoise: Denoiser, y: Tensor, low: float, high: float, steps: int, noise: Noise
) -> Tensor:
    """log p_low(y) in nats, (n,), of the density that the flow carries from sigma high to low."""
    probe = None
    if y[0].numel() > EXACT:
        probe = torch.where(noise.uniform(*y.shape[1:]) < 0.5, -1.0, 1.0).to(y)
    walk = torch.linspace(math.log(low), math.log(high), steps + 1, dtype=torch.float64).exp()
    change = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for sigma, following in itertools.pairwise(walk.tolist()):
        step = math.log(following / sigma)
        slope, growth = _slopes(denoise, y, sigma, probe)
        ahead, later = _slopes(denoise, y + step * slope, following, probe)
        y = y + 0.5 * step * (slope + ahead)
        change = change + 0.5 * step * (growth + later)
    end = Level.preserving(high)
    normal = -0.5 * ((end.signal * y) ** 2 + math.log(2 * math.pi)) + math.log(end.signal)
    return normal.flatten(1).sum(1) + change


def _slopes(
    denoise: Denoiser, y: Tensor, sigma: float, probe: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dy/du, and its divergence (n,)."""
    level = Level.preserving(sigma)
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        x0 = denoise(y * level.signal, level).x0
        if probe is not None:
            (told,) = torch.autograd.grad((x0 * probe).sum(), y)
            trace = (told * probe).flatten(1).sum(1)
        else:
            trace = _trace(x0.flatten(1), y)
    return (y - x0).detach(), y[0].numel() - trace.detach()


def _trace(x0: Tensor, y: Tensor) -> Tensor:
    """tr dx_0/dy of each row, one derivative a dimension."""
    total = x0.new_zeros(len(x0))
    for index in range(x0.shape[1]):
        (row,) = torch.autograd.grad(x0[:, index].sum(), y, retain_graph=True)
        total = total + row.flatten(1)[:, index]
    return total


def grid_log_prob(
    denoise: Denoiser, x: Tensor, x0: Tensor, levels: int, high: float, steps: int, noise: Noise
) -> Tensor:
    """log P(x) in nats, (n,), from one draw of z; x integers, x0 the same in [-1, 1]."""
    low = readable_sigma(levels)
    fresh = noise.normal(*x0.shape[1:]).to(x0)
    z = x0 + low * fresh
    read = levels_log_prob(x, z, low, levels)
    log_q = -0.5 * (fresh.square() + math.log(2 * math.pi)) - math.log(low)
    density = flow_log_prob(denoise, z, low, high, steps, noise)
    return density + (read - log_q).flatten(1).sum(1)
