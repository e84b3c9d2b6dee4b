"""NADE: one hidden layer, shared by all dimensions, writes them one after the other.

    h_i = sigma(W_{<i} x_{<i} + c),    p(x_i | x_{<i}) from V_i h_i + b_i     (Uria et al. 2016, eq. 2-3)

in O(DH): the pre-activation of dimension i + 1 is that of i plus one column of W. Binary dimensions are
Bernoulli, categories a softmax, real columns a mixture of Gaussians, which is RNADE (Uria, Murray &
Larochelle 2013), many ordered levels a mixture of logistics.

``orderless`` (Uria, Murray & Larochelle 2014) trains for every order at once: of a random order a random
part is known, a mask beside the inputs says which, and (D / unknown) sum log p(x_i | known) is an
unbiased estimate of log p(x) under a random order. ``orders`` of them are averaged in probability
(EoNADE), which is one more exact density.

Fast: training walks over chunks of dimensions with matrix products. A dimension that reads as nothing,
a 0 of a binary one, leaves h as it was; so only h that differ are worked out, about the number of ones
of an image instead of 784. As p(x_i | …) depends on its own raw numbers only, gradients are taken in the
same walk, from the last chunk to the first. Sampling keeps the running pre-activation.

Papers: Larochelle & Murray 2011; Uria, Murray & Larochelle 2013 and 2014; Uria, Côté, Gregor, Murray &
Larochelle 2016. Changed: AdamW with a cosine and averaged weights; a class adds U y to c.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.ancestral import completed, drawn
from simulacra.layers.columns import Columns
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels
from simulacra.layers.orders import orders
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise, row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Table, Tokens, Vectors


@dataclass(frozen=True)
class Config:
    """``order`` is the one that is trained; ``orderless`` trains for all, and ``orders`` of them are
    averaged. ``components`` are those of a mixture for real columns and many levels; ``particles`` fill
    in what is missing where one order is trained."""

    hidden: int = 500
    order: Literal["raster", "random"] = "raster"
    orderless: bool = False
    orders: int = 1
    components: int = 10
    particles: int = 16
    batch_size: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


@dataclass(frozen=True)
class _Weights:
    """W (D, inputs, H), V (D, outputs, H) and b (D, outputs) in the order walked, and its dimensions."""

    read: Tensor
    write: Tensor
    bias: Tensor
    order: Tensor


@dataclass(frozen=True)
class _Chunk:
    """Dimensions of a chunk for n rows: what is read (n, c, inputs), and the S hidden states that differ.

    ``row`` (S,) is the row that a state belongs to, ``seen`` (S, c * inputs) what it has read inside the
    chunk, ``state`` (n, c) the state of each row and dimension.
    """

    place: slice
    row: Tensor
    seen: Tensor
    state: Tensor

    @classmethod
    def of(cls, reads: Tensor, place: slice) -> _Chunk:
        reads = reads[:, place]
        begins = functional.pad((reads[:, :-1] != 0).any(2), (1, 0), value=True)
        state = begins.flatten().cumsum(0).reshape(begins.shape) - 1
        row, first = begins.nonzero(as_tuple=True)
        before = torch.arange(reads.shape[1], device=reads.device) < first.unsqueeze(1)
        seen = reads.index_select(0, row) * before.unsqueeze(2)
        return cls(place, row, seen.flatten(1), state)

    def hidden(self, start: Tensor, weights: _Weights) -> Tensor:
        """h of every state, (S, H), from the pre-activation at the chunk's start, (n, H)."""
        read = weights.read[self.place].flatten(0, 1)
        return torch.addmm(start.index_select(0, self.row), self.seen, read).sigmoid_()

    def raw(self, hidden: Tensor, weights: _Weights) -> Tensor:
        """V_i h_i + b_i, shape (n, c, outputs): all states meet all dimensions, and one each is taken."""
        write = weights.write[self.place]
        every = (hidden @ write.flatten(0, 1).T).unflatten(1, write.shape[:2])
        bias = weights.bias[self.place]
        own = torch.arange(len(bias), device=bias.device)
        raw: Tensor = every[self.state, own].to(bias.dtype) + bias
        return raw


def _starts(start: Tensor, reads: Tensor, read: Tensor, size: int) -> list[tuple[slice, Tensor]]:
    """The places of each chunk, and the running pre-activation at its start, (n, H)."""
    told = []
    for first in range(0, reads.shape[1], size):
        place = slice(first, first + size)
        told.append((place, start))
        if first + size < reads.shape[1]:
            start = start + reads[:, place].flatten(1) @ read[place].flatten(0, 1)
    return told


class _NegativeLogLikelihood(torch.autograd.Function):
    """-sum log p over rows and dimensions, with its gradient from the same walk.

    Chunks are walked from the last one: what later dimensions want of the pre-activation is carried
    along, (n, H), and each column of W meets it once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        columns: Columns,
        size: int,
        values: Tensor,
        order: Tensor,
        start: Tensor,
        read: Tensor,
        write: Tensor,
        bias: Tensor,
    ) -> Tensor:
        reads = columns.read(values, order)
        weights = _Weights(read, write, bias, order)
        total = values.new_zeros(())
        carried = torch.zeros_like(start)
        to_read, to_write, to_bias = (torch.empty_like(one) for one in (read, write, bias))
        for place, here in reversed(_starts(start, reads, read, size)):
            chunk = _Chunk.of(reads, place)
            hidden = chunk.hidden(here, weights)
            loss, slope = _slope(
                columns, values[:, place], chunk.raw(hidden, weights), order[place]
            )
            total += loss
            to_bias[place] = slope.sum(0)
            wanted, to_write[place] = _through(chunk, hidden, slope, weights)
            inside = chunk.seen.T @ wanted
            before = reads[:, place].flatten(1).T @ carried
            to_read[place] = (inside + before).unflatten(0, (-1, read.shape[1]))
            carried += _per_row(chunk, wanted)
        ctx.save_for_backward(carried, to_read, to_write, to_bias)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        given = (upstream[0] * one for one in ctx.saved_tensors)
        return (None,) * 4 + tuple(given)


def _slope(
    columns: Columns, values: Tensor, raw: Tensor, dimension: Tensor
) -> tuple[Tensor, Tensor]:
    """-sum log p, and its gradient with respect to the raw numbers."""
    with torch.enable_grad():
        raw = raw.detach().requires_grad_()
        loss = -columns.log_prob(values, raw, dimension).sum()
        (slope,) = torch.autograd.grad(loss, raw)
    return loss.detach(), slope


def _through(
    chunk: _Chunk, hidden: Tensor, slope: Tensor, weights: _Weights
) -> tuple[Tensor, Tensor]:
    """From the gradient of the raw numbers to those of the pre-activations (S, H) and of V's chunk."""
    write = weights.write[chunk.place]
    every = slope.new_zeros(len(hidden), *write.shape[:2])
    every[chunk.state, torch.arange(len(write), device=slope.device)] = slope
    flat = every.flatten(1)
    to_write = (flat.T @ hidden).unflatten(0, write.shape[:2])
    to_hidden = flat @ write.flatten(0, 1)
    return torch.ops.aten.sigmoid_backward(to_hidden, hidden), to_write


def _per_row(chunk: _Chunk, wanted: Tensor) -> Tensor:
    """The sum over the states of each row, (n, H); those of a row stand together."""
    every = torch.arange(len(wanted), device=wanted.device)
    return functional.embedding_bag(every, wanted, chunk.state[:, 0].contiguous(), mode="sum")


class _Walk:
    """The running pre-activation over rows that are being drawn."""

    def __init__(self, columns: Columns, weights: _Weights, start: Tensor) -> None:
        self.columns, self.weights, self.order = columns, weights, weights.order
        self.running = start.clone()

    def at(self, place: int) -> Tensor:
        hidden, dimension = torch.sigmoid(self.running), self.order[..., place]
        write, bias = self.weights.write[dimension], self.weights.bias[dimension]
        if dimension.ndim:
            return torch.baddbmm(bias.unsqueeze(2), write, hidden.unsqueeze(2)).squeeze(2)
        return torch.addmm(bias, hidden, write.T)

    def put(self, place: int, values: Tensor) -> None:
        dimension = self.order[..., place]
        read, weight = self.columns.read(values, dimension), self.weights.read[dimension]
        if dimension.ndim:
            self.running += (read.unsqueeze(1) @ weight).squeeze(1)
        else:
            self.running.addmm_(read, weight)

    def take(self, rows: Tensor) -> None:
        self.running = self.running[rows]
        self.order = self.order if self.order.ndim == 1 else self.order[rows]


class NADE(nn.Module, Sampler, Density, Factorised, Completer):
    """A hidden layer that reads one more dimension at a time, and a head for each."""

    spaces: ClassVar = (Images, Tokens, Vectors, Table)
    conditions: ClassVar = (Labels,)
    orders: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        if config.orders > 1 and not config.orderless:
            reason = f"{config.orders} orders are asked for, and one is trained"
            raise Refusal("CFG-090", reason, way_out="set orderless, or leave orders at 1")
        self.columns = Columns(space, config.components, mark=config.orderless)
        dimensions, hidden = self.columns.dimensions, config.hidden
        self.register_buffer(
            "orders", orders(dimensions, config.orders, config.order), persistent=False
        )
        spread = [1 / math.sqrt(width) for width in (dimensions, hidden)]
        read = torch.empty(dimensions, self.columns.inputs, hidden).uniform_(-spread[0], spread[0])
        write = torch.empty(dimensions, self.columns.outputs, hidden)
        self.read = nn.Parameter(read)
        self.write = nn.Parameter(write.uniform_(-spread[1], spread[1]))
        self.bias = nn.Parameter(self.columns.begin())
        self.start = nn.Parameter(torch.zeros(hidden))
        self.told = nn.Linear(condition.count, hidden, bias=False) if condition else None

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """One order for many data; every order and an ensemble of 8 for few, which regularises."""
        if num_examples >= 10_000:
            return Config(learning_rate=4e-3 if space.dimensions > 100 else 2e-3)
        real = isinstance(space, Vectors | Table)
        return Config(
            hidden=200 if real else 300,
            orderless=True,
            orders=8,
            components=5,
            batch_size=64,
            learning_rate=5e-3 if real else 1e-2,
        )

    @classmethod
    def toy(cls) -> NADE:
        config = Config(hidden=8, batch_size=32, learning_rate=0.03)
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
        start = self._start(self._labels(noise, condition), num_samples)
        order = self.orders[0]
        if len(self.orders) > 1:
            order = self.orders[(noise.uniform() * len(self.orders)).long()]
        walk = _Walk(self.columns, self._weights(order), start)
        values = drawn(self.columns, walk, noise.uniform(self.columns.dimensions, 2))
        return self.columns.elements(values)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Of the trained order, or of the mixture of all ``orders``."""
        each = [self._factors(x, condition, order).sum(1) for order in self.orders]
        return torch.logsumexp(torch.stack(each), 0) - math.log(len(each))

    def log_factors(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        if len(self.orders) > 1:
            reason = f"log p of a mixture of {len(self.orders)} orders is not a sum over dimensions"
            raise Refusal("CAN-020", reason, way_out="set orders to 1")
        return self._factors(x, condition, self.orders[0]).reshape(x.shape)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Orderless: exact draws, from the order in which the known stand first. One order: by particles,
        exact where the known stand first in it, else approximate."""
        x, known = as_device(x, self), as_device(known, self)
        noise = row_noise(len(x), generator, self.bias.device)
        start = self._start(self._labels(noise, condition), len(x))
        flat = known.flatten(1)
        given = torch.where(flat, self.columns.values(x), 0)
        order, particles = self.orders[0], 1 if self.config.orderless else self.config.particles
        if self.config.orderless:
            order = order[torch.argsort((~flat[:, order]).long(), dim=1, stable=True)]
        uniform = noise.uniform(particles, self.columns.dimensions + 1, 3)
        walk = _Walk(self.columns, self._weights(order), start.repeat_interleave(particles, 0))
        values = completed(self.columns, walk, uniform, given, flat)
        return torch.where(known, x.to(self.space.dtype), self.columns.elements(values))

    def _labels(self, noise: Noise, condition: Tensor | None) -> Tensor | None:
        return drawn_labels(condition, self.condition_space, noise.uniform())

    def _start(self, condition: Tensor | None, rows: int) -> Tensor:
        """The pre-activation before anything is read, (rows, H)."""
        told = one_hot_labels(condition, self.condition_space, rows)
        if told is None or self.told is None:
            return self.start.expand(rows, -1)
        start: Tensor = self.start + self.told(told.to(self.start))
        return start

    def _weights(self, order: Tensor) -> _Weights:
        """As they stand, by dimension, for a walk."""
        return _Weights(self.read, self.write, self.bias, order)

    def _ordered(self, order: Tensor) -> _Weights:
        """By place in the order."""
        return _Weights(self.read[order], self.write[order], self.bias[order], order)

    @property
    def _size(self) -> int:
        """Dimensions in a chunk: states meet all of its outputs, so many outputs want few dimensions."""
        return max(4, 32 // self.columns.outputs)

    def raw(
        self, x: Tensor, condition: Tensor | None = None, order: Tensor | None = None
    ) -> Tensor:
        """What the head is given for every dimension, by place in the order, (batch, D, outputs)."""
        order = self.orders[0] if order is None else order
        reads = self.columns.read(self.columns.values(x)[:, order], order)
        start, weights = self._start(condition, len(x)), self._ordered(order)
        parts = []
        for place, here in _starts(start, reads, weights.read, self._size):
            chunk = _Chunk.of(reads, place)
            parts.append(chunk.raw(chunk.hidden(here, weights), weights))
        return torch.cat(parts, 1)

    def _factors(self, x: Tensor, condition: Tensor | None, order: Tensor) -> Tensor:
        """log p(x_i | those before it), by dimension, (n, D)."""
        x = as_device(x, self)
        values = self.columns.values(x)[:, order]
        each = self.columns.log_prob(values, self.raw(x, condition, order), order)
        return torch.empty_like(values).scatter(1, order.expand(values.shape), each)

    def negative_log_likelihood(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log p(x) in the trained order, in nats per dimension."""
        order = self.orders[0]
        values, weights = self.columns.values(batch.x)[:, order], self._ordered(order)
        start = self._start(batch.condition, len(batch))
        total: Tensor = _NegativeLogLikelihood.apply(  # type: ignore[no-untyped-call]
            self.columns,
            self._size,
            values,
            order,
            start,
            weights.read,
            weights.write,
            weights.bias,
        )
        return Loss(total / (len(batch) * self.space.dimensions))

    def negative_log_likelihood_of_any_order(
        self, batch: Batch, noise: Noise, clock: Clock
    ) -> Loss:
        """-(D / unknown) sum of log p(x_i | known) over the unknown, in nats per dimension."""
        values, every = self.columns.values(batch.x), self.orders[0].sort().values
        rank = noise.uniform(len(every)).argsort(1).argsort(1)
        count = (noise.uniform(1) * len(every)).long()
        known = rank < count
        reads = self.columns.read(values, every) * known.unsqueeze(2)
        entering = reads.flatten(1) @ self.read.flatten(0, 1)
        hidden = torch.sigmoid(self._start(batch.condition, len(batch)) + entering)
        raw = (hidden @ self.write.flatten(0, 1).T).unflatten(1, self.write.shape[:2])
        log_prob = self.columns.log_prob(values, raw.float() + self.bias, every)
        unknown = (len(every) - count).to(log_prob.dtype)
        return Loss(-(torch.where(known, 0, log_prob) / unknown).sum(1).mean())

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
        fixed, any_order = self.negative_log_likelihood, self.negative_log_likelihood_of_any_order
        stages = [Stage([Descent((player,), any_order if config.orderless else fixed)])]
        if self.columns.continuous is not None:
            turn = Rewrite("standardise", self.standardise, sweep=True)
            stages.insert(0, Stage([turn], rounds=1))
        return Game(stages, batch_size=config.batch_size, average=0.05, bf16=config.orderless)
