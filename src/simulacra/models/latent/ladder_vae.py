"""Ladder VAE: several levels of latent variables, inferred from the top down along the generator's path.

    p(x, z) = p(x|z_1..z_L) prod_l p(z_l|z_>l),    q(z|x) = prod_l q(z_l|z_>l, x)

The encoder goes up once, e_1..e_L from x. Then the generator goes down: a state d, which knows all
levels above, gives p(z_l|z_>l) = N(mu_l, diag sigma_l^2), and with e_l the approximate posterior of that
level (top-down inference shared with the generator: Sønderby et al. 2016, sec. 2.2; Kingma et al. 2016).
Each is told by how it differs from the prior (residual normals: Vahdat & Kautz 2020, eq. 3),

    q(z_l|z_>l, x) = N(mu_l + sigma_l dmu_l, (sigma_l dsigma_l)^2),    z_l = mu_l + sigma_l u_l,

so that with u, whose prior is N(0, I) at all levels,

    ELBO = E_q[log p(x|u)] - sum_l E KL(N(dmu_l, dsigma_l^2) || N(0, I)).

Codes are u of all levels, the top one first: standard normal numbers under the model, whose parts do not
depend on one another. ``log_prob`` is the importance-weighted bound (Burda et al. 2016).

Papers: Sønderby, Raiko, Maaløe, Sønderby & Winther 2016 (levels, warm-up); Kingma, Salimans et al. 2016
(free bits, here for each level); Vahdat & Kautz 2020. Changed: residual steps instead of batch normalised
layers; p(x|z) sees all levels; the divergence of a level is that of q as it was drawn, in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from simulacra.contract import (
    Completer,
    Decoder,
    Density,
    Diagnosable,
    Encoder,
    MeanSampler,
    Mixer,
    Sampler,
    Scorer,
)
from simulacra.families.latent import VariationalAutoencoder
from simulacra.games import Batch, Clock, Loss
from simulacra.layers.front_door import as_device
from simulacra.layers.heads import ColumnHead, ImageHead, choose_head
from simulacra.layers.mlp import multilayer_perceptron
from simulacra.layers.pyramid import PyramidDecoder, PyramidEncoder
from simulacra.probability.bounds import importance_weighted
from simulacra.probability.distributions import gaussian_kl, gaussian_log_prob, held_log_scale
from simulacra.probability.noise import Noise, scoring_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Table, Tokens, Vectors

ROWS_AT_ONCE = 8192
FIRST = 0.07
"""How large the last weights of q and p are at first, beside others."""


@dataclass(frozen=True)
class Config:
    """``latents`` are the dimensions of each level, the top one first. ``free_bits`` is the least
    divergence of a level, in nats, that is worth lowering; the divergence's weight ``beta`` rises over
    ``warm_up`` of the training. ``completion_rounds``: of the chain that fills in what is missing."""

    latents: tuple[int, ...] = (16, 32)
    network: Literal["mlp", "convolutional"] = "mlp"
    hidden: int = 400
    dropout: float = 0.0
    beta: float = 1.0
    free_bits: float = 2.0
    warm_up: float = 0.1
    importance_samples: int = 1
    completion_rounds: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class _Level(nn.Module):
    """One step down: prior and posterior of z_l from the state d, and the state below."""

    def __init__(self, hidden: int, latent: int, *, top: bool, dropout: float) -> None:
        super().__init__()
        # The top prior is N(0, I): with one input only, its numbers would be those of the next layer.
        self.prior = None if top else multilayer_perceptron([hidden, hidden, 2 * latent])
        self.posterior = multilayer_perceptron([2 * hidden, hidden, 2 * latent], dropout=dropout)
        self.down = multilayer_perceptron([hidden + latent, hidden, hidden], dropout=dropout)

    def told(self, state: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """dmu and log dsigma, each (n, latent)."""
        raw: Tensor = self.posterior(torch.cat([state, seen], dim=1))
        mean, log_scale = raw.to(state.dtype).chunk(2, dim=1)
        return mean, held_log_scale(log_scale)

    def below(self, state: Tensor, u: Tensor) -> Tensor:
        """The state that knows z_l too."""
        z = u
        if self.prior is not None:
            mean, log_scale = self.prior(state).to(u.dtype).chunk(2, dim=1)
            z = mean + log_scale.clamp(-5, 5).exp() * u
        out: Tensor = state + self.down(torch.cat([state, z], dim=1)).to(u.dtype)
        return out


@dataclass(frozen=True)
class _Descended:
    """A way down: u of all levels (n, latent), mean and log deviation of q, and the state at x."""

    u: Tensor
    mean: Tensor
    log_scale: Tensor
    state: Tensor


class LadderVAE(
    VariationalAutoencoder,
    Sampler,
    MeanSampler,
    Density,
    Encoder,
    Decoder,
    Mixer,
    Completer,
    Scorer,
    Diagnosable,
):
    """An encoder up, a generator down, and posteriors on its way."""

    player: ClassVar = "ladder"
    config: Config
    spaces: ClassVar = (Images, Vectors, Table, Tokens)
    conditions: ClassVar = (Labels,)
    normal_codes: ClassVar = True

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = _sensible(config or Config())
        extra, hidden = condition.count if condition else 0, config.hidden
        self.head = (
            ImageHead(space, choose_head(space)) if isinstance(space, Images) else ColumnHead(space)
        )
        if config.network == "convolutional" and isinstance(space, Images):
            planes = self.head.outputs // (space.height * space.width)
            self.encoder: nn.Module = PyramidEncoder(space, hidden // 8, extra, hidden)
            self.decoder: nn.Module = PyramidDecoder(space, hidden // 8, hidden, planes)
        else:
            self.encoder = multilayer_perceptron([self._reads + extra, hidden, hidden])
            self.decoder = multilayer_perceptron([hidden, hidden, self.head.outputs])
        count = len(config.latents)
        self.up = nn.ModuleList(
            multilayer_perceptron([hidden, hidden, hidden], dropout=config.dropout)
            for _ in range(count - 1)
        )
        self.levels = nn.ModuleList(
            _Level(hidden, latent, top=index == 0, dropout=config.dropout)
            for index, latent in enumerate(config.latents)
        )
        self.start = nn.Linear(max(extra, 1), hidden)
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Weights that keep the size of what passes (He et al. 2015), since a way up and down is long;
        and at first all q and p nearly N(0, I)."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                part.weight.normal_(0, (2 / part.in_features) ** 0.5)
                part.bias.zero_()
        for level in self.levels:
            assert isinstance(level, _Level)
            for net in (level.posterior, level.prior):
                if isinstance(net, nn.Sequential):
                    net[-1].weight.mul_(FIRST)  # type: ignore[operator]

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Small and regularised for few data; convolutions for images with sides above 32."""
        few = num_examples < 5000
        if not isinstance(space, Images):
            half = max(1, min(8, space.dimensions // 2))
            hidden = 128 if few else 256
            drop = 0.1 if few else 0.0
            return Config((half, half), hidden=hidden, dropout=drop, free_bits=0.5, warm_up=0.2)
        if few:
            return Config((8, 16), hidden=256, dropout=0.2, batch_size=64, weight_decay=1e-2)
        if min(space.height, space.width) > 32:
            return Config((32, 64), network="convolutional", hidden=256, batch_size=64)
        return Config((16, 32), hidden=500, free_bits=4.0, batch_size=200)

    @classmethod
    def toy(cls) -> LadderVAE:
        return cls(Images(1, 3, 3, levels=2), Config((1, 2), hidden=16, batch_size=16))

    @property
    def code_space(self) -> Vectors:
        return Vectors(sum(self.config.latents))

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = scoring_noise(len(x), generator, self._weight.device)
        x, extra = as_device(x, self), self._one_hot(condition, len(x))
        seen, parts = self._seen(x, extra), []
        at_once = max(1, ROWS_AT_ONCE // max(len(x), 1))
        for start in range(0, self.config.importance_samples, at_once):
            count = min(at_once, self.config.importance_samples - start)
            fresh = noise.normal(count, self.code_space.size).to(self._weight.dtype)
            many = [one.repeat_interleave(count, 0) for one in seen]
            given = None if extra is None else extra.repeat_interleave(count, 0)
            way = self._down(many, given, _drawn(fresh.flatten(0, 1)))
            weights = self._log_weights(x.repeat_interleave(count, 0), way)
            parts.append(weights.reshape(len(x), count))
        return importance_weighted(torch.cat(parts, dim=1))

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """u of all levels, each the mean of its q given the means above, the top level first."""
        x, extra = as_device(x, self), self._one_hot(condition, len(x))
        return self._down(self._seen(x, extra), extra, _mean).u

    @property
    def code_levels(self) -> int:
        """Levels of the ladder, the top one first."""
        return len(self.config.latents)

    @torch.no_grad()
    def mix(
        self, coarse: Tensor, fine: Tensor, level: int, *, condition: Tensor | None = None
    ) -> Tensor:
        above = sum(self.config.latents[:level])
        return self.decode(torch.cat([coarse[:, :above], fine[:, above:]], 1), condition=condition)

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        """Units of all levels are counted together: a level that sleeps is told by its divergence."""
        x, extra = as_device(x, self), self._one_hot(condition, len(x))
        seen = self._seen(x, extra)
        fresh = scoring_noise(len(x), None, x.device).normal(self.code_space.size)
        way = self._down(seen, extra, _drawn(fresh.to(self._weight.dtype)))
        active = int((self._down(seen, extra, _mean).mean.var(0) > 0.01).sum())
        told = {
            "active units (of the latent dimensions)": float(active),
            "idle units (of the latent dimensions)": float(self.code_space.size - active),
        }
        each = self._divergences(way)
        for level, divergence in enumerate(each):
            height = len(each) - level
            place = "top" if level == 0 else "next to x" if height == 1 else "between"
            told[f"divergence of level {height}, {place} (nats)"] = float(divergence.sum())
        rebuilt = self.head.log_prob(x, self._raw(way.state)).mean()
        return told | {
            "divergence (nats)": float(sum(one.sum() for one in each)),
            "reconstruction (nats)": float(-rebuilt),
        }

    @property
    def _weight(self) -> Tensor:
        return self.start.weight

    @property
    def gains_by_bf16(self) -> bool:
        return self.config.hidden >= 256

    def _seen(self, x: Tensor, extra: Tensor | None) -> list[Tensor]:
        """e_l of each level, the top one first, (n, hidden) each."""
        read = self._read(x)
        if isinstance(self.encoder, PyramidEncoder):
            seen = [self.encoder(read, extra)]
        else:
            flat = read.flatten(1)
            seen = [self.encoder(flat if extra is None else torch.cat([flat, extra], dim=1))]
        for step in self.up:
            seen.append(seen[-1] + step(seen[-1]))
        return [one.to(self._weight.dtype) for one in reversed(seen)]

    def _top(self, rows: int, extra: Tensor | None) -> Tensor:
        """The state d above all levels."""
        one = self._weight.new_ones(rows, 1) if extra is None else extra
        top: Tensor = self.start(one).to(self._weight.dtype)
        return top

    def _down(self, seen: list[Tensor], extra: Tensor | None, choose: _Choice) -> _Descended:
        state, at = self._top(len(seen[0]), extra), 0
        told: list[tuple[Tensor, Tensor, Tensor]] = []
        for level, own, latent in zip(self.levels, seen, self.config.latents, strict=True):
            assert isinstance(level, _Level)
            mean, log_scale = level.told(state, own)
            u = choose(mean, log_scale, slice(at, at + latent))
            told.append((u, mean, log_scale))
            state, at = level.below(state, u), at + latent
        u, mean, log_scale = (torch.cat(parts, dim=1) for parts in zip(*told, strict=True))
        return _Descended(u, mean, log_scale, state)

    def _decoded(self, u: Tensor, extra: Tensor | None) -> Tensor:
        state = self._top(len(u), extra)
        for level, own in zip(self.levels, u.split(self.config.latents, dim=1), strict=True):
            assert isinstance(level, _Level)
            state = level.below(state, own)
        return self._raw(state)

    def _raw(self, state: Tensor) -> Tensor:
        raw: Tensor = self.decoder(nn.functional.silu(state))
        return raw.to(self._weight.dtype)

    def _log_weights(self, x: Tensor, way: _Descended) -> Tensor:
        """log p(x, u) / q(u|x), shape (n,)."""
        nought = torch.zeros_like(way.u)
        surplus = gaussian_log_prob(way.u, nought, nought)
        surplus = surplus - gaussian_log_prob(way.u, way.mean, way.log_scale)
        return self.head.log_prob(x, self._raw(way.state)) + surplus.sum(1)

    def _divergences(self, way: _Descended) -> Sequence[Tensor]:
        """KL of each dimension, in nats, means over the data, by level."""
        each = gaussian_kl(way.mean, way.log_scale).mean(0)
        levels: Sequence[Tensor] = each.split(list(self.config.latents))
        return levels

    def negative_bound(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """Minus the ELBO, in nats a dimension."""
        config, extra = self.config, self._one_hot(batch.condition, len(batch))
        fresh = noise.normal(self.code_space.size).to(self._weight.dtype)
        way = self._down(self._seen(batch.x, extra), extra, _drawn(fresh))
        rebuilt = self.head.log_prob(batch.x, self._raw(way.state)).mean()
        each = torch.stack([one.sum() for one in self._divergences(way)])
        rise = min(1.0, clock.progress / config.warm_up) if config.warm_up else 1.0
        value = config.beta * rise * each.clamp(min=config.free_bits).sum() - rebuilt
        numbers = {"bound (nats)": rebuilt - each.sum(), "divergence (nats)": each.sum()}
        numbers |= {f"divergence {len(each) - i} (nats)": one for i, one in enumerate(each)}
        return Loss(value / self.space.dimensions, numbers)


_Choice = Callable[[Tensor, Tensor, slice], Tensor]
"""u of one level from mean and log deviation of its q, and the level's place among all."""


def _drawn(fresh: Tensor) -> _Choice:
    """From standard normal numbers (n, latent)."""
    return lambda mean, log_scale, place: mean + log_scale.exp() * fresh[:, place]


def _given(u: Tensor) -> _Choice:
    return lambda mean, log_scale, place: u[:, place]


def _mean(mean: Tensor, log_scale: Tensor, place: slice) -> Tensor:
    return mean


def _sensible(config: Config) -> Config:
    if len(config.latents) < 2 or min(config.latents) < 1:
        raise Refusal(
            "CFG-132",
            f"latents {config.latents} are no ladder",
            way_out="give at least two levels of at least one dimension, or choose vae",
        )
    if config.importance_samples < 1:
        reason = f"importance_samples is {config.importance_samples}"
        raise Refusal("CFG-131", reason, way_out="draw at least one")
    return config
