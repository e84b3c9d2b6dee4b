"""Denoising diffusion: noise is added in T small steps, and a network learns to undo them.

q(x_t|x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (Ho et al. 2020, eq. 4). A U-Net sees x_t and its
log-SNR and predicts epsilon, x_0 or v; its x_0 gives p(x_{t-1}|x_t) = q(x_{t-1}|x_t, x_0 predicted), of
variance beta-tilde, or one that it learns between beta-tilde and beta (Nichol & Dhariwal 2021, eq. 15).
Training lowers the squared error of the prediction at random t (Ho et al., eq. 14) and, for a learned
variance, 0.001 of the bound with the mean held fixed (Nichol & Dhariwal, eq. 16). The bound is

    log p(x) >= -KL(q(x_T|x) || N(0, I)) - sum_{t=2}^T KL(q(x_{t-1}|x_t, x) || p(x_{t-1}|x_t))
                + E log p(x|x_1)                                                           (their eq. 5)

with a discretised Gaussian for the last term (eq. 13). ``log_prob`` takes the sum over t on
``bound_steps`` stratified draws of t, unbiased for the whole sum. The flow of the same marginals gives a
likelihood, too, an estimate (``probability/flow_likelihood.py``). Once trained, it is sampled by any
sampler of ``probability/samplers.py``, on any path of noise levels, as the network is told log-SNR and
not t. A conditional model may be guided: it is trained without the label on a share of the data
(classifier-free, Ho & Salimans 2022), or a classifier of noised data is trained beside it (Dhariwal &
Nichol 2021).

Papers: Ho, Jain & Abbeel 2020; Nichol & Dhariwal 2021 (cosine, learned variance); Song, Meng & Ermon 2021
(DDIM); Salimans & Ho 2022 (v). Changed: log-SNR instead of t as the network's input, a U-Net sized by the
space, stratified t within a batch, and where the noise is far smaller than the step between two
levels, x_0 is the level that x_t shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simulacra.contract import (
    Completer,
    Density,
    Diagnosable,
    Gradual,
    Kind,
    Sampler,
    Scorer,
    Variator,
)
from simulacra.families.conditioned import condition_stages
from simulacra.families.gaussian_diffusion import GaussianDiffusion
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Stage
from simulacra.layers.backbone import Backbone, denoising_network
from simulacra.layers.conditions import CONDITIONS, ConditionDoor
from simulacra.layers.denoising import dropped
from simulacra.layers.front_door import as_device
from simulacra.layers.unet import NoisyClassifier
from simulacra.optimisation import Optimiser
from simulacra.probability.diffusion import Diffusion, Scales, discretised_gaussian_log_prob
from simulacra.probability.flow_likelihood import grid_log_prob
from simulacra.probability.noise import Noise, scoring_noise
from simulacra.probability.samplers import MOST_SIGMA, Guess, Level, SamplerName, Spacing
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space

BOUND_WEIGHT = 1e-3
"""lambda of the hybrid loss (Nichol & Dhariwal 2021, eq. 16)."""


@dataclass(frozen=True)
class Config:
    """``steps`` is T; ``blocks`` are those of the lowest resolution on either way; each larger one has
    half as many, at least one. ``backbone`` may be a transformer instead (``layers/backbone.py``).
    ``label_dropout`` is the share of training data whose condition is left out, and a model of classes
    with ``guidance`` by a classifier has one beside it. ``sampler``, ``spacing``,
    ``num_inference_steps``, ``eta`` and ``guidance_scale`` are the sampler's: steps even in time, in its
    root ("quadratic", as Song et al. 2021 took them for CIFAR-10), in sigma^(1/7) or in log-SNR.
    ``likelihood`` is the bound, from ``bound_steps`` draws of t, or that of the probability flow in
    ``flow_steps`` steps, an estimate; neither these nor the sampler's touch weights."""

    channels: int = 32
    blocks: int = 5
    dropout: float = 0.0
    steps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"
    variance: Literal["fixed", "learned"] = "fixed"
    guidance: Literal["classifier-free", "classifier"] = "classifier-free"
    label_dropout: float = 0.0
    sampler: SamplerName = "ddim"
    spacing: Spacing | None = None
    num_inference_steps: int = 50
    eta: float = 0.0
    guidance_scale: float = 0.0
    likelihood: Literal["bound", "flow"] = "bound"
    flow_steps: int = 50
    bound_steps: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    backbone: Backbone = "unet"


@dataclass(frozen=True)
class _Terms:
    """The bound's terms in nats, each (n,): prior, steps (its whole sum), and data."""

    prior: Tensor
    steps: Tensor
    data: Tensor


class DDPM(GaussianDiffusion, Sampler, Gradual, Variator, Density, Completer, Scorer, Diagnosable):
    """A U-Net that denoises, and everything that follows from it."""

    config: Config
    representative: ClassVar = True
    spaces: ClassVar = (Images,)
    conditions: ClassVar = CONDITIONS

    def __init__(
        self, space: Images, config: Config | None = None, *, condition: Space | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        self.condition_door = ConditionDoor(condition)
        self.network = denoising_network(
            config.backbone,
            space,
            config.channels,
            config.blocks,
            condition,
            config.dropout,
            outputs=2 if config.variance == "learned" else 1,
        )
        self.classifier = None
        if config.guidance == "classifier" and condition is not None:
            if not isinstance(condition, Labels):
                reason = f"a classifier guides to classes, and the model goes by {condition}"
                raise Refusal("CFG-239", reason, way_out="leave guidance at classifier-free")
            self.classifier = NoisyClassifier(
                space, config.channels, condition.count, config.dropout
            )
        self.diffusion = Diffusion(config.schedule, config.steps)
        self._way()

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """v-prediction on a cosine schedule; narrower with larger images, dropout for few data."""
        assert isinstance(space, Images)
        dropout = 0.1 if num_examples < 20_000 else 0.0
        small = space.height * space.width <= 144
        return Config(
            channels=32,
            blocks=3 if small else 5,
            dropout=dropout,
            schedule="cosine",
            prediction="v",
            label_dropout=0.1,
            batch_size=64,
            learning_rate=2e-3 if small else 1e-3,
        )

    @classmethod
    def toy(cls) -> DDPM:
        config = Config(
            channels=8,
            blocks=1,
            steps=10,
            schedule="cosine",
            prediction="v",
            bound_steps=4,
            batch_size=16,
        )
        return cls(Images(1, 2, 3, levels=2), config)

    @property
    def kind(self) -> Kind:
        return Kind.LOWER if self.config.likelihood == "bound" else Kind.ESTIMATE

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = scoring_noise(len(x), generator, self._weight.device)
        x, context = as_device(x, self), self.reverse.context(condition, len(x))
        if self.config.likelihood == "flow":
            return self._flow(x, context, noise, self.config.flow_steps)
        terms = self._terms(x, context, noise)
        return -(terms.prior + terms.steps + terms.data)

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        noise = scoring_noise(len(x), None, self._weight.device)
        x, context = as_device(x, self), self.reverse.context(condition, len(x))
        terms = self._terms(x, context, noise)
        unit = self.space.dimensions * math.log(2)
        told = {
            "bound, prior term (bits/dim)": float(terms.prior.mean()) / unit,
            "bound, denoising terms (bits/dim)": float(terms.steps.mean()) / unit,
            "bound, data term (bits/dim)": float(terms.data.mean()) / unit,
        }
        if self.config.likelihood == "flow":
            whole, half = (
                self._flow(x, context, scoring_noise(len(x), None, self._weight.device), steps)
                for steps in (self.config.flow_steps, self.config.flow_steps // 2)
            )
            gap = float((whole - half).abs().mean()) / unit
            told["flow likelihood, change at half the steps (bits/dim)"] = gap
        return told

    @property
    def score_levels(self) -> int:
        return self.config.bound_steps

    def _path(self, count: int, spacing: Spacing) -> list[Level]:
        return self.diffusion.path(count, spacing)

    def _told(
        self, x_t: Tensor, at: Scales, context: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the network predicts, and where its variance lies between the narrow and the wide."""
        told = self.network(x_t, at.log_snr, context).to(x_t.dtype)
        if self.config.variance == "fixed":
            return told, None
        told, share = told.chunk(2, dim=1)
        return told, (share + 1) / 2

    def _origin(self, x: Tensor, at: Scales, context: Tensor | None) -> Guess:
        told, share = self._told(x, at, context)
        return Guess(at.origin(x, told, self.config.prediction), share)

    def _flow(self, x: Tensor, context: Tensor | None, noise: Noise, steps: int) -> Tensor:
        """log P(x) of the probability flow, in nats (n,)."""
        high = min(self.diffusion.level(self.config.steps).sigma, MOST_SIGMA)
        denoise, x0 = self.reverse.denoiser(context, 0.0), self.reverse.centred(x)
        return grid_log_prob(denoise, x, x0, self.space.levels, high, steps, noise)

    def _terms(self, x: Tensor, context: Tensor | None, noise: Noise) -> _Terms:
        x0 = self.reverse.centred(x)
        last = self.diffusion.level(self.config.steps)
        prior = 0.5 * ((last.signal * x0) ** 2 + last.spread**2 - 1) - math.log(last.spread)
        one = torch.ones(len(x), dtype=torch.long, device=x.device)
        steps = self._step_terms(x, x0, context, noise)
        return _Terms(prior.flatten(1).sum(1), steps, self._term(x, x0, one, context, noise))

    def _step_terms(self, x: Tensor, x0: Tensor, context: Tensor | None, noise: Noise) -> Tensor:
        """The sum over t = 2..T from one draw of t in each of ``bound_steps`` equal parts."""
        terms = self.config.steps - 1
        draws = min(self.config.bound_steps, terms)
        total = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
        for index in range(draws):
            place = (index + noise.uniform().double()) / draws
            t = 2 + (place * terms).long().clamp(max=terms - 1)
            total = total + self._term(x, x0, t, context, noise)
        return total * (terms / draws)

    def _term(
        self, x: Tensor, x0: Tensor, t: Tensor, context: Tensor | None, noise: Noise
    ) -> Tensor:
        """The bound's term of t (n,), in nats, from one draw of x_t."""
        at = self.diffusion.scales(t, x0)
        x_t = at.noised(x0, noise.normal(*self.space.shape).to(x0))
        return self._nats(x, x0, t, at, self.reverse.guess(x_t, at, context))

    def _nats(self, x: Tensor, x0: Tensor, t: Tensor, at: Scales, guess: Guess) -> Tensor:
        """KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t)) where t > 1, and -log p(x|x_1) where t = 1, (n,)."""
        narrow, wide = self.diffusion.variances(t, x0)
        weight = self.diffusion.posterior_mean_gap(t.clamp(min=2)).to(x0)
        nats = weight.reshape(narrow.shape) * (x0 - guess.x0).square()
        deviation = at.spread
        if guess.share is not None:
            # r = narrow / variance: KL = r (gap) + (r - 1 - log r) / 2.
            log_ratio = (narrow / wide).log() * guess.share
            nats = nats * log_ratio.exp() + 0.5 * (torch.expm1(log_ratio) - log_ratio)
            deviation = (narrow / log_ratio.exp()).sqrt()
        total, first = nats.flatten(1).sum(1), t == 1
        if bool(first.any()):
            mean, deviation = guess.x0[first], deviation[first]
            mass = discretised_gaussian_log_prob(x[first], mean, deviation, self.space.levels)
            total = total.masked_scatter(first, -mass.flatten(1).sum(1))
        return total

    def denoising_error(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """Squared error of the prediction, t stratified over the batch (Ho et al. 2020, eq. 14)."""
        x0 = self.reverse.centred(batch.x)
        t = self._times(noise, len(batch))
        epsilon = noise.normal(*self.space.shape).to(x0)
        at = self.diffusion.scales(t, x0)
        x_t = at.noised(x0, epsilon)
        context = self.reverse.context(batch.condition, len(batch))
        told, share = self._told(x_t, at, dropped(context, self.config.label_dropout, noise))
        simple = (told - at.target(x0, epsilon, self.config.prediction)).square().mean()
        if share is None:
            return Loss(simple)
        # The bound moves the variance only: the mean is as it was (Nichol & Dhariwal 2021, sec. 3.1).
        guessed = at.origin(x_t, told.detach(), self.config.prediction)
        guess = Guess(at.legible(x_t, guessed, self.space.levels), share)
        nats = self._nats(as_device(batch.x, self), x0, t, at, guess).mean()
        bound = nats * self.config.steps / self.space.dimensions
        return Loss(simple + BOUND_WEIGHT * bound, {"squared error": simple, "bound": bound})

    def classifying_error(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """Cross-entropy of the label given x_t, at random t (Dhariwal & Nichol 2021, sec. 4)."""
        assert self.classifier is not None
        x0 = self.reverse.centred(batch.x)
        at = self.diffusion.scales(self._times(noise, len(batch)), x0)
        x_t = at.noised(x0, noise.normal(*self.space.shape).to(x0))
        context = self.reverse.context(batch.condition, len(batch))
        return Loss(-(self.classifier(x_t, at.log_snr) * context).sum(1).mean())

    def _times(self, noise: Noise, rows: int) -> Tensor:
        """t from 1 to T, one a row, spread evenly over the batch."""
        place = noise.uniform()
        place = (place + torch.arange(rows, device=place.device)) / rows
        return 1 + (place * self.config.steps).long().clamp(max=self.config.steps - 1)

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser("adamw", config.learning_rate, warmup=20 * config.batch_size)
        player = Player("denoiser", list(self.network.parameters()), optimiser, clip=1.0)
        turns = [Descent((player,), self.denoising_error)]
        if self.classifier is not None:
            judge = Player("classifier", list(self.classifier.parameters()), optimiser, clip=1.0)
            turns.append(Descent((judge,), self.classifying_error, batches=0))
        bf16 = config.channels >= 32
        return Game(
            [*condition_stages(self.condition_door), Stage(turns)],
            batch_size=config.batch_size,
            average=0.05,
            bf16=bf16,
            keep="last",
        )
