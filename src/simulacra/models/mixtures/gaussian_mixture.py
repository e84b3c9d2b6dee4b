"""Gaussian mixture: every datum comes from one of K normal distributions, fitted by EM.

p(z) = sum_k pi_k N(z; mu_k, Sigma_k), with full, diagonal or one tied covariance. Start: k-means++
(Arthur & Vassilvitskii 2007) and Lloyd's iterations on a random subset. Then EM (Dempster, Laird &
Rubin 1977) over all data (Bishop 2006, eq. 9.23 to 9.27):

    r_nk = pi_k N(z_n; mu_k, Sigma_k) / sum_j pi_j N(z_n; mu_j, Sigma_j),    N_k = sum_n r_nk,
    mu_k = sum_n r_nk z_n / N_k,    S_k = sum_n r_nk (z_n - mu_k)(z_n - mu_k)^T,    Sigma_k = S_k / N_k.

Data enter by the door of ``layers/row_door.py``; images and
categories are dequantised, which gives a lower bound. The
noise u is the same in every sweep, so that EM climbs. Changed besides: ``ridge`` is added to every
Sigma_k, and it is shrunk towards the tied one, Sigma = sum_k S_k / N, as in regularised discriminant
analysis (Friedman 1989):

    Sigma_k = (S_k + shrinkage Sigma) / (N_k + shrinkage) + ridge I.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Completer, Density, Diagnosable, Kind, Sampler
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.front_door import as_device
from simulacra.layers.gaussians import NEGLIGIBLE, Covariance, Gaussians, Moments
from simulacra.layers.row_door import Front, RowDoor
from simulacra.probability.bounds import importance_weighted
from simulacra.probability.clustering import RandomSubset, k_means
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import BatchNoise, Noise, row_noise, scoring_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Table, Vectors


@dataclass(frozen=True)
class Config:
    """``shrinkage`` is in data, ``ridge`` in variances of the data, ``tolerance`` in nats a datum.

    ``front`` is the front door of images. Where noise u enters, ``draws`` are those that EM takes for
    each datum, and ``importance_samples`` those that ``log_prob`` averages p(x + u) over.
    ``prior_weight``: how many data the uniform prior of one pixel's or category's frequencies counts
    as. ``subset`` is the largest number of data that the k-means start looks at."""

    components: int = 10
    covariance: Covariance = "full"
    front: Front = "quantile"
    draws: int = 1
    importance_samples: int = 1
    prior_weight: float = 0.5
    shrinkage: float = 0.0
    ridge: float = 1e-6
    tolerance: float = 1e-3
    rounds: int = 100
    subset: int = 20_000
    batch_size: int = 4000


class GaussianMixture(nn.Module, Sampler, Density, Completer, Diagnosable):
    """K Gaussians and their weights, log pi_k."""

    representative: ClassVar = True
    spaces: ClassVar = (Images, Vectors, Table)
    conditions: ClassVar = ()
    log_weights: Tensor
    reached: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        self.door = RowDoor(space, config.front)
        self.gaussians = Gaussians(config.components, self.door.size, config.covariance)
        uniform = torch.full((config.components,), -math.log(config.components))
        self.register_buffer("log_weights", uniform)
        self.register_buffer("reached", torch.tensor(torch.finfo(torch.float32).min))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Full covariances, one for about 70 data, shrunk by as many data as there are dimensions."""
        return Config(
            components=min(max(num_examples // 70, 1), 60),
            draws=min(max(12_000 // max(num_examples, 1), 1), 8),
            shrinkage=float(min(space.dimensions, 200)),
            importance_samples=10 if isinstance(space, Table) else 1,
        )

    @classmethod
    def toy(cls) -> GaussianMixture:
        return cls(Vectors(2), Config(components=3, tolerance=0.0, batch_size=64))

    @property
    def kind(self) -> Kind:
        return Kind.LOWER if self.door.bounds else Kind.EXACT

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.log_weights.device)
        which = categorical_draw(self.log_weights.expand(num_samples, -1), noise.uniform())
        return self.door.leave(self.gaussians.draw(which, noise.normal(self.door.size)))

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x), where noise enters a bound by ``importance_samples`` draws of it."""
        noise = scoring_noise(len(x), generator, self.log_weights.device)
        values = []
        for _ in range(self.config.importance_samples if self.door.bounds else 1):
            z, slope = self.door.enter(x, noise)
            values.append(torch.logsumexp(self._log_joint(z), dim=1) + slope)
        return importance_weighted(torch.stack(values, dim=1))

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The exact conditional distribution of the rest, given the known (dequantised) entries."""
        noise = row_noise(len(x), generator, self.log_weights.device)
        x, known = as_device(x, self), as_device(known, self)
        masks = self.door.known(x, known)
        # What stands at the unknown places must not matter, even where it is no number.
        z = torch.where(masks, self.door.enter(torch.where(known, x, 0), noise)[0], 0)
        uniform, normal = noise.uniform(), noise.normal(z.shape[1])
        z = self.gaussians.complete(z, masks, self.log_weights.expand(len(z), -1), uniform, normal)
        return torch.where(known, x, self.door.leave(z))

    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        free = len(self.log_weights) - 1 + self.gaussians.free_parameters
        return {"free parameters": float(free + self.door.free_parameters)}

    def _log_joint(self, z: Tensor) -> Tensor:
        """log pi_k + log N(z; mu_k, Sigma_k), shape (n, K)."""
        return self.log_weights + self.gaussians.log_density(z)

    @torch.no_grad()
    def start(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The front door from all data; means and covariances from k-means on a random subset."""
        seed = int(noise.uniform()[0].double() * 2**24)
        looked_at = RandomSubset(self.config.subset, torch.Generator().manual_seed(seed))
        self.door.fit((batch.x for batch in batches), looked_at, self.config.prior_weight)
        subset = looked_at.rows()
        if len(subset) < self.config.components:
            raise Refusal(
                "DATA-050",
                f"{len(subset)} data cannot fill {self.config.components} components",
                way_out="set fewer components, or give more data",
            )
        z, _ = self.door.enter(
            subset, BatchNoise(torch.Generator().manual_seed(0), len(subset), subset.device)
        )
        labels = k_means(z, self.config.components, seed)
        moments = self.gaussians.no_moments()
        moments.add(z, nn.functional.one_hot(labels, self.config.components))
        self._maximise(moments)
        self.reached.fill_(torch.finfo(torch.float32).min)
        return {"data looked at": float(len(z))}

    @torch.no_grad()
    def expect_maximise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """One step of EM; tells the log-likelihood (or its bound) before it, in nats a datum."""
        moments, total = self.gaussians.no_moments(), 0.0
        stream = torch.Generator().manual_seed(0)  # the same u in every sweep
        draws = self.config.draws if self.door.bounds else 1
        for batch in batches:
            for _ in range(draws):
                fresh = BatchNoise(stream, len(batch), self.log_weights.device)
                z, slope = self.door.enter(batch.x, fresh)
                log_joint = self._log_joint(z)
                log_prob = torch.logsumexp(log_joint, dim=1)
                total += float((log_prob.double() + slope).sum()) / draws
                moments.add(z, (log_joint - log_prob.unsqueeze(1)).exp() / draws)
        log_likelihood = total / float(moments.counts.sum())
        gain = log_likelihood - float(self.reached)
        self.reached.fill_(log_likelihood)
        self._maximise(moments)
        finished = float(gain < self.config.tolerance)
        return {"log-likelihood (nats)": log_likelihood, "finished": finished}

    def _maximise(self, moments: Moments) -> None:
        """The M step (Bishop 2006, eq. 9.24 to 9.27), with shrinkage and ridge."""
        config = self.config
        self.gaussians.maximise(moments, shrinkage=config.shrinkage, ridge=config.ridge)
        self.log_weights.copy_(((moments.counts + NEGLIGIBLE) / moments.counts.sum()).log())

    def game(self) -> Game:
        config = self.config
        begin = Stage([Rewrite("start", self.start, sweep=True)], rounds=1)
        climb = Stage([Rewrite("EM", self.expect_maximise, sweep=True)], rounds=config.rounds)
        return Game([begin, climb], batch_size=config.batch_size)
