"""What every normalising flow does alike: a model of the family brings a bijection, and that is all.

The methods are those of ``layers/flow.py``, in the contract's words; training lowers the mean of -log
p(x), of images, categories and missing numbers its bound, after a first round that brings the data to
mean 0 and deviation 1 and sets the actnorms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from simulacra.contract import Kind
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.flow import Flow
from simulacra.layers.table_reals import real_size
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise
from simulacra.spaces import Space, Vectors


class FlowConfig(Protocol):
    """What the config of a flow has beside the settings of its bijection."""

    @property
    def importance_samples(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


class NormalisingFlow(nn.Module):
    """A model whose ``flow`` does the work; it names its capabilities on its own class line."""

    config: FlowConfig
    flow: Flow
    space: Space

    @property
    def gains_by_bf16(self) -> bool:
        """Whether the networks are convolutions, and wide enough."""
        return False

    @property
    def kind(self) -> Kind:
        return Kind.LOWER if self.flow.bounds else Kind.EXACT

    @property
    def code_space(self) -> Vectors:
        return Vectors(real_size(self.space))

    @property
    def score_source(self) -> str:
        return self.flow.score_source

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.flow.sample(num_samples, condition, generator)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x), where noise enters a bound by ``importance_samples`` draws of the noise."""
        return self.flow.log_prob(x, condition, generator, draws=self.config.importance_samples)

    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """f(x), shape (n, D); of an image the code of the middle of its cells, x + 1/2."""
        return self.flow.encode(x, condition)

    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The inverse of ``encode``; images are floored."""
        return self.flow.decode(code, condition)

    def anomaly_score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Minus log p(x); with labels, minus log of the mean over all of them."""
        return self.flow.anomaly_score(x, generator)

    def negative_log_likelihood(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log p(x), where noise enters its bound, in nats a dimension."""
        value = self.flow.loss(batch.x, batch.condition, noise)
        return Loss(value, {"bits/dim": value / math.log(2)})

    def standardise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Mean and deviation of every entry, then the actnorms, from the first batches."""
        seen = list(batches)
        self.flow.start([one.x for one in seen], [one.condition for one in seen], noise)
        return {"finished": 1.0}

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=50 * config.batch_size,
        )
        player = Player("flow", list(self.parameters()), optimiser, clip=1.0)
        first = Rewrite("standardise", self.standardise, batches=32)
        stages = [
            Stage([first], rounds=1),
            Stage([Descent((player,), self.negative_log_likelihood)]),
        ]
        return Game(stages, config.batch_size, average=0.05, bf16=self.gains_by_bf16)
