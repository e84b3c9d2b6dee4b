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

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.families.adversarial import AdversarialModel
from simulacra.games import Batch
from simulacra.layers.adversarial_rules import Rules, for_images
from simulacra.layers.contest import Contest, Sides
from simulacra.layers.convolutional_pair import ConvolutionalCritic, ConvolutionalGenerator
from simulacra.layers.front_door import centred, drawn_labels, levels_of
from simulacra.probability.noise import Noise, row_noise
from simulacra.spaces import Images, Labels, Space


@dataclass(frozen=True)
class Config(Rules):
    """``channels`` are those at full size, doubled at each halving; all else are the rules' options."""

    latent: int = 64
    channels: int = 32
    batch_size: int = 64
    learning_rate: float = 2e-4


class DCGAN(AdversarialModel, Sampler):
    """A generator, and the critic that taught it."""

    config: Config
    generator: ConvolutionalGenerator
    representative: ClassVar = True
    spaces: ClassVar = (Images,)
    conditions: ClassVar = (Labels,)
    replays: ClassVar = True

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
        return replace(Config(learning_rate=5e-4), **for_images(space, num_examples))

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
