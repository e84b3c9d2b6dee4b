"""StyleGAN2: a GAN whose generator draws by styles, one a layer, around a constant.

A mapping f turns z ~ N(0, I), on its sphere, into a style w, which is less tangled than z has to be; each
layer of the synthesis g scales its convolution's inputs by an affine function of w and what comes out
back to size one (``layers/modulated.py``), and adds noise of its own for what is left to chance. Images
are sums over all sizes, each doubled on to the next (their fig. 7b); the critic is residual and sees how
much a few images deviate. In training a part of the images has another style from some layer on
(Karras et al. 2019, sec. 3.1), and two regularisers come every few rounds, for all of them:

    R1 of the critic                                                        (Mescheder et al. 2018, eq. 9)
    E (|J_w^T y| - a)^2,   J_w = dg / dw,   y ~ N(0, I / (H W)),   a the running mean   (their eq. 4)

Drawn with the ``truncation`` psi, w' = m + psi (w - m), m the mean style (Karras et al. 2019, app. B):
below one samples are more alike, and fewer of them go wrong. An image is encoded by projection: from the
nearest of ``CANDIDATES`` styles down the squared distance of pixels and of what the critic sees (Pan et
al. 2020), without noise (cf. their app. D). ``extended``, an image gets a style for each layer (W+, Abdal
et al. 2019): nearer to it, but with units that mean less.

Papers: Karras, Laine & Aila 2019; Karras, Laine, Aittala, Hellsten, Lehtinen & Aila 2020. Changed: sizes,
widths and options by the data; images are doubled before a convolution and halved before it, rather than
by its stride; the mean style is that of the present mapping; a path's length is of one w for all layers;
ADA (Karras et al. 2020a) where data are few; classes enter beside z, and the critic by projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Decoder, Encoder, Mixer, Sampler
from simulacra.families.adversarial import AdversarialModel
from simulacra.games import Batch, Clock, Descent, Loss, Player, Turn
from simulacra.layers.adversarial_rules import Minibatch, Rules
from simulacra.layers.contest import Contest, Sides
from simulacra.layers.critic_head import CriticHead, Opinion
from simulacra.layers.equalised import (
    EqualisedConv2d,
    EqualisedLinear,
    for_equalised,
    leaky,
    require_no_norm,
    with_deviation,
)
from simulacra.layers.front_door import as_device, centred, drawn_labels, levels_of
from simulacra.layers.resampling import Resampling
from simulacra.layers.style_generator import StyleGenerator, style_pyramid
from simulacra.probability.noise import Noise, row_noise
from simulacra.processes import mean_over_processes
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Vectors

FOLLOWED = 0.01
"""How far the mean length a moves to that of a batch (the authors' code), but for the first ones, of
which it is the plain mean: from nought it would draw paths shorter for long, and samples together."""

CANDIDATES = 512
"""Styles that tell their mean and spread, and of which projections start from the nearest."""

DESCENT, SEEN = 0.15, 0.2
"""The first steps of a projection, as a multiple of the spread of styles, and how much a size of what the
critic sees weighs beside the pixels, as a share of what there is of it."""


@dataclass(frozen=True)
class Config(Rules):
    """z has ``latent`` numbers and w ``style``, through ``mapping_layers`` that learn at
    ``mapping_rate``. ``channels`` are those at full size, doubled at each halving, up to ``widest``.
    ``mixing``: the share of images of two styles. ``path_length`` is the weight of that regulariser,
    taken every ``path_every`` rounds for all of them. ``truncation`` is psi, 1 for none, and
    ``projection_steps`` those of encoding, ``extended`` as above; all else are the rules' options."""

    latent: int = 64
    style: int = 64
    mapping_layers: int = 4
    mapping_rate: float = 0.1
    channels: int = 32
    widest: int = 128
    mixing: float = 0.5
    path_length: float = 2.0
    path_every: int = 8
    truncation: float = 1.0
    projection_steps: int = 60
    extended: bool = False
    batch_size: int = 64
    learning_rate: float = 1e-2
    penalty_every: int = 16
    minibatch: Minibatch = "deviation"


class Halved(nn.Module):
    """Two convolutions and half the sides, beside a shorter way (Karras et al. 2020, fig. 7c)."""

    def __init__(
        self, inputs: int, outputs: int, before: tuple[int, int], after: tuple[int, int]
    ) -> None:
        super().__init__()
        self.shrink = Resampling(before, after)
        self.see, self.grasp = EqualisedConv2d(inputs, inputs), EqualisedConv2d(inputs, outputs)
        self.skip = EqualisedConv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = leaky(self.grasp(self.shrink(leaky(self.see(x)))))
        both: Tensor = (seen + self.skip(self.shrink(x))) * math.sqrt(0.5)
        return both


class Critic(CriticHead):
    """Images in [-1, 1] and classes to an opinion, through residual blocks."""

    def __init__(self, space: Images, config: Config, classes: int) -> None:
        super().__init__()
        sizes, widths = style_pyramid(space, config)
        self.concatenates = classes > 0 and config.conditioning == "concatenation"
        enters = (space.channels + classes * self.concatenates) * config.pack
        self.enter = EqualisedConv2d(enters, widths[0], 1)
        self.blocks = nn.Sequential(
            *(
                Halved(widths[at], widths[at + 1], sizes[at], sizes[at + 1])
                for at in range(len(sizes) - 1)
            )
        )
        self.compares = config.minibatch == "deviation"
        width, size = widths[-1], sizes[-1]
        self.last = EqualisedConv2d(width + self.compares, width)
        self.read = EqualisedLinear(width * size[0] * size[1], width)
        rules = replace(config, minibatch="none") if self.compares else config
        self.add_head(width, classes, rules, EqualisedLinear)

    def seen(self, x: Tensor) -> list[Tensor]:
        """What the blocks make of images, from the largest size down."""
        x = leaky(self.enter(x.contiguous(memory_format=torch.channels_last)))
        found = [x]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found[1:] or found

    def forward(self, x: Tensor, classes: Tensor | None) -> Opinion:
        if self.concatenates and classes is not None:
            x = torch.cat([x, classes[:, :, None, None].expand(-1, -1, *x.shape[2:]).to(x)], dim=1)
        x = self.seen(x)[-1]
        x = leaky(self.last(with_deviation(x) if self.compares else x))
        return self.opinion(leaky(self.read(x.flatten(1))), classes)


class StyleGAN2(AdversarialModel, Sampler, Encoder, Decoder, Mixer):
    """A generator by styles, and the critic that taught it; codes are styles."""

    config: Config
    generator: StyleGenerator
    critic: Critic
    length: Tensor
    followed: Tensor
    betas: ClassVar = (0.0, 0.99)
    replays: ClassVar = True
    spaces: ClassVar = (Images,)
    conditions: ClassVar = (Labels,)

    def __init__(
        self, space: Images, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        _require_sense(config)
        classes = condition.count if condition else 0
        self.generator = StyleGenerator(space, config, classes)
        self.critic = Critic(space, config, classes)
        self.contest = Contest(config, self.critic, batch_size=config.batch_size)
        self.register_buffer("length", torch.zeros(()))
        self.register_buffer("followed", torch.zeros((), dtype=torch.int64))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Neither mixing nor path lengths for small images (Karras et al. 2020a, app. D), fewer channels
        for large ones; ADA's shifts where data are few."""
        assert isinstance(space, Images)
        pixels = space.height * space.width
        config = Config(channels=32 if pixels <= 256 else 16)
        config = replace(config, **for_equalised(space, num_examples))
        return replace(config, mixing=0.0, path_length=0.0) if pixels <= 32 * 32 else config

    @classmethod
    def toy(cls) -> StyleGAN2:
        config = Config(
            latent=4,
            style=4,
            mapping_layers=2,
            channels=4,
            batch_size=16,
            projection_steps=4,
            penalty_every=4,
            path_every=2,
            shift=0.2,
            adaptive=0.6,
        )
        return cls(Images(1, 8, 8, levels=4), config)

    @property
    def code_space(self) -> Vectors:
        """A style, or one for each layer after the other."""
        return Vectors(self.config.style * (self.code_levels if self.config.extended else 1))

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
        classes = self._classes(condition, num_samples)
        w = self.generator.mapping(noise.normal(self.config.latent), classes)
        if self.config.truncation != 1 and num_samples:
            mean = torch.empty_like(w)
            for rows, styles in self._candidates(condition, num_samples):
                mean[rows] = styles.mean(0)
            w = mean.lerp(w, self.config.truncation)
        return levels_of(self._drawn(w, noise), self.space)

    @torch.no_grad()
    def encode(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        target = centred(as_device(x, self), self.space.levels).to(self._weight)
        w, spread = (self._weight.new_empty(len(x), self.config.style) for _ in range(2))
        for rows, styles in self._candidates(condition, len(x)):
            images = self._drawn(styles, None).flatten(1)
            nearest = torch.cdist(target[rows].flatten(1), images).argmin(1)
            w[rows], spread[rows] = styles[nearest], styles.std(0).mean()
        layers = self.code_levels if self.config.extended else 1
        return self._descended(w[:, None].repeat(1, layers, 1), spread[:, None], target).flatten(1)

    @torch.no_grad()
    def decode(self, code: Tensor, *, condition: Tensor | None = None) -> Tensor:
        return levels_of(self.generator.synthesis(self._by_layer(code), None), self.space)

    @property
    def code_levels(self) -> int:
        """Layers of the synthesis, each of which has a style."""
        return self.generator.synthesis.depth

    @torch.no_grad()
    def mix(
        self, coarse: Tensor, fine: Tensor, level: int, *, condition: Tensor | None = None
    ) -> Tensor:
        first, second = self._by_layer(coarse), self._by_layer(fine)
        crossed = torch.cat([first[:, :level], second[:, level:]], dim=1)
        return levels_of(self.generator.synthesis(crossed, None), self.space)

    def _by_layer(self, code: Tensor) -> Tensor:
        """Codes as styles (n, layers, style)."""
        styles: Tensor = as_device(code, self).to(self._weight)
        styles = styles.unflatten(1, (-1, self.config.style))
        return styles.expand(-1, self.code_levels, -1)

    def _descended(self, w: Tensor, spread: Tensor, target: Tensor) -> Tensor:
        """Styles (n, layers or 1, style) moved to where their images are like ``target``, row by row."""
        steps = self.config.projection_steps
        first, second, seen = torch.zeros_like(w), torch.zeros_like(w), self._seen(target)
        loudness = [one.square().flatten(1).mean(1).add(1e-8) for one in seen]
        for step in range(steps):
            with torch.enable_grad():
                w = w.detach().requires_grad_()
                image = self.generator.synthesis(w.expand(-1, self.code_levels, -1), None)
                apart = (image - target).square().flatten(1).mean(1)
                for whole, own, wanted in zip(loudness, self._seen(image), seen, strict=True):
                    apart = apart + SEEN * (own - wanted).square().flatten(1).mean(1) / whole
                (slope,) = torch.autograd.grad(apart.sum(), w)
            # Adam (Kingma & Ba 2015), its steps falling along half a cosine.
            first, second = first.lerp(slope, 0.1), second.lerp(slope.square(), 0.01)
            size = DESCENT * 0.5 * (1 + math.cos(math.pi * step / steps)) / (1 - 0.9 ** (step + 1))
            root = (second / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8
            w = w.detach() - size * spread * first / root
        return w.float()

    def _seen(self, x: Tensor) -> list[Tensor]:
        """What the critic sees of images at each size; nothing where it does not judge them one by one,
        or has to be told of classes first."""
        if self.config.pack > 1 or self.critic.concatenates:
            return []
        return self.critic.seen(x)

    def _candidates(self, condition: Tensor | None, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Styles of always the same z, for each class of ``condition``, and the rows that are of it."""
        stream = torch.Generator().manual_seed(0)
        z = torch.randn(CANDIDATES, self.config.latent, generator=stream).to(self._weight.device)
        if self.condition_space is None:
            everyone = torch.arange(rows, device=z.device)
            return [(everyone, self.generator.mapping(z, None))]
        self._classes(condition, rows)  # which refuses conditions that do not fit
        assert condition is not None
        found = []
        for label in condition.unique().tolist():
            classes = self._classes(torch.full((CANDIDATES,), int(label)), CANDIDATES)
            where = as_device((condition == label).nonzero()[:, 0], self)
            found.append((where, self.generator.mapping(z, classes)))
        return found

    @property
    def _weight(self) -> Tensor:
        return self.generator.synthesis.start

    def _drawn(self, w: Tensor, noise: Noise | None) -> Tensor:
        """Images of one style for all layers."""
        synthesis = self.generator.synthesis
        image: Tensor = synthesis(w[:, None].expand(-1, synthesis.depth, -1), noise)
        return image

    def _styles(self, noise: Noise, classes: Tensor | None) -> Tensor:
        """A style for each layer, (n, layers, style), of which some change on the way."""
        depth, mapping = self.generator.synthesis.depth, self.generator.mapping
        first: Tensor = mapping(noise.normal(self.config.latent), classes)[:, None]
        first = first.expand(-1, depth, -1)
        if not self.config.mixing or depth == 1:
            return first
        second = mapping(noise.normal(self.config.latent), classes)[:, None]
        border = 1 + (noise.uniform() * (depth - 1)).long()
        mixed = (noise.uniform() < self.config.mixing)[:, None]
        later = torch.arange(depth, device=border.device) >= border[:, None]
        return torch.where((mixed & later)[:, :, None], second, first)

    def _sides(self, batch: Batch, noise: Noise, *, makes: bool = True) -> Sides:
        """Data, and as many made ones of the same classes (or themselves)."""
        classes = self._classes(batch.condition, len(batch))
        real = centred(batch.x, self.space.levels)
        if not makes:
            return Sides(real, real, classes)
        made = self.generator.synthesis(self._styles(noise, classes), noise)
        return Sides(real, made, classes)

    def _afterwards(self, makers: tuple[Player, ...]) -> Sequence[Turn]:
        config = self.config
        if not config.path_length:
            return ()
        every, buffers = config.path_every, ("length", "followed")
        return (Descent(makers, self.path_length, batches=0, every=every, buffers=buffers),)

    def _differentiated_twice(self) -> Sequence[nn.Module]:
        more = (self.generator,) if self.config.path_length else ()
        return (*super()._differentiated_twice(), *more)

    def path_length(self, batch: Batch, noise: Noise, clock: Clock) -> Loss:
        """(|J_w^T y| - a)^2 on half a batch, for all the rounds that it was left out."""
        classes = self._classes(batch.condition, len(batch))
        w = self.generator.mapping(noise.normal(self.config.latent), classes)
        with torch.autocast(w.device.type, enabled=False):
            lengths = self.lengths(w[: (len(w) + 1) // 2], noise)
        mean = lengths.detach().mean()
        mean_over_processes([mean])
        self._follow(mean)
        weight = self.config.path_length * self.config.path_every
        value = weight * (lengths - self.length).square().mean()
        return Loss(value, {"path length": mean})

    def _follow(self, mean: Tensor) -> None:
        """Move a to the mean length of a batch."""
        # A length that is no number spoils this turn only, which the loop then leaves out.
        fine = mean.isfinite()
        self.followed += fine
        rate = (1 / self.followed.clamp(min=1).to(self.length)).clamp(min=FOLLOWED)
        moved = self.length + rate * (mean.to(self.length) - self.length)
        self.length.copy_(torch.where(fine, moved, self.length))

    def lengths(self, w: Tensor, noise: Noise) -> Tensor:
        """|J_w^T y| of each style (n, style), through which gradients pass, (n,)."""
        image = self._drawn(w, noise)
        y = noise.normal(*self.space.shape)[: len(w)].to(image)
        told = (image * y).sum() / math.sqrt(self.space.height * self.space.width)
        (slope,) = torch.autograd.grad(told, w, create_graph=True)
        return slope.square().sum(1).sqrt()


def _require_sense(config: Config) -> None:
    require_no_norm(config)
    if not (config.truncation >= 0 and 0 <= config.mixing <= 1):
        reason = f"truncation is {config.truncation} and mixing {config.mixing}"
        way_out = "set truncation to 0 or more (1 is none of it), mixing between 0 and 1"
        raise Refusal("CFG-186", reason, way_out=way_out)
