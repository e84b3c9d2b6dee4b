"""What all normalising flows do alike: from elements to reals, along a bijection, to independent noise.

With f invertible and z = f(x), the change of variables gives

    log p(x) = log p_Z(f(x)) + log |det df/dx|.

Images are integers: noise, and a logit or a mere division, make them reals, which turns the density into
a lower bound (``probability/dequantisation.py``, learned noise ``layers/dequantiser.py``); so do a
table's categories and missing numbers (``layers/table_reals.py``). Vectors and real tables have it
exactly. Reals are brought to mean 0 and deviation 1 before f, by numbers of the first batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.bijections import Bijection, starting
from simulacra.layers.dequantiser import Dequantisation, VariationalNoise
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels
from simulacra.layers.table_reals import TableReals, real_size
from simulacra.probability.bounds import importance_weighted
from simulacra.probability.dequantisation import dequantised, from_logits, quantised, to_logits
from simulacra.probability.noise import Noise, row_noise, scoring_noise
from simulacra.spaces import Images, Labels, Measure, Space, Table

STARTERS = 512
"""So many rows set the actnorms."""


class RealDoor(nn.Module):
    """Elements of a space as reals, shape (n, *shape), of a table (n, ``real_size``), and back.

    Images go through a logit that ``alpha`` keeps finite, and their pixels' deviations count as at
    least ``least_scale``; without ``alpha`` they are divided by their levels, and nothing else. The
    noise they need is uniform, or ``variational``: learned, with -log q(u | x) in the log-determinant.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        space: Space,
        alpha: float | None = 0.05,
        *,
        least_scale: float = 0.2,
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__()
        self.space, self.alpha, self.least_scale = space, alpha, least_scale
        self.noise = None
        if dequantisation == "variational" and isinstance(space, Images):
            self.noise = VariationalNoise(space)
        self.table = TableReals(space) if isinstance(space, Table) else None
        self.register_buffer("shift", torch.zeros(space.shape))
        self.register_buffer("scale", torch.ones(space.shape))

    def enter(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Reals, and the log-determinant of how they got there, shape (n,)."""
        if self.table is not None:
            return self.table.enter(x, noise)
        if isinstance(self.space, Images):
            return self._noisy(x, noise)
        return self._standard(x.to(self.shift.dtype))

    def _noisy(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        if self.noise is None:
            return self._standard(dequantised(x, noise).to(self.shift.dtype))
        within, minus_log_q = self.noise(x, noise)
        real, log_slope = self._standard(within.to(self.shift.dtype))
        return real, log_slope + minus_log_q

    def middle(self, x: Tensor) -> Tensor:
        """Reals without noise: images and categories at the middle of their cells."""
        if self.table is not None:
            return self.table.enter(x, None)[0]
        middle = x.to(self.shift.dtype) + (0.5 if isinstance(self.space, Images) else 0.0)
        return self._standard(middle)[0]

    def leave(self, real: Tensor) -> Tensor:
        """Elements; images are floored."""
        if self.table is not None:
            return self.table.leave(real)
        y = real * self.scale + self.shift
        if not isinstance(self.space, Images):
            return y.to(self.space.dtype)
        levels = self.space.levels
        y = y * levels if self.alpha is None else from_logits(y, levels, self.alpha)
        return quantised(y, self.space)

    def _standard(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_slope = y.new_zeros(len(y))
        if isinstance(self.space, Images) and self.alpha is None:
            y = y / self.space.levels
            log_slope = log_slope - self.space.dimensions * math.log(self.space.levels)
        elif isinstance(self.space, Images) and self.alpha is not None:
            y, log_slope = to_logits(y, self.space.levels, self.alpha)
        return (y - self.shift) / self.scale, log_slope - self.scale.log().sum()

    def fit(self, xs: Sequence[Tensor], noise: Noise) -> None:
        """Mean and deviation of every entry, and of a table the frequencies of its categories."""
        if self.table is not None:
            self.table.fit(xs)
            return
        if isinstance(self.space, Images) and self.alpha is None:
            return
        self.shift.zero_()
        self.scale.fill_(1.0)
        seen = torch.cat([self.enter(x, noise)[0].double() for x in xs])
        deviation = seen.std(0, correction=0)
        if isinstance(self.space, Images):
            deviation = deviation.clamp(min=self.least_scale)
        self.shift.copy_(seen.mean(0))
        # A column of one value has no deviation to divide by.
        self.scale.copy_(torch.where(deviation > 1e-6 * (1 + seen.abs().amax(0)), deviation, 1.0))


class Flow(nn.Module):
    """A density on ``space``: its door, a ``bijection`` to codes (n, D), and what codes are drawn from.

    ``condition`` is passed on to the bijection as rows of zeros and a one.
    """

    def __init__(
        self,
        space: Space,
        condition: Labels | None,
        bijection: Bijection,
        *,
        alpha: float | None = 0.05,
        least_scale: float = 0.2,
        prior: Literal["normal", "logistic"] = "normal",
        dequantisation: Dequantisation = "uniform",
    ) -> None:
        super().__init__()
        self.space, self.condition_space, self.prior = space, condition, prior
        self.door = RealDoor(space, alpha, least_scale=least_scale, dequantisation=dequantisation)
        self.bijection = bijection

    @property
    def bounds(self) -> bool:
        """Whether the density is a lower bound."""
        return self.space.measure is not Measure.LEBESGUE

    @property
    def score_source(self) -> str:
        return f"minus {'the bound on ' if self.bounds else ''}log p(x), nats"

    def sample(
        self, num_samples: int, condition: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.door.shift.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        if self.prior == "normal":
            code = noise.normal(real_size(self.space))
        else:
            code = torch.logit(noise.uniform(real_size(self.space)).double(), 1e-9).float()
        return self.decode(code, condition)

    def log_prob(
        self,
        x: Tensor,
        condition: Tensor | None,
        generator: torch.Generator | None,
        *,
        draws: int = 1,
    ) -> Tensor:
        """log p(x), or where noise enters log of the mean of p(x + u) / q(u | x) over draws of u.

        That mean is unbiased for the mass of x's cell, so its log is a lower bound in expectation.
        """
        x, given = as_device(x, self), self._one_hot(condition, len(x))
        noise = scoring_noise(len(x), generator, x.device)
        values = []
        for _ in range(draws if self.bounds else 1):
            real, log_slope = self.door.enter(x, noise)
            values.append(log_slope + self.density(real, given))
        return importance_weighted(torch.stack(values, dim=1))

    @torch.no_grad()
    def encode(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """f(x), shape (n, D); of an image the code of the middle of its cells, x + 1/2."""
        x = as_device(x, self)
        return self._code(self.door.middle(x), self._one_hot(condition, len(x)))[0]

    @torch.no_grad()
    def decode(self, code: Tensor, condition: Tensor | None) -> Tensor:
        code = as_device(code, self).to(self.door.shift.dtype)
        return self.door.leave(self.bijection.inverse(code, self._one_hot(condition, len(code))))

    @torch.no_grad()
    def anomaly_score(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Minus log p(x); with labels, minus log of the mean over all of them."""
        x = as_device(x, self)
        real, log_slope = self.door.enter(x, scoring_noise(len(x), generator, x.device))
        if self.condition_space is None:
            return -log_slope - self.density(real, None)
        count = self.condition_space.count
        each = torch.eye(count).to(real)
        values = [self.density(real, one.expand(len(x), count)) for one in each]
        return math.log(count) - log_slope - torch.logsumexp(torch.stack(values), dim=0)

    def density(self, real: Tensor, given: Tensor | None) -> Tensor:
        """log p_Z(f(x)) + log |det df/dx|, shape (n,)."""
        code, log_det = self._code(real, given)
        if self.prior == "normal":
            constant = 0.5 * math.log(2 * math.pi) * code.shape[1]
            return log_det - 0.5 * code.square().sum(1) - constant
        # log of sigmoid(z) sigmoid(-z), the density of a logistic.
        return log_det - (functional.softplus(code) + functional.softplus(-code)).sum(1)

    def _code(self, real: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        code, log_det = self.bijection(real, given)
        return code, log_det

    def loss(self, x: Tensor, condition: Tensor | None, noise: Noise) -> Tensor:
        """-log p(x), of images its bound, in nats a dimension; a scalar."""
        real, log_slope = self.door.enter(x, noise)
        log_prob = log_slope + self.density(real, self._one_hot(condition, len(x)))
        return -log_prob.mean() / self.space.dimensions

    @torch.no_grad()
    def start(
        self, xs: Sequence[Tensor], conditions: Sequence[Tensor | None], noise: Noise
    ) -> None:
        """Set the door, and then the actnorms, by the first batches."""
        self.door.fit(xs, noise)
        real = torch.cat([self.door.enter(x, noise)[0] for x in xs])[:STARTERS]
        given = None
        if self.condition_space is not None:
            labels = torch.cat([one for one in conditions if one is not None])[:STARTERS]
            given = self._one_hot(labels, len(real))
        with starting(self.bijection):
            self.bijection(real, given)

    def _one_hot(self, condition: Tensor | None, rows: int) -> Tensor | None:
        given = one_hot_labels(condition, self.condition_space, rows)
        return None if given is None else given.to(self.door.shift)
