"""Variational diffusion: the bound in continuous time, on a schedule that learns where to look.

With gamma = -log-SNR going from low to high as t goes from 0 to 1, and z_t = x_t, the bound is

    -log p(x) <= KL(q(z_1|x) || N(0, I)) + E[-log p(x|z_0)]
                 + 1/2 E_{epsilon, t} gamma'(t) |epsilon - epsilon_hat(z_t; gamma(t))|^2

(Kingma et al. 2021, eq. 15 and 17). Substituting gamma for t shows that the last term, int of half the
squared error over gamma, depends on the schedule's two ends and on nothing between them; what lies
between is free to make its estimate steady. Its variance is least where draws of gamma have a density

    p(gamma) ~ sqrt(E |epsilon - epsilon_hat|^4),     gamma'(t) = 1 / p(gamma(t)),

which is what gradient descent on the variance leads to in the paper (app. I.2), and here is set directly
from running means over bins of gamma. p(x|z_0) is proportional to the density of z_0 given each level.

Paper: Kingma, Salimans, Poole & Ho 2021. Changed: the schedule in closed form and piecewise linear; its
ends are fixed (log-SNR from -8 to where a level is read almost surely); a U-Net sized by the space
without Fourier features, v-prediction; where the noise is far smaller than the step between two levels,
x_0 is the level that z_t shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
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
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.backbone import Backbone, denoising_network
from simulacra.layers.conditions import CONDITIONS, ConditionDoor
from simulacra.layers.denoising import dropped
from simulacra.layers.front_door import as_device
from simulacra.optimisation import Optimiser
from simulacra.probability.diffusion import Scales, levels_log_prob, readable_sigma
from simulacra.probability.noise import Noise, scoring_noise
from simulacra.probability.samplers import (
    CLEAN,
    Guess,
    Level,
    SamplerName,
    Spacing,
    TimelessSpacing,
    spaced,
)
from simulacra.processes import mean_over_processes
from simulacra.spaces import Images, Space

LOWEST = -8.0
"""log-SNR at t = 1."""
BINS, EVERY, MEMORY = 32, 8, 0.9
"""Bins of gamma; the rounds between two looks at the loss, and what is kept of former looks."""


@dataclass(frozen=True)
class Config:
    """``schedule``: learned from the loss, or even in log-SNR. ``bound_steps`` are the draws of t in
    ``log_prob``; they and the settings of the sampler do not touch weights."""

    channels: int = 32
    blocks: int = 5
    dropout: float = 0.0
    schedule: Literal["learned", "linear"] = "learned"
    label_dropout: float = 0.1
    sampler: SamplerName = "ancestral"
    spacing: TimelessSpacing | None = None
    num_inference_steps: int = 100
    eta: float = 0.0
    guidance_scale: float = 0.0
    bound_steps: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    backbone: Backbone = "unet"


@dataclass(frozen=True)
class _Terms:
    """The bound's terms in nats, each (n,)."""

    prior: Tensor
    diffusion: Tensor
    data: Tensor


class VDM(GaussianDiffusion, Sampler, Gradual, Variator, Density, Completer, Scorer, Diagnosable):
    """A U-Net that denoises, and a schedule in bins of log-SNR."""

    config: Config
    spaces: ClassVar = (Images,)
    conditions: ClassVar = CONDITIONS
    fourth: Tensor

    def __init__(
        self, space: Images, config: Config | None = None, *, condition: Space | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        self.condition_door = ConditionDoor(condition)
        self.network = denoising_network(
            config.backbone, space, config.channels, config.blocks, condition, config.dropout
        )
        self.classifier = None
        self.highest = -2 * math.log(readable_sigma(space.levels))
        self.register_buffer("fourth", torch.ones(BINS))
        self._way()

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Narrower with larger images, dropout for few data."""
        assert isinstance(space, Images)
        small = space.height * space.width <= 144
        return Config(
            blocks=3 if small else 5,
            dropout=0.1 if num_examples < 20_000 else 0.0,
            learning_rate=2e-3 if small else 1e-3,
        )

    @classmethod
    def toy(cls) -> VDM:
        config = Config(channels=8, blocks=1, num_inference_steps=8, bound_steps=4, batch_size=16)
        return cls(Images(1, 2, 3, levels=2), config)

    @property
    def kind(self) -> Kind:
        return Kind.LOWER

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = scoring_noise(len(x), generator, self._weight.device)
        terms = self._terms(as_device(x, self), self.reverse.context(condition, len(x)), noise)
        return -(terms.prior + terms.diffusion + terms.data)

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        noise = scoring_noise(len(x), None, self._weight.device)
        terms = self._terms(as_device(x, self), self.reverse.context(condition, len(x)), noise)
        unit = self.space.dimensions * math.log(2)
        return {
            "bound, prior term (bits/dim)": float(terms.prior.mean()) / unit,
            "bound, diffusion term (bits/dim)": float(terms.diffusion.mean()) / unit,
            "bound, data term (bits/dim)": float(terms.data.mean()) / unit,
        }

    @property
    def score_levels(self) -> int:
        return self.config.bound_steps

    def _path(self, count: int, spacing: Spacing) -> list[Level]:
        """Even in t, which the schedule makes log-SNR of; or as ``spaced`` does."""
        if spacing != "time":
            return spaced(math.exp(-LOWEST / 2), math.exp(-self.highest / 2), count, spacing)
        places = torch.linspace(1, 0, count + 1, dtype=torch.float64)[:-1]
        log_snr, _ = self._drawn(places)
        return [*(Level.preserving(math.exp(-one / 2)) for one in log_snr.tolist()), CLEAN]

    def _drawn(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """log-SNR at t in [0, 1], and gamma' there."""
        chances = self.fourth.double().clamp(min=1e-12).sqrt()
        # A tenth is spread evenly, so that no bin starves.
        chances = 0.9 * chances / chances.sum() + 0.1 / BINS
        if self.config.schedule == "linear":
            chances = torch.full_like(chances, 1 / BINS)
        ends = torch.cat([chances.new_zeros(1), chances.cumsum(0)])
        places = places.to(ends)
        bins = (torch.searchsorted(ends, places, right=True) - 1).clamp(0, BINS - 1)
        within = (places - ends[bins]) / chances[bins]
        width = (self.highest - LOWEST) / BINS
        gamma = -self.highest + width * (bins + within)
        return -gamma, width / chances[bins]

    def _origin(self, x: Tensor, at: Scales, context: Tensor | None) -> Guess:
        told = self.network(x, at.log_snr, context).to(x.dtype)
        return Guess(at.origin(x, told, "v"))

    def _terms(self, x: Tensor, context: Tensor | None, noise: Noise) -> _Terms:
        x0 = self.reverse.centred(x)
        first, last = (Level.preserving(math.exp(-one / 2)) for one in (self.highest, LOWEST))
        prior = 0.5 * ((last.signal * x0) ** 2 + last.spread**2 - 1) - math.log(last.spread)
        z = first.signal * x0 + first.spread * noise.normal(*self.space.shape).to(x0)
        data = -levels_log_prob(x, z / first.signal, first.sigma, self.space.levels)
        total = torch.zeros(len(x), dtype=x0.dtype, device=x0.device)
        draws = self.config.bound_steps
        for index in range(draws):
            places = (index + noise.uniform().double()) / draws
            total = total + self._rates(x0, places, context, noise, legible=True)[0]
        return _Terms(prior.flatten(1).sum(1), total / draws, data.flatten(1).sum(1))

    def _rates(
        self, x0: Tensor, places: Tensor, context: Tensor | None, noise: Noise, *, legible: bool
    ) -> tuple[Tensor, Tensor]:
        """Half of gamma' |epsilon - epsilon_hat|^2 in nats at t (n,), and the squared error alone."""
        log_snr, rate = self._drawn(places)
        at = Scales.preserving(log_snr, x0)
        z = at.noised(x0, noise.normal(*self.space.shape).to(x0))
        reverse = self.reverse
        guess = reverse.guess(z, at, context) if legible else self._origin(z, at, context)
        # epsilon - epsilon_hat is (x_0 hat - x_0) signal / spread.
        ratio = at.signal / at.spread
        error = (ratio * (x0 - guess.x0)).square().flatten(1).sum(1)
        return 0.5 * rate.to(error) * error, error

    def diffusion_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The bound's last term in bits a dimension, t stratified over the batch (their eq. 17)."""
        x0 = self.reverse.centred(batch.x)
        context = self.reverse.context(batch.condition, len(batch))
        context = dropped(context, self.config.label_dropout, noise)
        nats, _ = self._rates(x0, self._places(noise, x0), context, noise, legible=False)
        bits = nats / (self.space.dimensions * math.log(2))
        return Loss(bits.mean(), {"deviation": bits.std()})

    @torch.no_grad()
    def look(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """Running means of the squared loss by bins of gamma, which the schedule follows."""
        batch = next(batches)
        x0 = self.reverse.centred(batch.x)
        context = self.reverse.context(batch.condition, len(batch))
        places = self._places(noise, x0)
        _, error = self._rates(x0, places, context, noise, legible=False)
        width = (self.highest - LOWEST) / BINS
        bins = ((self.highest - self._drawn(places)[0]) / width).long().clamp(0, BINS - 1)
        squares = (error / self.space.dimensions).square().to(self.fourth)
        sums, counts = torch.zeros_like(self.fourth), torch.zeros_like(self.fourth)
        sums.index_add_(0, bins, squares)
        counts.index_add_(0, bins, torch.ones_like(squares))
        mean_over_processes([sums, counts])
        fresh = torch.where(counts > 0, sums / counts.clamp(min=1e-9), self.fourth)
        self.fourth.lerp_(fresh, 1 - MEMORY)
        return {}

    def _places(self, noise: Noise, like: Tensor) -> Tensor:
        """t, one a row, spread evenly over the batch."""
        return (noise.uniform() + torch.arange(len(like), device=like.device)) / len(like)

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser("adamw", config.learning_rate, warmup=20 * config.batch_size)
        player = Player("denoiser", list(self.parameters()), optimiser, clip=1.0)
        turns: list[Descent | Rewrite] = [Descent((player,), self.diffusion_loss)]
        if config.schedule == "learned":
            turns.append(Rewrite("schedule", self.look, batches=0, every=EVERY))
        return Game(
            [*condition_stages(self.condition_door), Stage(turns)],
            batch_size=config.batch_size,
            average=0.05,
            bf16=config.channels >= 32,
            keep="last",
        )
