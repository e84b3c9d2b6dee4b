"""Rows of a table as what a network can make: one-hot categories, and numbers by the mode they are near.

Mode-specific normalisation (Xu et al. 2019, sec. 4.2): a Gaussian mixture is fitted to every column of
numbers. A number c becomes a mode k, drawn by how likely each is to have made it, as zeros and a one,
and alpha = (c - mu_k) / (4 sigma_k), which a tanh can reach. Whether a number is missing is one mode
more, with alpha = 0, and so is each value that many rows have, such as 0 where most earn nothing: it
comes back as it was. So a column of several humps, of values that stand out, or with gaps is a category
and something of one hump.

A row is its alphas first, and then the parts of zeros and a one, in the order of the columns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.front_door import as_device
from simulacra.layers.table_reals import NEVER
from simulacra.probability.clustering import RandomSubset
from simulacra.probability.distributions import gaussian_log_prob
from simulacra.probability.noise import BatchNoise, Noise
from simulacra.spaces import Table

MODES = 10
"""A column's mixture has at most so many Gaussians; those that nothing needs have no weight."""

WIDTHS = 4.0
"""So many deviations from its mode a number can be."""

FITTED_ON, LEAST_WEIGHT = 10_000, 0.005
"""So many rows tell the mixtures, whose Gaussians have at least this weight."""

STANDS_OUT, MOST_VALUES = 0.05, 5
"""The share of the rows by which a value stands out, and how many values of a column can."""

POINT = -80.0
"""The log-deviation of a value that stands out: beside it no number is near."""

TEMPERATURE = 0.2
"""Of the Gumbel softmax that stands for a draw of a category (Xu et al. 2019, sec. 4.4)."""


class ColumnModes(nn.Module):
    """Rows (n, columns) to (n, ``size``) and back; ``width`` numbers are the parts alone."""

    mean: Tensor
    log_scale: Tensor
    log_weight: Tensor
    log_frequencies: Tensor
    column_of: Tensor

    def __init__(self, space: Table) -> None:
        super().__init__()
        self.space = space
        columns = list(enumerate(space.columns))
        self.numbers = [index for index, one in columns if one.kind == "real"]
        self.named = [index for index, one in columns if one.kind == "category"]
        self.widths = [
            len(one.categories) if one.kind == "category" else MODES + one.missing
            for one in space.columns
        ]
        self.width, self.size = sum(self.widths), sum(self.widths) + len(self.numbers)
        numbers = len(self.numbers)
        self.register_buffer("mean", torch.zeros(numbers, MODES))
        self.register_buffer("log_scale", torch.zeros(numbers, MODES))
        self.register_buffer("log_weight", torch.full((numbers, MODES), -math.log(MODES)))
        self.register_buffer("log_frequencies", torch.zeros(self.width))
        # Which column every number of a row is of.
        own = [*self.numbers, *(i for i, width in enumerate(self.widths) for _ in range(width))]
        self.register_buffer("column_of", torch.tensor(own), persistent=False)

    def enter(self, x: Tensor, noise: Noise) -> Tensor:
        """Rows as numbers in [-1, 1], (n, ``size``); modes are drawn with ``noise``."""
        x = as_device(x, self).to(self.mean.dtype)
        uniform = noise.uniform(max(1, len(self.numbers))).to(x)
        alphas: list[Tensor] = []
        parts: list[Tensor] = []
        for index, width in enumerate(self.widths):
            if index in self.numbers:
                at = len(alphas)
                chosen, alpha = self._near(x[:, index], at, uniform[:, at])
                alphas.append(alpha)
            else:
                chosen = x[:, index].long()
            parts.append(functional.one_hot(chosen, width).to(x))
        return torch.cat([*(one.unsqueeze(1) for one in alphas), *parts], dim=1)

    def _near(self, x: Tensor, at: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The mode of numbers (n,) of the column ``at``, and how far from it they are."""
        absent = x.isnan()
        there = x.nan_to_num()
        each = gaussian_log_prob(there.unsqueeze(1), self.mean[at], self.log_scale[at])
        share = torch.softmax((each + self.log_weight[at]).double(), 1).cumsum(1)
        chosen = (share <= uniform.double().unsqueeze(1)).sum(1).clamp(max=MODES - 1)
        reach = self._reach(at, chosen)
        apart = (there - self.mean[at, chosen]) / torch.where(reach > 0, reach, 1.0)
        alpha = torch.where(absent | (reach == 0), 0.0, apart.clamp(-1, 1))
        return torch.where(absent, MODES, chosen), alpha

    def _reach(self, at: int, mode: Tensor) -> Tensor:
        """How far from its mode a number of the column ``at`` can be; 0 of a value that stands out."""
        log_scale = self.log_scale[at, mode]
        return torch.where(log_scale > POINT, WIDTHS * log_scale.exp(), 0.0)

    def made(self, raw: Tensor, uniform: Tensor) -> Tensor:
        """A network's numbers (n, ``size``) as a row: tanh, and Gumbel softmax with uniform numbers
        (n, ``width``)."""
        count = len(self.numbers)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-7, 1 - 1e-7)))
        logits = (raw[:, count:] + gumbel + self._impossible) / TEMPERATURE
        parts = [torch.softmax(one, 1) for one in logits.split(self.widths, 1)]
        return torch.cat([torch.tanh(raw[:, :count]), *parts], dim=1)

    @property
    def _impossible(self) -> Tensor:
        """What keeps a network from modes that a mixture does not have, (``width``,)."""
        never = torch.where(self.log_frequencies > NEVER, 0.0, NEVER)
        return never.to(self.mean.dtype)

    def leave(self, row: Tensor) -> Tensor:
        """The rows of the table that numbers (n, ``size``) stand for: the likeliest of every part."""
        alphas, parts = row[:, : len(self.numbers)], row[:, len(self.numbers) :]
        columns, at = [], 0
        for index, part in enumerate(parts.split(self.widths, 1)):
            chosen = part.argmax(1)
            value = chosen.to(row.dtype)
            if index in self.numbers:
                mode = chosen.clamp(max=MODES - 1)
                value = self.mean[at, mode] + self._reach(at, mode) * alphas[:, at]
                value = torch.where(chosen == MODES, torch.nan, value)
                at += 1
            columns.append(value)
        return torch.stack(columns, dim=1).to(self.space.dtype)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor], seed: int = 0) -> None:
        """Mixtures of the numbers, on at most ``FITTED_ON`` rows, and frequencies: of modes on these, of
        categories and of what is missing on all."""
        subset = RandomSubset(FITTED_ON, torch.Generator().manual_seed(seed))
        seen, known = 0, self.mean.new_zeros(self.width, dtype=torch.float64)
        parts = known.split(self.widths)
        for batch in batches:
            x = as_device(batch, self)
            subset.add(x)
            seen += len(x)
            for index, part in enumerate(parts):
                if index in self.named:
                    part += torch.bincount(x[:, index].long(), minlength=len(part))
                elif len(part) > MODES:
                    part[MODES] += x[:, index].isnan().sum()
        rows = subset.rows()
        for at, index in enumerate(self.numbers):
            self._fit_column(rows[:, index].double(), at, seed)
        noise = BatchNoise(torch.Generator().manual_seed(seed), len(rows))
        counts = self.enter(rows, noise)[:, len(self.numbers) :].double().sum(0)
        for index, (part, whole) in enumerate(zip(counts.split(self.widths), parts, strict=True)):
            if index in self.numbers and len(part) > MODES:
                there = part[:MODES].sum()
                whole[:MODES] = part[:MODES] * ((seen - whole[MODES]) / there.clamp(min=1))
            elif index in self.numbers:
                whole.copy_(part)
        self.log_frequencies.copy_(self._shares(known).log().clamp(min=NEVER))

    def _fit_column(self, values: Tensor, at: int, seed: int) -> None:
        # A second to import, and only needed here.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import BayesianGaussianMixture

        there = values[~values.isnan()]
        self.mean[at], self.log_scale[at], self.log_weight[at] = 0.0, 0.0, NEVER
        found, counts = there.unique(return_counts=True)
        order = counts.argsort(descending=True, stable=True)
        common = order[:MOST_VALUES]
        common = common[counts[common] >= STANDS_OUT * len(there)]
        if len(found) == len(common) + 1:
            # One value left has no spread that a Gaussian could be fitted to.
            common = order
        points = len(common)
        self.mean[at, :points] = found[common].to(self.mean)
        self.log_scale[at, :points] = POINT
        self.log_weight[at, :points] = (counts[common] / len(there)).log().to(self.mean)
        rest = there[~torch.isin(there, found[common])]
        if not len(rest):
            if not points:
                self.log_weight[at, 0] = 0.0
            return
        centre, spread = rest.mean(), rest.std(correction=0)
        spread = torch.where(spread > 1e-9 * (1 + centre.abs()), spread, 1.0)
        modes = min(MODES - points, len(rest.unique()))
        mixture = BayesianGaussianMixture(
            n_components=modes,
            weight_concentration_prior=1e-3,
            max_iter=200,
            reg_covar=1e-5,
            random_state=seed,
        )
        with warnings.catch_warnings():
            # Humps that still move a little normalise as well as any.
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(((rest - centre) / spread).cpu().numpy()[:, None])
        weight, mean = (torch.from_numpy(one) for one in (mixture.weights_, mixture.means_[:, 0]))
        variance = torch.from_numpy(mixture.covariances_[:, 0, 0])
        own = slice(points, points + modes)
        self.mean[at, own] = (mean * spread.cpu() + centre.cpu()).to(self.mean)
        self.log_scale[at, own] = (0.5 * variance.log() + spread.cpu().log()).to(self.mean)
        share = weight * (len(rest) / len(there))
        kept = (weight > LEAST_WEIGHT) | (weight == weight.max())
        self.log_weight[at, own] = torch.where(kept, share.log(), NEVER).to(self.mean)

    def _shares(self, counts: Tensor) -> Tensor:
        """Frequencies within each part: categories keep a little chance, modes without weight none."""
        shares, at = [], 0
        for index, part in enumerate(counts.split(self.widths)):
            there = torch.ones_like(part, dtype=torch.bool)
            if index in self.numbers:
                there[:MODES] = self.log_weight[at] > NEVER
                at += 1
            held = torch.where(there, part + 0.5 / len(part), 0.0)
            shares.append(held / held.sum())
        return torch.cat(shares)
