"""What every GAN does alike: the turns of a critic and of a generator, by whatever rules are set.

A model of the family brings two networks, what stands before a turn, and who makes data; losses and
remedies are those of ``layers/contest.py``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Rewrite, Stage, Turn
from simulacra.layers.augmentation import ADAPT_EVERY
from simulacra.layers.contest import Contest, Sides
from simulacra.layers.front_door import as_device, one_hot_labels
from simulacra.layers.spectral import iterate_all
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise
from simulacra.processes import mean_over_processes, world_and_rank
from simulacra.spaces import Labels


class AdversarialConfig(Protocol):
    """The settings of a GAN that its turns need; they stand in ``layers/adversarial_rules.py``."""

    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def critic_steps(self) -> int: ...
    @property
    def critic_rate(self) -> float: ...
    @property
    def penalty_every(self) -> int: ...
    @property
    def penalty_left(self) -> float: ...
    @property
    def spectral(self) -> bool: ...
    @property
    def unrolled(self) -> int: ...
    @property
    def pack(self) -> int: ...
    @property
    def average(self) -> float: ...


class AdversarialModel(nn.Module):
    """A generator and a critic in a contest; a model names its capabilities on its own class line."""

    schedule: ClassVar[Literal["constant", "cosine"]] = "constant"
    betas: ClassVar[tuple[float, float]] = (0.5, 0.99)
    gains_by_bf16: ClassVar[bool] = True
    replays: ClassVar[bool] = False
    """Whether its losses are the same work each time, as ``Descent.replays`` has it."""
    config: AdversarialConfig
    generator: nn.Module
    critic: nn.Module
    contest: Contest
    condition_space: Labels | None = None

    @abstractmethod
    def _sides(self, batch: Batch, noise: Noise, *, makes: bool = True) -> Sides:
        """Data, and as many made ones of the same classes (or themselves, where none are needed)."""

    def _classes(self, condition: Tensor | None, rows: int) -> Tensor | None:
        """Labels as rows of zeros and a one, (rows, K)."""
        classes = one_hot_labels(condition, self.condition_space, rows)
        return None if classes is None else as_device(classes, self)

    def _makers(self, optimiser: Optimiser) -> tuple[Player, ...]:
        """Who moves in the generator's turn."""
        return (Player("generator", list(self.generator.parameters()), optimiser),)

    def _first(self) -> Sequence[Stage]:
        """Stages before the contest."""
        return ()

    def _afterwards(self, makers: tuple[Player, ...]) -> Sequence[Turn]:
        """Turns of a round after the generator's."""
        return ()

    def _contest(self, turns: Sequence[Turn]) -> Sequence[Stage]:
        """The stages that the turns of the contest are played in."""
        return (Stage(turns),)

    def _penalty_weight(self, clock: Clock) -> float:
        """What is left of the penalty."""
        return float(self.config.penalty_left**clock.progress)

    @property
    def _penalises_at_once(self) -> bool:
        """Whether the critic's loss has the penalty in it."""
        return self.contest.penalised and not self.contest.lazy

    def _differentiated_twice(self) -> Sequence[nn.Module]:
        """The parts whose slopes are in a loss."""
        return (self.critic,) if self.contest.penalised or self.config.unrolled else ()

    def critic_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The critic's loss on data and on what it is not to be deceived by."""
        with torch.no_grad():
            sides = self._sides(batch, noise)
        weight = self._penalty_weight(clock) if self._penalises_at_once else 1.0
        told = self.contest.critic_loss(self.critic, sides, noise, weight)
        return Loss(told.value, told.numbers)

    def gradient_penalty(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The regulariser, for all the rounds that it was left out."""
        with torch.no_grad():
            sides = self._sides(batch, noise, makes=self.contest.penalises_made)
        told = self.contest.gradient_penalty(self.critic, sides, noise, self._penalty_weight(clock))
        return Loss(told.value, told.numbers)

    def generator_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The generator's loss: the critic is to take what is made for data."""
        told = self.contest.generator_loss(self.critic, self._sides(batch, noise), noise)
        return Loss(told.value, told.numbers)

    def follow_norms(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Power iterations towards the norms of the critic's weights, which have moved."""
        iterate_all(self.critic)
        return {}

    @torch.no_grad()
    def adapt(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """ADA: augment the more, the surer the critic is of training data."""
        batch = next(batches)
        sure = self.contest.sureness(self.critic, self._sides(batch, noise), noise)
        mean_over_processes([sure])
        world, _ = world_and_rank()
        data = ADAPT_EVERY * self.config.critic_steps * len(batch) * world
        return self.contest.augmentation.adapt(float(sure), data)

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser(
            "adam", config.learning_rate, betas=self.betas, schedule=self.schedule
        )
        makers = self._makers(optimiser)
        faster = replace(optimiser, learning_rate=config.critic_rate * config.learning_rate)
        critic = Player("critic", list(self.critic.parameters()), faster)
        # Spectral norms are of a factorisation, which a library may not let a graph record.
        replays = self.replays and not config.spectral
        judges = replays and not self._penalises_at_once
        turn = Descent((critic,), self.critic_loss, replays=judges)
        turns: list[Turn] = [turn] * config.critic_steps
        if self.contest.lazy:
            every = config.penalty_every
            turns.append(Descent((critic,), self.gradient_penalty, batches=0, every=every))
        if config.spectral:
            turns.append(Rewrite("follow norms", self.follow_norms, batches=0))
        if self.contest.adapts:
            turns.append(Rewrite("adapt", self.adapt, batches=0, every=ADAPT_EVERY))
        turns.append(Descent(makers, self.generator_loss, batches=0, replays=replays))
        turns.extend(self._afterwards(makers))
        return Game(
            [*self._first(), *self._contest(turns)],
            config.batch_size,
            average=config.average,
            bf16=self.gains_by_bf16,
            keep="last",
            eager=self._differentiated_twice(),
            together=config.pack,
        )
