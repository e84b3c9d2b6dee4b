"""Variational autoencoder: a latent variable, decoded; trained on a bound of log p(x).

p(x) = int p(x|z) N(z; 0, I) dz is bounded from below by (Kingma & Welling 2014, eq. 3)

    ELBO = E_q(z|x)[log p(x|z)] - KL(q(z|x) || N(0, I)),    q(z|x) = N(mu(x), diag sigma(x)^2),

with z = mu + sigma * noise (eq. 10) and the divergence in closed form (their appendix B). With k draws
the importance-weighted bound L_k = E log (1/k) sum_i w_i, w_i = p(x, z_i) / q(z_i|x) (Burda et al. 2016,
eq. 8) is tighter; ``log_prob`` gives L_k with ``importance_samples`` draws. Trained on L_k, each draw's
gradient counts as its share w~_i of all weights (their eq. 13),

    grad L_k = E sum_i w~_i grad log w_i,

in which the encoder's part has an expectation that falls with k and a noise that does not. The same
expectation without the part that is nought, doubly reparameterised (Tucker et al. 2019, eq. 8):

    grad_phi L_k = E sum_i w~_i^2 (d log w_i / d z_i) (d z_i / d phi).

N(0, I) is seldom what codes of data make up together, least of all where data are few, and draws of it
then decode to nothing known. Once the rest stands, a model of the shelf may learn p(z) from codes of all
data (Ghosh et al. 2020, sec. 4). Of the bound that raises E_q(z|x)[log p(z)], the only term with p(z) in
it, so what is reported stays a bound, of the model that is sampled.

Missing entries are filled in by a chain towards p(z|x_known), and a draw of p(x_missing|z)
(``probability/completion.py``).

Papers: Kingma & Welling 2014; Burda, Grosse & Salakhutdinov 2016; beta: Higgins et al. 2017; free bits:
Kingma et al. 2016; Tucker, Lawson, Gu & Maddison 2019; Ghosh, Sajjadi, Vergari, Black & Schoelkopf 2020.
Changed: SiLU for tanh, AdamW with a cosine and averaged weights, likelihoods for spaces other than binary
images (a scale for each pixel, learned, instead of a fixed one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from simulacra.contract import (
    Completer,
    Component,
    Decoder,
    Density,
    Diagnosable,
    Encoder,
    Kind,
    MeanSampler,
    Sampler,
    Scorer,
    require_component,
)
from simulacra.families.composed import LEAST_SHARE, played_inside
from simulacra.families.latent import VariationalAutoencoder
from simulacra.games import Batch, Clock, Game, Loss, Rewrite, Stage
from simulacra.layers.front_door import as_device
from simulacra.layers.heads import ColumnHead, ImageHead, choose_head
from simulacra.layers.mlp import multilayer_perceptron
from simulacra.layers.pyramid import PyramidDecoder, PyramidEncoder
from simulacra.probability.bounds import importance_weighted
from simulacra.probability.distributions import (
    gaussian_kl,
    gaussian_log_prob,
    held_log_scale,
    log_standard_normal,
)
from simulacra.probability.noise import BatchNoise, Noise, mixed, scoring_noise
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Labels, Space, Table, Tokens, Vectors

NORMAL = "normal"
ENOUGH = 10
"""Data for each entry of a code, from which a prior can be learnt."""
DRAWS = 8
"""Draws of q(z|x) that a prior learns from, for each datum."""


@dataclass(frozen=True)
class Config:
    """``importance_samples`` are draws of ``log_prob``, ``training_samples`` those of the loss: k > 1
    trains on L_k, with the ``gradient`` of the encoder. ``beta`` weighs the divergence, which rises over
    ``warm_up`` of the training; ``free_bits`` is the least divergence of a latent dimension, in nats,
    that is worth lowering; L_k has no divergence, and uses none of these three. ``prior`` is ``normal``,
    or the model that learns p(z) in the end; one that a budget limits gets ``prior_share`` of it.
    ``completion_rounds`` are those of the chain that fills in what is missing."""

    network: Literal["mlp", "convolutional"] = "mlp"
    head: Literal["auto", "bernoulli", "categorical", "discretised-logistic", "gaussian"] = "auto"
    latent: int = 20
    hidden: int = 400
    layers: int = 2
    dropout: float = 0.0
    beta: float = 1.0
    free_bits: float = 0.0
    warm_up: float = 0.0
    training_samples: int = 1
    gradient: Literal["reparameterised", "doubly-reparameterised"] = "reparameterised"
    importance_samples: int = 1
    prior: str = NORMAL
    prior_share: float = 0.3
    completion_rounds: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class VAE(
    VariationalAutoencoder,
    Sampler,
    MeanSampler,
    Density,
    Encoder,
    Decoder,
    Completer,
    Scorer,
    Diagnosable,
):
    """Encoder, decoder and a likelihood head over a latent variable, standard normal while they learn."""

    config: Config
    representative: ClassVar = True
    spaces: ClassVar = (Images, Vectors, Table, Tokens)
    conditions: ClassVar = (Labels,)
    fitted: Tensor

    def __init__(
        self,
        space: Space,
        config: Config | None = None,
        *,
        condition: Labels | None = None,
        prior: Any = None,
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = _sensible(config or Config())
        kind = choose_head(space) if config.head == "auto" else config.head
        self._require_head(kind)
        extra = condition.count if condition else 0
        if isinstance(space, Images):
            self.head = ImageHead(space, kind)
        else:
            self.head = ColumnHead(space)
        if config.network == "convolutional" and isinstance(space, Images):
            channels, outputs = config.hidden, self.head.outputs // (space.height * space.width)
            self.encoder: nn.Module = PyramidEncoder(space, channels, extra, 2 * config.latent)
            self.decoder: nn.Module = PyramidDecoder(
                space, channels, config.latent + extra, outputs
            )
        else:
            inside = [config.hidden] * config.layers
            reads, drop = self._reads + extra, config.dropout
            self.encoder = multilayer_perceptron([reads, *inside, 2 * config.latent], dropout=drop)
            writes = [config.latent + extra, *inside, self.head.outputs]
            self.decoder = multilayer_perceptron(writes, dropout=drop)

        self.prior = None if config.prior == NORMAL else _as_prior(config.prior, prior)
        if self.prior is not None:
            self.register_buffer("fitted", torch.tensor(False))

    @classmethod
    def components(
        cls, space: Space, config: object, condition: Labels | None
    ) -> Mapping[str, Component]:
        """What learns p(z), where that is not N(0, I)."""
        assert isinstance(config, Config)
        if config.prior == NORMAL:
            return {}
        return {"prior": Component(config.prior, (Vectors(config.latent),), (Sampler, Density))}

    def _require_head(self, kind: str) -> None:
        levels = self.space.levels if isinstance(self.space, Images) else 0
        fits = kind == choose_head(self.space) or (
            levels > 0 and kind in ("categorical", "discretised-logistic")
        )
        if not fits:
            reason = f"the head {kind} does not fit {self.space}"
            raise Refusal("CFG-035", reason, way_out="leave head at auto")

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Small and regularised for few data; convolutions for images with sides above 16."""
        few = num_examples < 5000
        if not isinstance(space, Images):
            hidden = 128 if few else 256
            latent = max(2, min(16, space.dimensions // 2))
            return Config(latent=latent, hidden=hidden, dropout=0.1 if few else 0.0, warm_up=0.2)
        if space.levels == 2 or min(space.height, space.width) <= 16:
            if few:
                return Config(latent=16, hidden=256, dropout=0.2, batch_size=64, weight_decay=1e-2)
            return Config(latent=40, hidden=500, batch_size=200)
        # Without a warm-up a wide divergence in the first rounds can close all codes for good.
        wide = Config(network="convolutional", latent=64, hidden=32, batch_size=64, warm_up=0.1)
        if not few:
            return wide
        if num_examples < 1000:
            chosen = replace(wide, latent=16, batch_size=16, learning_rate=2e-3, weight_decay=0.05)
        else:
            chosen = replace(wide, latent=32, batch_size=32, weight_decay=0.05)
        learnt = num_examples >= ENOUGH * chosen.latent
        return replace(chosen, prior="gaussian-mixture") if learnt else chosen

    @classmethod
    def toy(cls) -> VAE:
        return cls(Images(1, 3, 3, levels=2), Config(latent=2, hidden=8, batch_size=16))

    @property
    def code_space(self) -> Vectors:
        return Vectors(self.config.latent)

    @property
    def normal_codes(self) -> bool:
        return self.prior is None

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = scoring_noise(len(x), generator, self._weight.device)
        x, extra = as_device(x, self), self._one_hot(condition, len(x))
        return importance_weighted(
            self._log_weights(x, extra, noise, self.config.importance_samples, self._log_prior)
        )

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The mean of q(z|x)."""
        return self._posterior(as_device(x, self), self._one_hot(condition, len(x)))[0]

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        """Active units: latent dimensions whose mean moves, Var mu_j > 0.01 (Burda et al. 2016)."""
        x, extra = as_device(x, self), self._one_hot(condition, len(x))
        mean, log_scale = self._posterior(x, extra)
        noise = scoring_noise(len(x), None, mean.device)
        z = mean + log_scale.exp() * noise.normal(self.config.latent).to(mean.dtype)
        divergence = gaussian_kl(mean, log_scale).sum(1).mean()
        if self._stands:
            divergence = (_log_normal(z, mean, log_scale) - self._log_prior(z)).mean()
        rebuilt = self.head.log_prob(x, self._decoded(z, extra)).mean()
        active = int((mean.var(0) > 0.01).sum())
        return {
            "active units (of the latent dimensions)": float(active),
            "idle units (of the latent dimensions)": float(mean.shape[1] - active),
            "divergence (nats)": float(divergence),
            "reconstruction (nats)": float(-rebuilt),
        }

    @property
    def gains_by_bf16(self) -> bool:
        return self.config.network == "convolutional" or self.config.hidden >= 256

    def _posterior(self, x: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z|x), each (n, latent)."""
        read = self._read(x)
        if isinstance(self.encoder, PyramidEncoder):
            raw = self.encoder(read, extra)
        else:
            flat = read.flatten(1)
            raw = self.encoder(flat if extra is None else torch.cat([flat, extra], dim=1))
        mean, log_scale = raw.to(self._weight.dtype).chunk(2, dim=1)
        return mean, held_log_scale(log_scale)

    def _decoded(self, z: Tensor, extra: Tensor | None) -> Tensor:
        given = z if extra is None else torch.cat([z, extra], dim=1)
        raw: Tensor = self.decoder(given)
        return raw.to(self._weight.dtype)

    @property
    def _stands(self) -> bool:
        """Whether p(z) is the one that was learnt."""
        return self.prior is not None and bool(self.fitted)

    def _log_prior(self, z: Tensor) -> Tensor:
        if self.prior is None or not self._stands:
            return super()._log_prior(z)
        log_prob: Tensor = self.prior.log_prob(z.reshape(-1, z.shape[-1]))
        return log_prob.reshape(z.shape[:-1])

    def _drawn_codes(self, noise: Noise, generator: torch.Generator | None) -> Tensor:
        if self.prior is None or not self._stands:
            return super()._drawn_codes(noise, generator)
        z: Tensor = self.prior.sample(noise.rows, generator=generator)
        return z.to(self._weight.dtype)

    def _log_weights(
        self,
        x: Tensor,
        extra: Tensor | None,
        noise: Noise,
        draws: int,
        log_prior: Callable[[Tensor], Tensor],
        *,
        doubly: bool = False,
    ) -> Tensor:
        """log p(x, z_i) / q(z_i|x) for ``draws`` of z from q, shape (n, draws).

        ``doubly``: their shares, coefficients of a gradient, count twice on its way to the encoder, and
        q is held (Tucker et al. 2019, eq. 8).
        """
        mean, log_scale = self._posterior(x, extra)
        at_once = max(1, min(draws, 8192 // max(len(x), 1)))
        parts: list[Tensor] = []
        for start in range(0, draws, at_once):
            count = min(at_once, draws - start)
            u = noise.normal(count, self.config.latent).to(mean.dtype)
            z = mean.unsqueeze(1) + log_scale.exp().unsqueeze(1) * u
            given_q = (mean.detach(), log_scale.detach()) if doubly else (mean, log_scale)
            if doubly:
                z.register_hook(lambda slope, s=start: slope * _shares(parts, s, slope.shape[1]))
            posterior = _log_normal(z, *(one.unsqueeze(1) for one in given_q))
            many = x.repeat_interleave(count, 0)
            given = None if extra is None else extra.repeat_interleave(count, 0)
            likelihood = self.head.log_prob(many, self._decoded(z.flatten(0, 1), given))
            parts.append(likelihood.reshape(len(x), count) + log_prior(z) - posterior)
        return torch.cat(parts, dim=1)

    def negative_bound(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """Minus the ELBO (or L_k), in nats a dimension."""
        extra = self._one_hot(batch.condition, len(batch))
        if self.config.training_samples > 1:
            doubly = self.config.gradient == "doubly-reparameterised"
            draws = self.config.training_samples
            given = (batch.x, extra, noise, draws, log_standard_normal)
            weights = self._log_weights(*given, doubly=doubly)
            bound = importance_weighted(weights).mean()
            return Loss(-bound / self.space.dimensions, {"bound (nats)": bound})
        mean, log_scale = self._posterior(batch.x, extra)
        z = mean + log_scale.exp() * noise.normal(self.config.latent)
        rebuilt = self.head.log_prob(batch.x, self._decoded(z, extra)).mean()
        divergence = gaussian_kl(mean, log_scale).mean(0)
        counted = divergence.clamp(min=self.config.free_bits).sum()
        rise = min(1.0, clock.progress / self.config.warm_up) if self.config.warm_up else 1.0
        value = self.config.beta * rise * counted - rebuilt
        numbers = {
            "bound (nats)": rebuilt - divergence.sum(),
            "divergence (nats)": divergence.sum(),
        }
        return Loss(value / self.space.dimensions, numbers)

    def coded(self, batch: Batch, noise: Noise) -> Batch:
        """A draw of q(z|x) for each datum, as the prior sees a batch."""
        mean, scale = self._standing(batch)
        return Batch(mean + scale * noise.normal(self.config.latent).to(mean))

    def coded_often(self, batch: Batch) -> Batch:
        """``DRAWS`` draws of q(z|x) for each datum; the batch itself is their seed."""
        mean, scale = self._standing(batch)
        seed = mixed(*mean.double().sum(0).view(torch.int64).tolist())
        noise = BatchNoise(torch.Generator().manual_seed(seed), len(batch), mean.device)
        u = noise.normal(DRAWS, self.config.latent).to(mean)
        return Batch((mean.unsqueeze(1) + scale.unsqueeze(1) * u).flatten(0, 1))

    @torch.no_grad()
    def _standing(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean and deviation of q(z|x), precisely and without dropout."""
        training, _ = self.training, self.eval()
        with torch.autocast(batch.x.device.type, enabled=False):
            x, extra = as_device(batch.x, self), self._one_hot(batch.condition, len(batch))
            mean, log_scale = self._posterior(x, extra)
        self.train(training)
        return mean, log_scale.exp()

    def use_normal(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """While codes move, p(z) is N(0, I)."""
        self.fitted.fill_(False)
        return {}

    def use_prior(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """From now on p(z) is the one that is learnt."""
        self.fitted.fill_(True)
        return {}

    def _learnt(self) -> list[nn.Parameter]:
        return [one for name, one in self.named_parameters() if not name.startswith("prior.")]

    def game(self) -> Game:
        """The bound; then, where there is one, the prior's own game, played on codes."""
        game = super().game()
        if self.prior is None:
            return game
        *looks, climb = game.stages
        still = Rewrite("normal prior", self.use_normal, batches=0)
        share = self.config.prior_share
        climb = replace(climb, turns=[*climb.turns, still], share=1 - share)
        begin = Stage([Rewrite("learnt prior", self.use_prior)], rounds=1, from_best=True)
        stages = [*looks, climb, begin]
        stages += played_inside(
            self.prior.game(),
            "prior",
            self.coded,
            after=len(stages),
            share=share,
            remembered=self.coded_often,
        )
        return replace(game, stages=stages)


def _log_normal(z: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log N(z; mean, scale^2), summed over the entries of a code."""
    return gaussian_log_prob(z, mean, log_scale).sum(-1)


def _as_prior(name: str, prior: Any) -> Any:
    require_component("prior", name, prior, NORMAL)
    if prior.kind is not Kind.EXACT:
        raise Refusal(
            "CFG-231",
            f"the likelihood of {shown(name)} is {prior.kind.value}",
            way_out="set a prior whose likelihood is exact, such as gaussian-mixture or maf",
        )
    return prior


def _shares(log_weights: list[Tensor], start: int, count: int) -> Tensor:
    """w~ of ``count`` draws from ``start`` on, among all of them, shape (n, count, 1)."""
    shares = torch.softmax(torch.cat(log_weights, dim=1).detach(), dim=1)
    return shares[:, start : start + count].unsqueeze(2)


def _sensible(config: Config) -> Config:
    if config.training_samples > 1 and (config.beta != 1 or config.free_bits):
        raise Refusal(
            "CFG-130",
            f"training_samples is {config.training_samples}, and L_k has no divergence that beta "
            f"{config.beta:g} could weigh or free_bits {config.free_bits:g} could spare",
            way_out="set training_samples to 1, or leave beta at 1 and free_bits at 0",
        )
    if config.prior != NORMAL and not LEAST_SHARE <= config.prior_share < 1:
        raise Refusal(
            "CFG-232",
            f"prior_share is {config.prior_share:g}",
            way_out=f"give the prior a share from {LEAST_SHARE} to below 1",
        )
    if config.training_samples < 1 or config.importance_samples < 1:
        raise Refusal(
            "CFG-131",
            f"training_samples is {config.training_samples}, importance_samples "
            f"{config.importance_samples}",
            way_out="draw at least one",
        )
    return config
