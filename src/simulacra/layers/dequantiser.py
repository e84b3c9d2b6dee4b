"""Noise that makes integers reals and is learned with the density it serves (Ho et al. 2019, sec. 3.1).

For integers x and u in (0, 1)^D, drawn from any q(u | x),

    log p(x) = log E_q[p(x + u) / q(u | x)] >= E_q[log p(x + u) - log q(u | x)]

Uniform noise has log q = 0, and asks a density for a box over every cell; where x is nearly certain, as
on a dark background, what a Gaussian pays for a box is 0.25 bits a dimension. Here u = sigmoid(m + s e)
with e standard normal, and m and s told for every entry by a residual network of x: such noise takes
whatever shape between a bell and a box costs least. The paper's q is a flow of several steps.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.coupling import ResidualNet, squeeze, unsqueeze
from simulacra.probability.noise import Noise
from simulacra.spaces import Images

Dequantisation = Literal["uniform", "variational"]

BOX = 1.7
"""The deviation of a logit that is nearly uniform after a sigmoid."""


class VariationalNoise(nn.Module):
    """x of ``space`` to x + u, and -log q(u | x)."""

    def __init__(self, space: Images, hidden: int = 32) -> None:
        super().__init__()
        self.levels = space.levels
        channels, height, width = space.shape
        self.squeezed = height % 2 == 0 and width % 2 == 0
        self.network = ResidualNet(channels * (4 if self.squeezed else 1), hidden, 1)

    def forward(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """x + u, shape of x, and -log q(u | x) in nats, shape (n,)."""
        dtype = self.network.last.weight.dtype
        e = noise.normal(*x.shape[1:]).to(dtype)
        mean, log_scale = self._told(x.to(dtype))
        logit = mean + log_scale.exp() * e
        log_q = -0.5 * e.square() - 0.5 * math.log(2 * math.pi) - log_scale
        # The slope of a sigmoid is sigmoid(v) sigmoid(-v).
        log_q = log_q + functional.softplus(logit) + functional.softplus(-logit)
        return x.to(dtype) + torch.sigmoid(logit), -log_q.flatten(1).sum(1)

    def _told(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centred = x * (2 / (self.levels - 1)) - 1
        told = self.network(squeeze(centred) if self.squeezed else centred, None).to(x.dtype)
        mean, raw = (unsqueeze(one) if self.squeezed else one for one in told.chunk(2, dim=1))
        return mean, math.log(BOX) + 2 * torch.tanh(raw / 2)
