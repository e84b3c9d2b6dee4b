"""The contest between a generator and a critic: every loss and remedy, an option of any GAN.

``Contest`` plays by the options of ``layers/adversarial_rules.py``, whatever the two networks are. A
critic takes data and classes, and gives an ``Opinion``; the generator's data come as they are. Losses by
name: ``probability/adversarial.py``; what enters the critic's last layer: ``layers/critic_head.py``;
augmentation: ``layers/augmentation.py``.

    R1 = gamma / 2 E_data |grad c|^2, R2 of made ones           (Mescheder et al. 2018, eq. 9)
    WGAN-GP = gamma E (|grad c(u x + (1 - u) y)| - 1)^2         (Gulrajani et al. 2017, eq. 3)

Unrolled, the generator faces the critic as it will be after k steps w <- w - eta grad L(w), through all
of which its gradient goes (Metz et al. 2017, eq. 8 to 10); the critic itself stays where it is. Packed,
a critic judges m data at once (Lin et al. 2018). With feature matching the generator lowers |E h(x) - E
h(y)|^2 of the critic's features (Salimans et al. 2016, sec. 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from simulacra.layers.adversarial_rules import Rules, require_sense
from simulacra.layers.augmentation import Augmentation
from simulacra.layers.critic_head import Opinion
from simulacra.layers.spectral import normalise_spectrally
from simulacra.probability.adversarial import LOSSES, accuracy
from simulacra.probability.noise import Noise
from simulacra.processes import of_all_processes, shared_mean


class Critic(Protocol):
    """Data and classes, as rows of zeros and a one, to an opinion of each."""

    def __call__(self, x: Tensor, classes: Tensor | None) -> Opinion: ...


@dataclass(frozen=True)
class Outcome:
    """A value to lower, numbers worth telling, and what the critic said of made data."""

    value: Tensor
    numbers: Mapping[str, Tensor]
    made: Opinion | None = None


@dataclass(frozen=True)
class Sides:
    """What a turn has before it: ``real`` and ``made`` data (n, …), and their ``classes`` (n, K), or what
    else both networks are told of them."""

    real: Tensor
    made: Tensor
    classes: Tensor | None = None


def packed(x: Tensor, count: int) -> Tensor:
    """Rows (n, C, …) joined along their channels, (n / count, count C, …)."""
    return x if count == 1 else x.reshape(len(x) // count, -1, *x.shape[2:])


class Contest(nn.Module):
    """The rules, at work; its one state is how strong augmentation is."""

    def __init__(self, rules: Rules, critic: nn.Module, *, batch_size: int) -> None:
        super().__init__()
        require_sense(rules, batch_size)
        self.rules = rules
        self.pair = LOSSES[rules.loss]
        self.augmentation = Augmentation(rules.shift, rules.cut, rules.colour, rules.adaptive)
        if rules.spectral:
            normalise_spectrally(critic)

    @property
    def adapts(self) -> bool:
        """Whether augmentation has a strength that moves."""
        return bool(self.rules.adaptive and self.augmentation.moves)

    @property
    def lazy(self) -> bool:
        """Whether penalties have a turn of their own, rather than stand in the critic's loss."""
        return self.rules.penalty_every > 1 and self.penalised

    @property
    def penalised(self) -> bool:
        """Whether there is a penalty."""
        return self.rules.regulariser != "none" and self.rules.penalty > 0

    @property
    def penalises_made(self) -> bool:
        """Whether the penalty looks at made data."""
        return self.rules.regulariser != "r1"

    def opinion(self, critic: Critic, x: Tensor, classes: Tensor | None, noise: Noise) -> Opinion:
        """What the critic says of data (n, …), moved about and packed."""
        count = self.rules.pack
        seen = self.augmentation(x, noise) if x.ndim == 4 else x
        told = critic(packed(seen, count), None if classes is None else packed(classes, count))
        return Opinion(told.logit.float(), told.features, told.classes)

    def critic_loss(
        self, critic: Critic, sides: Sides, noise: Noise, weight: float = 1.0
    ) -> Outcome:
        """The critic's loss; with it the penalties, times ``weight``, where they are not lazy."""
        real = self.opinion(critic, sides.real, sides.classes, noise)
        made = self.opinion(critic, sides.made.detach(), sides.classes, noise)
        value = self.pair.critic(real.logit, made.logit, self.rules.smooth)
        numbers = {"accuracy": accuracy(self.rules.loss, real.logit, made.logit).detach()}
        value = value + self._misread(real, sides)
        if self.penalised and not self.lazy:
            penalty = self.gradient_penalty(critic, sides, noise, weight)
            value, numbers = value + penalty.value, numbers | dict(penalty.numbers)
        return Outcome(value, numbers)

    def gradient_penalty(
        self, critic: Critic, sides: Sides, noise: Noise, weight: float = 1.0
    ) -> Outcome:
        """The regulariser, for all the critic's steps that it is left out of, times ``weight``."""
        rules, numbers = self.rules, dict[str, Tensor]()
        if self.lazy:
            weight *= rules.penalty_every * rules.critic_steps
        weight *= rules.penalty
        if rules.regulariser == "wgan-gp":
            # A pack is one datum to the critic: the line between two of them has one place for all.
            share = noise.uniform()[:: rules.pack].repeat_interleave(rules.pack)
            share = share.reshape(-1, *(1 for _ in sides.real.shape[1:])).to(sides.real)
            between = share * sides.real + (1 - share) * sides.made.to(sides.real)
            length = self._slopes(critic, between, sides.classes, noise).add(1e-12).sqrt()
            return Outcome(weight * (length - 1).square().mean(), {"slope": length.mean().detach()})
        value = torch.zeros((), device=sides.real.device)
        places = {"r1": ("slope", sides.real), "r2": ("slope of made", sides.made.to(sides.real))}
        for kind in rules.regulariser.split("+"):
            name, x = places[kind]
            square = self._slopes(critic, x, sides.classes, noise).mean()
            value = value + 0.5 * weight * square
            numbers[f"squared {name}"] = square.detach()
        return Outcome(value, numbers)

    def _slopes(self, critic: Critic, x: Tensor, classes: Tensor | None, noise: Noise) -> Tensor:
        """|grad c(x)|^2 of each row, or pack of rows."""
        x = x.detach().requires_grad_()
        with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
            logit = self.opinion(critic, x, classes, noise).logit
            (slope,) = torch.autograd.grad(logit.sum(), x, create_graph=True)
        return packed(slope, self.rules.pack).square().flatten(1).sum(1)

    def generator_loss(self, critic: nn.Module, sides: Sides, noise: Noise) -> Outcome:
        """The generator's loss against the critic, or against what it will be."""
        ahead: Critic = self._after(critic, sides, noise) if self.rules.unrolled else critic
        made = real = self.opinion(ahead, sides.made, sides.classes, noise)
        if self.pair.compares or self.rules.feature_matching:
            # What is said of data moves with made data only where the critic looked ahead on them.
            with torch.set_grad_enabled(self.rules.unrolled > 0 and torch.is_grad_enabled()):
                real = self.opinion(ahead, sides.real, sides.classes, noise)
        if self.rules.feature_matching:
            of_data, of_made = (self._mean(one, sides) for one in (real, made))
            value = (of_data - of_made).square().sum()
            return Outcome(value + self._misread(made, sides), {}, made)
        value = self.pair.generator(real.logit, made.logit)
        return Outcome(value + self._misread(made, sides), {}, made)

    def _mean(self, told: Opinion, sides: Sides) -> Tensor:
        """The features' mean over the batch of all processes; for each class the part that it has in it,
        where the critic hears of a class after its features."""
        features = of_all_processes(told.features.float(), dim=0)
        if sides.classes is None or self.rules.conditioning != "projection":
            return features.mean(0)
        classes = of_all_processes(packed(sides.classes, self.rules.pack), dim=0)
        return classes.to(features).T @ features / len(features)

    def _after(self, critic: nn.Module, sides: Sides, noise: Noise) -> Critic:
        """The critic after ``unrolled`` steps on these data, as a function of how they were made."""
        weights: dict[str, Tensor] = dict(critic.named_parameters())

        def with_weights(x: Tensor, classes: Tensor | None) -> Opinion:
            told: Opinion = functional_call(critic, weights, (x, classes))
            return told

        with torch.autocast(sides.real.device.type, enabled=False), torch.enable_grad():
            for _ in range(self.rules.unrolled):
                real = self.opinion(with_weights, sides.real, sides.classes, noise)
                made = self.opinion(with_weights, sides.made.to(sides.real), sides.classes, noise)
                value = self.pair.critic(real.logit, made.logit, self.rules.smooth)
                slopes = torch.autograd.grad(
                    value, list(weights.values()), create_graph=True, allow_unused=True
                )
                weights = {
                    name: old
                    if slope is None
                    else old - self.rules.unrolled_rate * shared_mean(slope)
                    for (name, old), slope in zip(weights.items(), slopes, strict=True)
                }
        return with_weights

    def _misread(self, told: Opinion, sides: Sides) -> Tensor:
        """-log p(y|x) of the auxiliary classifier, nats; nought without one."""
        if told.classes is None or sides.classes is None:
            return torch.zeros((), device=sides.real.device)
        return functional.cross_entropy(told.classes.float(), sides.classes.argmax(1))

    def chances(
        self, real: Tensor, made: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """D of data and of as many made ones of the same ``classes``, from their logits (n,).

        A best critic's D*; with smooth labels its output is 1 - ``smooth`` times that. Logits without a
        level have another in every class that the critic hears of.
        """
        assert self.pair.chance is not None
        if classes is None or self.pair.has_level:
            told = self.pair.chance(real, made)
        else:
            told = torch.zeros_like(real), torch.zeros_like(made)
            kinds = classes.argmax(1)
            for kind in kinds.unique():
                rows = kinds == kind
                told[0][rows], told[1][rows] = self.pair.chance(real[rows], made[rows])
        of_data, of_made = ((one / (1 - self.rules.smooth)).clamp(max=1) for one in told)
        return of_data, of_made

    @torch.no_grad()
    def sureness(self, critic: Critic, sides: Sides, noise: Noise) -> Tensor:
        """E sign c(x) over data, ADA's r_t; of pairs, E sign(c(x) - c(y)), where logits have no zero."""
        real = self.opinion(critic, sides.real, sides.classes, noise).logit
        if self.pair.chance is None or self.rules.loss == "relativistic":
            real = real - self.opinion(critic, sides.made, sides.classes, noise).logit
        elif self.rules.loss == "least-squares":
            real = real - 0.5
        return real.sign().mean()
