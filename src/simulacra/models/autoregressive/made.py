"""MADE: an autoencoder whose masked weights make its outputs the conditionals of an order.

    p(x) = prod_i p(x_i | x_{<i}),    h = relu((W * M_W) x + b),    raw = (V * M_V) h + (A * M_A) x + c

all i in one pass: no path of open connections leads to output i from an input that does not stand before
it (Germain et al. 2015, sec. 3; ``layers/masked_mlp.py``). Heads are those of NADE: Bernoulli, softmax,
mixtures of Gaussians or logistics.

``masks`` > 1 trains several connectivities in turn; ``orderless`` gives each its own order as well, with
a constant 1 read beside every visible input, which tells a unit what it sees. ``ensemble`` of them are
averaged in probability, which is one more exact density (their sec. 4).

Papers: Germain, Gregor, Murray & Larochelle 2015; heads: Uria, Murray & Larochelle 2013. Changed: degrees
are spread evenly over the units, drawn only in their order; AdamW with a cosine and averaged weights; a
class is seen by every unit. Sampling works out every unit once (one pass in all).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from simulacra.contract import Completer, Density, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.ancestral import completed, drawn
from simulacra.layers.columns import Columns
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels
from simulacra.layers.masked_mlp import MaskedMLP, Steps
from simulacra.layers.orders import orders
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise, row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Table, Tokens, Vectors


@dataclass(frozen=True)
class Config:
    """``masks`` are trained in turn, and the first ``ensemble`` of them averaged; ``order`` is that of
    the first. ``components`` are those of a mixture for real columns and many levels; ``particles`` fill
    in what is missing."""

    hidden: int = 500
    layers: int = 1
    masks: int = 1
    ensemble: int = 1
    order: Literal["raster", "random"] = "raster"
    orderless: bool = False
    components: int = 10
    particles: int = 16
    dropout: float = 0.0
    batch_size: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class _Walk:
    """The network over rows that are being drawn."""

    def __init__(self, columns: Columns, steps: Steps) -> None:
        self.columns, self.steps, self.order = columns, steps, steps.order
        self.at, self.take = steps.at, steps.take

    def put(self, place: int, values: Tensor) -> None:
        self.steps.put(place, self.columns.read(values, self.order[place]))


class MADE(nn.Module, Sampler, Density, Factorised, Completer):
    """A masked network, and a head for each dimension."""

    spaces: ClassVar = (Images, Tokens, Vectors, Table)
    conditions: ClassVar = (Labels,)
    every: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        if not 1 <= config.ensemble <= config.masks:
            reason = f"{config.ensemble} masks are to be averaged, and {config.masks} are trained"
            raise Refusal("CFG-091", reason, way_out="set masks to as many, or to more")
        self.columns = Columns(space, config.components, mark=config.orderless)
        count = config.masks if config.orderless else 1
        all_orders = orders(self.columns.dimensions, count, config.order)
        self.network = MaskedMLP(
            all_orders.expand(config.masks, -1),
            self.columns.inputs,
            [config.hidden] * config.layers,
            self.columns.outputs,
            extra=condition.count if condition else 0,
            dropout=config.dropout,
        )
        with torch.no_grad():
            self.network.biases[-1].copy_(self.columns.begin().flatten())
        every = torch.arange(self.columns.dimensions)
        self.register_buffer("every", every, persistent=False)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """2000 hidden for images of MNIST's size; smaller, with dropout, for few data."""
        if num_examples < 10_000:
            return Config(
                hidden=200,
                components=5,
                dropout=0.3,
                batch_size=64,
                learning_rate=3e-3,
                weight_decay=0.1,
            )
        if space.dimensions > 100:
            return Config(hidden=2000, order="random", batch_size=200, learning_rate=2e-3)
        return Config(hidden=500, layers=2, batch_size=200)

    @classmethod
    def toy(cls) -> MADE:
        config = Config(hidden=16, batch_size=32, learning_rate=0.02)
        return cls(Images(1, 3, 3, levels=2), config)

    @property
    def kind(self) -> Kind:
        return Kind.EXACT

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self._weight.device)
        classes = self._classes(self._labels(noise, condition), num_samples)
        mask = (noise.uniform() * self.config.ensemble).long()
        uniform = noise.uniform(self.columns.dimensions, 2)
        values = torch.empty_like(uniform[..., 0], dtype=self._weight.dtype)
        for one in range(self.config.ensemble):
            rows = (mask == one).nonzero()[:, 0]
            walk = self._walk(len(rows), one, None if classes is None else classes[rows])
            values[rows] = drawn(self.columns, walk, uniform[rows])
        return self.columns.elements(values)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Of the one mask, or of the mixture of ``ensemble`` masks."""
        x = as_device(x, self)
        each = [self._factors(x, condition, one).sum(1) for one in range(self.config.ensemble)]
        return torch.logsumexp(torch.stack(each), 0) - math.log(len(each))

    def log_factors(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        if self.config.ensemble > 1:
            reason = f"log p of a mixture of {self.config.ensemble} masks is no sum over dimensions"
            raise Refusal("CAN-021", reason, way_out="set ensemble to 1")
        return self._factors(as_device(x, self), condition, 0).reshape(x.shape)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """By particles in the order of the first mask: exact where the known stand first in it, else
        approximate."""
        x, known = as_device(x, self), as_device(known, self)
        noise, particles = row_noise(len(x), generator, self._weight.device), self.config.particles
        classes = self._classes(self._labels(noise, condition), len(x))
        many = None if classes is None else classes.repeat_interleave(particles, 0)
        flat = known.flatten(1)
        given = torch.where(flat, self.columns.values(x), 0)
        uniform = noise.uniform(particles, self.columns.dimensions + 1, 3)
        walk = self._walk(len(x) * particles, 0, many)
        values = completed(self.columns, walk, uniform, given, flat)
        return torch.where(known, x.to(self.space.dtype), self.columns.elements(values))

    def raw(self, x: Tensor, condition: Tensor | None = None, mask: int = 0) -> Tensor:
        """What the head is given for every dimension, (batch, D, outputs)."""
        reads = self.columns.read(self.columns.values(x), self.every)
        raw: Tensor = self.network(reads, mask, self._classes(condition, len(x)))
        return raw.to(self._weight.dtype)

    @property
    def _weight(self) -> Tensor:
        return next(self.parameters())

    def _walk(self, rows: int, mask: int, classes: Tensor | None) -> _Walk:
        return _Walk(self.columns, self.network.steps(rows, mask, classes))

    def _labels(self, noise: Noise, condition: Tensor | None) -> Tensor | None:
        return drawn_labels(condition, self.condition_space, noise.uniform())

    def _classes(self, condition: Tensor | None, rows: int) -> Tensor | None:
        classes = one_hot_labels(condition, self.condition_space, rows)
        return None if classes is None else classes.to(self._weight)

    def _factors(self, x: Tensor, condition: Tensor | None, mask: int) -> Tensor:
        """log p(x_i | those before it), by dimension, (n, D)."""
        raw = self.raw(x, condition, mask)
        return self.columns.log_prob(self.columns.values(x), raw, self.every)

    def negative_log_likelihood(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log p(x) in nats per dimension, under the masks in turn."""
        mask = clock.rounds % self.config.masks
        return Loss(-self._factors(batch.x, batch.condition, mask).mean())

    def standardise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Shift and scale of the real columns, from all the data."""
        self.columns.fit(batch.x for batch in batches)
        return {"finished": 1.0}

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=20 * config.batch_size,
        )
        player = Player("network", list(self.parameters()), optimiser, clip=1.0)
        stages = [Stage([Descent((player,), self.negative_log_likelihood)])]
        if self.columns.continuous is not None:
            turn = Rewrite("standardise", self.standardise, sweep=True)
            stages.insert(0, Stage([turn], rounds=1))
        wide = config.hidden >= 256
        return Game(stages, batch_size=config.batch_size, average=0.05, bf16=wide)
