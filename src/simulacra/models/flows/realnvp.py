"""RealNVP: an invertible map from data to independent normal noise, built of affine couplings.

With f invertible and z = f(x), the change of variables (Dinh et al. 2017, eq. 2) gives

    log p(x) = log N(f(x); 0, I) + log |det df/dx|.

f is a chain of coupling layers, each of which keeps some entries and scales and shifts the others as
the kept ones tell (eq. 7 to 9), so that inverse and determinant (eq. 6) cost no more than f. Images
pass through a multi-scale architecture (sec. 3.6): couplings, half of the entries leave as code, a
squeeze halves the sides, couplings again. Images are integers: uniform noise and a logit make them
reals (sec. 4.1), which turns the density into a lower bound; vectors and real tables have it exactly.

Paper: Dinh, Sohl-Dickstein & Bengio 2017. Changed: checkerboard couplings work on the squeezed grid,
where they are a choice of channels, at a quarter of the cost; no batch normalisation, but data brought
to mean 0 and deviation 1 beforehand, residual blocks that start as the identity, averaged weights;
SiLU for ReLU, AdamW with a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Decoder, Density, Encoder, Kind, Sampler, Scorer
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.coupling import (
    CHECKERBOARD,
    COLUMNS,
    ROWS,
    AffineCoupling,
    ResidualNet,
    VectorNet,
    board_mask,
    corner_mask,
    half_mask,
    squeeze,
    unsqueeze,
)
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels, require_no_missing
from simulacra.optimisation import Optimiser
from simulacra.probability.bounds import importance_weighted
from simulacra.probability.dequantisation import dequantised, from_logits, quantised, to_logits
from simulacra.probability.noise import Noise, row_noise, scoring_noise
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Labels, Space, Table, Vectors


@dataclass(frozen=True)
class Config:
    """``couplings`` are those of each scale; ``blocks`` are residual blocks of convolutional networks,
    hidden layers of others. ``alpha`` keeps the logit of images finite (sec. 4.1); ``least_scale`` is
    the least deviation of a pixel, in logits, that is stretched to 1 before the first coupling;
    ``importance_samples`` are the draws of u that ``log_prob`` averages p(x + u) over, for images."""

    scales: int = 2
    couplings: int = 6
    hidden: int = 64
    blocks: int = 2
    dropout: float = 0.0
    alpha: float = 0.05
    least_scale: float = 0.2
    importance_samples: int = 1
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class Scale(nn.Module):
    """Couplings on one grid of ``shape``, after a squeeze or not; channels where ``kept`` is 0 leave."""

    keep: Tensor
    leave: Tensor
    order: Tensor

    def __init__(
        self,
        couplings: list[AffineCoupling],
        shape: tuple[int, ...],
        *,
        squeezed: bool = False,
        kept: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(couplings)
        self.squeezed, self.grid = squeezed, shape[1:]
        stays = torch.ones(shape[0]) if kept is None else kept.flatten()
        keep, leave = stays.nonzero().flatten(), (1 - stays).nonzero().flatten()
        self.register_buffer("keep", keep, persistent=False)
        self.register_buffer("leave", leave, persistent=False)
        self.register_buffer("order", torch.cat([keep, leave]).argsort(), persistent=False)

    def forward(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What stays (n, K, *grid), what leaves (n, L, *grid), and log |det|, shape (n,)."""
        x = squeeze(x) if self.squeezed else x
        log_det = x.new_zeros(len(x))
        for coupling in self.couplings:
            x, more = coupling(x, given)
            log_det = log_det + more
        return x[:, self.keep], x[:, self.leave], log_det

    def inverse(self, stays: Tensor, leaves: Tensor, given: Tensor | None) -> Tensor:
        x = torch.cat([stays, leaves], dim=1)[:, self.order]
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, AffineCoupling)
            x = coupling.inverse(x, given)
        return unsqueeze(x) if self.squeezed else x


class RealNVP(nn.Module, Sampler, Density, Encoder, Decoder, Scorer):
    """Affine couplings between data and standard normal noise."""

    representative: ClassVar = True
    spaces: ClassVar = (Images, Vectors, Table)
    conditions: ClassVar = (Labels,)
    normal_codes: ClassVar = True
    shift: Tensor
    scale: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config or Config()
        _require_real(space)
        extra = condition.count if condition else 0
        if isinstance(space, Images):
            self.scales = nn.ModuleList(_image_scales(space, self.config, extra))
        else:
            self.scales = nn.ModuleList(_vector_scale(space, self.config, extra))
        self.register_buffer("shift", torch.zeros(space.shape))
        self.register_buffer("scale", torch.ones(space.shape))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Convolutions for images; regularised for few data."""
        if num_examples < 5000:
            return Config(dropout=0.2, weight_decay=0.1)
        return Config()

    @classmethod
    def toy(cls) -> RealNVP:
        return cls(
            Images(1, 2, 4, levels=2), Config(couplings=4, hidden=8, blocks=1, batch_size=16)
        )

    @property
    def kind(self) -> Kind:
        return Kind.LOWER if isinstance(self.space, Images) else Kind.EXACT

    @property
    def code_space(self) -> Vectors:
        return Vectors(self.space.dimensions)

    @property
    def score_source(self) -> str:
        bound = "the bound on " if isinstance(self.space, Images) else ""
        return f"minus {bound}log p(x), nats"

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.shift.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        return self.decode(noise.normal(self.space.dimensions), condition=condition)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x), or for images log of the mean of p(x + u) over draws of u.

        That mean is unbiased for the mass of x's cell, so its log is a lower bound in expectation.
        """
        x, given = as_device(x, self), self._one_hot(condition, len(x))
        noise = scoring_noise(len(x), generator, x.device)
        draws = self.config.importance_samples if isinstance(self.space, Images) else 1
        values = []
        for _ in range(draws):
            real, log_slope = self._real(x, noise)
            values.append(log_slope + self._density(real, given))
        return importance_weighted(torch.stack(values, dim=1))

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """f(x), shape (n, D); of an image the code of the middle of its cells, x + 1/2."""
        x = as_device(x, self)
        middle = x.to(self.shift.dtype) + (0.5 if isinstance(self.space, Images) else 0.0)
        real, _ = self._standard(middle)
        code, _ = self.transform(real, self._one_hot(condition, len(x)))
        return code

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The inverse of f; images are floored."""
        code = as_device(code, self).to(self.shift.dtype)
        real = self.inverse(code, self._one_hot(condition, len(code)))
        y = real * self.scale + self.shift
        if isinstance(self.space, Images):
            return quantised(from_logits(y, self.space.levels, self.config.alpha), self.space)
        return y.to(self.space.dtype)

    @torch.no_grad()
    def anomaly_score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """With labels, minus log of the mean over all of them."""
        x = as_device(x, self)
        real, log_slope = self._real(x, scoring_noise(len(x), generator, x.device))
        if self.condition_space is None:
            return -log_slope - self._density(real, None)
        count = self.condition_space.count
        each = torch.eye(count).to(real)
        values = [self._density(real, one.expand(len(x), count)) for one in each]
        return math.log(count) - log_slope - torch.logsumexp(torch.stack(values), dim=0)

    def transform(self, real: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The chain of couplings: reals (n, *shape) to codes (n, D), and log |det|, shape (n,)."""
        x, log_det = real, real.new_zeros(len(real))
        codes = []
        for scale in self.scales:
            x, leaves, more = scale(x, given)
            codes.append(leaves.flatten(1))
            log_det = log_det + more
        return torch.cat([*codes, x.flatten(1)], dim=1), log_det

    def inverse(self, code: Tensor, given: Tensor | None = None) -> Tensor:
        """The inverse of ``transform``: codes (n, D) to reals (n, *shape)."""
        scales: list[Scale] = list(self.scales)  # type: ignore[arg-type]
        cells = [math.prod(scale.grid) for scale in scales]
        leaving = [len(scale.leave) * count for scale, count in zip(scales, cells, strict=True)]
        *codes, last = code.split([*leaving, len(scales[-1].keep) * cells[-1]], dim=1)
        x: Tensor = last.reshape(len(last), len(scales[-1].keep), *scales[-1].grid)
        for scale, leaves in zip(reversed(scales), reversed(codes), strict=True):
            shape = (len(x), len(scale.leave), *scale.grid)
            x = scale.inverse(x, leaves.reshape(shape), given)
        return x

    def _density(self, real: Tensor, given: Tensor | None) -> Tensor:
        """log N(f(x); 0, I) + log |det| (eq. 2), shape (n,)."""
        code, log_det = self.transform(real, given)
        return log_det - 0.5 * (code.square() + math.log(2 * math.pi)).sum(1)

    def _real(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Elements as the couplings eat them, and the log-determinant of how they got there."""
        if isinstance(self.space, Images):
            return self._standard(dequantised(x, noise).to(self.shift.dtype))
        return self._standard(x.to(self.shift.dtype))

    def _standard(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_slope = y.new_zeros(len(y))
        if isinstance(self.space, Images):
            y, log_slope = to_logits(y, self.space.levels, self.config.alpha)
        return (y - self.shift) / self.scale, log_slope - self.scale.log().sum()

    def _one_hot(self, condition: Tensor | None, rows: int) -> Tensor | None:
        given = one_hot_labels(condition, self.condition_space, rows)
        return None if given is None else given.to(self.shift)

    def negative_log_likelihood(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-log p(x), of images its bound, in nats a dimension."""
        real, log_slope = self._real(batch.x, noise)
        log_prob = log_slope + self._density(real, self._one_hot(batch.condition, len(batch)))
        value = -log_prob.mean() / self.space.dimensions
        return Loss(value, {"bits/dim": value / math.log(2)})

    def standardise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Mean and deviation of every entry, from the first batches."""
        self.shift.zero_()
        self.scale.fill_(1.0)
        seen = torch.cat([self._real(batch.x, noise)[0].double() for batch in batches])
        deviation = seen.std(0, correction=0)
        if isinstance(self.space, Images):
            deviation = deviation.clamp(min=self.config.least_scale)
        self.shift.copy_(seen.mean(0))
        # A column of one value has no deviation to divide by.
        self.scale.copy_(torch.where(deviation > 1e-6 * (1 + seen.abs().amax(0)), deviation, 1.0))
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
        wide = isinstance(self.space, Images) and config.hidden >= 32
        return Game(stages, batch_size=config.batch_size, average=0.05, bf16=wide)


def _require_real(space: Space) -> None:
    require_no_missing(space, who="realnvp")
    if isinstance(space, Table):
        names = [column.name for column in space.columns if column.kind == "category"]
        if names:
            raise Refusal(
                "CFG-036",
                f"realnvp models real columns, and {shown(names[0])} is a category",
                way_out="leave such columns out, or choose vae, gaussian-mixture or independent",
            )


def _image_scales(space: Images, config: Config, extra: int) -> list[Scale]:
    """Scales while the sides can be halved, at most ``config.scales``; at least one."""
    channels, height, width = space.shape
    scales: list[Scale] = []
    more = True
    while more:
        squeezed = height % 2 == 0 and width % 2 == 0
        masks = _masks(channels, height, width, squeezed=squeezed)
        if squeezed:
            channels, height, width = 4 * channels, height // 2, width // 2
        more = len(scales) + 1 < config.scales and height % 2 == 0 and width % 2 == 0
        chosen = [masks[index % len(masks)] for index in range(config.couplings)]
        scales.append(
            Scale(
                [AffineCoupling(_convolutional(channels, config, extra), one) for one in chosen],
                (channels, height, width),
                squeezed=squeezed,
                kept=masks[0] if more else None,
            )
        )
        channels = channels // 2
    return scales


def _masks(channels: int, height: int, width: int, *, squeezed: bool) -> list[Tensor]:
    """The masks that take turns, each followed by its complement (fig. 3)."""
    if squeezed:
        chosen = [corner_mask(channels, CHECKERBOARD), corner_mask(channels, ROWS)]
        channels *= 4
    else:
        chosen = [board_mask(height, width).repeat(channels, 1, 1)]
    if channels > 4 or (not squeezed and channels > 1):
        chosen.append(half_mask(channels)[:, None, None])
    else:
        chosen += [corner_mask(channels // 4, COLUMNS)] if squeezed else []
    return [one for mask in chosen for one in (mask, 1 - mask)]


def _convolutional(channels: int, config: Config, extra: int) -> ResidualNet:
    return ResidualNet(channels, config.hidden, config.blocks, extra=extra, dropout=config.dropout)


def _vector_scale(space: Space, config: Config, extra: int) -> list[Scale]:
    """Couplings that keep a half of the entries, then the other, then another half by lot."""
    size = space.dimensions
    lots = torch.Generator().manual_seed(0)
    masks: list[Tensor] = []
    while len(masks) < config.couplings:
        mask = half_mask(size)[torch.randperm(size, generator=lots)]
        masks += [mask, 1 - mask]
    couplings = [
        AffineCoupling(
            VectorNet(size, config.hidden, config.blocks, extra=extra, dropout=config.dropout), mask
        )
        for mask in masks[: config.couplings]
    ]
    return [Scale(couplings, (size,))]
