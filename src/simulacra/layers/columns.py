"""Flat spaces dimension by dimension: what a network reads of one, and p(x_i | …) from what it says.

A ``Conditional`` is the family of distributions of one dimension: how many numbers it reads and needs,
its log-density, and a draw. ``Columns`` gives every dimension of a space its family, sees real columns
through (x - shift) / scale, and goes back to elements. It works in values: a float (batch, D), real
columns standardised, everything else the integer itself.

Of two kinds of columns in one table, both families are worked out and the right one is taken; so all
dimensions read ``inputs`` and need ``outputs`` numbers, some of them idle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.heads import column_levels, missing_columns
from simulacra.probability.distributions import (
    bernoulli_draw,
    bernoulli_log_prob,
    categorical_draw,
    categorical_log_prob,
    discretised_logistic_draw,
    discretised_logistic_log_prob,
    gaussian_log_prob,
)
from simulacra.spaces import Images, Space

MOST_ONE_HOT = 32
"""Images of up to so many levels are read as zeros and a one, and given by a softmax."""

LEAST_LOG_SCALE = -6.0


class Conditional(Protocol):
    """A family of distributions of one dimension; all methods work entry by entry, (…) with (…, k)."""

    @property
    def inputs(self) -> int:
        """How many numbers a value is read as."""
        ...

    @property
    def outputs(self) -> int:
        """How many raw numbers the distribution needs."""
        ...

    def begin(self) -> Tensor:
        """Raw numbers to begin the training at, shape (outputs,)."""
        ...

    def read(self, x: Tensor) -> Tensor:
        """Values (…) as network inputs, (…, inputs)."""
        ...

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p of values (…) under raw numbers (…, outputs)."""
        ...

    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        """A value for raw numbers (…, outputs), from two uniform numbers each, (…, 2)."""
        ...


@dataclass(frozen=True)
class Bernoulli:
    """0 or 1; a 0 reads as nothing."""

    inputs: int = 1
    outputs: int = 1

    def begin(self) -> Tensor:
        return torch.zeros(1)

    def read(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return bernoulli_log_prob(x, raw.squeeze(-1))

    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        return bernoulli_draw(raw.squeeze(-1), uniform[..., 0]).to(raw.dtype)


@dataclass(frozen=True)
class Categorical:
    """One of ``levels`` values without an order, read as zeros and a one."""

    levels: int

    @property
    def inputs(self) -> int:
        return self.levels

    @property
    def outputs(self) -> int:
        return self.levels

    def begin(self) -> Tensor:
        return torch.zeros(self.levels)

    def read(self, x: Tensor) -> Tensor:
        return functional.one_hot(self._index(x), self.levels).to(x.dtype)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return categorical_log_prob(self._index(x), raw)

    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        return categorical_draw(raw, uniform[..., 0]).to(raw.dtype)

    def _index(self, x: Tensor) -> Tensor:
        return x.long().clamp(0, self.levels - 1)


@dataclass(frozen=True)
class Gaussians:
    """A real number from a mixture: weights, means and scales of ``components`` Gaussians."""

    components: int
    inputs: int = 1

    @property
    def outputs(self) -> int:
        return 3 * self.components

    def begin(self) -> Tensor:
        """Means at the quantiles of a standard normal number, narrower than it."""
        means = torch.special.ndtri((torch.arange(self.components) + 0.5) / self.components)
        scales = torch.full((self.components,), -0.5 if self.components > 1 else 0.0)
        return torch.cat([torch.zeros(self.components), means, scales])

    def read(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        weight, mean, log_scale = self._parts(raw)
        each = gaussian_log_prob(x.unsqueeze(-1), mean, log_scale)
        return torch.logsumexp(torch.log_softmax(weight, -1) + each, -1)

    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        weight, mean, log_scale = self._parts(raw)
        chosen = categorical_draw(weight, uniform[..., 0]).unsqueeze(-1)
        # Uniform numbers are multiples of 2^-24, from 0 on: half a step keeps them off both ends.
        normal: Tensor = torch.special.ndtri(uniform[..., 1].double() + 2.0**-25).to(raw.dtype)
        scale = log_scale.gather(-1, chosen).exp()
        return mean.gather(-1, chosen).squeeze(-1) + scale.squeeze(-1) * normal

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, mean, log_scale = raw.chunk(3, -1)
        return weight, mean, log_scale.clamp(min=LEAST_LOG_SCALE)


@dataclass(frozen=True)
class Logistics:
    """One of many ordered levels: a mixture of logistics, cut into cells (Salimans et al. 2017)."""

    levels: int
    components: int
    inputs: int = 1

    @property
    def outputs(self) -> int:
        return 3 * self.components

    def begin(self) -> Tensor:
        means = torch.linspace(-1, 1, self.components + 2)[1:-1]
        return torch.cat([torch.zeros_like(means), means, torch.full_like(means, -1.5)])

    def read(self, x: Tensor) -> Tensor:
        return (x * (2 / (self.levels - 1)) - 1).unsqueeze(-1)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        weight, mean, log_scale = raw.chunk(3, -1)
        scale = log_scale.clamp(min=-7)
        each = discretised_logistic_log_prob(x.unsqueeze(-1), mean, scale, self.levels)
        return torch.logsumexp(torch.log_softmax(weight, -1) + each, -1)

    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        weight, mean, log_scale = raw.chunk(3, -1)
        chosen = categorical_draw(weight, uniform[..., 0])
        mean, log_scale = (
            one.gather(-1, chosen.unsqueeze(-1))[..., 0] for one in (mean, log_scale)
        )
        scale, levels = log_scale.clamp(min=-7), self.levels
        return discretised_logistic_draw(mean, scale, uniform[..., 1], levels).to(raw.dtype)


class Columns(nn.Module):
    """Every dimension of a flat space with its family; ``components`` are those of real mixtures.

    ``dimension`` arguments say which dimension an entry is of: a long tensor that broadcasts to the
    values. With ``mark`` a constant 1 is read beside every value: 'this one is known'.
    """

    shift: Tensor
    scale: Tensor
    real: Tensor
    idle: Tensor
    may_miss: Tensor

    def __init__(self, space: Space, components: int = 10, *, mark: bool = False) -> None:
        super().__init__()
        self.space, self.mark = space, mark
        images = isinstance(space, Images)
        levels = _levels(space)
        self.dimensions, most = len(levels), max(levels)
        self.continuous = Gaussians(components) if 0 in levels else None
        self.discrete: Conditional | None = None
        if most == 2:
            self.discrete = Bernoulli()
        elif most:
            ordered = images and most > MOST_ONE_HOT
            self.discrete = Logistics(most, components) if ordered else Categorical(most)
        families = [one for one in (self.discrete, self.continuous) if one is not None]
        self.register_buffer("may_miss", missing_columns(space), persistent=False)
        self.gaps = bool(self.may_miss.any())
        self.inputs = max(one.inputs for one in families) + self.gaps + mark
        self.outputs = max(one.outputs for one in families) + self.gaps
        held = torch.tensor(levels)
        self.register_buffer("real", held == 0, persistent=False)
        # Categories that a column does not have; of a real column none, as nobody asks for them.
        idle = (torch.arange(max(most, 1)) >= held.unsqueeze(1)) & (held > 0).unsqueeze(1)
        self.register_buffer("idle", idle, persistent=False)
        self.uneven = isinstance(self.discrete, Categorical) and bool(idle.any())
        self.register_buffer("shift", torch.zeros(self.dimensions))
        self.register_buffer("scale", torch.ones(self.dimensions))

    def begin(self) -> Tensor:
        """Raw numbers to begin the training at, shape (D, outputs)."""
        raw = torch.zeros(self.dimensions, self.outputs)
        for family, own in ((self.discrete, ~self.real), (self.continuous, self.real)):
            if family is not None:
                raw[own, : family.outputs] = family.begin()
        return raw

    def values(self, x: Tensor) -> Tensor:
        """Elements (batch, *shape) as values (batch, D)."""
        flat = x.flatten(1).to(self.shift.dtype)
        return flat if self.continuous is None else (flat - self.shift) / self.scale

    def elements(self, values: Tensor) -> Tensor:
        """Values (batch, D) as elements of the space."""
        flat = values if self.continuous is None else values * self.scale + self.shift
        return flat.to(self.space.dtype).reshape(len(values), *self.space.shape)

    def read(self, values: Tensor, dimension: Tensor) -> Tensor:
        """Values (…) as network inputs, (…, inputs)."""
        there = values.nan_to_num() if self.gaps else values
        discrete, continuous = (
            None if family is None else self._padded(family.read(there))
            for family in (self.discrete, self.continuous)
        )
        read = self._either(discrete, continuous, self.real[dimension].unsqueeze(-1))
        if self.gaps:
            # What is missing reads as nothing but a 1 of its own.
            own = torch.arange(self.inputs, device=read.device) == self.inputs - 1 - self.mark
            read = torch.where(values.isnan().unsqueeze(-1), own.to(read.dtype), read)
        if self.mark:
            read = torch.cat([read[..., :-1], torch.ones_like(read[..., :1])], -1)
        return read

    def log_prob(self, values: Tensor, raw: Tensor, dimension: Tensor) -> Tensor:
        """log p of values (…) under raw numbers (…, outputs), in the space's own measure."""
        discrete = continuous = None
        # What is missing must not reach a gradient, not even one that is not asked for.
        there = values.nan_to_num() if self.gaps else values
        if self.discrete is not None:
            own = raw[..., : self.discrete.outputs]
            discrete = self.discrete.log_prob(there, self._possible(own, dimension))
        if self.continuous is not None:
            own = raw[..., : self.continuous.outputs]
            continuous = self.continuous.log_prob(there, own) - self.scale[dimension].log()
        if self.gaps and continuous is not None:
            logit, may_miss = raw[..., -1], self.may_miss[dimension]
            present = continuous + torch.where(may_miss, functional.logsigmoid(-logit), 0)
            continuous = torch.where(values.isnan(), functional.logsigmoid(logit), present)
        return self._either(discrete, continuous, self.real[dimension])

    def draw(self, raw: Tensor, uniform: Tensor, dimension: Tensor) -> Tensor:
        """A value for raw numbers (…, outputs), from two uniform numbers each, (…, 2)."""
        discrete = continuous = None
        if self.discrete is not None:
            own = self._possible(raw[..., : self.discrete.outputs], dimension)
            discrete = self.discrete.draw(own, uniform)
        if self.continuous is not None:
            continuous = self._drawn(self.continuous, raw, uniform, dimension)
        return self._either(discrete, continuous, self.real[dimension])

    def _drawn(
        self, family: Conditional, raw: Tensor, uniform: Tensor, dimension: Tensor
    ) -> Tensor:
        """A number, or NaN for a missing one: the first uniform number decides, and what it has beyond
        the chance of that is uniform again."""
        own = raw[..., : family.outputs]
        if not self.gaps:
            return family.draw(own, uniform)
        chance = torch.where(self.may_miss[dimension], torch.sigmoid(raw[..., -1]), 0)
        first = ((uniform[..., 0] - chance) / (1 - chance)).clamp(0, 1 - 2.0**-24)
        drawn = family.draw(own, torch.stack([first, uniform[..., 1]], -1))
        return torch.where(uniform[..., 0] < chance, torch.nan, drawn)

    def fit(self, rows: Iterator[Tensor]) -> None:
        """Mean and deviation of real columns, of what is not missing, from batches of elements."""
        total, square, count = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for x in rows:
            x = x.flatten(1).double()
            count, x = count + (~x.isnan()).sum(0), x.nan_to_num()
            total, square = total + x.sum(0), square + x.square().sum(0)
        count = count.clamp(min=1)
        mean = total / count
        deviation = (square / count - mean.square()).clamp(min=1e-12).sqrt()
        self.shift.copy_(torch.where(self.real, mean, 0.0))
        self.scale.copy_(torch.where(self.real, deviation, 1.0))

    def _padded(self, read: Tensor) -> Tensor:
        return functional.pad(read, (0, self.inputs - read.shape[-1]))

    def _possible(self, raw: Tensor, dimension: Tensor) -> Tensor:
        return raw.masked_fill(self.idle[dimension], -math.inf) if self.uneven else raw

    @staticmethod
    def _either(discrete: Tensor | None, continuous: Tensor | None, real: Tensor) -> Tensor:
        if discrete is None or continuous is None:
            only = continuous if discrete is None else discrete
            assert only is not None
            return only
        return torch.where(real, continuous, discrete)


def _levels(space: Space) -> list[int]:
    """How many values each dimension can take; 0 for a real one."""
    if isinstance(space, Images):
        return [space.levels] * space.dimensions
    return column_levels(space)
