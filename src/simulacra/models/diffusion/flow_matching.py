"""Flow matching: a velocity field that carries noise to data along nearly straight paths.

x_t = (1 - t) x_0 + t x_1 joins noise and data, and a network learns v(x, t) = E[x_1 - x_0 | x_t = x] by
squared error (Lipman et al. 2023, eq. 23; Liu et al. 2023, eq. 1). Sampling follows dx/dt = v from
noise at t = 0 to data at t = 1, in as many steps as one likes; backwards it is a code for every datum.
``probability/straight_paths.py`` has the equations.

Paths of single data cross, and v is their mean, so the ODE's own paths are curved. Reflow draws pairs
(x_0, x_1) from the ODE and learns from these instead of independent ones: paths become straighter, and
few steps suffice (Liu et al. 2023, Alg. 1). Their curvature is S = int E|(x_1 - x_0) - v(x_t, t)|^2 dt
along the ODE (their eq. 5), here a dimension of standardised data. With coupling 'ot', the noise of a
batch is paired with its data at least cost (Tong et al. 2024, sec. 3.2), which does the same in one go,
if less.

log p(x) is the ODE's (Chen et al. 2018, eq. 8) with ``likelihood_steps``; an estimate, since the steps
and, above ``EXACT_TRACE`` dimensions and for images, random probes (Hutchinson 1990) put it off either
way: ``diagnose`` says by how much half the steps differ (0.01 nats on a ring and a grid of Gaussians,
``benchmarks/flow_matching.py``). Images are dequantised, categories and missing numbers too
(``layers/table_reals.py``), which bounds it from below on top of that.

The path is a Gaussian diffusion's, by which ``complete`` and ``vary`` go (``families/straight_flow.py``).

With labels, these are left out of a share ``label_dropout`` of the data; with ``guidance_scale`` w
samples follow v(x|y) + w (v(x|y) - v(x)) (Ho & Salimans 2022), 0 being the plain conditional model.

Papers: Lipman, Chen, Ben-Hamu, Nickel & Le 2023; Liu, Gong & Liu 2023. Changed: the network speaks of a
number of unit variance (Karras et al. 2022), stratified t, and for vectors and tables more t near both
ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from simulacra.contract import (
    Completer,
    Decoder,
    Density,
    Diagnosable,
    Encoder,
    Gradual,
    Kind,
    Sampler,
    Variator,
)
from simulacra.families.conditioned import condition_stages
from simulacra.families.straight_flow import StraightFlow
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage, Turn
from simulacra.layers.backbone import Backbone
from simulacra.layers.conditions import CONDITIONS, ConditionDoor
from simulacra.layers.denoising import dropped, require_guidance
from simulacra.layers.front_door import as_device
from simulacra.layers.velocity import (
    Frozen,
    UnitDoor,
    VelocityNet,
    stratified_times,
)
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise, row_noise, scoring_noise
from simulacra.probability.samplers import last
from simulacra.probability.straight_paths import (
    Field,
    Solver,
    Spacing,
    cheapest,
    curvature,
    log_density,
    solved,
    times,
)
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Table, Vectors

EXACT_TRACE = 64
"""Vectors of at most so many entries have their divergence taken exactly."""
POOL, REFRESHED = 8, 4
"""Batches of pairs that reflow keeps, and the rounds after which one of them is drawn anew."""
PAIR_STEPS = 10
"""Steps of Heun that lead from the noise of a pair to its data."""


@dataclass(frozen=True)
class Config:
    """``channels`` are the U-Net's at full size, or the hidden units for vectors and tables; ``blocks``
    as in ``layers/unet.py``. ``reflow`` is how often pairs are drawn and learnt from, for
    ``reflow_share`` of the training together. ``num_inference_steps``, ``sampler``, ``guidance_scale``
    are the sampler's, and with ``likelihood_steps`` touch no weights."""

    backbone: Backbone = "unet"
    channels: int = 32
    blocks: int = 5
    dropout: float = 0.0
    spacing: Spacing = "uniform"
    coupling: Literal["independent", "ot"] = "independent"
    reflow: int = 0
    reflow_share: float = 0.5
    label_dropout: float = 0.1
    num_inference_steps: int = 50
    sampler: Solver = "euler"
    guidance_scale: float = 0.0
    likelihood_steps: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class FlowMatching(
    StraightFlow, Sampler, Gradual, Variator, Density, Encoder, Decoder, Completer, Diagnosable
):
    """A velocity network, and the ODE that it is the slope of."""

    config: Config
    spaces: ClassVar = (Images, Vectors, Table)
    conditions: ClassVar = CONDITIONS
    normal_codes: ClassVar = True

    pool_noise: Tensor
    pool_data: Tensor
    pool_labels: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Space | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        _require_sense(config, space, condition)
        self.door, self.condition_door = UnitDoor(space), ConditionDoor(condition)
        self.network = VelocityNet(
            space,
            config.channels,
            config.blocks,
            condition,
            dropout=config.dropout,
            backbone=config.backbone,
        )
        if config.reflow:
            size = POOL * config.batch_size
            self.teacher = Frozen(self.network)
            self.register_buffer("pool_noise", torch.zeros(size, *self.door.real_shape))
            self.register_buffer("pool_data", torch.zeros(size, *self.door.real_shape))
            self.register_buffer("pool_labels", torch.zeros(size, dtype=torch.long))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """A U-Net that is narrower for larger images; a perceptron for vectors and tables."""
        few = num_examples < 5000
        if not isinstance(space, Images):
            return Config(
                channels=128 if few else 256,
                blocks=4,
                dropout=0.1 if few and space.dimensions > 2 else 0.0,
                spacing="cosine",
                likelihood_steps=50,
                batch_size=256,
                learning_rate=1e-3,
            )
        small = space.height * space.width <= 144
        return Config(
            blocks=3 if small else 5,
            dropout=0.1 if num_examples < 20_000 else 0.0,
            batch_size=64,
            learning_rate=2e-3 if small else 1e-3,
        )

    @classmethod
    def toy(cls) -> FlowMatching:
        config = Config(
            channels=16,
            blocks=1,
            num_inference_steps=10,
            batch_size=64,
            learning_rate=0.01,
            spacing="cosine",
            likelihood_steps=30,
        )
        return cls(Vectors(2), config)

    @property
    def kind(self) -> Kind:
        return Kind.ESTIMATE

    @property
    def code_space(self) -> Vectors:
        return Vectors(self.door.size)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: Solver | None = None,
    ) -> Tensor:
        states = self._states(
            num_samples, condition, generator, num_inference_steps, guidance_scale, sampler
        )
        return self.door.leave(last(states))

    @torch.no_grad()
    def trajectory(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        states = self._states(num_samples, condition, generator)
        return torch.stack([self.door.leave(state) for state in states])

    def _states(
        self,
        rows: int,
        condition: Tensor | None,
        generator: torch.Generator | None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: Solver | None = None,
    ) -> Iterator[Tensor]:
        """Noise, and where it stands after every step; by the config, where nothing else is said."""
        config, noise = self.config, row_noise(rows, generator, self._weight.device)
        condition = self.condition_door.drawn(condition, noise.uniform())
        x = noise.normal(*self.door.real_shape).to(self._weight.dtype)
        guidance = config.guidance_scale if guidance is None else guidance
        field = self.network.field(self._context(condition, rows), guidance)
        yield x
        for step in itertools.pairwise(times(steps or config.num_inference_steps)):
            x = solved(field, x, step, sampler or config.sampler)
            yield x

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        likelihood_steps: int | None = None,
    ) -> Tensor:
        """log p(x) along the ODE, without guidance."""
        noise = scoring_noise(len(x), generator, self._weight.device)
        real, log_slope = self.door.enter(as_device(x, self), noise)
        probe = None
        if isinstance(self.space, Images) or self.door.size > EXACT_TRACE:
            probe = noise.normal(*self.door.real_shape).sign().to(real.dtype)
        field = self.network.field(self._context(condition, len(x)))
        path = self._fine(likelihood_steps)[::-1]
        return log_slope + log_density(field, real, path, self._fine_solver, probe)

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """The noise that the ODE leads to x from, (n, D); of an image that of the middle of its
        cells."""
        real = self.door.middle(as_device(x, self))
        field = self.network.field(self._context(condition, len(x)))
        return solved(field, real, self._fine()[::-1], "rk4").flatten(1)

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        """What the ODE leads to from a noise."""
        start = as_device(code, self).to(self._weight.dtype)
        field = self.network.field(self._context(condition, len(code)))
        start = start.reshape(len(code), *self.door.real_shape)
        return self.door.leave(solved(field, start, self._fine(), "rk4"))

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        """How curved the paths are, and how far half the steps put the likelihood off."""
        whole = self.log_prob(x, condition=condition)
        half = max(1, self.config.likelihood_steps // 2)
        rough = self.log_prob(x, condition=condition, likelihood_steps=half)
        return {
            "curvature (squared, a dimension)": self.curvature(len(x), condition=condition),
            "half the likelihood steps (nats off)": float((whole - rough).abs().mean()),
        }

    @torch.no_grad()
    def curvature(
        self,
        rows: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        steps: int = 50,
    ) -> float:
        """How far paths of so many draws are from straight (Liu et al. 2023, eq. 5)."""
        noise = scoring_noise(rows, generator, self._weight.device)
        condition = self.condition_door.drawn(condition, noise.uniform())
        field = self.network.field(self._context(condition, rows))
        start = noise.normal(*self.door.real_shape).to(self._weight.dtype)
        return curvature(field, start, steps)

    @property
    def _weight(self) -> Tensor:
        return next(self.network.parameters())

    def _field(self, condition: Tensor | None, rows: int) -> Field:
        return self.network.field(self._context(condition, rows), self.config.guidance_scale)

    def _fine(self, steps: int | None = None) -> list[float]:
        """Times for codes and likelihoods."""
        return times(steps or self.config.likelihood_steps, "cosine")

    @property
    def _fine_solver(self) -> Solver:
        """A step of order 4 asks the network four times: too much where that is a U-Net."""
        return "heun" if isinstance(self.space, Images) else "rk4"

    def _context(self, condition: Tensor | None, rows: int) -> Tensor | None:
        context = self.condition_door(condition, rows)
        return None if context is None else as_device(context, self).to(self._weight.dtype)

    def matching(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """Squared error of the velocity at a random t (Lipman et al. 2023, eq. 23)."""
        x1, _ = self.door.enter(batch.x, noise)
        x0 = noise.normal(*self.door.real_shape).to(x1.dtype)
        if self.config.coupling == "ot":
            x0 = x0[cheapest(x0, x1)]
        return self._error(x0, x1, self._context(batch.condition, len(batch)), noise)

    def straightening(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The same error on pairs that the ODE has drawn (Liu et al. 2023, Alg. 1); data are not
        seen."""
        chosen = (noise.uniform() * len(self.pool_data)).long().clamp(max=len(self.pool_data) - 1)
        labels = self.pool_labels[chosen] if self.condition_space else None
        context = self._context(labels, len(chosen))
        return self._error(self.pool_noise[chosen], self.pool_data[chosen], context, noise)

    def _error(self, x0: Tensor, x1: Tensor, context: Tensor | None, noise: Noise) -> Loss:
        t = stratified_times(noise.uniform(), self.config.spacing)
        context = dropped(context, self.config.label_dropout, noise)
        return Loss(self.network.matching_error(x0, x1, t, context))

    @torch.no_grad()
    def draw_pairs(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Take the weights as they are, and fill the pool with pairs of theirs."""
        self.teacher.take(self.network)
        for part in range(POOL):
            self._draw_part(part, noise)
        return {}

    @torch.no_grad()
    def renew_pairs(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """The oldest part of the pool drawn anew, from the same weights."""
        self._draw_part(clock.stage_rounds // REFRESHED % POOL, noise)
        return {}

    def _draw_part(self, part: int, noise: Noise) -> None:
        rows = slice(part * noise.rows, (part + 1) * noise.rows)
        x0 = noise.normal(*self.door.real_shape).to(self._weight.dtype)
        labels = self.condition_door.drawn(None, noise.uniform())
        training, _ = self.training, self.network.eval()
        field = self.teacher.field(self.network, self._context(labels, len(x0)))
        self.pool_noise[rows] = x0
        self.pool_data[rows] = solved(field, x0, times(PAIR_STEPS), "heun")
        if labels is not None:
            self.pool_labels[rows] = labels
        self.network.train(training)

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adamw",
            config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=20 * config.batch_size,
        )
        player = Player("velocity", list(self.network.parameters()), optimiser, clip=1.0)
        stages = condition_stages(self.condition_door)
        if not isinstance(self.space, Images):
            first = Rewrite("standardise", self.standardise, batches=32)
            stages.append(Stage([first], rounds=1))
        share = config.reflow_share if config.reflow else 0.0
        stages.append(Stage([Descent((player,), self.matching)], share=1 - share))
        for _ in range(config.reflow):
            pairs: list[Turn] = [Rewrite("draw pairs", self.draw_pairs, batches=0)]
            stages.append(Stage(pairs, rounds=1))
            turns: list[Turn] = [
                Descent((player,), self.straightening),
                Rewrite("renew pairs", self.renew_pairs, batches=0, every=REFRESHED),
            ]
            stages.append(Stage(turns, share=share / config.reflow))
        bf16 = isinstance(self.space, Images) and config.channels >= 32
        return Game(stages, batch_size=config.batch_size, average=0.05, bf16=bf16, keep="last")


def _require_sense(config: Config, space: Space, condition: Space | None) -> None:
    able, way_out = config.label_dropout > 0, "leave it at 0, or train with a label_dropout of 0.1"
    require_guidance(config.guidance_scale, condition, able=able, way_out=way_out)
    if config.backbone == "dit" and not isinstance(space, Images):
        reason = f"the backbone dit cuts images into patches, and these are {space}"
        raise Refusal("CFG-228", reason, way_out="leave backbone at unet: others get a perceptron")
    if config.reflow and not (condition is None or isinstance(condition, Labels)):
        reason = f"reflow draws its own conditions, and the model goes by {condition}"
        raise Refusal("CFG-256", reason, way_out="set reflow to 0, or condition on labels")
    if config.reflow < 0 or not 0 < config.reflow_share < 1:
        reason = f"reflow is {config.reflow}, and reflow_share {config.reflow_share:g}"
        way_out = "set reflow to 0, 1 or 2, and reflow_share between 0 and 1"
        raise Refusal("CFG-220", reason, way_out=way_out)
    if min(config.num_inference_steps, config.likelihood_steps) < 1:
        reason = (
            f"num_inference_steps is {config.num_inference_steps}, "
            f"likelihood_steps {config.likelihood_steps}"
        )
        raise Refusal("CFG-221", reason, way_out="take at least one step")
