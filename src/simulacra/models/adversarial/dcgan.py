"""Deep convolutional GAN: a generator learns to deceive a critic that learns to see through it.

The generator is transposed convolutions with batch normalisation and ReLU, the critic strided
convolutions with leaky ReLU (``layers/convolutional_pair.py``). The loss, its regulariser and all other
remedies are options (``layers/contest.py``). There is no likelihood: the class line names no
``Density``, and nothing pretends that it has one.

Papers: Goodfellow et al. 2014; Radford, Metz & Chintala 2016. Changed, for training that does not
collapse: no batch normalisation in the critic, but the gradient penalty R1 (Mescheder et al. 2018,
eq. 9), lazily (Karras et al. 2020); averaged weights for sampling; where data are few, what the critic
sees is shifted as often as it is too sure of them (Karras et al. 2020a). Classes enter beside z, and the
critic by projection (Miyato & Koyama 2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Sampler
from simulacra.games import (
    Batch,
    Clock,
    Descent,
    Game,
    Loss,
    Player,
    Rewrite,
    Stage,
    Turn,
    mean_over_processes,
)
from simulacra.layers.adversarial_rules import Rules
from simulacra.layers.augmentation import ADAPT_EVERY
from simulacra.layers.contest import Contest, Sides
from simulacra.layers.convolutional_pair import ConvolutionalCritic, ConvolutionalGenerator
from simulacra.layers.front_door import as_device, centred, drawn_labels, levels_of, one_hot_labels
from simulacra.layers.spectral import iterate_all
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise, row_noise
from simulacra.spaces import Images, Labels, Space


@dataclass(frozen=True)
class Config(Rules):
    """``channels`` are those at full size, doubled at each halving; all else are the rules' options."""

    latent: int = 64
    channels: int = 32
    batch_size: int = 64
    learning_rate: float = 2e-4


class DCGAN(nn.Module, Sampler):
    """A generator, and the critic that taught it."""

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
        self.generator = ConvolutionalGenerator(space, config.latent + classes, config.channels)
        self.critic = ConvolutionalCritic(space, classes, config.channels, config)
        self.contest = Contest(config, self.critic, batch_size=config.batch_size)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Shifts as often as ADA asks for where data are few; a stronger penalty for larger images."""
        assert isinstance(space, Images)
        few = num_examples < 5000
        penalty = max(0.2, space.height * space.width / 1024)
        config = Config(penalty=penalty, learning_rate=5e-4)
        return replace(config, shift=0.125, adaptive=0.6) if few else config

    @classmethod
    def toy(cls) -> DCGAN:
        config = Config(latent=4, channels=8, batch_size=16, spectral=True, shift=0.2, adaptive=0.6)
        return cls(Images(1, 5, 4, levels=4), config)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        weight = self.generator.start.weight
        noise = row_noise(num_samples, generator, weight.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        z = noise.normal(self.config.latent).to(weight.dtype)
        training = self.generator.training
        self.generator.eval()
        x = self.generator(self._beside(z, self._classes(condition, num_samples)))
        self.generator.train(training)
        return levels_of(x, self.space)

    def _classes(self, condition: Tensor | None, rows: int) -> Tensor | None:
        classes = one_hot_labels(condition, self.condition_space, rows)
        return None if classes is None else as_device(classes, self)

    @staticmethod
    def _beside(z: Tensor, classes: Tensor | None) -> Tensor:
        return z if classes is None else torch.cat([z, classes.to(z)], dim=1)

    def _sides(self, batch: Batch, noise: Noise, *, makes: bool = True) -> Sides:
        """Data, and as many made ones of the same classes (or themselves)."""
        classes, real = (
            self._classes(batch.condition, len(batch)),
            centred(batch.x, self.space.levels),
        )
        if not makes:
            return Sides(real, real, classes)
        z = self._beside(noise.normal(self.config.latent), classes)
        return Sides(real, self.generator(z), classes)

    def critic_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The critic's loss on data and on what it is not to be deceived by."""
        with torch.no_grad():
            sides = self._sides(batch, noise)
        told = self.contest.critic_loss(self.critic, sides, noise, clock.progress)
        return Loss(told.value, told.numbers)

    def gradient_penalty(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The regulariser, for all the rounds that it was left out."""
        with torch.no_grad():
            sides = self._sides(batch, noise, makes=self.contest.penalises_made)
        told = self.contest.gradient_penalty(self.critic, sides, noise, clock.progress)
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
        data = ADAPT_EVERY * self.config.batch_size
        return self.contest.augmentation.adapt(float(sure), data)

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser("adam", config.learning_rate, betas=(0.5, 0.99), schedule="constant")
        generator = Player("generator", list(self.generator.parameters()), optimiser)
        faster = replace(optimiser, learning_rate=config.critic_rate * config.learning_rate)
        critic = Player("critic", list(self.critic.parameters()), faster)
        turns: list[Turn] = [Descent((critic,), self.critic_loss)] * config.critic_steps
        if self.contest.lazy:
            every = config.penalty_every
            turns.append(Descent((critic,), self.gradient_penalty, batches=0, every=every))
        if config.spectral:
            turns.append(Rewrite("follow norms", self.follow_norms, batches=0))
        if self.contest.adapts:
            turns.append(Rewrite("adapt", self.adapt, batches=0, every=ADAPT_EVERY))
        turns.append(Descent((generator,), self.generator_loss, batches=0))
        return Game(
            [Stage(turns)], config.batch_size, average=config.average, bf16=True, keep="last"
        )
