"""Progressive GAN: a generator and a critic that grow, from small images to large ones.

Both are first taught images of about four pixels a side, then of twice that, and so on: a stage of the
game for each size, the last one half of the budget. In the first half of a stage the new layers are faded
in, alpha from nought to one by the clock:

    image = (1 - alpha) double(image of the layers before) + alpha (image of the new ones),

the critic takes in images in the same way (their fig. 2), and data are as sharp as what is made. Weights
have equalised learning rates (their sec. 4.1), the generator's features lie on a sphere at each pixel
(sec. 4.2), and the critic sees how much a few images deviate (sec. 3).

Paper: Karras, Aila, Laine & Lehtinen 2018. Changed: the family's loss with a lazy R1 and ADA's shifts
where data are few (``loss="wasserstein", regulariser="wgan-gp", penalty=10, penalty_every=1`` is the
paper's); what comes of z is normalised over all pixels at first; classes enter beside z, and the critic
by projection. With a blur between sizes, as StyleGAN2 has it, flowers come out as swirls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Sampler
from simulacra.families.adversarial import AdversarialModel
from simulacra.games import Batch, Clock, Rewrite, Stage, Turn
from simulacra.layers.adversarial_rules import Minibatch, Rules
from simulacra.layers.contest import Contest, Sides
from simulacra.layers.critic_head import CriticHead, Opinion
from simulacra.layers.equalised import (
    EqualisedConv2d,
    EqualisedLinear,
    for_equalised,
    leaky,
    pixel_norm,
    require_no_norm,
    with_deviation,
)
from simulacra.layers.front_door import centred, drawn_labels, levels_of
from simulacra.layers.pyramid import sides
from simulacra.layers.resampling import Resampling
from simulacra.probability.noise import Noise, row_noise
from simulacra.spaces import Images, Labels, Space

WHOLE = 1000
"""A step from one size to the next is counted in so many parts."""

FADE = 0.5
"""The share of a stage in which its layers are faded in."""


@dataclass(frozen=True)
class Config(Rules):
    """``channels`` are those at full size, doubled at each halving, up to ``widest``; ``blur``: whether
    sizes double and halve with one, which is not the paper's, not recommended, and what runs from before
    there was a choice have. All else are the rules' options."""

    latent: int = 64
    channels: int = 32
    widest: int = 128
    blur: bool = True
    batch_size: int = 64
    learning_rate: float = 5e-3
    penalty_every: int = 16
    minibatch: Minibatch = "deviation"


class Sizes:
    """Sizes (height, width) from the smallest to the image's, and the channels at each."""

    def __init__(self, space: Images, config: Config) -> None:
        self.all, self.blur = sides(space)[::-1], config.blur
        last = len(self.all) - 1
        self.widths = [
            min(config.channels * 2 ** (last - at), config.widest) for at in range(last + 1)
        ]

    def __len__(self) -> int:
        return len(self.all)

    def doubling(self) -> nn.ModuleList:
        """From each size to the next."""
        return nn.ModuleList(
            Resampling(self.all[at], self.all[at + 1], blur=self.blur)
            for at in range(len(self) - 1)
        )

    def halving(self) -> nn.ModuleList:
        """To each size from the next."""
        return nn.ModuleList(
            Resampling(self.all[at + 1], self.all[at], blur=self.blur)
            for at in range(len(self) - 1)
        )


@dataclass(frozen=True)
class Height:
    """How far both have grown: ``level`` is the size's number, of which ``alpha`` is faded in."""

    level: int
    alpha: float

    @classmethod
    def of(cls, grown: Tensor) -> Height:
        level = math.ceil(int(grown) / WHOLE)
        return cls(level, int(grown) / WHOLE - level + 1)

    @property
    def fades(self) -> bool:
        """Whether the size below has a say."""
        return self.level > 0 and self.alpha < 1

    def faded(self, below: Tensor, new: Tensor) -> Tensor:
        """(1 - alpha) below + alpha new."""
        return (1 - self.alpha) * below + self.alpha * new


class Generator(nn.Module):
    """Codes (n, inputs) to images about [-1, 1], of the size of a height."""

    def __init__(self, space: Images, inputs: int, sizes: Sizes) -> None:
        super().__init__()
        widths, (height, width) = sizes.widths, sizes.all[0]
        self.start = EqualisedLinear(inputs, widths[0] * height * width)
        self.first = (widths[0], height, width)
        self.grow = sizes.doubling()
        self.layers = nn.ModuleList([EqualisedConv2d(widths[0], widths[0])])
        for at in range(1, len(sizes)):
            self.layers.append(EqualisedConv2d(widths[at - 1], widths[at]))
            self.layers.append(EqualisedConv2d(widths[at], widths[at]))
        self.pictures = nn.ModuleList(EqualisedConv2d(one, space.channels, 1) for one in widths)

    def forward(self, z: Tensor, height: Height) -> Tensor:
        # Over all of the smallest image at once; each pixel by itself from the next layer on.
        x = pixel_norm(leaky(self.start(z))).reshape(len(z), *self.first)
        x = self._through(0, x.contiguous(memory_format=torch.channels_last))
        before = x
        for level in range(1, height.level + 1):
            before = x
            x = self._through(2 * level, self._through(2 * level - 1, self.grow[level - 1](x)))
        image: Tensor = self.pictures[height.level](x)
        if not height.fades:
            return image
        below = self.grow[height.level - 1](self.pictures[height.level - 1](before))
        return height.faded(below, image)

    def _through(self, place: int, x: Tensor) -> Tensor:
        return pixel_norm(leaky(self.layers[place](x)))


class Critic(CriticHead):
    """Images of the size that both have grown to, and classes, to an opinion.

    ``grown``, in thousandths of a level, is what both know of their height.
    """

    grown: Tensor

    def __init__(self, space: Images, config: Config, classes: int, sizes: Sizes) -> None:
        super().__init__()
        self.register_buffer("grown", torch.zeros((), dtype=torch.int64))
        widths = sizes.widths
        self.concatenates = classes > 0 and config.conditioning == "concatenation"
        enters = (space.channels + classes * self.concatenates) * config.pack
        self.enter = nn.ModuleList(EqualisedConv2d(enters, one, 1) for one in widths)
        self.shrink = sizes.halving()
        self.see = nn.ModuleList(EqualisedConv2d(one, one) for one in widths[1:])
        self.grasp = nn.ModuleList(
            EqualisedConv2d(widths[at + 1], widths[at]) for at in range(len(sizes) - 1)
        )
        self.compares = config.minibatch == "deviation"
        height, width = sizes.all[0]
        self.last = EqualisedConv2d(widths[0] + self.compares, widths[0])
        self.read = EqualisedLinear(widths[0] * height * width, widths[0])
        rules = replace(config, minibatch="none") if self.compares else config
        self.add_head(widths[0], classes, rules, EqualisedLinear)

    def forward(self, x: Tensor, classes: Tensor | None) -> Opinion:
        height = Height.of(self.grown)
        if self.concatenates and classes is not None:
            x = torch.cat([x, classes[:, :, None, None].expand(-1, -1, *x.shape[2:]).to(x)], dim=1)
        image = x.contiguous(memory_format=torch.channels_last)
        x = leaky(self.enter[height.level](image))
        for level in range(height.level - 1, -1, -1):
            x = leaky(self.grasp[level](self.shrink[level](leaky(self.see[level](x)))))
            if height.fades and level == height.level - 1:
                x = height.faded(leaky(self.enter[level](self.shrink[level](image))), x)
        x = leaky(self.last(with_deviation(x) if self.compares else x))
        return self.opinion(leaky(self.read(x.flatten(1))), classes)


class ProgressiveGAN(AdversarialModel, Sampler):
    """A generator that has grown with the critic that taught it."""

    config: Config
    generator: Generator
    critic: Critic
    betas: ClassVar = (0.0, 0.99)
    spaces: ClassVar = (Images,)
    conditions: ClassVar = (Labels,)

    def __init__(
        self, space: Images, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        require_no_norm(config)
        classes = condition.count if condition else 0
        self.sizes = Sizes(space, config)
        self.generator = Generator(space, config.latent + classes, self.sizes)
        self.critic = Critic(space, config, classes, self.sizes)
        self.contest = Contest(config, self.critic, batch_size=config.batch_size)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Fewer channels for large images; ADA's shifts where data are few."""
        assert isinstance(space, Images)
        pixels = space.height * space.width
        config = Config(channels=32 if pixels <= 256 else 16, blur=False)
        return replace(config, **for_equalised(space, num_examples))

    @classmethod
    def toy(cls) -> ProgressiveGAN:
        config = Config(
            latent=4,
            channels=4,
            blur=False,
            batch_size=16,
            penalty_every=4,
            shift=0.2,
            adaptive=0.6,
        )
        return cls(Images(1, 8, 8, levels=4), config)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.critic.grown.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        x = self._made(noise, self._classes(condition, num_samples))
        for grow in self.generator.grow[self.height.level :]:
            x = grow(x)
        return levels_of(x, self.space)

    @property
    def height(self) -> Height:
        """How far it has grown."""
        return Height.of(self.critic.grown)

    def _made(self, noise: Noise, classes: Tensor | None) -> Tensor:
        z = pixel_norm(noise.normal(self.config.latent).to(self.generator.start.weight))
        if classes is not None:
            z = torch.cat([z, classes.to(z) * math.sqrt(classes.shape[1])], dim=1)
        made: Tensor = self.generator(z, self.height)
        return made

    def _seen(self, x: Tensor) -> Tensor:
        """Data (n, C, H, W) at the present size, as sharp as it is faded in."""
        height, shrink = self.height, self.critic.shrink
        for halve in reversed(shrink[height.level :]):
            x = halve(x)
        if not height.fades:
            return x
        below = self.generator.grow[height.level - 1](shrink[height.level - 1](x))
        return height.faded(below, x)

    def _sides(self, batch: Batch, noise: Noise, *, makes: bool = True) -> Sides:
        """Data, and as many made ones of the same classes (or themselves)."""
        classes = self._classes(batch.condition, len(batch))
        # Data stay as fine as they are, and gradients are taken at them.
        with torch.autocast(batch.x.device.type, enabled=False):
            real = self._seen(centred(batch.x, self.space.levels))
        return Sides(real, self._made(noise, classes) if makes else real, classes)

    def _contest(self, turns: Sequence[Turn]) -> Sequence[Stage]:
        """A stage a size: each has twice the share of the one before, the last about half of all."""
        turns = [Rewrite("grow", self.grow, batches=0), *turns]
        return [Stage(turns, share=2.0**level) for level in range(len(self.sizes))]

    def _penalty_weight(self, clock: Clock) -> float:
        """Squared slopes count as at full size, where a pixel of a smaller image is a mean of many; what
        is left of the penalty goes by all stages' progress."""
        (height, width), (high, wide) = self.sizes.all[self.height.level], self.sizes.all[-1]
        counts = self.config.regulariser != "wgan-gp"
        share = height * width / (high * wide) if counts else 1.0
        done = 2**clock.stage * (1 + clock.progress) - 1
        whole = replace(clock, progress=done / (2 ** len(self.sizes) - 1))
        return share * super()._penalty_weight(whole)

    def grow(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The height that the clock asks for; a budget that grows makes nobody smaller."""
        part = min(1.0, clock.progress / FADE)
        height = max(0, clock.stage * WHOLE - round((1 - part) * WHOLE))
        self.critic.grown.clamp_(min=height)
        return {"size": float(self.sizes.all[self.height.level][0])}
