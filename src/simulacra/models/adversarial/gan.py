"""GAN: noise becomes data, taught by a critic that tries to tell them from real ones.

    min_G max_D  E_data log D(x) + E_z log(1 - D(G(z)))                  (Goodfellow et al. 2014, eq. 1)

Against the best critic, D*(x) = p(x) / (p(x) + q(x)) (their proposition 1), this is 2 JS(p, q) - log 4,
least where q = p and D* = 1/2 everywhere. Both networks are fully connected, and work on real rows:
vectors and rows of a table, which enter as numbers of about unit variance, categories with noise
(``layers/row_door.py``), so that a critic cannot tell made data by their not being whole; and images,
whose pixels lie in [-1, 1], made by a tanh. The loss, its regulariser and all other remedies are options
(``layers/adversarial_rules.py``); what is recommended for rows is the relativistic loss with R1 and R2
(Huang et al. 2024). Beside normal numbers the noise has one of so many ``kinds``: what a continuous map
makes of normal numbers alone is of one piece, and clusters are not (Khayatkhoei et al. 2018, sec. 3). Of
few dimensions the critic reads waves, too: it takes two points within a cluster for the same otherwise,
and clusters come out narrower than they are.

``diagnose`` tells, and training on rows watches, how far D is from 1/2 and, of few dimensions, from
p / (p + q), which is estimated by the share of data among the nearest neighbours. No likelihood.

Papers: Goodfellow et al. 2014; Huang, Gokaslan, Kuleshov & Tompkin 2024; Heusel et al. 2017 (a critic
that learns faster). Changed: leaky ReLU, weight averages for sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from simulacra.contract import Diagnosable, Sampler
from simulacra.families.adversarial import AdversarialModel
from simulacra.games import Batch, Clock, Player, Rewrite, Stage, Turn
from simulacra.layers.adversarial_rules import Rules, for_images
from simulacra.layers.contest import Contest, Sides
from simulacra.layers.dense_critic import DenseCritic, dense
from simulacra.layers.front_door import as_device, drawn_labels
from simulacra.layers.row_door import PixelDoor, RowDoor
from simulacra.layers.table_reals import real_size
from simulacra.probability.adversarial import balance
from simulacra.probability.clustering import RandomSubset
from simulacra.probability.noise import Noise, row_noise, scoring_noise
from simulacra.processes import mean_over_processes
from simulacra.spaces import Images, Labels, Space, Table, Vectors

NEIGHBOURS, FEW = 50, 3
"""Data whose share tells p / (p + q), and dimensions in which they are near enough to."""

WATCHED, WATCH_EVERY = 8, 400
"""Batches that a look at the critic takes, and rounds between two: among the neighbours in a single batch
are data of other clusters, and p / (p + q) seems nearer to 1/2 than it is."""

OCTAVES = 5
"""Of waves, for few dimensions."""


@dataclass(frozen=True)
class Config(Rules):
    """``hidden`` units in each of ``layers`` of the generator, ``critic_hidden`` in each of
    ``critic_layers`` of the critic (0: as many), which reads rows as waves of so many ``octaves``, too;
    the generator's noise is ``latent`` normal numbers and, beside them, one of ``kinds``. All else are
    the rules' options."""

    latent: int = 64
    kinds: int = 0
    hidden: int = 256
    critic_hidden: int = 256
    octaves: int = 0
    layers: int = 3
    critic_layers: int = 0
    batch_size: int = 128
    learning_rate: float = 2e-4


def share_of_data(real: Tensor, made: Tensor) -> Tensor:
    """p / (p + q) at each of real and then made rows (n, d), as many of either: the share of real ones
    among its nearest neighbours, itself left out."""
    both = torch.cat([real, made]).flatten(1)
    apart = torch.cdist(both, both)
    near = apart.fill_diagonal_(torch.inf).topk(NEIGHBOURS, largest=False).indices
    return (near < len(real)).to(both.dtype).mean(1)


class GAN(AdversarialModel, Sampler, Diagnosable):
    """A generator, and the critic that taught it."""

    schedule: ClassVar = "cosine"
    gains_by_bf16: ClassVar = False
    replays: ClassVar = True
    config: Config
    spaces: ClassVar = (Vectors, Table, Images)
    conditions: ClassVar = (Labels,)

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        classes = condition.count if condition else 0
        self.door = PixelDoor(space) if isinstance(space, Images) else RowDoor(space, "uniform")
        self.generator = dense(
            [config.latent + config.kinds + classes]
            + [config.hidden] * config.layers
            + [self.door.size]
        )
        self.critic = DenseCritic(
            self.door.size,
            classes,
            config,
            hidden=config.critic_hidden,
            layers=config.critic_layers or config.layers,
            waves=config.octaves,
        )
        self.contest = Contest(config, self.critic, batch_size=config.batch_size)

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """For rows R3GAN's loss and penalties, and kinds of noise, and a critic of fine sight in few
        dimensions; shifts for few images."""
        if isinstance(space, Images):
            config = Config(hidden=512, critic_hidden=512, learning_rate=5e-4)
            return replace(config, **for_images(space, num_examples))
        plain = real_size(space) <= FEW
        return Config(
            loss="relativistic",
            regulariser="r1+r2",
            penalty=5e-3 if plain else 1e-3,
            penalty_left=0.2 if plain else 1.0,
            penalty_every=1,
            critic_rate=2.0,
            latent=8 if plain else 32,
            kinds=64,
            octaves=OCTAVES if plain else 0,
            hidden=64 if plain else 256,
            critic_hidden=64 if plain else 256,
            learning_rate=5e-4 if plain else 1e-3,
            average=0.01 if plain else 0.05,
        )

    @classmethod
    def toy(cls) -> GAN:
        config = Config(
            latent=2, hidden=16, critic_hidden=16, layers=2, batch_size=16, pack=2, spectral=True
        )
        return cls(Vectors(2), config)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self._weight.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        return self.door.leave(self._made(self._classes(condition, num_samples), noise))

    @property
    def _weight(self) -> Tensor:
        return next(self.parameters())

    @property
    def tells_chances(self) -> bool:
        """Whether the loss has a D that is a chance, of a single datum."""
        alone = self.config.pack == 1 and self.config.minibatch == "none"
        return self.contest.pair.chance is not None and alone

    @torch.no_grad()
    def chance_of_data(self, x: Tensor, *, beside: Tensor) -> Tensor:
        """D(x), shape (n,): how likely each is of p rather than of q, were both as frequent; the level of
        logits that have none of their own is taken from data ``beside`` and as many made ones."""
        pair, count = self.contest.pair, len(beside)
        sides = self._sides(Batch(as_device(beside, self)), scoring_noise(count, None))
        real, made = (self._logit(one, None) for one in (sides.real, sides.made))
        level = self._logit(
            self.door.enter(as_device(x, self), scoring_noise(len(x), None))[0], None
        )
        if not pair.has_level:
            level = level - balance(real, made)
        return self.contest.chances(level, level)[0] if pair.has_level else torch.sigmoid(level)

    @torch.no_grad()
    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        if not self.tells_chances or len(x) <= NEIGHBOURS:
            return {}
        real, made, sides = self._chances(x, condition)
        d = torch.cat([real, made])
        told = {"distance of D from 1/2 (probability)": float((d - 0.5).abs().mean())}
        if self.door.size <= FEW:
            optimum = share_of_data(sides.real, sides.made)
            told["distance of D from p/(p + q) (probability)"] = float((d - optimum).abs().mean())
            told["distance of p/(p + q) from 1/2 (probability)"] = float(
                (optimum - 0.5).abs().mean()
            )
        return told

    def _afterwards(self, makers: tuple[Player, ...]) -> Sequence[Turn]:
        if not self.tells_chances or isinstance(self.space, Images):
            return ()
        return (Rewrite("watch", self.watch, batches=WATCHED, every=WATCH_EVERY),)

    def watch(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """How far D is from what it is at the end, so that training can be seen to come nearer."""
        some = list(batches)
        given = [one.condition for one in some if one.condition is not None]
        condition = torch.cat(given) if given else None
        told = self.diagnose(torch.cat([one.x for one in some]), condition=condition)
        values = [torch.tensor(value, device=self._weight.device) for value in told.values()]
        mean_over_processes(values)
        return dict(zip(told, map(float, values), strict=True))

    def _chances(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor, Sides]:
        """D of data and of as many made ones."""
        sides = self._sides(Batch(as_device(x, self), condition), scoring_noise(len(x), None))
        real, made = (self._logit(one, sides.classes) for one in (sides.real, sides.made))
        return *self.contest.chances(real, made, sides.classes), sides

    def _logit(self, z: Tensor, classes: Tensor | None) -> Tensor:
        logit: Tensor = self.critic(z, classes).logit
        return logit

    def _made(self, classes: Tensor | None, noise: Noise) -> Tensor:
        z = noise.normal(self.config.latent).to(self._weight.dtype)
        parts, count = [z], self.config.kinds
        # What is one of many has the mean square of a normal number, and so weighs as much as many.
        if count:
            kind = (noise.uniform() * count).long().clamp(max=count - 1)
            parts.append(functional.one_hot(kind, count).to(z) * count**0.5)
        if classes is not None:
            parts.append(classes.to(z) * classes.shape[1] ** 0.5)
        made: Tensor = self.generator(torch.cat(parts, dim=1))
        return torch.tanh(made) if isinstance(self.space, Images) else made

    def _sides(self, batch: Batch, noise: Noise, *, makes: bool = True) -> Sides:
        """Data, and as many made ones of the same classes (or themselves)."""
        classes = self._classes(batch.condition, len(batch))
        real, _ = self.door.enter(as_device(batch.x, self), noise)
        made = self._made(classes, noise) if makes else real
        return Sides(self._shaped(real), self._shaped(made), classes)

    def _shaped(self, z: Tensor) -> Tensor:
        """Rows of pixels as images, which can be moved about."""
        return z.reshape(-1, *self.space.shape) if isinstance(self.space, Images) else z

    def _first(self) -> Sequence[Stage]:
        if isinstance(self.door, PixelDoor):
            return ()
        return (Stage([Rewrite("fit door", self.fit_door, sweep=True)], rounds=1),)

    def fit_door(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """Shift and scale of the data, and frequencies of categories."""
        assert isinstance(self.door, RowDoor)
        nobody = RandomSubset(0, torch.Generator())
        self.door.fit((batch.x for batch in batches), nobody, prior_weight=1.0)
        return {}
