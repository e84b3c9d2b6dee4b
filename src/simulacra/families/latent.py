"""What every variational autoencoder does alike, whatever stands between x and its standard normal codes.

A model of the family gives q(z|x), the raw numbers that its head needs of a code, and its loss; sampling,
decoding, completion, anomaly scores and the game follow.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from simulacra.contract import Kind
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.front_door import as_device, centred, drawn_labels, one_hot_labels
from simulacra.layers.heads import ColumnHead, ImageHead
from simulacra.optimisation import Optimiser
from simulacra.probability.completion import completed
from simulacra.probability.distributions import log_standard_normal
from simulacra.probability.noise import Noise, row_noise
from simulacra.spaces import Labels, Space, Table, Vectors


class VariationalConfig(Protocol):
    """What the config of a variational autoencoder has beside the settings of its networks."""

    @property
    def completion_rounds(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


class VariationalAutoencoder(nn.Module):
    """A likelihood ``head`` over codes z ~ N(0, I), unless a model draws them otherwise; it names its
    capabilities on its own class line.

    ``extra`` are labels as rows of zeros and a one, or None.
    """

    player: ClassVar[str] = "autoencoder"
    config: VariationalConfig
    head: ImageHead | ColumnHead
    space: Space
    condition_space: Labels | None

    @property
    @abstractmethod
    def code_space(self) -> Vectors:
        """Codes (n, D)."""

    @abstractmethod
    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The bound on log p(x), shape (n,)."""

    @abstractmethod
    def _decoded(self, z: Tensor, extra: Tensor | None) -> Tensor:
        """The head's raw numbers for codes (n, D)."""

    @abstractmethod
    def negative_bound(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """Minus the bound that is trained on, in nats a dimension."""

    @property
    def gains_by_bf16(self) -> bool:
        """Whether the networks are wide enough."""
        return False

    @property
    def kind(self) -> Kind:
        return Kind.LOWER

    @property
    def score_source(self) -> str:
        return "minus the bound on log p(x), nats"

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self._weight.device)
        return self.head.draw(self._imagined(condition, noise, generator), noise)

    @torch.no_grad()
    def sample_mean(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self._weight.device)
        return self.head.mean(self._imagined(condition, noise, generator))

    def _imagined(
        self, condition: Tensor | None, noise: Noise, generator: torch.Generator | None
    ) -> Tensor:
        """The head's raw numbers for codes drawn from the prior, a row each row of ``noise``."""
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        z = self._drawn_codes(noise, generator)
        return self._decoded(z, self._one_hot(condition, noise.rows))

    def _log_prior(self, z: Tensor) -> Tensor:
        """log p(z), z (..., D), shape (...)."""
        return log_standard_normal(z)

    def _drawn_codes(self, noise: Noise, generator: torch.Generator | None) -> Tensor:
        """z ~ p(z), a row each row of ``noise``."""
        return noise.normal(self.code_space.size).to(self._weight.dtype)

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The element nearest to the mean given a code; of categories the most likely."""
        extra = self._one_hot(condition, len(code))
        return self.head.mean(self._decoded(as_device(code, self), extra))

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Approximate draws of p(x_missing|x_known), by a chain of ``completion_rounds``."""
        noise = row_noise(len(x), generator, self._weight.device)
        x, known = as_device(x, self), as_device(known, self)
        held = torch.where(known, x, torch.zeros_like(x))
        joint = _Joint(self, held, known, self._one_hot(condition, len(x)), generator)
        return completed(joint, x, known, noise, self.config.completion_rounds)

    @torch.no_grad()
    def anomaly_score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        return -self.log_prob(x, generator=generator)

    @property
    def _weight(self) -> Tensor:
        return next(self.parameters())

    def _one_hot(self, condition: Tensor | None, rows: int) -> Tensor | None:
        extra = one_hot_labels(condition, self.condition_space, rows)
        return None if extra is None else extra.to(self._weight)

    @property
    def _reads(self) -> int:
        """How many numbers the encoder eats, labels aside."""
        return self.head.reads if isinstance(self.head, ColumnHead) else self.space.dimensions

    def _read(self, x: Tensor) -> Tensor:
        """Elements as the encoder eats them."""
        if isinstance(self.head, ColumnHead):
            return self.head.read(x.to(self._weight.dtype))
        return centred(x, self.head.space.levels).to(self._weight.dtype)

    def standardise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Shift and scale of the real columns, from all the data."""
        assert isinstance(self.head, ColumnHead)
        self.head.fit(batch.x for batch in batches)
        return {"finished": 1.0}

    def _learnt(self) -> list[nn.Parameter]:
        """What the bound is raised by."""
        return list(self.parameters())

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=10 * config.batch_size,
        )
        player = Player(self.player, self._learnt(), optimiser, clip=100.0)
        stages = [Stage([Descent((player,), self.negative_bound)])]
        if isinstance(self.space, Vectors | Table):
            stages.insert(
                0, Stage([Rewrite("standardise", self.standardise, sweep=True)], rounds=1)
            )
        return Game(stages, config.batch_size, average=0.05, bf16=self.gains_by_bf16)


@dataclass(frozen=True)
class _Joint:
    """The model given what is known of each datum, and a row of labels, for the chain that completes."""

    model: VariationalAutoencoder
    x: Tensor
    known: Tensor
    extra: Tensor | None
    generator: torch.Generator | None

    def begin(self, noise: Noise) -> Tensor:
        return self.model._drawn_codes(noise, self.generator)

    def log_prior(self, z: Tensor) -> Tensor:
        return self.model._log_prior(z)

    def log_likelihood(self, z: Tensor) -> Tensor:
        return self.model.head.log_prob(self.x, self.model._decoded(z, self.extra), self.known)

    def emit(self, z: Tensor, noise: Noise) -> Tensor:
        return self.model.head.draw(self.model._decoded(z, self.extra), noise)
