"""Transformer: pixels or tokens one after the other, each attending to all that stand before it.

    p(x) = prod_t softmax(W h_t)[x_t],    h_t a function of x_1, …, x_{t-1}

For entry t its place and the value before it go in, and the distribution of its own value comes out. A
layer adds to h what heads of causal attention found, and then what two linear layers make of it (Vaswani
et al. 2017, eq. 1 and 2), both of the normalised h (pre-norm and GELU as in Radford et al. 2019):

    h <- h + W_o softmax(Q K^T / sqrt(d), over earlier entries) V,      h <- h + W_2 gelu(W_1 h)

Images are read in raster order, R, G, B in every pixel (Chen et al. 2020 for pixels in sequence). Places
are learned, for an image as row + column + channel. Queries and keys are also turned by angles in
proportion to their row and column (Su et al. 2021, one half of each head for each axis), the query by
the place that is written and the key by the place of the value it carries: 'the pixel above' is one and
the same turn everywhere. The first entry reads a start vector, or the class in its place.

Sampling keeps the keys and values of what was drawn, so an entry costs one row of each layer.

Changed: AdamW with a cosine and averaged weights; dropout on the two branches of a layer only. There is
no temperature and no top-k here: what is drawn is what ``log_prob`` is the density of.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Stage
from simulacra.layers.attention import AttentionLayer, Places, attended, grid, turned
from simulacra.layers.front_door import as_device, drawn_labels
from simulacra.optimisation import Optimiser
from simulacra.probability.distributions import categorical_draw, categorical_log_prob
from simulacra.probability.noise import Noise, row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Tokens


@dataclass(frozen=True)
class Config:
    """``width`` is the size of h; ``tied`` uses the table of values as the last layer too."""

    width: int = 64
    layers: int = 4
    heads: int = 4
    dropout: float = 0.0
    tied: bool = False
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class _Memory:
    """The keys and values of one layer for entries that have been passed, walked entry by entry."""

    def __init__(self, places: Places, rows: int, heads: int, head: int) -> None:
        self.places = places
        self.keys = places.query.new_zeros(rows, heads, places.query.shape[1], head)
        self.values = torch.zeros_like(self.keys)

    def attend(self, step: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What a new entry finds among those before it and itself."""
        here = slice(step, step + 1)
        self.keys[:, :, here] = turned(key, self.places.key[:, here])
        self.values[:, :, here] = value
        query = turned(query, self.places.query[:, here])
        keys, values = self.keys[:, :, : step + 1], self.values[:, :, : step + 1]
        return attended(query, keys, values)


class Transformer(nn.Module, Sampler, Density, Factorised, Completer):
    """A decoder-only transformer over the entries of images or of sequences."""

    spaces: ClassVar = (Images, Tokens)
    conditions: ClassVar = (Labels,)

    def __init__(
        self,
        space: Images | Tokens,
        config: Config | None = None,
        *,
        condition: Labels | None = None,
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        _require_heads(config)
        width, self.head_width = config.width, config.width // config.heads
        values = space.levels if isinstance(space, Images) else space.vocabulary
        self.values = nn.Embedding(values, width)
        self.start = nn.Embedding(condition.count if condition else 1, width)
        self.places = Places(space, width, self.head_width)
        self.layers = nn.ModuleList(
            AttentionLayer(width, config.heads, config.layers, config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(values))
        self.leave = None if config.tied else nn.Parameter(torch.empty(values, width))
        for table in (self.values.weight, self.start.weight, self.leave):
            if table is not None:
                nn.init.normal_(table, std=0.02)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Few layers and dropout for few data; wider for colour and text."""
        if num_examples < 10_000:
            return Config(layers=3, heads=2, dropout=0.2, batch_size=64, learning_rate=3e-3)
        if isinstance(space, Images) and space.channels == 1:
            return Config(width=96, heads=2, batch_size=16, learning_rate=2e-3)
        return Config(width=128, batch_size=16)

    @classmethod
    def toy(cls) -> Transformer:
        config = Config(width=16, layers=1, heads=2, batch_size=32, learning_rate=0.01)
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
        noise = row_noise(num_samples, generator, self.bias.device)
        return self._drawn(noise, condition, None, None)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.log_factors(x, condition=condition).flatten(1).sum(1)

    def log_factors(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        entries = self._in_order(as_device(x, self))
        return self._in_place(categorical_log_prob(entries, self.logits(entries, condition)))

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Unknown entries are drawn in order, each given what stands before it, known or drawn.

        Known entries further on have no say in it: exact for a known beginning, and a draft otherwise.
        """
        noise = row_noise(len(x), generator, self.bias.device)
        given, known = (self._in_order(as_device(one, self)) for one in (x, known))
        return self._drawn(noise, condition, given, known)

    def logits(self, entries: Tensor, condition: Tensor | None = None) -> Tensor:
        """Of every value at every entry; ``entries`` (batch, length) in order, all in one pass."""
        read = self.values(entries[:, :-1].long())
        h = torch.cat([self._first(condition, len(entries)), read], dim=1) + self.places()
        for layer in self.layers:
            h = layer(h, self._attend)
        return self._left(h)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = turned(query, self.places.query), turned(key, self.places.key)
        return attended(query, key, value, causal=True)

    def _first(self, condition: Tensor | None, rows: int) -> Tensor:
        """What the first entry reads, (rows, 1, width): the class, or the start vector."""
        if self.condition_space is None:
            return self.start.weight.expand(rows, 1, -1)
        if condition is None:
            raise ValueError("a conditional model needs a condition for every row")
        if len(condition) != rows:
            raise ValueError(f"{rows} rows need {rows} conditions, got {len(condition)}")
        first: Tensor = self.start(as_device(condition, self).long()).unsqueeze(1)
        return first

    def _left(self, h: Tensor) -> Tensor:
        table = self.values.weight if self.leave is None else self.leave
        return functional.linear(self.norm(h), table, self.bias)

    def _in_order(self, x: Tensor) -> Tensor:
        """Entries as a sequence, (batch, length): rows, columns, and channels within a pixel."""
        return x.permute(0, 2, 3, 1).flatten(1) if isinstance(self.space, Images) else x

    def _in_place(self, entries: Tensor) -> Tensor:
        """The inverse of ``_in_order``."""
        if not isinstance(self.space, Images):
            return entries
        return entries.reshape(len(entries), *grid(self.space)).permute(0, 3, 1, 2).contiguous()

    def _drawn(
        self, noise: Noise, condition: Tensor | None, given: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """Draw entry after entry; where ``known`` is true, take ``given`` instead."""
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        uniform = noise.uniform(self.space.dimensions)
        training, _ = self.training, self.eval()
        memories = [
            _Memory(self.places, noise.rows, self.config.heads, self.head_width)
            for _ in self.layers
        ]
        places, read = self.places(), self._first(condition, noise.rows)
        drawn = torch.zeros(uniform.shape, dtype=torch.long, device=uniform.device)
        for step in range(self.space.dimensions):
            value = categorical_draw(self.at(step, read + places[step], memories), uniform[:, step])
            if given is not None and known is not None:
                value = torch.where(known[:, step], given[:, step].long(), value)
            drawn[:, step] = value
            read = self.values(value).unsqueeze(1)
        self.train(training)
        return self._in_place(drawn).to(self.space.dtype)

    def at(self, step: int, h: Tensor, memories: list[_Memory]) -> Tensor:
        """The logits of one entry, (batch, values), from its input and what is kept of those before."""
        for layer, memory in zip(self.layers, memories, strict=True):
            h = layer(h, partial(memory.attend, step))
        return self._left(h)[:, 0]

    def negative_log_likelihood(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log p(x) in nats per dimension."""
        entries = self._in_order(batch.x).long()
        logits = self.logits(entries, batch.condition).float()
        return Loss(functional.cross_entropy(logits.flatten(0, 1), entries.flatten()))

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            warmup=200 * config.batch_size,
        )
        player = Player("network", list(self.parameters()), optimiser, clip=1.0)
        stage = Stage([Descent((player,), self.negative_log_likelihood)])
        bf16 = config.width >= 64
        return Game([stage], batch_size=config.batch_size, average=0.05, bf16=bf16)


def _require_heads(config: Config) -> None:
    if config.width % (2 * config.heads):
        raise Refusal(
            "CFG-091",
            f"a width of {config.width} is not {config.heads} heads of an even width",
            way_out=f"choose a multiple of {2 * config.heads}",
        )
