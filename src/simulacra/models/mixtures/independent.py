"""Independent dimensions: the floor that every other model has to beat.

p(x) = prod_i p_i(x_i): a categorical distribution for each dimension of images and tokens, and for
each category of a table; a Gaussian for each real column. No dependence at all, so n parameters for n
binary pixels. Fitted in closed form by counting, one pass over the data: with a Dirichlet prior of
total weight a, p_i(v) = (n_i(v) + a / levels) / (n + a).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Completer, Density, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.front_door import as_device
from simulacra.probability.distributions import categorical_draw, gaussian_log_prob
from simulacra.probability.noise import Noise, row_noise
from simulacra.spaces import Images, Labels, Space, Table, Tokens, Vectors


@dataclass(frozen=True)
class Config:
    """``prior_weight``: a, how many data the uniform prior of one dimension counts as."""

    prior_weight: float = 1.0


class Independent(nn.Module, Sampler, Density, Factorised, Completer):
    """One distribution for each dimension, and nothing between them."""

    representative: ClassVar = True
    spaces: ClassVar = (Images, Tokens, Table, Vectors)
    conditions: ClassVar = ()
    valid: Tensor
    mean: Tensor
    log_probs: Tensor
    log_scale: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config or Config()
        levels = _levels(space)
        self.real = torch.tensor([count == 0 for count in levels])
        valid = torch.arange(max(*levels, 1)) < torch.tensor(levels).unsqueeze(1)
        self.register_buffer("valid", valid, persistent=False)
        start = torch.log(valid / valid.sum(1, keepdim=True).clamp(min=1))
        self.register_buffer("log_probs", start)
        self.register_buffer("mean", torch.zeros(len(levels)))
        self.register_buffer("log_scale", torch.zeros(len(levels)))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Nothing to choose: the prior weighs as much as one datum."""
        return Config()

    @classmethod
    def toy(cls) -> Independent:
        return cls(Images(1, 3, 3, levels=3))

    @property
    def kind(self) -> Kind:
        return Kind.EXACT

    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self._draw(row_noise(num_samples, generator, self.log_probs.device))

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.log_factors(x).flatten(1).sum(1)

    def log_factors(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        flat = as_device(x, self).flatten(1)
        codes = torch.where(self.real.to(flat.device), 0, flat).long()
        # Normalised again, because stored logarithms are rounded.
        log_probs = torch.log_softmax(self.log_probs, dim=1)
        discrete = log_probs.T[codes, torch.arange(flat.shape[1], device=flat.device)]
        continuous = gaussian_log_prob(flat.float(), self.mean, self.log_scale)
        return torch.where(self.real.to(flat.device), continuous, discrete).reshape(x.shape)

    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        drawn = self._draw(row_noise(len(x), generator, self.log_probs.device))
        return torch.where(as_device(known, self), as_device(x, self), drawn)

    def _draw(self, noise: Noise) -> Tensor:
        logits = self.log_probs.expand(noise.rows, -1, -1)
        discrete = categorical_draw(logits, noise.uniform(len(self.mean)))
        continuous = self.mean + self.log_scale.exp() * noise.normal(len(self.mean))
        flat = torch.where(self.real.to(discrete.device), continuous, discrete)
        return flat.to(self.space.dtype).reshape(noise.rows, *self.space.shape)

    def count(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The closed form: relative frequencies with the prior, means and standard deviations."""
        counts = torch.zeros(self.log_probs.shape, dtype=torch.float64, device=self.mean.device)
        total = torch.zeros(len(self.mean), dtype=torch.float64, device=self.mean.device)
        square, rows = total.clone(), 0
        for batch in batches:
            flat = batch.x.flatten(1)
            rows += len(flat)
            total += flat.double().sum(0)
            square += flat.double().square().sum(0)
            codes = torch.where(self.real.to(flat.device), 0, flat).long()
            ones = torch.ones_like(codes.T, dtype=torch.float64)
            counts.scatter_add_(1, codes.T, ones)
        prior = self.config.prior_weight * self.valid / self.valid.sum(1, keepdim=True).clamp(min=1)
        frequencies = (counts * self.valid + prior) / (rows + self.config.prior_weight)
        self.log_probs.copy_(frequencies.log())
        self.mean.copy_(total / rows)
        variance = (square / rows - (total / rows) ** 2).clamp(min=1e-12)
        self.log_scale.copy_(0.5 * variance.log())
        return {"counted": float(rows), "finished": 1.0}

    def game(self) -> Game:
        return Game([Stage([Rewrite("count", self.count, sweep=True)], rounds=1)], batch_size=1000)


def _levels(space: Space) -> list[int]:
    """How many values each dimension can take; 0 for a real one."""
    if isinstance(space, Table):
        return [len(column.categories) for column in space.columns]
    if isinstance(space, Vectors):
        return [0] * space.size
    assert isinstance(space, Images | Tokens)
    return [space.levels if isinstance(space, Images) else space.vocabulary] * space.dimensions
