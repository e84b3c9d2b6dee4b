"""PixelCNN++: pixels one after the other, each from a mixture of discretised logistics.

    p(x) = prod_i p(x_i | x_1, …, x_{i-1})

over pixels in raster order, and for one pixel of channels R, G and B

    p(r, g, b) = sum_k pi_k L(r; mu_r, s_r) L(g; mu_g(r), s_g) L(b; mu_b(r, g), s_b)         (eq. 2, 3)
    mu_g(r) = mu_g + alpha r,      mu_b(r, g) = mu_b + beta r + gamma g                         (eq. 3)

L is a logistic's mass in the cell of a level, the first and last cells reaching to infinity (eq. 2). All
numbers of a pixel come from the pixels before it, so one network without any order among the channels
gives them, and neighbouring levels are neighbours from the start.

The network is the paper's two shifted streams (``layers/streams.py``): gated residual blocks with
concatenated ELU and dropout (sec. 2.5), down- and up-sampling (sec. 2.3), short-cuts between the way
there and the way back (sec. 2.4). Sampling keeps its features, and works out those of the new pixel.

Salimans, Karpathy, Chen & Kingma 2017, arXiv 1701.05517. Changed: a level is read as waves of every
octave too, which lets a network see 253 beside 254 (Kingma et al. 2021, app. C), and the mixture is told
in float32 (both together: 0.08 bits/dim of 8-bit MNIST after 24,000 images); blocks stand where they cost
least (all at the lowest scale, half as many at each larger one); what comes back from a scale is added to
what went there; a bias for each position at the entrance; scales are never below an eighth of a cell,
-6.9 for 256 levels instead of -7; small last layers instead of weight normalisation; AdamW with a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Stage
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels
from simulacra.layers.layout import channels_last
from simulacra.layers.masked import MaskedConv2d
from simulacra.layers.streams import ShiftedStreams
from simulacra.optimisation import Optimiser
from simulacra.probability.distributions import (
    discretised_logistic_log_prob,
    logistic_mixture_draw,
    logistic_mixture_log_factors,
)
from simulacra.probability.noise import Noise, row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space


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
        classes = condition.count if condition else 0
        self.streams = ShiftedStreams(
            space,
            space.channels * (1 + 2 * self._octaves),
            config.channels,
            config.scales,
            config.blocks,
            config.dropout,
            classes,
        )
        channels = space.channels
        numbers = 1 + 2 * channels + channels * (channels - 1) // 2
        self.leave = MaskedConv2d(config.channels, numbers * config.mixtures)
        self._spread()
        channels_last(self)

    @torch.no_grad()
    def _spread(self) -> None:
        """Let the components begin spread over [-1, 1], a single one in the middle."""
        count = self.config.mixtures
        bias = torch.zeros(len(self.leave.bias) // count, count)
        if count > 1:
            bias[1 : 1 + self.space.channels] = torch.linspace(-1, 1, count)
        bias[1 + self.space.channels : 1 + 2 * self.space.channels] = -math.log(2 * count)
        self.leave.bias.copy_(bias.flatten())
        self.leave.weight.mul_(0.1)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Dropout for few images; one scale for small and for grey ones, more for larger ones, at a rate
        that waves and scales together do not run away from."""
        assert isinstance(space, Images)
        smallest = min(space.height, space.width)
        if num_examples < 10_000 or smallest <= 12:
            return Config(
                scales=1 if smallest <= 12 else 2,
                batch_size=64,
                learning_rate=2e-3 if smallest <= 12 else 7e-4,
                dropout=0.3,
            )
        if space.channels == 1 and smallest <= 40:
            # Grey levels are told by what is near, and features at full size see it.
            return Config(
                channels=48, blocks=1, mixtures=10, dropout=0.0, batch_size=16, learning_rate=2e-3
            )
        wide = space.channels > 1
        return Config(
            channels=64 if wide else 48,
            scales=3 if smallest <= 40 else 4,
            blocks=4,
            mixtures=10,
            dropout=0.0,
            batch_size=16,
            learning_rate=7e-4,
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
        noise = row_noise(num_samples, generator, self.leave.weight.device)
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
        noise = row_noise(len(x), generator, self.leave.weight.device)
        return self._drawn(noise, condition, as_device(x, self), as_device(known, self))

    def mixture(self, x: Tensor, condition: Tensor | None = None) -> Mixture:
        """Of every pixel given those before it; its tensors begin with (batch, height, width)."""
        return self._mixture(self.numbers(self._read(x), self._classes(condition, len(x))))

    def numbers(self, read: Tensor, classes: Tensor | None) -> Tensor:
        """What the network says of every pixel, (batch, H, W, numbers), from what it reads."""
        features = functional.elu(self.streams(read, classes))
        # Means are as fine as the cells: the last layer is small, and not for eight bits of precision.
        with torch.autocast(features.device.type, enabled=False):
            told: Tensor = self.leave(features.to(self.leave.weight.dtype))
        return told.movedim(1, -1)

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

    @property
    def _octaves(self) -> int:
        """Periods 2, 4, 8, … up to the number of levels."""
        return math.ceil(math.log2(self.space.levels))

    def _read(self, x: Tensor) -> Tensor:
        """Levels (batch, C, …) as the network reads them: in [-1, 1], and as waves of every octave, by
        which two neighbouring levels differ as much as distant ones (Kingma et al. 2021, app. C)."""
        reals = x.to(self.leave.weight.dtype)
        octave = torch.arange(1, self._octaves + 1, device=x.device, dtype=reals.dtype)
        angle = (
            reals.unsqueeze(2) * (2 * math.pi * 0.5**octave).reshape(-1, *[1] * (x.ndim - 2))
        ).flatten(1, 2)
        return torch.cat([self._entering(x), angle.cos(), angle.sin()], dim=1)

    def _entering(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Levels as reals in [-1, 1]."""
        return x.to(dtype or self.leave.weight.dtype) * (2 / (self.space.levels - 1)) - 1

    def _classes(self, condition: Tensor | None, rows: int) -> Tensor | None:
        classes = one_hot_labels(condition, self.condition_space, rows)
        return None if classes is None else classes.to(self.leave.weight)

    def _drawn(
        self, noise: Noise, condition: Tensor | None, given: Tensor | None, known: Tensor | None
    ) -> Tensor:
        """Draw pixel after pixel; where ``known`` is true, take ``given`` instead."""
        channels, height, width = self.space.shape
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        uniform = noise.uniform(channels, height, width, 2)
        training, _ = self.training, self.eval()
        walk = self.streams.walk(noise.rows, self._classes(condition, noise.rows))
        leave = self.leave.cursor(noise.rows, 1).point
        x = torch.zeros(noise.rows, *self.space.shape, dtype=torch.long, device=uniform.device)
        for row in range(height):
            walk.next_row(row, self._read(x[:, :, row - 1]) if row else None)
            for column in range(width):
                at = (slice(None), slice(None), row, column)
                fixed = None if given is None or known is None else (given[at].long(), known[at])
                mixture = self._mixture(leave(functional.elu(walk.at(column))))
                x[at] = self.pixel(mixture, uniform[at], fixed)
                walk.put(column, self._read(x[at]))
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
