"""Likelihood heads: from a network's raw output to p(x | …), for every kind of space.

A head says how many numbers a network has to give for each datum, evaluates the log-density of
elements under them, draws elements, and gives the element nearest to the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.probability.distributions import (
    bernoulli_draw,
    bernoulli_log_prob,
    categorical_draw,
    categorical_log_prob,
    discretised_logistic_draw,
    discretised_logistic_log_prob,
    discretised_logistic_mean,
    gaussian_log_prob,
)
from simulacra.probability.noise import Noise
from simulacra.spaces import Images, Series, Space, Table, Tokens

IMAGE_HEADS = ("bernoulli", "categorical", "discretised-logistic")


def choose_head(space: Space) -> str:
    """The head that suits a space: what its elements are decides."""
    if isinstance(space, Tokens):
        return "categorical"
    if not isinstance(space, Images):
        return "gaussian"
    if space.levels == 2:
        return "bernoulli"
    # Few levels are cheap to give one by one; many are better taken as cells of a smooth density.
    return "categorical" if space.levels <= 32 else "discretised-logistic"


class ImageHead(nn.Module):
    """Independent dimensions of an image: ``per_value`` raw numbers for each, (n, per, C, H, W)."""

    def __init__(self, space: Images, kind: str) -> None:
        super().__init__()
        self.space, self.kind = space, kind
        self.per_value = space.levels if kind == "categorical" else 1
        self.outputs = self.per_value * space.dimensions
        if kind == "discretised-logistic":
            self.log_scale = nn.Parameter(torch.full(space.shape, -2.0))

    def log_prob(self, x: Tensor, raw: Tensor, known: Tensor | None = None) -> Tensor:
        """log p(x | raw) in nats, shape (n,), or that of the ``known`` entries alone."""
        raw = self._split(raw)
        if self.kind == "bernoulli":
            each = bernoulli_log_prob(x, raw[:, 0])
        elif self.kind == "categorical":
            each = categorical_log_prob(x, raw.movedim(1, -1))
        else:
            scale = self.log_scale.clamp(min=-7)
            each = discretised_logistic_log_prob(x, raw[:, 0], scale, self.space.levels)
        return (each if known is None else torch.where(known, each, 0)).flatten(1).sum(1)

    def draw(self, raw: Tensor, noise: Noise) -> Tensor:
        """An element of the space for each row."""
        raw, uniform = self._split(raw), noise.uniform(*self.space.shape)
        if self.kind == "bernoulli":
            drawn = bernoulli_draw(raw[:, 0], uniform)
        elif self.kind == "categorical":
            drawn = categorical_draw(raw.movedim(1, -1), uniform)
        else:
            scale, levels = self.log_scale.clamp(min=-7), self.space.levels
            drawn = discretised_logistic_draw(raw[:, 0], scale, uniform, levels)
        return drawn.to(self.space.dtype)

    def mean(self, raw: Tensor) -> Tensor:
        """The element nearest to the mean."""
        raw, levels = self._split(raw), self.space.levels
        if self.kind == "bernoulli":
            mean = torch.sigmoid(raw[:, 0])
        elif self.kind == "categorical":
            values = torch.arange(levels, dtype=raw.dtype, device=raw.device)
            mean = torch.einsum("nl...,l->n...", raw.softmax(1), values)
        else:
            mean = discretised_logistic_mean(raw[:, 0], self.log_scale.clamp(min=-7), levels)
        return mean.round().clamp(0, levels - 1).to(self.space.dtype)

    def _split(self, raw: Tensor) -> Tensor:
        return raw.reshape(len(raw), self.per_value, *self.space.shape)


class ColumnHead(nn.Module):
    """Independent columns: a Gaussian for a real one, a categorical one for categories and tokens.

    Real columns are seen through (x - shift) / scale, which ``fit`` takes from the data. One that may be
    missing is so with a chance of its own, which its second raw number is the logit of.
    """

    shift: Tensor
    scale: Tensor
    real: Tensor
    may_miss: Tensor
    possible: Tensor

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        self.levels = column_levels(space)
        self.register_buffer("shift", torch.zeros(len(self.levels)))
        self.register_buffer("scale", torch.ones(len(self.levels)))
        real = torch.tensor([levels == 0 for levels in self.levels])
        self.register_buffer("real", real, persistent=False)
        self.register_buffer("may_miss", missing_columns(space), persistent=False)
        # The categories that each column without an order has, among as many as the largest one.
        counts = torch.tensor([levels for levels in self.levels if levels], dtype=torch.long)
        possible = torch.arange(max(self.levels)) < counts.unsqueeze(1)
        self.register_buffer("possible", possible, persistent=False)
        self.log_scale = nn.Parameter(torch.full((int(real.sum()),), -0.5))
        missing = self.may_miss.tolist()
        self.sizes = [max(one, 1) + gone for one, gone in zip(self.levels, missing, strict=True)]
        self.outputs = sum(self.sizes)
        self.reads = sum(max(one, 1) for one in self.levels) + sum(missing)

    def log_prob(self, x: Tensor, raw: Tensor, known: Tensor | None = None) -> Tensor:
        """log p(x | raw) in nats, shape (n,), against the measure of the space itself; or that of the
        ``known`` columns alone."""
        known = torch.ones_like(x, dtype=torch.bool) if known is None else known
        total = torch.zeros(len(x), dtype=raw.dtype, device=raw.device)
        for index, part in enumerate(raw.split(self.sizes, dim=1)):
            if self.levels[index]:
                each = categorical_log_prob(x[:, index], part)
                total = total + torch.where(known[:, index], each, 0)
        if self.real.any():
            z = self._standard(x)[:, self.real]
            each = gaussian_log_prob(z.nan_to_num(), self._means(raw), self.log_scale.clamp(min=-6))
            each = each - self.scale[self.real].log()
            if self.may_miss.any():
                logit, may_miss = self._missing(raw), self.may_miss[self.real]
                there = each + torch.where(may_miss, functional.logsigmoid(-logit), 0)
                each = torch.where(z.isnan(), functional.logsigmoid(logit), there)
            total = total + torch.where(known[:, self.real], each, 0).sum(1)
        return total

    def draw(self, raw: Tensor, noise: Noise) -> Tensor:
        """An element of the space for each row."""
        drawn, uniform = self._empty(raw), noise.uniform(len(self.levels))
        for index, part in enumerate(raw.split(self.sizes, dim=1)):
            if self.levels[index]:
                drawn[:, index] = categorical_draw(part, uniform[:, index]).to(drawn.dtype)
        if self.real.any():
            spread = self.log_scale.clamp(min=-6).exp()
            z = self._means(raw) + spread * noise.normal(int(self.real.sum()))
            drawn[:, self.real] = self._back(z)
        if self.may_miss.any():
            gone = noise.uniform(int(self.real.sum())) < torch.sigmoid(self._missing(raw))
            drawn[:, self.real] = drawn[:, self.real].masked_fill(
                gone & self.may_miss[self.real], torch.nan
            )
        return drawn.to(self.space.dtype)

    def mean(self, raw: Tensor) -> Tensor:
        """The mean of real columns, and the most likely value of categories, which have none."""
        best = self._empty(raw)
        for index, part in enumerate(raw.split(self.sizes, dim=1)):
            if self.levels[index]:
                best[:, index] = part.argmax(1).to(best.dtype)
        best[:, self.real] = self._back(self._means(raw))
        if self.may_miss.any():
            gone = (self._missing(raw) > 0) & self.may_miss[self.real]
            best[:, self.real] = best[:, self.real].masked_fill(gone, torch.nan)
        return best.to(self.space.dtype)

    def read(self, x: Tensor) -> Tensor:
        """Columns as a network reads them, shape (n, reads): real ones shifted and scaled, what is
        missing as 0; for each column that may be missing whether it is; categories as zeros and a one."""
        z = self._standard(x)
        parts = [z.nan_to_num()[:, self.real], z.isnan().to(z)[:, self.may_miss]]
        if self.possible.numel():
            index = x[:, ~self.real].long()
            ones = functional.one_hot(index, self.possible.shape[1]).to(z)
            parts.append(ones[:, self.possible])
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def fit(self, rows: Iterator[Tensor]) -> None:
        """Shift and scale of real columns, of what is not missing, from batches of all data."""
        total, square, count = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for x in rows:
            x = x.double()
            count, x = count + (~x.isnan()).sum(0), x.nan_to_num()
            total, square = total + x.sum(0), square + x.square().sum(0)
        mean = total / count.clamp(min=1)
        deviation = (square / count.clamp(min=1) - mean.square()).clamp(min=1e-12).sqrt()
        self.shift.copy_(torch.where(self.real, mean, 0.0))
        self.scale.copy_(torch.where(self.real, deviation, 1.0))

    def _standard(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale

    def _of_real(self, raw: Tensor, which: int) -> Tensor:
        """The first or the last raw number of each real column, shape (n, real columns)."""
        parts = zip(raw.split(self.sizes, 1), self.levels, strict=True)
        chosen = [part[:, which] for part, levels in parts if not levels]
        return torch.stack(chosen, dim=1) if chosen else raw[:, :0]

    def _means(self, raw: Tensor) -> Tensor:
        return self._of_real(raw, 0)

    def _missing(self, raw: Tensor) -> Tensor:
        """Logits of being missing; of columns that cannot be, numbers that nobody asks for."""
        return self._of_real(raw, -1)

    def _back(self, z: Tensor) -> Tensor:
        return z * self.scale[self.real] + self.shift[self.real]

    def _empty(self, raw: Tensor) -> Tensor:
        return torch.zeros((len(raw), len(self.levels)), dtype=raw.dtype, device=raw.device)


class SequenceHead(nn.Module):
    """Independent tokens: a logit for every value at every place, (n, vocabulary, length)."""

    def __init__(self, space: Tokens) -> None:
        super().__init__()
        self.space, self.per_value = space, space.vocabulary

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p(x | raw) in nats, shape (n,)."""
        return categorical_log_prob(x, raw.movedim(1, -1)).sum(1)

    def draw(self, raw: Tensor, noise: Noise) -> Tensor:
        """An element of the space for each row."""
        uniform = noise.uniform(self.space.length)
        return categorical_draw(raw.movedim(1, -1), uniform).to(self.space.dtype)

    def mean(self, raw: Tensor) -> Tensor:
        """Tokens have no mean, and give the most likely one."""
        return raw.argmax(1).to(self.space.dtype)


class SignalHead(nn.Module):
    """Independent Gaussian samples of a signal: a mean for each, (n, C, length), and learned deviations.

    Channels are seen through (x - shift) / scale, buffers that the model fills from the data. Deviations
    are kept above ``LEAST`` of the scale: what is exactly silent has no finite density.
    """

    LEAST = math.exp(-6)
    shift: Tensor
    scale: Tensor

    def __init__(self, space: Series) -> None:
        super().__init__()
        self.space, self.per_value = space, 1
        self.register_buffer("shift", torch.zeros(space.channels, 1))
        self.register_buffer("scale", torch.ones(space.channels, 1))
        self.log_scale = nn.Parameter(torch.full(space.shape, -0.5))

    def standard(self, x: Tensor) -> Tensor:
        """Signals as a network reads them."""
        return (x.to(self.scale.dtype) - self.shift) / self.scale

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """log p(x | raw) in nats, shape (n,), against Lebesgue measure of the signals themselves."""
        each = gaussian_log_prob(self.standard(x), raw, self._log_scale()) - self.scale.log()
        return each.flatten(1).sum(1)

    def draw(self, raw: Tensor, noise: Noise) -> Tensor:
        """An element of the space for each row."""
        return self._back(raw + self._log_scale().exp() * noise.normal(*self.space.shape))

    def mean(self, raw: Tensor) -> Tensor:
        """The mean of a signal."""
        return self._back(raw)

    def _log_scale(self) -> Tensor:
        return self.log_scale.clamp(min=math.log(self.LEAST))

    def _back(self, z: Tensor) -> Tensor:
        return (z * self.scale + self.shift).to(self.space.dtype)


def missing_columns(space: Space) -> Tensor:
    """Which columns of a flat space may be missing, shape (D,)."""
    if isinstance(space, Table):
        return torch.tensor([column.missing for column in space.columns])
    return torch.zeros(space.dimensions, dtype=torch.bool)


def column_levels(space: Space) -> list[int]:
    """How many values each column of a flat space can take; 0 for real ones."""
    if isinstance(space, Table):
        return [len(column.categories) for column in space.columns]
    return [space.vocabulary if isinstance(space, Tokens) else 0] * space.dimensions
