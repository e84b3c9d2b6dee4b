"""PixelCNN++: pixels one after the other, each from a mixture of discretised logistics.

    p(x) = prod_i p(x_i | x_1, …, x_{i-1})

over pixels in raster order, and for one pixel of channels R, G and B

    p(r, g, b) = sum_k pi_k L(r; mu_r, s_r) L(g; mu_g(r), s_g) L(b; mu_b(r, g), s_b)         (eq. 2, 3)
    mu_g(r) = mu_g + alpha r,      mu_b(r, g) = mu_b + beta r + gamma g                         (eq. 3)

L is a logistic's mass in the cell of a level, the first and last cells reaching to infinity (eq. 2). All
numbers of a pixel come from the pixels before it, so one network without any order among the channels
gives them, and neighbouring levels are neighbours from the start.

Two streams of features, shifted at the entrance instead of masked (fig. 2): the *down* stream at (i, j)
sees all rows above i; the *down-right* one also what stands left of j, and reads the down stream at every
layer. Layers are residual, x + a * sigmoid(b), with concatenated ELU and dropout (sec. 2.5). Between
scales both streams are halved by strides and doubled again (sec. 2.3), and each block on the way back
reads what its partner on the way there was given (sec. 2.4).

Sampling works out the down stream once a row and the other one at the new pixel only, a scale further
down at every second pixel of every second row.

Salimans, Karpathy, Chen & Kingma 2017, arXiv 1701.05517. Changed: blocks stand where they cost least
(all at the lowest scale, half as many at each larger one); what comes back from a scale is added to what
went there; a bias for each position at the entrance; scales are never below an eighth of a cell, -6.9 for
256 levels instead of -7; small last layers instead of weight normalisation; AdamW with a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Stage
from simulacra.layers.dropout import Dropout
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels
from simulacra.layers.layout import channels_last
from simulacra.layers.masked import MaskedConv2d, RowCursor
from simulacra.optimisation import Optimiser
from simulacra.probability.distributions import (
    discretised_logistic_log_prob,
    logistic_mixture_draw,
    logistic_mixture_log_factors,
)
from simulacra.probability.noise import Noise, row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space

Layer = Callable[[Tensor], Tensor]
Streams = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Config:
    """``blocks`` is the number of pairs of blocks, on either way, at the lowest of ``scales`` scales.

    Each larger scale has half as many, at least one. ``mixtures`` is K; the paper has 10 for colour.
    """

    channels: int = 32
    scales: int = 1
    blocks: int = 3
    mixtures: int = 5
    dropout: float = 0.5
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Mixture:
    """A pixel's mixture with K components: ``logits`` (…, K), ``mean`` and ``log_scale`` (…, C, K).

    ``coupling``, (…, C (C - 1) / 2, K), holds alpha; beta, gamma; … of eq. 3.
    """

    logits: Tensor
    mean: Tensor
    log_scale: Tensor
    coupling: Tensor

    def mean_of(self, channel: int, before: Tensor) -> Tensor:
        """The means of one channel, (…, K), given the channels ``before`` it in [-1, 1], (…, channel)."""
        first = channel * (channel - 1) // 2
        slopes = self.coupling[..., first : first + channel, :]
        return self.mean[..., channel, :] + (slopes * before.unsqueeze(-1)).sum(-2)

    def means(self, x: Tensor) -> Tensor:
        """The means of all channels, each given those before it, for ``x`` in [-1, 1], (…, C)."""
        channels = range(self.mean.shape[-2])
        return torch.stack([self.mean_of(c, x[..., :c]) for c in channels], dim=-2)


class _Down(nn.Conv2d):
    """Rows i - 1 and i, columns j - 1 to j + 1: a convolution of the down stream."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, (2, 3), stride, padding=(1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)[:, :, : -(-input.shape[2] // self.stride[0])]


def _right(inputs: int, outputs: int, stride: int = 1) -> MaskedConv2d:
    """Rows i - 1 and i, columns j - 1 and j: a convolution of the down-right stream."""
    return MaskedConv2d(inputs, outputs, above=1, reach=1, ahead=0, stride=stride)


def _concatenated_elu(x: Tensor) -> Tensor:
    """elu of x beside elu of -x, twice the channels (sec. 2.6)."""
    return functional.elu(torch.cat([x, -x], dim=1))


class _Block(nn.Module):
    """x + a * sigmoid(b) with (a, b) = last(drop(act(first(act(x)) + what is read))) + V class."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__()
        self.told = nn.Linear(classes, 2 * config.channels, bias=False) if classes else None
        self.dropout = Dropout(config.dropout)

    def said(self, classes: Tensor | None) -> Tensor | None:
        return None if self.told is None else self.told(classes)

    def forward(
        self, x: Tensor, read: Tensor | None, told: Tensor | None, first: Layer, last: Layer
    ) -> Tensor:
        """On whole images, on a row (batch, channels, W), or at one position (batch, channels)."""
        inner = first(_concatenated_elu(x))
        inner = inner if read is None else inner + read
        both = last(self.dropout(_concatenated_elu(inner)))
        both = both if told is None else both + told.reshape(*told.shape, *[1] * (x.ndim - 2))
        signal, gate = both.chunk(2, dim=1)
        return x + signal * torch.sigmoid(gate)


class _Pair(nn.Module):
    """A block of the down stream and one of the down-right stream, which reads the first.

    On the way back both also read what the partner on the way there was given.
    """

    def __init__(self, config: Config, classes: int, *, back: bool) -> None:
        super().__init__()
        width = config.channels
        self.down, self.right = (_Block(config, classes) for _ in range(2))
        self.down_first, self.down_last = _Down(2 * width, width), _Down(2 * width, 2 * width)
        self.right_first, self.right_last = _right(2 * width, width), _right(2 * width, 2 * width)
        self.link = MaskedConv2d(2 * width, width)
        self.back_down = MaskedConv2d(2 * width, width) if back else None
        self.back_right = MaskedConv2d(2 * width, width) if back else None
        with torch.no_grad():
            self.down_last.weight.mul_(0.1)
            self.right_last.weight.mul_(0.1)

    def forward(
        self, down: Tensor, right: Tensor, partner: Streams | None, classes: Tensor | None
    ) -> Streams:
        read = None
        if self.back_down is not None and partner is not None:
            read = self.back_down(_concatenated_elu(partner[0]))
        told = self.down.said(classes)
        down = self.down(down, read, told, self.down_first, self.down_last)
        read = self.link(_concatenated_elu(down))
        if self.back_right is not None and partner is not None:
            read = read + self.back_right(_concatenated_elu(partner[1]))
        told = self.right.said(classes)
        return down, self.right(right, read, told, self.right_first, self.right_last)


class _PairWalk:
    """A ``_Pair`` over images that are being drawn: ``row`` begins a row, ``at`` gives its columns."""

    def __init__(self, pair: _Pair, rows: int, width: int, classes: Tensor | None) -> None:
        self.pair = pair
        self.told = pair.down.said(classes), pair.right.said(classes)
        self.down = [RowCursor(one, rows, width) for one in (pair.down_first, pair.down_last)]
        self.right = [one.cursor(rows, width) for one in (pair.right_first, pair.right_last)]

    def row(self, down: Tensor, partner: Tensor | None) -> Tensor:
        """The down stream's row, (batch, channels, W), through its block."""
        pair, read = self.pair, None
        if pair.back_down is not None and partner is not None:
            read = _at_points(pair.back_down, _concatenated_elu(partner).mT).mT
        first, last = (_whole_row(one) for one in self.down)
        down = pair.down(down, read, self.told[0], first, last)
        self.linked = _at_points(pair.link, _concatenated_elu(down).mT)
        for cursor in self.right:
            cursor.next_row()
        return down

    def at(self, column: int, right: Tensor, partner: Tensor | None) -> Tensor:
        """The down-right stream's features at a column, (batch, channels), through its block."""
        pair, read = self.pair, self.linked[:, column]
        if pair.back_right is not None and partner is not None:
            read = read + _at_points(pair.back_right, _concatenated_elu(partner))
        first, last = (partial(cursor.step, column) for cursor in self.right)
        out: Tensor = pair.right(right, read, self.told[1], first, last)
        return out


class _Scale(nn.Module):
    """Pairs on the way there, the next scale at half the size, pairs on the way back."""

    def __init__(self, config: Config, scales: int, classes: int) -> None:
        super().__init__()
        width, count = config.channels, max(1, config.blocks >> (scales - 1))
        self.there = nn.ModuleList(_Pair(config, classes, back=False) for _ in range(count))
        self.back = nn.ModuleList(_Pair(config, classes, back=True) for _ in range(count))
        self.inner = None
        if scales > 1:
            self.inner = _Scale(config, scales - 1, classes)
            self.shrink_down, self.shrink_right = _Down(width, width, 2), _right(width, width, 2)
            self.grow_down = nn.ConvTranspose2d(width, width, 2, stride=2)
            self.grow_right = nn.ConvTranspose2d(width, width, 2, stride=2)

    def forward(self, down: Tensor, right: Tensor, classes: Tensor | None) -> Streams:
        given: list[Streams] = []
        for pair in self.there:
            given.append((down, right))
            down, right = pair(down, right, None, classes)
        if self.inner is not None:
            low = self.inner(self.shrink_down(down), self.shrink_right(right), classes)
            height, width = down.shape[2:]
            down = down + self.grow_down(low[0])[:, :, :height, :width]
            right = right + self.grow_right(low[1])[:, :, :height, :width]
        for pair in self.back:
            down, right = pair(down, right, given.pop(), classes)
        return down, right


class _ScaleWalk:
    """A ``_Scale`` over images that are being drawn: the scale below moves at every second step."""

    def __init__(self, scale: _Scale, rows: int, width: int, classes: Tensor | None) -> None:
        self.there, self.back = (
            [_PairWalk(one, rows, width, classes) for one in pairs if isinstance(one, _Pair)]
            for pairs in (scale.there, scale.back)
        )
        self.inner = None
        if scale.inner is not None:
            half = -(-width // 2)
            self.inner = _ScaleWalk(scale.inner, rows, half, classes)
            self.shrink_down = RowCursor(scale.shrink_down, rows, width)
            self.shrink_right = scale.shrink_right.cursor(rows, width)
            self.grow_down, self.grow_right = scale.grow_down, scale.grow_right
            self.low_right = scale.grow_right.weight.new_zeros(
                half, rows, len(scale.grow_right.weight)
            )

    def next_row(self, row: int, down: Tensor) -> Tensor:
        """Begin a row: the down stream's features of it, (batch, channels, W), through the scale."""
        self.now, given = row, []
        for pair in self.there:
            given.append(down)
            down = pair.row(down, None)
        if self.inner is not None:
            low = self.shrink_down.row(down.mT).mT
            if row % 2 == 0:
                self.low_down = self.inner.next_row(row // 2, low)
            down = down + _grown_row(self.grow_down, self.low_down, row % 2)[:, :, : down.shape[2]]
            self.shrink_right.next_row()
        for pair in self.back:
            down = pair.row(down, given.pop())
        return down

    def at(self, column: int, right: Tensor) -> Tensor:
        """The down-right stream's features at a column of the row begun, through the scale."""
        given: list[Tensor] = []
        for pair in self.there:
            given.append(right)
            right = pair.at(column, right, None)
        if self.inner is not None:
            self.shrink_right.put(column, right)
            if self.now % 2 == 0 and column % 2 == 0:
                low = self.inner.at(column // 2, self.shrink_right.at(column))
                self.low_right[column // 2] = low
            grow, low = self.grow_right, self.low_right[column // 2]
            right = right + functional.linear(
                low, grow.weight[:, :, self.now % 2, column % 2].T, grow.bias
            )
        for pair in self.back:
            right = pair.at(column, right, given.pop())
        return right


def _at_points(layer: MaskedConv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution with the features last, at one position or along a row."""
    return functional.linear(x, layer.weight[:, :, 0, 0], layer.bias)


def _whole_row(cursor: RowCursor) -> Layer:
    return lambda y: cursor.row(y.mT).mT


def _grown_row(grow: nn.ConvTranspose2d, low: Tensor, parity: int) -> Tensor:
    """One of the two rows that a row of the scale below grows into, (batch, channels, 2 W)."""
    both = torch.einsum("bcw,cdp->bdwp", low, grow.weight[:, :, parity])
    assert grow.bias is not None
    return both.flatten(2) + grow.bias.unsqueeze(1)


class PixelCNNPlusPlus(nn.Module, Sampler, Density, Factorised, Completer):
    """Two shifted streams and a mixture of discretised logistics for every pixel."""

    spaces: ClassVar = (Images,)
    conditions: ClassVar = (Labels,)

    def __init__(
        self, space: Images, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        if space.levels == 2:
            raise Refusal(
                "CFG-090",
                f"pixelcnn-plus-plus gives every pixel a density over many levels, and {space} have two",
                way_out="choose pixelcnn, or show the images with --view 8bit",
            )
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        width, channels = config.channels, space.channels
        classes = condition.count if condition else 0
        self.enter_down = nn.Conv2d(channels, width, (2, 3), padding=(2, 1), bias=False)
        self.enter_right = MaskedConv2d(channels, width, above=1, reach=1, kind="A")
        self.place = nn.Parameter(torch.zeros(2, width, *space.shape[1:]))
        self.scale = _Scale(config, config.scales, classes)
        numbers = 1 + 2 * channels + channels * (channels - 1) // 2
        self.leave = MaskedConv2d(width, numbers * config.mixtures)
        self._spread()
        channels_last(self)

    @torch.no_grad()
    def _spread(self) -> None:
        """Let the components begin in the middles of K equal parts of [-1, 1]."""
        count = self.config.mixtures
        bias = torch.zeros(len(self.leave.bias) // count, count)
        bias[1 : 1 + self.space.channels] = (2 * torch.arange(count) + 1) / count - 1
        bias[1 + self.space.channels : 1 + 2 * self.space.channels] = -math.log(2 * count)
        self.leave.bias.copy_(bias.flatten())
        self.leave.weight.mul_(0.1)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """One scale and dropout for few or small images; more scales for larger ones."""
        assert isinstance(space, Images)
        smallest = min(space.height, space.width)
        if num_examples < 10_000 or smallest <= 12:
            return Config(
                scales=1 if smallest <= 12 else 2, batch_size=64, learning_rate=2e-3, dropout=0.3
            )
        scales = 3 if smallest <= 40 else 4
        wide = space.channels > 1
        return Config(
            channels=64 if wide else 32,
            scales=scales,
            blocks=4,
            mixtures=10 if wide else 5,
            dropout=0.0,
            learning_rate=2e-3,
        )

    @classmethod
    def toy(cls) -> PixelCNNPlusPlus:
        config = Config(channels=6, scales=2, blocks=1, mixtures=2, dropout=0.0, learning_rate=0.02)
        return cls(Images(1, 2, 3, levels=3), config)

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
        noise = row_noise(num_samples, generator, self.place.device)
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
        """Within a pixel: of R, of G given R, of B given both, the component being unknown."""
        x = as_device(x, self)
        return self._factors(x, self.mixture(x, condition)).movedim(-1, 1)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Unknown pixels are drawn in raster order, each given what stands before it, known or drawn.

        Known pixels further on have no say in it: exact for a known upper part, and a draft otherwise.
        """
        noise = row_noise(len(x), generator, self.place.device)
        return self._drawn(noise, condition, as_device(x, self), as_device(known, self))

    def mixture(self, x: Tensor, condition: Tensor | None = None) -> Mixture:
        """Of every pixel given those before it; its tensors begin with (batch, height, width)."""
        return self._mixture(self.numbers(self._entering(x), self._classes(condition, len(x))))

    def numbers(self, entering: Tensor, classes: Tensor | None) -> Tensor:
        """What the network says of every pixel, (batch, H, W, numbers), from reals in [-1, 1]."""
        entering = entering.contiguous(memory_format=torch.channels_last)
        down = self.enter_down(entering)[:, :, : self.space.height]
        down = down.contiguous(memory_format=torch.channels_last)
        right = self.enter_right(entering)
        down, right = down + self.place[0].to(down.dtype), right + self.place[1].to(right.dtype)
        _, right = self.scale(down, right, classes)
        told: Tensor = self.leave(functional.elu(right)).movedim(1, -1)
        return told

    def _mixture(self, raw: Tensor) -> Mixture:
        """From numbers that stand last; in float32 at least."""
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        channels = self.space.channels
        parts = raw.unflatten(-1, (-1, self.config.mixtures))
        logits, mean, log_scale, coupling = parts.split(
            [1, channels, channels, parts.shape[-2] - 1 - 2 * channels], dim=-2
        )
        eighth_of_a_cell = 2 / (self.space.levels - 1) / 8
        log_scale = log_scale.clamp(min=math.log(eighth_of_a_cell))
        return Mixture(logits.squeeze(-2), mean, log_scale, torch.tanh(coupling))

    def _factors(self, x: Tensor, mixture: Mixture) -> Tensor:
        """log p of every channel given the pixels and channels before it, (batch, H, W, channels)."""
        x = x.movedim(1, -1)
        means = mixture.means(self._entering(x, mixture.mean.dtype))
        return logistic_mixture_log_factors(
            x, mixture.logits, means, mixture.log_scale, self.space.levels
        )

    def _entering(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Levels as reals in [-1, 1]."""
        return x.to(dtype or self.place.dtype) * (2 / (self.space.levels - 1)) - 1

    def _classes(self, condition: Tensor | None, rows: int) -> Tensor | None:
        classes = one_hot_labels(condition, self.condition_space, rows)
        return None if classes is None else classes.to(self.place)

    def _drawn(
        self, noise: Noise, condition: Tensor | None, given: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """Draw pixel after pixel; where ``known`` is true, take ``given`` instead."""
        channels, height, width = self.space.shape
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        uniform = noise.uniform(channels, height, width, 2)
        training, _ = self.training, self.eval()
        walk = _Walk(self, noise.rows, self._classes(condition, noise.rows))
        x = torch.zeros(noise.rows, *self.space.shape, dtype=torch.long, device=uniform.device)
        for row in range(height):
            walk.next_row(row, self._entering(x[:, :, row - 1]) if row else None)
            for column in range(width):
                at = (slice(None), slice(None), row, column)
                fixed = None if given is None or known is None else (given[at].long(), known[at])
                mixture = self._mixture(walk.at(column))
                x[at] = self.pixel(mixture, uniform[at], fixed)
                walk.put(column, self._entering(x[at]))
        self.train(training)
        return x.to(self.space.dtype)

    def pixel(
        self, mixture: Mixture, uniform: Tensor, fixed: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """A draw of one pixel's channels, (batch, C), from ``uniform`` numbers (batch, C, 2).

        Each channel draws its own component, weighted by what the channels before it came to: the
        same distribution as one component for all, and right when some of them are known.
        """
        levels, weights, drawn = (
            self.space.levels,
            mixture.logits,
            uniform.new_zeros(len(uniform), 0),
        )
        drawn = drawn.long()
        for channel in range(self.space.channels):
            mean = mixture.mean_of(channel, self._entering(drawn, weights.dtype))
            spread = mixture.log_scale[..., channel, :]
            value = logistic_mixture_draw(weights, mean, spread, uniform[:, channel], levels)
            if fixed is not None:
                value = torch.where(fixed[1][:, channel], fixed[0][:, channel], value)
            drawn = torch.cat([drawn, value.unsqueeze(1)], dim=1)
            said = discretised_logistic_log_prob(value.unsqueeze(-1), mean, spread, levels)
            weights = weights + said
        return drawn

    def negative_log_likelihood(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log p(x) in nats per dimension."""
        factors = self._factors(batch.x, self.mixture(batch.x, batch.condition))
        return Loss(-factors.mean())

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=50 * config.batch_size,
        )
        player = Player("network", list(self.parameters()), optimiser, clip=1.0)
        stage = Stage([Descent((player,), self.negative_log_likelihood)])
        bf16 = config.channels >= 16
        return Game([stage], batch_size=config.batch_size, average=0.05, bf16=bf16)


class _Walk:
    """The whole network over images that are being drawn: a row is begun, then a column at a time."""

    def __init__(self, model: PixelCNNPlusPlus, rows: int, classes: Tensor | None) -> None:
        width = model.space.width
        self.place = model.place.detach()
        self.enter_down = RowCursor(model.enter_down, rows, width)
        self.enter_right = model.enter_right.cursor(rows, width)
        self.scale = _ScaleWalk(model.scale, rows, width, classes)
        self.leave = model.leave
        self.nothing = self.place.new_zeros(rows, model.space.channels, width)

    def next_row(self, row: int, before: Tensor | None) -> None:
        """Begin a row; ``before`` is the network's input for the row above, (rows, channels, W)."""
        before = self.nothing if before is None else before
        down = self.enter_down.row(before.mT).mT + self.place[0, :, row]
        self.scale.next_row(row, down)
        self.enter_right.next_row()
        self.here = self.place[1, :, row]

    def at(self, column: int) -> Tensor:
        """The raw numbers of a column's mixture, (rows, numbers)."""
        right = self.enter_right.at(column) + self.here[:, column]
        return _at_points(self.leave, functional.elu(self.scale.at(column, right)))

    def put(self, column: int, x: Tensor) -> None:
        self.enter_right.put(column, x)
