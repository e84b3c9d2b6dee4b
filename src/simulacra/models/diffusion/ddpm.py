"""Denoising diffusion: noise is added in T small steps, and a network learns to undo them.

q(x_t|x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (Ho et al. 2020, eq. 4). A U-Net sees x_t and its
log-SNR and predicts epsilon, x_0 or v; its x_0 gives p(x_{t-1}|x_t) = q(x_{t-1}|x_t, x_0 predicted).
Training lowers the squared error of the prediction at random t (their eq. 14). The bound is

    log p(x) >= -KL(q(x_T|x) || N(0, I)) - sum_{t=2}^T KL(q(x_{t-1}|x_t, x) || p(x_{t-1}|x_t))
                + E log p(x|x_1)                                                           (their eq. 5)

with a discretised Gaussian for the last term (eq. 13). ``log_prob`` takes the sum over t on
``bound_steps`` stratified draws of t, unbiased for the whole sum. Sampling goes over any sub-sequence of
steps, from deterministic (eta = 0) to ancestral (eta = 1) (Song et al. 2021, eq. 12).

Papers: Ho, Jain & Abbeel 2020; Nichol & Dhariwal 2021 (cosine); Song, Meng & Ermon 2021 (DDIM); Salimans
& Ho 2022 (v). Changed: log-SNR instead of t as the network's input, a U-Net sized by the space,
stratified t within a batch, and where the noise is far smaller than the step between two levels, x_0
is the level that x_t shows.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from simulacra.contract import Completer, Density, Diagnosable, Kind, Sampler, Scorer
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Stage
from simulacra.layers.front_door import (
    as_device,
    centred,
    drawn_labels,
    levels_of,
    one_hot_labels,
)
from simulacra.layers.unet import UNet
from simulacra.optimisation import Optimiser
from simulacra.probability.diffusion import Diffusion, discretised_gaussian_log_prob, level_mean
from simulacra.probability.noise import Noise, row_noise, scoring_noise
from simulacra.spaces import Images, Labels, Space


@dataclass(frozen=True)
class Config:
    """``steps`` is T; ``blocks`` are those of the lowest resolution on either way; each larger one has
    half as many, at least one. ``num_inference_steps`` and ``eta`` are the sampler's,
    ``bound_steps`` the draws of t in ``log_prob``; none of the three touches weights."""

    channels: int = 32
    blocks: int = 5
    dropout: float = 0.0
    steps: int = 1000
    schedule: Literal["linear", "cosine"] = "linear"
    prediction: Literal["epsilon", "x0", "v"] = "epsilon"
    num_inference_steps: int = 50
    eta: float = 0.0
    bound_steps: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3


@dataclass(frozen=True)
class _Terms:
    """The bound's terms in nats, each (n,): prior, steps (its whole sum), and data."""

    prior: Tensor
    steps: Tensor
    data: Tensor


class DDPM(nn.Module, Sampler, Density, Completer, Scorer, Diagnosable):
    """A U-Net that denoises, and everything that follows from it."""

    representative: ClassVar = True
    spaces: ClassVar = (Images,)
    conditions: ClassVar = (Labels,)

    def __init__(
        self, space: Images, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        classes = condition.count if condition else 0
        self.network = UNet(space, config.channels, config.blocks, classes, config.dropout)
        self.diffusion = Diffusion(config.schedule, config.steps)

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
            batch_size=64,
            learning_rate=2e-3 if small else 1e-3,
        )

    @classmethod
    def toy(cls) -> DDPM:
        config = Config(8, 1, 0.0, 10, "cosine", "v", bound_steps=4, batch_size=16)
        return cls(Images(1, 2, 3, levels=2), config)

    @property
    def kind(self) -> Kind:
        return Kind.LOWER

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self._weight.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        classes = self._classes(condition, num_samples)
        x = noise.normal(*self.space.shape).to(self._weight.dtype)
        path = self._path(num_inference_steps or self.config.num_inference_steps)
        return levels_of(self._descended(x, classes, noise, path, eta), self.space)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = scoring_noise(len(x), generator, self._weight.device)
        terms = self._terms(as_device(x, self), self._classes(condition, len(x)), noise)
        return -(terms.prior + terms.steps + terms.data)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Known pixels are put back, noised to the level of each step (Song et al. 2021b, app. I.2)."""
        noise = row_noise(len(x), generator, self._weight.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        given, known = self._centred(as_device(x, self)), as_device(known, self)
        start = noise.normal(*self.space.shape).to(given.dtype)
        path = self._path(max(100, self.config.num_inference_steps))
        classes = self._classes(condition, len(x))
        filled = self._descended(start, classes, noise, path, 1.0, given=(given, known))
        return torch.where(known, as_device(x, self), levels_of(filled, self.space))

    @property
    def score_source(self) -> str:
        return "denoising error"

    @torch.no_grad()
    def anomaly_score(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Squared error of x_0 as predicted from x_t, a dimension, over ``bound_steps`` strengths of
        noise (after Graham et al. 2023): data of another sort come back as what was learnt."""
        noise = scoring_noise(len(x), generator, self._weight.device)
        x0 = self._centred(as_device(x, self))
        total = torch.zeros(len(x), dtype=x0.dtype, device=x0.device)
        draws = min(self.config.bound_steps, self.config.steps)
        for index in range(draws):
            t = 1 + int((index + 0.5) / draws * (self.config.steps - 1))
            at = torch.full((len(x),), t, dtype=torch.long, device=x0.device)
            x_t = self.diffusion.noised(x0, at, noise.normal(*self.space.shape).to(x0.dtype))
            total = total + (x0 - self._origin(x_t, at, None)).square().flatten(1).mean(1)
        return total / draws

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        noise = scoring_noise(len(x), None, self._weight.device)
        terms = self._terms(as_device(x, self), self._classes(condition, len(x)), noise)
        unit = self.space.dimensions * math.log(2)
        return {
            "bound, prior term (bits/dim)": float(terms.prior.mean()) / unit,
            "bound, denoising terms (bits/dim)": float(terms.steps.mean()) / unit,
            "bound, data term (bits/dim)": float(terms.data.mean()) / unit,
        }

    @property
    def _weight(self) -> Tensor:
        return self.network.enter.weight

    def _centred(self, x: Tensor) -> Tensor:
        return centred(x, self.space.levels).to(self._weight.dtype)

    def _classes(self, condition: Tensor | None, rows: int) -> Tensor | None:
        classes = one_hot_labels(condition, self.condition_space, rows)
        return None if classes is None else classes.to(self._weight)

    def _path(self, count: int) -> list[int]:
        """T = t_1 > t_2 > … > 0, evenly spaced."""
        count = min(count, self.config.steps)
        return [round(self.config.steps * (count - index) / count) for index in range(count + 1)]

    def _origin(self, x_t: Tensor, t: Tensor, classes: Tensor | None) -> Tensor:
        """The network's x_0, cut to the data's range; the nearest level where noise cannot hide it."""
        told = self.network(x_t, self.diffusion.log_snr(t), classes).to(x_t.dtype)
        x0 = self.diffusion.origin(x_t, told, t, self.config.prediction).clamp(-1, 1)
        signal, spread = self.diffusion.scales(t, x_t)
        quarter_cell = 0.5 / (self.space.levels - 1)
        read = level_mean(x_t / signal, spread / signal, self.space.levels)
        return torch.where(spread / signal < quarter_cell, read, x0)

    def _descended(
        self,
        x: Tensor,
        classes: Tensor | None,
        noise: Noise,
        path: list[int],
        eta: float | None,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """From x_T down the path to x_0; ``given`` are known values and where they are known."""
        eta = self.config.eta if eta is None else eta
        for now, following in itertools.pairwise(path):
            t = torch.full((len(x),), now, device=x.device)
            s = torch.full((len(x),), following, device=x.device)
            step = self.diffusion.between(x, self._origin(x, t, classes), t, s, eta)
            x = step.mean
            if eta > 0 and following > 0:
                x = x + step.deviation * noise.normal(*self.space.shape).to(x.dtype)
            if given is not None:
                values, known = given
                fresh = noise.normal(*self.space.shape).to(x.dtype)
                x = torch.where(known, self.diffusion.noised(values, s, fresh), x)
        return x

    def _terms(self, x: Tensor, classes: Tensor | None, noise: Noise) -> _Terms:
        x0 = self._centred(x)
        last = torch.full((len(x),), self.config.steps, device=x.device)
        signal, spread = self.diffusion.scales(last, x0)
        prior = 0.5 * ((signal * x0) ** 2 + spread**2 - 1) - spread.log()
        return _Terms(
            prior.flatten(1).sum(1),
            self._step_terms(x0, classes, noise),
            self._data_term(x, x0, classes, noise),
        )

    def _step_terms(self, x0: Tensor, classes: Tensor | None, noise: Noise) -> Tensor:
        """The sum over t = 2..T from one draw of t in each of ``bound_steps`` equal parts."""
        terms = self.config.steps - 1
        draws = min(self.config.bound_steps, terms)
        total = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
        for index in range(draws):
            place = (index + noise.uniform().double()) / draws
            t = 2 + (place * terms).long().clamp(max=terms - 1)
            x_t = self.diffusion.noised(x0, t, noise.normal(*self.space.shape).to(x0.dtype))
            gap = (x0 - self._origin(x_t, t, classes)).square().flatten(1).sum(1)
            total = total + self.diffusion.posterior_mean_gap(t).to(x0.dtype) * gap
        return total * (terms / draws)

    def _data_term(self, x: Tensor, x0: Tensor, classes: Tensor | None, noise: Noise) -> Tensor:
        """-log p(x|x_1): the mass of a Gaussian around the predicted x_0, of variance beta_1."""
        one = torch.ones(len(x), dtype=torch.long, device=x.device)
        x_1 = self.diffusion.noised(x0, one, noise.normal(*self.space.shape).to(x0.dtype))
        _, spread = self.diffusion.scales(one, x0)
        mean = self._origin(x_1, one, classes)
        log_mass = discretised_gaussian_log_prob(x, mean, spread, self.space.levels)
        return -log_mass.flatten(1).sum(1)

    def denoising_error(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """Squared error of the prediction, t stratified over the batch (Ho et al. 2020, eq. 14)."""
        x0 = self._centred(batch.x)
        place = (noise.uniform() + torch.arange(len(batch), device=x0.device)) / len(batch)
        t = 1 + (place * self.config.steps).long().clamp(max=self.config.steps - 1)
        epsilon = noise.normal(*self.space.shape).to(x0.dtype)
        x_t = self.diffusion.noised(x0, t, epsilon)
        classes = self._classes(batch.condition, len(batch))
        told = self.network(x_t, self.diffusion.log_snr(t), classes).float()
        wanted = self.diffusion.target(x0, epsilon, t, self.config.prediction)
        return Loss((told - wanted).square().mean())

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser("adamw", config.learning_rate, warmup=20 * config.batch_size)
        player = Player("denoiser", list(self.parameters()), optimiser, clip=1.0)
        stage = Stage([Descent((player,), self.denoising_error)])
        bf16 = config.channels >= 32
        return Game([stage], batch_size=config.batch_size, average=0.05, bf16=bf16, keep="last")
