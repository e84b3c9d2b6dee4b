"""Naive Bayes: data have a class, and given the class their dimensions are independent.

    p(x, y) = p(y) prod_i p(x_i | y),        p(y | x) = p(x, y) / sum_y' p(x, y')

(Duda & Hart 1973; Bishop 2006, sec. 8.2.2): categorical factors for images, tokens and categories,
Gaussian ones for real numbers. Fitted in closed form by counting, one pass over the data, with the
Dirichlet prior of ``independent``. It learns labels where there are any: sampling without a condition
draws the class first, log p(x) without one sums over classes, and ``predict`` gives the posterior.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Completer, Density, Diagnosable, Kind, Predictor, Sampler
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.columns_by_class import SPACES, ColumnsByClass
from simulacra.layers.front_door import as_device
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import Noise, row_noise
from simulacra.spaces import Images, Labels, Space


@dataclass(frozen=True)
class Config:
    """``prior_weight``: how many data the uniform priors of dimensions and of classes count as."""

    prior_weight: float = 1.0


class NaiveBayes(nn.Module, Sampler, Density, Completer, Predictor, Diagnosable):
    """A class prior, and independent dimensions given the class; one class where there are no labels."""

    supervised: ClassVar = True
    spaces: ClassVar = SPACES
    conditions: ClassVar = (Labels,)
    log_prior: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config or Config()
        classes = condition.count if condition else 1
        self.columns = ColumnsByClass(space, classes)
        self.register_buffer("log_prior", torch.log_softmax(torch.zeros(classes), dim=0))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Nothing to choose: the prior weighs as much as one datum."""
        return Config()

    @classmethod
    def toy(cls) -> NaiveBayes:
        return cls(Images(1, 3, 3, levels=2), condition=Labels(3))

    @property
    def kind(self) -> Kind:
        return Kind.EXACT

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
        return self.columns.draw(which, noise)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x | y) given y = ``condition``, else log p(x)."""
        given = self.columns.log_factors(x).sum(2)
        if condition is None:
            return torch.logsumexp(given + torch.log_softmax(self.log_prior, 0), dim=1)
        return given.gather(1, as_device(condition, self).long().unsqueeze(1))[:, 0]

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The exact conditional distribution of the rest; the class too is drawn from what is known."""
        noise = row_noise(len(x), generator, self.log_prior.device)
        x, known = as_device(x, self), as_device(known, self)
        # What stands at the unknown places must not matter, even where it is no number.
        each = self.columns.log_factors(torch.where(known, x, 0))
        told = torch.where(known.flatten(1).unsqueeze(1), each, 0).sum(2) + self.log_prior
        drawn = categorical_draw(told, noise.uniform())
        which = drawn if condition is None else as_device(condition, self).long()
        return torch.where(known, x, self.columns.draw(which, noise))

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        return torch.softmax(self.columns.log_factors(x).sum(2) + self.log_prior, dim=1)

    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        return {"free parameters": float(len(self.log_prior) - 1 + self.columns.free_parameters)}

    def count(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The closed form: frequencies, means and deviations of each class, and the classes' shares."""
        rows = self.columns.count(map(_labelled, batches), self.config.prior_weight)
        prior = self.config.prior_weight / len(rows)
        shares = (rows + prior) / (rows.sum() + self.config.prior_weight)
        self.log_prior.copy_(shares.log())
        return {"counted": float(rows.sum()), "finished": 1.0}

    def game(self) -> Game:
        return Game([Stage([Rewrite("count", self.count, sweep=True)], rounds=1)], batch_size=1000)


def _labelled(batch: Batch) -> tuple[Tensor, Tensor]:
    """Elements and their classes; all of one class where there are no labels."""
    if batch.condition is None:
        return batch.x, torch.zeros(len(batch), dtype=torch.long)
    return batch.x, batch.condition.long()
