"""Filling in what is missing under a latent variable model, by a chain over codes and entries.

Taking z ~ q(z|x) and then x_missing ~ p(x_missing|z), over and over, leads near p(x_missing|x_known)
where q is good (pseudo-Gibbs: Rezende et al. 2014, app. F). Accepting z only with probability

    min(1, w(x, z') / w(x, z)),    w(x, z) = p(x|z) p(z) / q(z|x),

leaves the joint p(z, x_missing|x_known) as it is, whatever q (Metropolis within Gibbs: Mattei & Frellsen
2018, Alg. 2), where q reaches wherever p does. The first half of the rounds take every z, which travels
faster; the rest are the chain. It converges with the rounds: after any number of them it is approximate.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from simulacra.probability.noise import Noise


class Joint(Protocol):
    """What the chain needs of a model; codes z are (n, latent), entries of x independent given z."""

    def propose(self, x: Tensor, noise: Noise) -> Tensor:
        """z ~ q(z|x)."""
        ...

    def log_weight(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z) + log p(z) - log q(z|x), shape (n,)."""
        ...

    def emit(self, z: Tensor, noise: Noise) -> Tensor:
        """x ~ p(x|z)."""
        ...


@torch.no_grad()
def completed(
    joint: Joint, x: Tensor, known: Tensor, begin: Tensor, noise: Noise, rounds: int
) -> Tensor:
    """``x`` with the entries that are not known drawn anew; ``begin`` (n, latent) are draws of p(z)."""
    z = begin
    filled = torch.where(known, x, joint.emit(z, noise))
    for index in range(rounds):
        other, chance = joint.propose(filled, noise), noise.uniform()
        if index >= rounds // 2:
            rise = joint.log_weight(filled, other) - joint.log_weight(filled, z)
            other = torch.where((chance.log() < rise).unsqueeze(1), other, z)
        z = other
        filled = torch.where(known, x, joint.emit(z, noise))
    return filled
