"""Latent diffusion: an autoencoder makes data small, and another model of the shelf draws its codes.

An encoder turns x into a code, and a decoder a code into x; a generative model of codes is far cheaper
than one of x, since the autoencoder has taken out what eyes do not miss (Rombach et al. 2022, sec. 3).
First the autoencoder is trained, then the codes of all data are brought to mean 0 and deviation 1, each
entry by itself, then the prior learns to draw these:

    z = (E(x) - shift) / scale,    z ~ prior,    x = D(scale z + shift).

The autoencoder is any model of the shelf that encodes and decodes and whose codes are real vectors; the
prior any that draws such vectors. A condition goes to the prior. ``own`` names parts inside this file:
principal components (Pearson 1901), and a normal distribution for each class. What is drawn is the
decoder's best answer, without noise of its own.

There is no p(x) here, whatever the parts can say: the capabilities of an encoder and a decoder tell
neither q(z|x) nor p(x|z), so nothing bounds it honestly.

Paper: Rombach, Blattmann, Lorenz, Esser & Ommer 2022. Changed: any autoencoder and any prior, codes
that are vectors, each entry standardised by itself (theirs by one scale for all).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import (
    Component,
    Decoder,
    Diagnosable,
    Encoder,
    Sampler,
    require_component,
)
from simulacra.families.composed import LEAST_SHARE, played_inside
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.front_door import as_device, drawn_labels, require_no_missing
from simulacra.layers.rebuilding import Rebuilding
from simulacra.probability.noise import Noise, row_noise
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Labels, Space, Table, Tokens, Vectors

OWN = "own"
RIDGE = 1e-4
"""What is added to variances of standardised codes."""


@dataclass(frozen=True)
class Config:
    """``autoencoder`` and ``prior`` are names on the shelf, or ``own``; ``code`` is the size of the
    codes of the own autoencoder, others have settings for it. ``prior_share`` is the prior's part of
    the training."""

    autoencoder: str = "autoencoder"
    prior: str = "flow-matching"
    code: int = 8
    prior_share: float = 0.5
    batch_size: int = 64


class _Principal(nn.Module, Encoder, Decoder):
    """The autoencoder of its own: the first principal components of all the data, in closed form."""

    mean: Tensor
    axes: Tensor

    def __init__(self, space: Space, code: int) -> None:
        super().__init__()
        require_no_missing(space, who="latent-diffusion with principal components")
        self.door = Rebuilding(space)
        self.code = min(code, self.door.reads)
        self.register_buffer("mean", torch.zeros(self.door.reads))
        self.register_buffer("axes", torch.eye(self.door.reads)[: self.code])

    @property
    def code_space(self) -> Vectors:
        return Vectors(self.code)

    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        numbers = self.door.numbers(x)
        return (numbers - self.mean) @ self.axes.T

    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        return self.door.elements(self.mean + code @ self.axes)

    @torch.no_grad()
    def fit(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """Of all the data, what they vary along most."""
        rows = [batch.x for batch in batches]
        self.door.fit(iter(rows))
        moments = _Moments.of(self.door.numbers(x) for x in rows)
        values, vectors = torch.linalg.eigh(moments.covariance)
        self.mean.copy_(moments.mean)
        self.axes.copy_(vectors.flip(1)[:, : self.code].T)
        kept = values.flip(0)[: self.code].sum() / values.sum().clamp(min=1e-300)
        return {"variance kept": float(kept)}

    def training_game(self) -> Game:
        """What ``game`` is elsewhere; the shelf would take a class that has one for a model."""
        return Game([Stage([Rewrite("principal components", self.fit, sweep=True)], rounds=1)])


class _Normals(nn.Module, Sampler):
    """The prior of its own: a normal distribution of codes for each class, in closed form."""

    mean: Tensor
    root: Tensor

    def __init__(self, space: Vectors, condition: Labels | None) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        classes = condition.count if condition else 1
        self.register_buffer("mean", torch.zeros(classes, space.size))
        self.register_buffer("root", torch.eye(space.size).repeat(classes, 1, 1))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.mean.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        which = self._which(condition, num_samples)
        normal = noise.normal(self.space.size).to(self.mean.dtype)
        # Row by row: a product of matrices would add up in an order that the batch decides.
        return self.mean[which] + (self.root[which] * normal[:, None, :]).sum(2)

    def _which(self, condition: Tensor | None, rows: int) -> Tensor:
        if condition is None:
            return torch.zeros(rows, dtype=torch.long, device=self.mean.device)
        return as_device(condition, self).long()

    @torch.no_grad()
    def fit(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """Mean and covariance of the codes of each class; of a class without data the standard ones."""
        seen = list(batches)
        codes = torch.cat([batch.x for batch in seen])
        labels = [batch.condition for batch in seen if batch.condition is not None]
        which = self._which(torch.cat(labels) if labels else None, len(codes))
        for index in range(len(self.mean)):
            own = codes[which == index]
            if len(own):
                moments = _Moments.of([own])
                ridge = RIDGE * torch.eye(self.space.size, dtype=torch.float64, device=own.device)
                self.mean[index] = moments.mean.to(self.mean.dtype)
                self.root[index] = torch.linalg.cholesky(moments.covariance + ridge)
        return {}

    def training_game(self) -> Game:
        return Game([Stage([Rewrite("normals", self.fit, sweep=True)], rounds=1)])


@dataclass(frozen=True)
class _Moments:
    """Mean (d,) and covariance (d, d) of rows, in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, batches: Any) -> _Moments:
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for rows in batches:
            x = rows.double()
            count, total, square = count + len(x), total + x.sum(0), square + x.T @ x
        mean = total / max(count, 1)
        return cls(mean, square / max(count, 1) - torch.outer(mean, mean))


class LatentDiffusion(nn.Module, Sampler, Encoder, Decoder, Diagnosable):
    """An autoencoder, and a prior that draws its codes."""

    spaces: ClassVar = (Images, Vectors, Table)
    conditions: ClassVar = (Labels, Table, Tokens)

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        space: Space,
        config: Config | None = None,
        *,
        condition: Space | None = None,
        autoencoder: Any = None,
        prior: Any = None,
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config(autoencoder=OWN, prior=OWN)
        _require_sense(config)
        if config.autoencoder == OWN:
            autoencoder = _Principal(space, config.code)
        require_component("autoencoder", config.autoencoder, autoencoder, OWN)
        self.autoencoder = autoencoder
        if not isinstance(self.code_space, Vectors):
            reason = f"codes of {shown(config.autoencoder)} are {self.code_space}"
            way_out = "choose an autoencoder whose codes are real vectors, such as autoencoder"
            raise Refusal("CFG-224", reason, way_out=way_out)
        if config.prior == OWN:
            if not (condition is None or isinstance(condition, Labels)):
                reason = f"normal distributions of codes go by classes, and these are {condition}"
                raise Refusal("CFG-257", reason, way_out="set prior to flow-matching")
            prior = _Normals(self.code_space, condition)
        require_component("prior", config.prior, prior, OWN)
        self.prior = prior
        self.register_buffer("shift", torch.zeros(self.code_space.size))
        self.register_buffer("scale", torch.ones(self.code_space.size))

    @classmethod
    def components(
        cls, space: Space, config: object, condition: Space | None
    ) -> Mapping[str, Component]:
        """The autoencoder of the data, and the prior of its codes."""
        assert isinstance(config, Config)
        parts: dict[str, Component] = {}
        if config.autoencoder != OWN:
            parts["autoencoder"] = Component(config.autoencoder, (space,), (Encoder, Decoder))
        if config.prior != OWN and config.autoencoder == OWN:
            size = min(config.code, Rebuilding(space).reads)
            parts["prior"] = Component(config.prior, (Vectors(size),), (Sampler,), condition)
        elif config.prior != OWN:
            parts["prior"] = Component(
                config.prior, (), (Sampler,), condition, codes_of="autoencoder"
            )
        return parts

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """An autoencoder, and flow matching on its codes."""
        return Config()

    @classmethod
    def toy(cls) -> LatentDiffusion:
        config = Config(autoencoder=OWN, prior=OWN, code=3, batch_size=16)
        return cls(Images(1, 3, 3, levels=4), config)

    @property
    def code_space(self) -> Vectors:
        space: Vectors = self.autoencoder.code_space
        return space

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        z = self.prior.sample(num_samples, condition=condition, generator=generator)
        return self.decode(z)

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """z, the standardised code."""
        code: Tensor = self.autoencoder.encode(as_device(x, self))
        return (code - self.shift) / self.scale

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        raw = as_device(code, self).to(self.shift.dtype) * self.scale + self.shift
        decoded: Tensor = self.autoencoder.decode(raw)
        return decoded

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        """How far codes of new data are from standardised, and how large their entries get."""
        z = self.encode(x)
        return {
            "deviation of the codes (1 on training data)": float(z.std(0, correction=0).mean()),
            "largest entry of a code (deviations)": float(z.abs().max()),
        }

    def coded(self, batch: Batch, noise: Noise) -> Batch:
        """A batch as the prior sees it."""
        training, _ = self.autoencoder.training, self.autoencoder.eval()
        with torch.autocast(batch.x.device.type, enabled=False):
            z = self.encode(batch.x)
        self.autoencoder.train(training)
        return Batch(z, batch.condition)

    @torch.no_grad()
    def standardise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Shift and scale of every entry of a code, over all the data."""
        self.shift.zero_()
        self.scale.fill_(1.0)
        moments = _Moments.of(self.coded(batch, noise).x for batch in batches)
        self.shift.copy_(moments.mean)
        deviation = moments.covariance.diagonal().clamp(min=0).sqrt()
        # An entry that the autoencoder does not use has nothing to divide by.
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, 1.0))
        return {}

    def game(self) -> Game:
        """The autoencoder's game, one look at its codes, and the prior's game on them."""
        share = self.config.prior_share
        own = self.config.autoencoder == OWN
        first: Game = self.autoencoder.training_game() if own else self.autoencoder.game()
        own = self.config.prior == OWN
        then: Game = self.prior.training_game() if own else self.prior.game()
        stages = played_inside(first, "autoencoder", _alone, after=0, share=1 - share)
        stages.append(Stage([Rewrite("standardise codes", self.standardise, sweep=True)], rounds=1))
        stages += played_inside(then, "prior", self.coded, after=len(stages), share=share)
        return Game(
            stages,
            batch_size=self.config.batch_size,
            average=then.average,
            bf16=first.bf16 or then.bf16,
            keep="last",
        )


def _alone(batch: Batch, noise: Noise) -> Batch:
    """A batch as the autoencoder sees it: a condition is the prior's."""
    return Batch(batch.x)


def _require_sense(config: Config) -> None:
    if config.code < 1 or not LEAST_SHARE <= config.prior_share < 1:
        reason = f"code is {config.code}, and prior_share {config.prior_share:g}"
        way_out = (
            f"give codes at least 1 entry, and the prior a share from {LEAST_SHARE} to below 1"
        )
        raise Refusal("CFG-225", reason, way_out=way_out)
