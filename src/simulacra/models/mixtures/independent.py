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

from simulacra.contract import Completer, Density, Diagnosable, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.columns_by_class import SPACES, ColumnsByClass
from simulacra.layers.front_door import as_device
from simulacra.probability.noise import Noise, row_noise
from simulacra.spaces import Images, Labels, Space


@dataclass(frozen=True)
class Config:
    """``prior_weight``: a, how many data the uniform prior of one dimension counts as."""

    prior_weight: float = 1.0


class Independent(nn.Module, Sampler, Density, Factorised, Completer, Diagnosable):
    """One distribution for each dimension, and nothing between them."""

    representative: ClassVar = True
    spaces: ClassVar = SPACES
    conditions: ClassVar = ()

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config or Config()
        self.columns = ColumnsByClass(space)

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
        return self._draw(row_noise(num_samples, generator, self.columns.mean.device))

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.log_factors(x).flatten(1).sum(1)

    def log_factors(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        return self.columns.log_factors(x)[:, 0].reshape(x.shape)

    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        drawn = self._draw(row_noise(len(x), generator, self.columns.mean.device))
        return torch.where(as_device(known, self), as_device(x, self), drawn)

    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        return {"free parameters": float(self.columns.free_parameters)}

    def _draw(self, noise: Noise) -> Tensor:
        only = torch.zeros(noise.rows, dtype=torch.long, device=self.columns.mean.device)
        return self.columns.draw(only, noise)

    def count(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The closed form: relative frequencies with the prior, means and standard deviations."""
        classless = ((batch.x, torch.zeros(len(batch), dtype=torch.long)) for batch in batches)
        rows = self.columns.count(classless, self.config.prior_weight)
        return {"counted": float(rows.sum()), "finished": 1.0}

    def game(self) -> Game:
        return Game([Stage([Rewrite("count", self.count, sweep=True)], rounds=1)], batch_size=1000)
