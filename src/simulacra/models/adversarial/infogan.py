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

No slope leads from where one kind of data takes two classes, and two kinds share one, to where B is
greater. So each class is also read as two halves that have most to tell of each other (they move nobody
else), and now and then the class whose halves would add most to B becomes two, if more than is lost where
the two nearest classes become one (``probability/view_information.py``). A new class begins as the
generator made the one that it is a half of.

Paper: Chen, Duan, Houthooft, Schulman, Sutskever & Abbeel 2016. Changed: views, as in Ojha, Singh, Hsieh
& Lee 2020, who draw the codes of two views together by contrasts, and Ji, Henriques & Vedaldi 2019, who
raise their information; classes that move, as mixtures' components in Ueda et al. 2000; ``views`` 0 goes
without both. q reads the critic's features without moving them, so that nobody moves the critic but
itself; the critic as in DCGAN, with the options of ``layers/adversarial_rules.py``; weight averages for
sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Decoder, Encoder, Sampler
from simulacra.families.adversarial import AdversarialModel
from simulacra.games import Batch, Clock, Loss, Player, Rewrite, Turn
from simulacra.layers.adversarial_rules import Rules, for_images
from simulacra.layers.augmentation import distorted, thickened
from simulacra.layers.contest import Contest, Sides
from simulacra.layers.convolutional_pair import ConvolutionalCritic, ConvolutionalGenerator
from simulacra.layers.critic_head import Opinion
from simulacra.layers.front_door import as_device, centred, levels_of
from simulacra.layers.mlp import multilayer_perceptron
from simulacra.optimisation import Optimiser
from simulacra.probability.noise import Noise, row_noise
from simulacra.probability.view_information import (
    Move,
    best_move,
    gains_of_merges,
    gains_of_splits,
    information_of_views,
)
from simulacra.processes import of_all_processes
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Vectors

READ = 128
"""Units between the critic's features and the code."""

MOST_VIEWS = 2
"""Twice as far as is recommended; beyond, few things are still what they were."""

MOVE_EVERY, JUDGED = 200, 16
"""Rounds between two looks for a better place for a class, and batches of data that are looked at."""

MOVING = (0.15, 0.8)
"""The part of a training in which classes move: they are nothing yet before, and a class has to be learnt
after."""

WORTH = 0.01
"""Nats that a move has to add to B."""

HASTE = 4.0
"""How much faster halves learn than all others, so that they have found their place between two looks."""

FORGOTTEN = 0.1
"""What is left of halves of classes that are no more what they were."""


@dataclass(frozen=True)
class Config(Rules):
    """The code is one of ``classes`` and ``numbers`` in [-1, 1]; ``information`` is lambda of the class
    and of B, a tenth of it that of each number. ``views``: how far data are turned, slanted, stretched
    and shifted, and their strokes thickened or thinned, before their class is read, 0 for not at all. All
    else is as in DCGAN."""

    classes: int = 10
    numbers: int = 2
    information: float = 1.0
    views: float = 1.0
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
        moves = config.views and config.information and config.classes > 2
        self.halves = nn.Linear(READ, 2 * config.classes) if moves else None
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
        makers = (
            *super()._makers(optimiser),
            Player("reader", list(self.reader.parameters()), optimiser),
        )
        if self.halves is None:
            return makers
        faster = replace(optimiser, learning_rate=HASTE * optimiser.learning_rate)
        return (*makers, Player("halves", list(self.halves.parameters()), faster))

    def _afterwards(self, makers: tuple[Player, ...]) -> Sequence[Turn]:
        if self.halves is None:
            return ()
        move = Rewrite(
            "move classes", self.move_classes, batches=JUDGED, every=MOVE_EVERY, renames=True
        )
        return (move,)

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
            hidden = self._seen_twice(sides.real, noise)
            chances = self._chances(hidden)
            gained = seen["information of views"] = information_of_views(chances)
            if self.halves is not None:
                halves = self._halves(hidden.detach())
                gained = gained + gains_of_splits(chances.detach(), halves).sum()
        surprise = functional.cross_entropy(logits.float(), made.classes)
        apart = 0.5 * (numbers.float() - made.numbers).square().sum(1).mean()
        value = told.value + self.config.information * (surprise - gained + 0.1 * apart)
        read = (logits.argmax(1) == made.classes).float().mean()
        seen |= {"classes read": read, "surprise of classes": surprise}
        return Loss(value, {**told.numbers, **seen})

    @torch.no_grad()
    def move_classes(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """Give a class another place, where B gains by it."""
        first, last = MOVING
        if not first <= clock.progress < last:
            return {}
        seen = [self._seen_twice(centred(one.x, self.space.levels), noise) for one in batches]
        # One view of all data, then the other.
        hidden = torch.cat([one.unflatten(0, (2, -1)) for one in seen], dim=1).flatten(0, 1)
        chances, halves = self._chances(hidden), self._halves(hidden)
        splits, merges = gains_of_splits(chances, halves), gains_of_merges(chances)
        before = information_of_views(chances)
        apart = halves[:, :, 0] - halves[:, :, 1]
        rise = chances.exp() * torch.logaddexp(0.5 * apart, -0.5 * apart)
        rise = rise.sum(0) / chances.exp().sum(0)
        move = best_move(splits, merges)
        gain = torch.full_like(before, move.gain)
        if move.gain > WORTH:
            # Halves are right where their class is; elsewhere they may take what is another's.
            moved = self._moved(move, rise[move.split])
            gain = information_of_views(self._chances(hidden, *moved)) - before
            if gain > WORTH:
                self._move(move, *moved)
        return {"a class moved": float(gain > WORTH), "gain of a move": float(gain)}

    def _moved(self, move: Move, rise: Tensor) -> tuple[Tensor, Tensor]:
        """The reader's last layer, with one class where either of two was and another told by the halves
        of a third, whose logits are ``rise`` too high where one of them is certain."""
        last, halves = self.reader[-1], self.halves
        assert isinstance(last, nn.Linear)
        assert halves is not None
        weight, bias = last.weight.clone(), last.bias.clone()
        for rows, half in ((weight, halves.weight), (bias, halves.bias)):
            rows[move.kept] = 0.5 * (rows[move.kept] + rows[move.freed])
            first, second = half.unflatten(0, (-1, 2))[move.split]
            whole, aside = rows[move.split].clone(), 0.5 * (first - second)
            rows[move.split], rows[move.freed] = whole + aside, whole - aside
        bias[[move.split, move.freed]] -= rise
        return weight, bias

    def _move(self, move: Move, weight: Tensor, bias: Tensor) -> None:
        """Read classes by this last layer, and begin a new one as the generator made the old."""
        last = self.reader[-1]
        assert isinstance(last, nn.Linear)
        assert self.halves is not None
        last.weight.copy_(weight)
        last.bias.copy_(bias)
        # What was a half of a class is none of what it is now.
        for one in (move.kept, move.freed, move.split):
            for half in (self.halves.weight, self.halves.bias):
                half[2 * one : 2 * one + 2] *= FORGOTTEN
        codes = self.generator.start.weight[:, self.config.latent :]
        codes[:, move.freed] = codes[:, move.split]

    def _view(self, x: Tensor, noise: Noise) -> Tensor:
        moved = distorted(x, noise.uniform(6), self.config.views)
        return thickened(moved, noise.uniform(), self.config.views)

    def _seen_twice(self, x: Tensor, noise: Noise) -> Tensor:
        """What the reader's last layer sees of one view of data and then of another, (2 n, READ), of all
        processes: B is of the whole batch."""
        with torch.no_grad():
            features = self._features(torch.cat([self._view(x, noise), self._view(x, noise)]))
        hidden: Tensor = self.reader[:-1](features).unflatten(0, (2, -1))
        return of_all_processes(hidden, dim=1).flatten(0, 1)

    def _chances(
        self, hidden: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Logs of chances of the classes, (n, K); by another last layer, where one is given."""
        told = (
            self.reader[-1](hidden) if weight is None else functional.linear(hidden, weight, bias)
        )
        logits: Tensor = told[:, : self.config.classes]
        return logits.float().log_softmax(1)

    def _halves(self, hidden: Tensor) -> Tensor:
        """Logs of chances of either half of each class, given the class, (n, K, 2)."""
        assert self.halves is not None
        logits: Tensor = self.halves(hidden).unflatten(1, (-1, 2))
        return logits.float().log_softmax(2)


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
