"""A mixture of round Gaussians whose parameters are known: what made-up data are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RoundMixture:
    """p(x) = sum_k ``shares``_k N(x; ``centres``_k, ``deviation``^2 I); ``centres`` (modes, d)."""

    centres: Tensor
    deviation: float
    shares: Tensor

    @classmethod
    def equal(cls, centres: Tensor, deviation: float) -> RoundMixture:
        """All centres with the same share."""
        count = len(centres)
        return cls(centres.double(), deviation, torch.full((count,), 1 / count).double())

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` draws (count, d), float32."""
        which = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        noise = torch.randn((count, self.centres.shape[1]), generator=generator)
        return self.centres[which].float() + self.deviation * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of rows (n, d), nats, float64."""
        away = (x.double()[:, None] - self.centres) / self.deviation
        constant = self.centres.shape[1] * math.log(self.deviation * math.sqrt(2 * math.pi))
        return torch.logsumexp(self.shares.log() - away.square().sum(2) / 2, dim=1) - constant

    def share_within(self, reach: float) -> float:
        """P(chi_d <= ``reach``): of draws, those within so many deviations of their own centre."""
        half = torch.tensor(self.centres.shape[1] / 2, dtype=torch.float64)
        return float(torch.special.gammainc(half, torch.tensor(reach**2 / 2, dtype=torch.float64)))
