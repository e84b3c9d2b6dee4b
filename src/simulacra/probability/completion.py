"""Filling in what is missing under a latent variable model, by a chain over codes.

The entries of x are independent given z, so what is missing leaves p(z|x_known) by itself:

    p(z|x_known) ~ p(z) prod_known p(x_i|z),    x_missing ~ p(x_missing|z).

A chain in z starts at one of ``STARTS`` draws of p(z), chosen by p(x_known|z) (sampling importance
resampling: Rubin 1987), and goes uphill with noise, z' = z + s^2/2 grad log p(z|x_known) + s u, taking a
step with the probability that leaves p(z|x_known) as it is (Metropolis-adjusted Langevin: Roberts &
Tweedie 1996). Each row finds the s at which ``TAKEN`` of its steps are taken (Roberts & Rosenthal 1998),
ever more slowly. It converges with the rounds: after any number of them it is approximate. An encoder has
no part in it: what one says of half a datum is worth little.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import Noise

STARTS = 16
TAKEN = 0.574


class Joint(Protocol):
    """What the chain needs of a model, given what is known of each row; codes z are (n, latent)."""

    def begin(self, noise: Noise) -> Tensor:
        """z ~ p(z)."""
        ...

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z) with gradients, shape (n,)."""
        ...

    def log_likelihood(self, z: Tensor) -> Tensor:
        """log p(x_known|z) with gradients, shape (n,)."""
        ...

    def emit(self, z: Tensor, noise: Noise) -> Tensor:
        """x ~ p(x|z)."""
        ...


@torch.no_grad()
def completed(joint: Joint, x: Tensor, known: Tensor, noise: Noise, rounds: int) -> Tensor:
    """``x`` with the entries that are not known drawn anew."""
    z = _start(joint, noise)
    height, slope = _climb(joint, z)
    log_size = torch.zeros_like(height)
    for index in range(rounds):
        size = log_size.exp().unsqueeze(1)
        u = noise.normal(z.shape[1]).to(z)
        other = z + size.square() / 2 * slope + size * u
        above, uphill = _climb(joint, other)
        back = (z - other - size.square() / 2 * uphill) / size
        rise = above - height + 0.5 * (u.square() - back.square()).sum(1)
        # Far out a height may not be a number, and such a step is not taken.
        rise = rise.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        taken = noise.uniform().to(z).log() < rise
        z, slope = (
            torch.where(taken.unsqueeze(1), new, old) for new, old in ((other, z), (uphill, slope))
        )
        height = torch.where(taken, above, height)
        log_size += (rise.exp().clamp(max=1) - TAKEN) / (1 + index) ** 0.5
    return torch.where(known, x, joint.emit(z, noise))


def _start(joint: Joint, noise: Noise) -> Tensor:
    """One of several draws of p(z) for each row, chosen by p(x_known|z)."""
    draws = torch.stack([joint.begin(noise) for _ in range(STARTS)])
    fits = torch.stack([joint.log_likelihood(z) for z in draws], dim=1)
    which = categorical_draw(fits.nan_to_num(-torch.inf), noise.uniform().to(fits))
    return draws[which, torch.arange(len(which), device=which.device)]


def _climb(joint: Joint, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x_known, z) and its slope in z."""
    with torch.enable_grad():
        here = z.detach().requires_grad_()
        height = joint.log_likelihood(here) + joint.log_prior(here)
        (slope,) = torch.autograd.grad(height.sum(), here)
    return height.detach(), slope
