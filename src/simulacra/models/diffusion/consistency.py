"""Consistency model: from noise to data in one step or two, distilled from a flow.

The ODE of a flow leads every x_t to one datum x_1. A consistency function says which, at once, for all
t (Song et al. 2023, def. 1):

    f(x_t, t) = x_1,    so that    f(x_t, t) = f(x_s, s) on one path, and f(x, 1) = x.

The last is met by construction, whatever the network says: f = t / S x + (1 - t) / sqrt(S) F, with S
the variance of x_t (their eq. 5, in the coordinates of ``probability/straight_paths.py``). First a
teacher is trained by flow matching. Then a student that starts from its weights, where f is the
teacher's E[x_1 | x_t], learns from neighbouring times t_n < t_{n+1} of a path (their Alg. 2): from a
noised datum the teacher goes one Heun step, and the student's answers before and after have to agree,

    loss = |f(x_n, t_n) - sg f(x_n + step, t_{n+1})|^2 S / (1 - t_n)^2,

so weighted that it is the error of what the network says, as the teacher's loss is: answers near data,
on which all others are built, differ little and count as much. One step draws f(noise, 0); each
further one noises what was drawn again, and asks f anew (their Alg. 1).

Papers: Song, Dhariwal, Chen & Sutskever 2023; that the target has the student's own weights, and no
average of them, from Song & Dhariwal 2024, sec. 3.2. Changed: straight paths for the variance-exploding
ones, so that no largest and no smallest noise need be chosen, and the weighted squared error for LPIPS.
(A pseudo-Huber distance drifted: on digits its samples had twice the contrast of the data.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.families.conditioned import condition_stages
from simulacra.families.straight_flow import StandardDoor
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage
from simulacra.layers.backbone import Backbone
from simulacra.layers.conditions import CONDITIONS, ConditionDoor
from simulacra.layers.front_door import as_device
from simulacra.layers.velocity import UnitDoor, VelocityNet, stratified_times
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise, row_noise
from simulacra.probability.straight_paths import Solver, Spacing, placed, scale, solved, times
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Space, Vectors


@dataclass(frozen=True)
class Config:
    """``channels`` and ``blocks`` are the networks', ``steps`` the parts that distillation cuts paths
    into. ``student_share`` is the student's part of the training; its learning rate is ``student_rate``
    times the teacher's. ``num_inference_steps`` touches no weights."""

    backbone: Backbone = "unet"
    channels: int = 32
    blocks: int = 5
    dropout: float = 0.0
    spacing: Spacing = "uniform"
    steps: int = 18
    student_share: float = 0.5
    student_rate: float = 0.5
    num_inference_steps: int = 1
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class Consistency(StandardDoor, Sampler):
    """A teacher, and a student that takes the teacher's whole way at once."""

    spaces: ClassVar = (Images, Vectors)
    conditions: ClassVar = CONDITIONS

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Space | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        _require_sense(config)
        self.door, self.condition_door = UnitDoor(space), ConditionDoor(condition)
        self.teacher, self.student = (
            VelocityNet(
                space,
                config.channels,
                config.blocks,
                condition,
                dropout=config.dropout,
                backbone=config.backbone,
            )
            for _ in range(2)
        )

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """A U-Net that is narrower for larger images; a perceptron for vectors."""
        if not isinstance(space, Images):
            return Config(channels=128, blocks=4, spacing="cosine", batch_size=256)
        small = space.height * space.width <= 144
        return Config(
            blocks=3 if small else 5, batch_size=64, learning_rate=2e-3 if small else 1e-3
        )

    @classmethod
    def toy(cls) -> Consistency:
        config = Config(
            channels=16,
            blocks=1,
            spacing="cosine",
            steps=6,
            student_share=0.7,
            batch_size=64,
            learning_rate=0.01,
        )
        return cls(Vectors(2), config)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self._weight.device)
        context = self._drawn_context(condition, noise)
        steps = num_inference_steps or self.config.num_inference_steps
        x = self._normal(noise)
        for index in range(steps):
            t = x.new_full((num_samples,), index / steps)
            x = placed(self._normal(noise), x, t) if index else x
            x = self.student.origin(x, t, context)
        return self.door.leave(x)

    @torch.no_grad()
    def teacher_sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int = 18,
        solver: Solver = "heun",
    ) -> Tensor:
        """What the teacher draws in so many steps along its ODE, from the noise that ``sample``
        takes."""
        noise = row_noise(num_samples, generator, self._weight.device)
        field = self.teacher.field(self._drawn_context(condition, noise))
        path = times(num_inference_steps, self.config.spacing)
        return self.door.leave(solved(field, self._normal(noise), path, solver))

    @property
    def _weight(self) -> Tensor:
        return next(self.student.parameters())

    def _normal(self, noise: Noise) -> Tensor:
        return noise.normal(*self.door.real_shape).to(self._weight.dtype)

    def _drawn_context(self, condition: Tensor | None, noise: Noise) -> Tensor | None:
        condition = self.condition_door.drawn(condition, noise.uniform())
        return self._context(condition, noise.rows)

    def _context(self, condition: Tensor | None, rows: int) -> Tensor | None:
        context = self.condition_door(condition, rows)
        return None if context is None else as_device(context, self).to(self._weight.dtype)

    def matching(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The teacher's: squared error of the velocity at a random t."""
        x1, _ = self.door.enter(batch.x, noise)
        t = stratified_times(noise.uniform(), self.config.spacing)
        context = self._context(batch.condition, len(batch))
        return Loss(self.teacher.matching_error(self._normal(noise), x1, t, context))

    def distilling(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The student's answers before and after a step of the teacher's (Song et al. 2023, eq. 7)."""
        x1, _ = self.door.enter(batch.x, noise)
        context = self._context(batch.condition, len(batch))
        path = torch.tensor(times(self.config.steps, self.config.spacing), device=x1.device)
        index = stratified_times(noise.uniform(), "uniform") * self.config.steps
        index = index.long().clamp(max=self.config.steps - 1)
        now, following = path[index].to(x1.dtype), path[index + 1].to(x1.dtype)
        x = placed(self._normal(noise), x1, now)
        with torch.no_grad():
            wanted = self.student.origin(*self._taught(x, now, following, context), context)
        told = self.student.origin(x, now, context)
        gap = (told.float() - wanted.float()).square().flatten(1)
        weight = (scale(x, now).flatten() / (1 - now)).square().float()
        return Loss((gap.mean(1) * weight).mean(), {"gap": gap.sum(1).mean()})

    def _taught(
        self, x: Tensor, now: Tensor, following: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Where one Heun step of the teacher leads each row, and when that is."""
        self.teacher.eval()
        step = (following - now).reshape(-1, *[1] * (x.ndim - 1))
        first = self.teacher.velocity(x, now, context)
        last = self.teacher.velocity(x + step * first, following, context)
        self.teacher.train(self.training)
        return x + step * (first + last) / 2, following

    @torch.no_grad()
    def start_student(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """The teacher's weights, which are an answer to begin with (Song et al. 2023, Alg. 2)."""
        self.student.load_state_dict(self.teacher.state_dict())
        return {}

    def game(self) -> Game:
        config = self.config
        teacher, student = (
            Player(
                name,
                list(network.parameters()),
                Optimiser(
                    "adamw",
                    rate * config.learning_rate,
                    weight_decay=config.weight_decay,
                    warmup=20 * config.batch_size,
                ),
                clip=1.0,
            )
            for name, network, rate in (
                ("teacher", self.teacher, 1.0),
                ("student", self.student, config.student_rate),
            )
        )
        stages = [
            *condition_stages(self.condition_door),
            Stage([Descent((teacher,), self.matching)], share=1 - config.student_share),
            Stage([Rewrite("start student", self.start_student, batches=0)], rounds=1),
            Stage([Descent((student,), self.distilling)], share=config.student_share),
        ]
        if not isinstance(self.space, Images):
            first = Rewrite("standardise", self.standardise, batches=32)
            stages.insert(0, Stage([first], rounds=1))
        # Neighbouring answers differ by less than bfloat16 can say.
        return Game(stages, batch_size=config.batch_size, average=0.05, bf16=False, keep="last")


def _require_sense(config: Config) -> None:
    if config.steps < 2 or not 0 < config.student_share < 1:
        reason = f"steps is {config.steps}, and student_share {config.student_share:g}"
        way_out = "cut paths into at least 2 parts, and give the student a share between 0 and 1"
        raise Refusal("CFG-222", reason, way_out=way_out)
