"""Gaussian discriminant analysis: data have a class, and each class is one Gaussian.

    p(x, y) = p(y) N(x; mu_y, Sigma_y),        p(y | x) = p(x, y) / sum_y' p(x, y')

(Fisher 1936; Bishop 2006, sec. 4.2): one tied covariance makes the posterior's borders linear (LDA), one
for each class quadratic (QDA), and shrinkage goes from one to the other (Friedman 1989):

    Sigma_y = (S_y + shrinkage Sigma) / (N_y + shrinkage) + ridge I.

Fitted in closed form from moments, in one pass after the one that fits the front door of
``layers/row_door.py``; images are dequantised, which gives a lower bound. It learns labels where there
are any: sampling without a condition draws the class first, log p(x) without one sums over classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Diagnosable, Kind, Predictor, Sampler
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.front_door import as_device
from simulacra.layers.gaussians import Covariance, Gaussians
from simulacra.layers.row_door import Front, RowDoor
from simulacra.probability.clustering import RandomSubset
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import BatchNoise, Noise, row_noise, scoring_noise
from simulacra.spaces import Images, Labels, Space, Table, Vectors


@dataclass(frozen=True)
class Config:
    """``shrinkage`` is in data, ``ridge`` in variances of the data, ``front`` the front door of images,
    and ``prior_weight`` how many data uniform priors count as."""

    covariance: Covariance = "full"
    front: Front = "quantile"
    prior_weight: float = 1.0
    shrinkage: float = 0.0
    ridge: float = 1e-6
    batch_size: int = 4000


class Discriminant(nn.Module, Sampler, Density, Completer, Predictor, Diagnosable):
    """A class prior and a Gaussian for each class; one class where there are no labels."""

    supervised: ClassVar = True
    spaces: ClassVar = (Images, Vectors, Table)
    conditions: ClassVar = (Labels,)
    log_prior: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        classes = condition.count if condition else 1
        self.door = RowDoor(space, config.front)
        self.gaussians = Gaussians(classes, self.door.size, config.covariance)
        self.register_buffer("log_prior", torch.log_softmax(torch.zeros(classes), dim=0))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Quadratic, shrunk towards linear by as many data as there are dimensions."""
        return Config(shrinkage=float(min(space.dimensions, 200)))

    @classmethod
    def toy(cls) -> Discriminant:
        return cls(Vectors(2), Config(batch_size=64), condition=Labels(3))

    @property
    def kind(self) -> Kind:
        return Kind.LOWER if self.door.bounds else Kind.EXACT

    @property
    def target_space(self) -> Space:
        return self.condition_space or Labels(1)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.log_prior.device)
        drawn = categorical_draw(self.log_prior.expand(num_samples, -1), noise.uniform())
        which = drawn if condition is None else as_device(condition, self).long()
        return self.door.leave(self.gaussians.draw(which, noise.normal(self.door.size)))

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x | y) given y = ``condition``, else log p(x)."""
        z, slope = self.door.enter(x, scoring_noise(len(x), generator, self.log_prior.device))
        given = self.gaussians.log_density(z)
        if condition is None:
            return torch.logsumexp(given + torch.log_softmax(self.log_prior, 0), dim=1) + slope
        return given.gather(1, as_device(condition, self).long().unsqueeze(1))[:, 0] + slope

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
        noise = row_noise(len(x), generator, self.log_prior.device)
        x, known = as_device(x, self), as_device(known, self)
        masks = self.door.known(x, known)
        # What stands at the unknown places must not matter, even where it is no number.
        z = torch.where(masks, self.door.enter(torch.where(known, x, 0), noise)[0], 0)
        log_weights = self.log_prior.expand(len(z), -1)
        if condition is not None:
            own = functional.one_hot(as_device(condition, self).long(), len(self.log_prior))
            log_weights = torch.where(own.bool(), 0.0, -torch.inf)
        normal = noise.normal(z.shape[1])
        z = self.gaussians.complete(z, masks, log_weights, noise.uniform(), normal)
        return torch.where(known, x, self.door.leave(z))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        z, _ = self.door.enter(x, scoring_noise(len(x), None, self.log_prior.device))
        return torch.softmax(self.gaussians.log_density(z) + self.log_prior, dim=1)

    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        free = len(self.log_prior) - 1 + self.gaussians.free_parameters
        return {"free parameters": float(free + self.door.free_parameters)}

    @torch.no_grad()
    def look(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The front door, from all data."""
        nobody = RandomSubset(0, torch.Generator())
        self.door.fit((batch.x for batch in batches), nobody, self.config.prior_weight)
        return {}

    @torch.no_grad()
    def solve(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The closed form: shares, means and covariances of the classes."""
        moments, config = self.gaussians.no_moments(), self.config
        stream = torch.Generator().manual_seed(0)
        for batch in batches:
            z, _ = self.door.enter(batch.x, BatchNoise(stream, len(batch), self.log_prior.device))
            moments.add(z, self._memberships(batch).to(z.device))
        self.gaussians.maximise(moments, shrinkage=config.shrinkage, ridge=config.ridge)
        prior = config.prior_weight / len(moments.counts)
        shares = (moments.counts + prior) / (moments.counts.sum() + config.prior_weight)
        self.log_prior.copy_(shares.log())
        return {"counted": float(moments.counts.sum()), "finished": 1.0}

    def _memberships(self, batch: Batch) -> Tensor:
        """Zeros and a one, shape (n, classes); all of one class where there are no labels."""
        if batch.condition is None:
            return torch.ones(len(batch), 1)
        return functional.one_hot(batch.condition.long(), len(self.log_prior))

    def game(self) -> Game:
        look = Stage([Rewrite("look", self.look, sweep=True)], rounds=1)
        solve = Stage([Rewrite("solve", self.solve, sweep=True)], rounds=1)
        return Game([look, solve], batch_size=self.config.batch_size)
