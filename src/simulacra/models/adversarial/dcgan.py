"""Deep convolutional GAN: a generator learns to deceive a critic that learns to see through it.

min_G max_D E log D(x) + E log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1), the generator with the
non-saturating loss -E log D(G(z)) (their sec. 3). The generator is transposed convolutions with batch
normalisation and ReLU, the critic strided convolutions with leaky ReLU (Radford et al. 2016). There is no
likelihood: the class line names no ``Density``, and nothing pretends that it has one.

Papers: Goodfellow et al. 2014; Radford, Metz & Chintala 2016. Changed, for training that does not
collapse: no batch normalisation in the critic, but the gradient penalty R1 (Mescheder et al. 2018,
eq. 9), lazily (Karras et al. 2020); averaged weights for sampling; what the critic sees is shifted at
random when data are few (Zhao et al. 2020). Classes enter beside z, and the critic by projection
(Miyato & Koyama 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Sampler
from simulacra.games import Batch, Clock, Descent, Game, Loss, Player, Stage
from simulacra.layers.augmentation import translated
from simulacra.layers.front_door import as_device, centred, drawn_labels, levels_of, one_hot_labels
from simulacra.layers.layout import channels_last
from simulacra.layers.normalisation import BatchNorm
from simulacra.layers.pyramid import sides
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise, row_noise
from simulacra.spaces import Images, Labels, Space


@dataclass(frozen=True)
class Config:
    """``channels`` are those at full size, doubled at each halving. ``penalty`` is R1's gamma, taken
    every ``penalty_every`` rounds; ``shift`` moves what the critic sees by that share of the sides."""

    latent: int = 64
    channels: int = 32
    penalty: float = 1.0
    penalty_every: int = 4
    critic_steps: int = 1
    shift: float = 0.0
    batch_size: int = 64
    learning_rate: float = 2e-4


class Generator(nn.Module):
    """z and classes, (n, latent + classes), to images in [-1, 1]."""

    def __init__(self, space: Images, inputs: int, channels: int) -> None:
        super().__init__()
        self.sizes = sides(space)[::-1]
        widths = [channels * 2**level for level in range(len(self.sizes))][::-1]
        self.first = widths[0]
        self.start = nn.Linear(inputs, widths[0] * self.sizes[0][0] * self.sizes[0][1], bias=False)
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1, bias=False)
            for width in widths[:-1]
        )
        self.out = nn.Conv2d(widths[-1], space.channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z).reshape(len(z), self.first, *self.sizes[0])
        x = functional.relu(self.norms[0](x.contiguous(memory_format=torch.channels_last)))
        for index, grow in enumerate(self.grow):
            height, width = self.sizes[index + 1]
            x = grow(x)[:, :, :height, :width]
            x = functional.relu(self.norms[index + 1](x))
        return torch.tanh(self.out(x))


class Critic(nn.Module):
    """Images in [-1, 1] and classes to a logit, (n,): positive for what looks real."""

    def __init__(self, space: Images, classes: int, channels: int) -> None:
        super().__init__()
        sizes = sides(space)
        widths = [channels * 2**level for level in range(len(sizes))]
        parts: list[nn.Module] = [nn.Conv2d(space.channels, channels, 3, padding=1)]
        for width in widths[:-1]:
            parts += [nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)]
        self.body = nn.Sequential(*parts, nn.LeakyReLU(0.2))
        self.read = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten()
        )
        features = widths[-1] * sizes[-1][0] * sizes[-1][1]
        self.out = nn.Linear(features, 1)
        self.project = nn.Linear(classes, features, bias=False) if classes else None

    def forward(self, x: Tensor, classes: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for part in self.body:
            if isinstance(part, nn.Conv2d) and part.stride == (2, 2):
                # A stride of two loses the last row of an odd side, which is padded to keep it.
                x = functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
            x = part(x)
        features = self.read(x)
        logit: Tensor = self.out(features).squeeze(1)
        if self.project is not None and classes is not None:
            logit = logit + (self.project(classes) * features).sum(1) / features.shape[1] ** 0.5
        return logit


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
        self.generator = Generator(space, config.latent + classes, config.channels)
        self.critic = Critic(space, classes, config.channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                channels_last(module)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Shifts for few data; a stronger penalty for larger images."""
        assert isinstance(space, Images)
        few = num_examples < 5000
        penalty = max(0.2, space.height * space.width / 1024)
        return Config(penalty=penalty, shift=0.125 if few else 0.0, learning_rate=5e-4)

    @classmethod
    def toy(cls) -> DCGAN:
        return cls(Images(1, 5, 4, levels=4), Config(latent=4, channels=8, batch_size=16))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        weight = self.critic.out.weight
        noise = row_noise(num_samples, generator, weight.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        z = noise.normal(self.config.latent).to(weight.dtype)
        training = self.generator.training
        self.generator.eval()
        x = self.generator(self._with_classes(z, condition))
        self.generator.train(training)
        return levels_of(x, self.space)

    def _classes(self, condition: Tensor | None, rows: int) -> Tensor | None:
        classes = one_hot_labels(condition, self.condition_space, rows)
        return None if classes is None else as_device(classes, self)

    def _with_classes(self, z: Tensor, condition: Tensor | None) -> Tensor:
        classes = self._classes(condition, len(z))
        return z if classes is None else torch.cat([z, classes.to(z.dtype)], dim=1)

    def _made(self, batch: Batch, noise: Noise) -> Tensor:
        z = noise.normal(self.config.latent)
        made: Tensor = self.generator(self._with_classes(z, batch.condition))
        return made

    def _seen(self, x: Tensor, noise: Noise) -> Tensor:
        """What the critic is shown of x."""
        return translated(x, noise.uniform(2), self.config.shift) if self.config.shift else x

    def critic_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-E log D(x) - E log(1 - D(G(z))), in nats."""
        classes = self._classes(batch.condition, len(batch))
        with torch.no_grad():
            made = self._made(batch, noise)
        real = self.critic(self._seen(centred(batch.x, self.space.levels), noise), classes).float()
        fake = self.critic(self._seen(made, noise), classes).float()
        value = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return Loss(value, {"accuracy": right})

    def gradient_penalty(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """R1 = gamma / 2 E |grad D(x)|^2 on real data, for all the rounds that it was left out."""
        x = centred(batch.x, self.space.levels).requires_grad_()
        with torch.autocast(x.device.type, enabled=False):
            logit = self.critic(self._seen(x, noise), self._classes(batch.condition, len(batch)))
            (slope,) = torch.autograd.grad(logit.sum(), x, create_graph=True)
        square = slope.square().flatten(1).sum(1).mean()
        weight = 0.5 * self.config.penalty * self.config.penalty_every
        return Loss(weight * square, {"squared slope": square})

    def generator_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """-E log D(G(z)), in nats."""
        classes = self._classes(batch.condition, len(batch))
        logit = self.critic(self._seen(self._made(batch, noise), noise), classes).float()
        return Loss(functional.softplus(-logit).mean())

    def game(self) -> Game:
        config = self.config
        optimiser = Optimiser("adam", config.learning_rate, betas=(0.5, 0.99), schedule="constant")
        generator = Player("generator", list(self.generator.parameters()), optimiser)
        critic = Player("critic", list(self.critic.parameters()), optimiser)
        look = Descent((critic,), self.critic_loss)
        smooth = Descent((critic,), self.gradient_penalty, batches=0, every=config.penalty_every)
        move = Descent((generator,), self.generator_loss, batches=0)
        turns = [look] * config.critic_steps + [smooth, move]
        return Game([Stage(turns)], config.batch_size, average=0.05, bf16=True, keep="last")
