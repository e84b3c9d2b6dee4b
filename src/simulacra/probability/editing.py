"""Filling in and varying given data by the walk of a Gaussian diffusion; no networks.

To fill in, every guess of x_0 has to heed what is known of it. Putting the known entries back, noised,
after every step (Song et al. 2021b, app. I.2) is not enough: the others hear of them through x_t only,
and too late. On two normals of correlation 0.95, one known to be one deviation out, the mean of the
other came 0.76 of its deviations off and its deviation 1.37 times too large, and walking back and forth
five times (Lugmayr et al. 2022) still left 0.11 at five times the price. If x_0 given x_t has the mean m
and the covariance C, by Tweedie's formula

    m = E[x_0 | x_t],    C = spread^2 / signal dm / dx_t,

and were it Gaussian, then with k the known entries

    E[x_0 | x_t, x_0k] = m + C_.k C_kk^-1 (x_0k - m_k)

(Finzi et al. 2023; Boys et al. 2024). A few conjugate gradients solve it, each of which takes C along one
direction, by one backward pass through the denoiser (Rozet et al. 2024, sec. 4.2). With this guess,
which has the known entries exactly, any sampler draws. On Gaussians there is no bias but that of its
steps; of separate peaks the shares come nearer to the truth (0.62 for 0.69, where putting back finds
0.51).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from simulacra.probability.noise import Noise
from simulacra.probability.samplers import Denoiser, Guess, Level
from simulacra.refusals import Refusal

ROUNDS = 3
"""Conjugate gradients of a guess: 2 to 5 fill in digits alike."""
RIDGE = 0.01
"""What is added to C_kk, as a share of what it would be for uncorrelated data of unit variance."""

Place = TypeVar("Place")


def conditioned(denoise: Denoiser, given: Tensor, known: Tensor) -> Denoiser:
    """The guess of x_0 at a level given x_t, and x_0 = ``given`` wherever ``known``, both like x."""

    def guess(x: Tensor, level: Level) -> Guess:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            told = denoise(x, level)

        def covariance(way: Tensor) -> Tensor:
            # C is symmetric, so a product from the left, which is one backward pass, will do.
            (moved,) = torch.autograd.grad(told.x0, x, way, retain_graph=True)
            return moved * (level.spread**2 / level.signal)

        x0 = told.x0.detach()
        if level.signal > 0:
            missed = torch.where(known, given - x0, 0.0)
            ridge = RIDGE * level.spread**2 / (level.spread**2 + level.signal**2)
            x0 = x0 + _regressed(covariance, missed, known, ridge)
        share = None if told.share is None else told.share.detach()
        return Guess(torch.where(known, given, x0), share)

    return guess


def _regressed(
    covariance: Callable[[Tensor], Tensor], missed: Tensor, known: Tensor, ridge: float
) -> Tensor:
    """C_.k (C_kk + ridge)^-1 ``missed``, nought at what is not known, by conjugate gradients."""
    told, left, way = torch.zeros_like(missed), missed, missed
    size = _product(left, left)
    for _ in range(ROUNDS):
        along = covariance(way)
        image = torch.where(known, along, 0.0) + ridge * way
        height = _product(way, image)
        # A network's C is not quite a covariance: a step that leads away from what is known is not taken.
        length = (size / height).nan_to_num()
        shorter = left - length * image
        fine = (_product(way, along) > 0) & (_product(shorter, shorter) < size)
        told = torch.where(fine, told + length * along, told)
        left = torch.where(fine, shorter, left)
        before, size = size, _product(left, left)
        way = left + (size / before).nan_to_num() * way
    return told


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Of each row with its fellow, shaped to multiply rows."""
    total = (one * other).flatten(1).sum(1)
    return total.reshape(-1, *[1] * (one.ndim - 1))


def remaining(path: Sequence[Place], share: float) -> Sequence[Place]:
    """The last ``share`` of a path's steps, and at least one: what variation has still to go."""
    if not 0 < share <= 1:
        reason = f"strength is {share:g}"
        raise Refusal("CFG-213", reason, way_out="above 0 (like the given) to 1 (like any other)")
    kept = max(1, round(share * (len(path) - 1)))
    return path[-kept - 1 :]


def noised(x: Tensor, level: Level, noise: Noise) -> Tensor:
    """Data x as they stand at a level, where their variation begins (Meng et al. 2022)."""
    return level.signal * x + level.spread * noise.normal(*x.shape[1:]).to(x)
