"""EDM: a denoiser whose input, output and target have variance one at every noise level.

Data with noise, x = y + sigma n, have no schedule, only a noise level. The denoiser is

    D(x; sigma) = c_skip x + c_out F(c_in x; sigma)                    (Karras et al. 2022, eq. 7)
    c_skip = sigma_d^2 / (sigma^2 + sigma_d^2),   c_in = 1 / sqrt(sigma^2 + sigma_d^2),
    c_out = sigma sigma_d / sqrt(sigma^2 + sigma_d^2),                                   (table 1)

sigma_d the data's deviation, measured once. With log sigma ~ N(-1.2, 1.2^2) and the weight 1 / c_out^2
the loss is the squared error of F against (y - c_skip x) / c_out (eq. 8): at the start, F = 0
and the loss is one, at every sigma. Samples come by Heun's method in a few steps, or by any other sampler
of ``probability/samplers.py``.

Paper: Karras, Aittala, Aila & Laine 2022. Changed: log-SNR as the network's input, the U-Net of
``layers/unet.py``, sigma stratified over the batch, no augmentation; where the noise is far smaller than
the step between two levels, x_0 is the level that x shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simulacra.contract import Completer, Gradual, Sampler, Scorer, Variator
from simulacra.families.conditioned import condition_stages
from simulacra.families.gaussian_diffusion import GaussianDiffusion
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.backbone import Backbone, denoising_network
from simulacra.layers.conditions import CONDITIONS, ConditionDoor
from simulacra.layers.denoising import dropped
from simulacra.optimisation import Optimiser
from simulacra.probability.diffusion import Scales, readable_sigma
from simulacra.probability.noise import Noise
from simulacra.probability.samplers import (
    Guess,
    Level,
    SamplerName,
    Spacing,
    TimelessSpacing,
    spaced,
)
from simulacra.processes import mean_over_processes
from simulacra.spaces import Images, Space

MEAN, DEVIATION = -1.2, 1.2
"""Of log sigma in training (table 1)."""
HIGH, LOW = 80.0, 0.002
"""The sigmas that a path goes between; it ends sooner where levels can be read sooner."""


@dataclass(frozen=True)
class Config:
    """``blocks`` are those of the lowest resolution, each larger one has half as many; ``score_steps``
    the noise levels of an anomaly score. The settings of the sampler do not touch weights; of ``spacing``
    "time" is as "karras", for there is none."""

    channels: int = 32
    blocks: int = 5
    dropout: float = 0.0
    label_dropout: float = 0.1
    sampler: SamplerName = "heun"
    spacing: TimelessSpacing | None = None
    num_inference_steps: int = 18
    eta: float = 0.0
    guidance_scale: float = 0.0
    score_steps: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    backbone: Backbone = "unet"


@dataclass(frozen=True, eq=False)
class Preconditioning:
    """c_skip, c_out and c_in of sigma, for data of one deviation (table 1)."""

    skip: Tensor
    out: Tensor
    into: Tensor

    @classmethod
    def of(cls, sigma: Tensor, deviation: Tensor) -> Preconditioning:
        total = sigma.square() + deviation.square()
        return cls(deviation.square() / total, sigma * deviation / total.sqrt(), 1 / total.sqrt())


class EDM(GaussianDiffusion, Sampler, Gradual, Variator, Completer, Scorer):
    """A preconditioned U-Net, and the walks that it denoises on."""

    config: Config
    spaces: ClassVar = (Images,)
    conditions: ClassVar = CONDITIONS
    deviation: Tensor

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
        self.register_buffer("deviation", torch.tensor(0.5))
        self._way()

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """As the DDPM: narrower with larger images, dropout for few data."""
        assert isinstance(space, Images)
        small = space.height * space.width <= 144
        return Config(
            blocks=3 if small else 5,
            dropout=0.1 if num_examples < 20_000 else 0.0,
            learning_rate=2e-3 if small else 1e-3,
        )

    @classmethod
    def toy(cls) -> EDM:
        config = Config(channels=8, blocks=1, num_inference_steps=4, score_steps=4, batch_size=16)
        return cls(Images(1, 2, 3, levels=2), config)

    @property
    def score_levels(self) -> int:
        return self.config.score_steps

    def _path(self, count: int, spacing: Spacing) -> list[Level]:
        """Evenly by rho, or in log-SNR; there is no time, and rho stands for it."""
        low = max(LOW, readable_sigma(self.space.levels))
        return spaced(HIGH, low, count, "log-snr" if spacing == "log-snr" else "karras")

    def _origin(self, x: Tensor, at: Scales, context: Tensor | None) -> Guess:
        """D of x / signal, which is y + sigma n (eq. 7)."""
        y, sigma = x / at.signal, at.spread / at.signal
        c = Preconditioning.of(sigma, self.deviation.to(x.dtype))
        told = self.network(c.into * y, at.log_snr, context).to(x.dtype)
        return Guess(c.skip * y + c.out * told)

    def measure_data(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """sigma_d, from every datum once."""
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            values = self.reverse.centred(batch.x).double().cpu()
            sums += torch.stack(
                [torch.ones_like(values).sum(), values.sum(), values.square().sum()]
            )
        mean_over_processes([sums])
        count, total, squares = sums.tolist()
        variance = squares / count - (total / count) ** 2
        # Data of one value have none, and c_out would be nought.
        self.deviation.fill_(max(variance, 0.05**2) ** 0.5)
        return {"deviation of the data": float(self.deviation)}

    def denoising_error(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The squared error of F (eq. 8), sigma stratified over the batch."""
        x0 = self.reverse.centred(batch.x)
        place = noise.uniform()
        place = (place + torch.arange(len(batch), device=place.device)) / len(batch)
        sigma = _sigmas(place.double().clamp(1e-6, 1 - 1e-6))
        shaped = sigma.to(x0).reshape(-1, 1, 1, 1)
        c = Preconditioning.of(shaped, self.deviation)
        y = x0 + shaped * noise.normal(*self.space.shape).to(x0)
        context = self.reverse.context(batch.condition, len(batch))
        context = dropped(context, self.config.label_dropout, noise)
        told = self.network(c.into * y, -2 * sigma.log(), context).float()
        return Loss((told - (x0 - c.skip * y) / c.out).square().mean())

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser("adamw", config.learning_rate, warmup=20 * config.batch_size)
        player = Player("denoiser", list(self.parameters()), optimiser, clip=1.0)
        scale = Stage([Rewrite("deviation", self.measure_data, sweep=True)], rounds=1)
        stage = Stage([Descent((player,), self.denoising_error)])
        return Game(
            [scale, *condition_stages(self.condition_door), stage],
            batch_size=config.batch_size,
            average=0.05,
            bf16=config.channels >= 32,
            keep="last",
        )


def _sigmas(places: Tensor) -> Tensor:
    """Quantiles of the sigma of training, places in (0, 1)."""
    sigmas: Tensor = (MEAN + DEVIATION * torch.special.ndtri(places)).exp()
    return sigmas
