"""InfoGAN: a GAN whose codes mean something, found without labels.

The generator is given a code c beside the noise z, a class and some numbers in [-1, 1], and has to make
data that tell the code: it raises a lower bound of their mutual information,

    I(c; G(z, c)) >= E log q(c | G(z, c)) + H(c)                              (Chen et al. 2016, eq. 4)
    min_{G, q} max_D  V(D, G) - lambda E log q(c | G(z, c))                   (their eq. 6)

whose q is a network on the critic's features that is taught beside the generator: the bound's gradient
reaches the generator through both. What tells real data from made ones is not to be had by marks that no
datum bears, so codes come to stand for what data differ in. A Gaussian of deviation one stands for each
number: its -log q is half the squared error. q reads codes off real data too, so codes encode, and decode
with noise z = 0.

What tells classes apart may still not be what a user would call one: left alone, 1s of two slants take
two classes, and digits that are alike share one. A datum that is turned or slanted a little is of the
same class. So classes are read off views v of what is made, and the class of one view of a datum off
another, by the same bound with data and q in the generator's place,

    B = E log q(c | v'(x)) + H(E q(c | v(x))) <= I(c; v'(x)),     c ~ q(c | v(x)),

over data x and views v, v' (means are those of a batch), and the generator and q lower

    V(D, G) - lambda (E log q(c | v(G(z, c))) + B),

of which B moves q alone. What views change is left to the numbers, which are read off what is made as the
critic sees it.

A q that has begun badly keeps a class in two codes, and two classes in one: nothing leads from there to
where B is greater. So ``readers`` of classes begin side by side, and learn B of data alone while the
generator and the critic learn without codes; the one that has come to the greatest B is q from then on.

Paper: Chen, Duan, Houthooft, Schulman, Sutskever & Abbeel 2016. Changed: views, as in Ojha, Singh, Hsieh
& Lee 2020, who draw the codes of two views together by contrasts, and Ji, Henriques & Vedaldi 2019, who
raise their information; ``views`` 0 goes without. q reads the critic's features without moving them, so
that nobody moves the critic but itself; the critic as in DCGAN, with the options of
``layers/adversarial_rules.py``; weight averages for sampling. Of several readers the best by what they
lower is kept, as Ji et al. do with their heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Decoder, Encoder, Sampler
from simulacra.families.adversarial import AdversarialModel
from simulacra.games import (
    Batch,
    Clock,
    Descent,
    Loss,
    Player,
    Rewrite,
    Stage,
    Turn,
    mean_over_processes,
)
from simulacra.layers.adversarial_rules import Rules, for_images
from simulacra.layers.augmentation import distorted
from simulacra.layers.contest import Contest, Sides
from simulacra.layers.convolutional_pair import ConvolutionalCritic, ConvolutionalGenerator
from simulacra.layers.critic_head import Opinion
from simulacra.layers.front_door import as_device, centred, levels_of
from simulacra.layers.mlp import multilayer_perceptron
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise, row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Vectors

READ = 128
"""Units between the critic's features and the code."""

MOST_VIEWS = 2
"""Twice as far as is recommended; beyond, few things are still what they were."""

LOOKING = 0.3
"""The share of a budget in which readers look at data before one is chosen."""

CHOSEN_ON = 32
"""So many batches tell which reader has come furthest."""


@dataclass(frozen=True)
class Config(Rules):
    """The code is one of ``classes`` and ``numbers`` in [-1, 1]; ``information`` is lambda of the class
    and of B, a tenth of it that of each number. ``views``: how far data are turned, slanted, stretched
    and shifted before their class is read (``distorted``), 0 for not at all; ``readers``: how many begin,
    1 for no choice. All else is as in DCGAN."""

    classes: int = 10
    numbers: int = 2
    information: float = 1.0
    views: float = 1.0
    readers: int = 8
    latent: int = 62
    channels: int = 32
    batch_size: int = 64
    learning_rate: float = 2e-4


@dataclass(frozen=True)
class Made:
    """What was made, (n, C, H, W), of which classes (n,) and numbers (n, ``numbers``)."""

    x: Tensor
    classes: Tensor
    numbers: Tensor


class Candidates(nn.Module):
    """Readers of classes side by side: features (n, F) to logits (count, n, K)."""

    def __init__(self, features: int, classes: int, count: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, count * READ)
        self.last = nn.ModuleList(nn.Linear(READ, classes) for _ in range(count))

    def forward(self, features: Tensor) -> Tensor:
        hidden = functional.silu(self.first(features)).chunk(len(self.last), dim=1)
        return torch.stack([last(one) for last, one in zip(self.last, hidden, strict=True)])

    def hand_over(self, which: int, reader: nn.Sequential) -> None:
        """Make ``reader`` the one that stands at ``which``."""
        rows = slice(which * READ, (which + 1) * READ)
        first, last, chosen = reader[0], reader[-1], self.last[which]
        for name in ("weight", "bias"):
            getattr(first, name).data.copy_(getattr(self.first, name)[rows])
            own = getattr(chosen, name)
            getattr(last, name).data[: len(own)].copy_(own)


def information_of_views(chances: Tensor) -> Tensor:
    """B, nats, of logs of chances (…, 2 n, K), n data in one view and then in another: the mean of both
    ways, shape (…)."""
    one, other = chances.chunk(2, dim=-2)
    told = 0.5 * (one.exp() * other + other.exp() * one).sum(-1).mean(-1)
    # In logarithms, since the slope of p log p is infinite where p is nought.
    used = chances.logsumexp(-2) - math.log(chances.shape[-2])
    bound: Tensor = told - (used.exp() * used).sum(-1)
    return bound


class InfoGAN(AdversarialModel, Sampler, Encoder, Decoder):
    """A generator of codes, the critic that taught it, and the network that reads codes off data."""

    config: Config
    generator: ConvolutionalGenerator
    spaces: ClassVar = (Images,)
    conditions: ClassVar = ()
    replays: ClassVar = True

    def __init__(
        self, space: Images, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        _require_codes(config)
        code = config.classes + config.numbers
        self.generator = ConvolutionalGenerator(space, config.latent + code, config.channels)
        self.critic = ConvolutionalCritic(space, 0, config.channels, config)
        self.reader = multilayer_perceptron([self.critic.feature_size, READ, code])
        self.candidates: Candidates | None = None
        if config.views and config.readers > 1:
            self.candidates = Candidates(self.critic.feature_size, config.classes, config.readers)
        self.contest = Contest(config, self.critic, batch_size=config.batch_size)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """As DCGAN's."""
        assert isinstance(space, Images)
        return replace(Config(learning_rate=5e-4), **for_images(space, num_examples))

    @classmethod
    def toy(cls) -> InfoGAN:
        config = Config(classes=3, numbers=1, latent=4, channels=8, batch_size=16)
        return cls(Images(1, 5, 4, levels=4), config)

    @property
    def code_space(self) -> Vectors:
        """Chances of the classes, and the numbers."""
        return Vectors(self.config.classes + self.config.numbers)

    @property
    def code_classes(self) -> int:
        """So many chances of classes stand first in a code; its numbers follow."""
        return self.config.classes

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self._weight.device)
        training = self.generator.training
        self.generator.eval()
        x = self._made(noise).x
        self.generator.train(training)
        return levels_of(x, self.space)

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        x = centred(as_device(x, self), self.space.levels).to(self._weight)
        logits, numbers = self._read(self._features(x))
        return torch.cat([logits.softmax(1), numbers], dim=1).float()

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        code = as_device(code, self).to(self._weight)
        z = code.new_zeros(len(code), self.config.latent)
        training = self.generator.training
        self.generator.eval()
        x = self.generator(self._beside(z, code))
        self.generator.train(training)
        return levels_of(x, self.space)

    @property
    def _weight(self) -> Tensor:
        return self.generator.start.weight

    def _features(self, x: Tensor) -> Tensor:
        told: Opinion = self.critic(x, None)
        return told.features

    def _read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes, and the means of the numbers, of the critic's features."""
        told = self.reader(features)
        return told[:, : self.config.classes], told[:, self.config.classes :]

    def _made(self, noise: Noise) -> Made:
        """Data of random codes."""
        config = self.config
        classes = (noise.uniform() * config.classes).long().clamp(max=config.classes - 1)
        numbers = 2 * noise.uniform(config.numbers) - 1
        shown = functional.one_hot(classes, config.classes).to(numbers)
        z = self._beside(noise.normal(config.latent), torch.cat([shown, numbers], dim=1))
        return Made(self.generator(z), classes, numbers)

    def _beside(self, z: Tensor, code: Tensor) -> Tensor:
        """Noise and a code, of which the class weighs as much as all of the noise: what tells most of a
        datum is left to the noise else. Heavier numbers take part in telling classes (measured)."""
        weight = max(self.config.latent, 1) ** 0.5
        classes, numbers = code[:, : self.config.classes], code[:, self.config.classes :]
        return torch.cat([z, weight * classes, numbers], dim=1).to(self._weight)

    def _sides(self, batch: Batch, noise: Noise, *, makes: bool = True) -> Sides:
        """Data, and as many made ones (or themselves)."""
        real = centred(batch.x, self.space.levels)
        return Sides(real, self._made(noise).x if makes else real)

    def _makers(self, optimiser: Optimiser) -> tuple[Player, ...]:
        reader = Player("reader", list(self.reader.parameters()), optimiser)
        return (*super()._makers(optimiser), reader)

    def _contest(self, turns: Sequence[Turn]) -> Sequence[Stage]:
        """Where readers look first: that, the choice, and the contest with codes."""
        *before, last = turns
        if self.candidates is None or not isinstance(last, Descent):
            return super()._contest(turns)
        generator, reader = last.players
        looking = Player("candidates", list(self.candidates.parameters()), reader.optimiser)
        without_codes = Descent((generator,), super().generator_loss, batches=0, replays=True)
        look = Descent((looking,), self.looking_loss, batches=0, replays=True)
        return [
            Stage([*before, without_codes, look], share=LOOKING),
            Stage([Rewrite("choose", self.choose, batches=CHOSEN_ON)], rounds=1),
            Stage(turns, share=1 - LOOKING),
        ]

    def _penalty_weight(self, clock: Clock) -> float:
        """By the progress of all stages."""
        if self.candidates is not None:
            ends = (0.0, LOOKING) if clock.stage == 0 else (LOOKING, 1.0)
            done = ends[0] + (ends[1] - ends[0]) * clock.progress
            clock = replace(clock, progress=done)
        return super()._penalty_weight(clock)

    def looking_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """What all candidates leave out of log K, nats."""
        told = information_of_views(self._looked_at(batch, noise))
        return Loss(-told.sum(), {"information of views": told.mean(), "at best": told.max()})

    @torch.no_grad()
    def choose(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The reader is the candidate that is told most by views of data."""
        assert self.candidates is not None
        seen = [self._looked_at(batch, noise).unflatten(1, (2, -1)) for batch in batches]
        told = information_of_views(torch.cat(seen, dim=2).flatten(1, 2))
        mean_over_processes([told])
        self.candidates.hand_over(int(told.argmax()), self.reader)
        return {"information of views at best": float(told.max()), "at worst": float(told.min())}

    def _looked_at(self, batch: Batch, noise: Noise) -> Tensor:
        """Logs of chances that candidates read off two views of data, (count, 2 n, K)."""
        assert self.candidates is not None
        features = self._features_of_views(centred(batch.x, self.space.levels), noise)
        logits: Tensor = self.candidates(features)
        return logits.float().log_softmax(-1)

    def generator_loss(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """The generator's loss, and lambda times what codes are not told by, nats."""
        made = self._made(noise)
        sides = Sides(centred(batch.x, self.space.levels), made.x)
        told = self.contest.generator_loss(self.critic, sides, noise)
        assert told.made is not None
        logits, numbers = self._read(told.made.features)
        gained, seen = logits.new_zeros(()), dict[str, Tensor]()
        if self.config.views:
            logits, _ = self._read(self._features(self._view(made.x, noise)))
            gained = seen["information of views"] = self._kept_by_views(sides.real, noise)
        surprise = functional.cross_entropy(logits.float(), made.classes)
        apart = 0.5 * (numbers.float() - made.numbers).square().sum(1).mean()
        value = told.value + self.config.information * (surprise - gained + 0.1 * apart)
        read = (logits.argmax(1) == made.classes).float().mean()
        seen |= {"classes read": read, "surprise of classes": surprise}
        return Loss(value, {**told.numbers, **seen})

    def _view(self, x: Tensor, noise: Noise) -> Tensor:
        return distorted(x, noise.uniform(6), self.config.views)

    @torch.no_grad()
    def _features_of_views(self, x: Tensor, noise: Noise) -> Tensor:
        """The critic's features of one view of data and then of another, (2 n, F)."""
        views = torch.cat([self._view(x, noise), self._view(x, noise)])
        return self._features(views)

    def _kept_by_views(self, x: Tensor, noise: Noise) -> Tensor:
        """A lower bound of what the class read off one view of data tells of that off another, nats."""
        logits, _ = self._read(self._features_of_views(x, noise))
        return information_of_views(logits.float().log_softmax(1))


def _require_codes(config: Config) -> None:
    if config.pack > 1 or config.unrolled:
        reason = (
            f"codes are read off what the critic sees of one datum, and pack is {config.pack}, unrolled "
            f"{config.unrolled}"
        )
        raise Refusal("CFG-235", reason, way_out="set pack to 1 and unrolled to 0")
    if config.classes < 2 or config.numbers < 0:
        reason = f"a code of {config.classes} classes and {config.numbers} numbers tells nothing"
        raise Refusal("CFG-173", reason, way_out="set classes to 2 or more, numbers to 0 or more")
    if not 0 <= config.views <= MOST_VIEWS:
        reason = f"views {config.views} are none, or turn data by more than half a radian"
        raise Refusal("CFG-261", reason, way_out=f"set views from 0, for none, to {MOST_VIEWS}")
    if config.readers < 1:
        reason = f"of {config.readers} readers none can be chosen"
        raise Refusal("CFG-262", reason, way_out="set readers to 1 or more")
