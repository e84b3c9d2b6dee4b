"""Independent dimensions, one distribution for each and every class, fitted by counting."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.front_door import as_device
from simulacra.layers.heads import column_levels, missing_columns
from simulacra.probability.distributions import categorical_draw, gaussian_log_prob
from simulacra.probability.noise import Noise
from simulacra.spaces import Images, Series, Space, Table, Tokens, Vectors

SPACES = (Images, Tokens, Table, Vectors, Series)


class ColumnsByClass(nn.Module):
    """p(x_i | y) of each dimension and class: categorical for levels, Gaussian for real numbers.

    A number that may be missing is so with a chance of its own, and a Gaussian otherwise. Buffers hold
    log frequencies (classes, D, levels), means and log deviations (classes, D), and the logits of the
    chance of being missing (classes, D).
    """

    valid: Tensor
    real: Tensor
    mean: Tensor
    log_probs: Tensor
    log_scale: Tensor
    missing: Tensor
    may_miss: Tensor

    def __init__(self, space: Space, classes: int = 1) -> None:
        super().__init__()
        self.space = space
        levels = dimension_levels(space)
        valid = torch.arange(max(*levels, 1)) < torch.tensor(levels).unsqueeze(1)
        self.register_buffer("real", torch.tensor(levels) == 0, persistent=False)
        self.register_buffer("valid", valid, persistent=False)
        start = torch.log(valid / valid.sum(1, keepdim=True).clamp(min=1))
        self.register_buffer("log_probs", start.repeat(classes, 1, 1))
        self.register_buffer("mean", torch.zeros(classes, len(levels)))
        self.register_buffer("log_scale", torch.zeros(classes, len(levels)))
        self.register_buffer("may_miss", missing_columns(space), persistent=False)
        self.register_buffer("missing", torch.zeros(classes, len(levels)))

    @property
    def free_parameters(self) -> int:
        """How many numbers say everything."""
        of_levels = int((self.valid.sum(1) - 1).clamp(min=0).sum())
        return len(self.mean) * (of_levels + 2 * int(self.real.sum()) + int(self.may_miss.sum()))

    def log_factors(self, x: Tensor) -> Tensor:
        """log p(x_i | y) for every class, (n, *shape) to (n, classes, D)."""
        flat = as_device(x, self).flatten(1)
        codes = torch.where(self.real, 0, flat).long()
        gone, flat = flat.isnan().unsqueeze(1), flat.nan_to_num()
        # Normalised again, because stored logarithms are rounded.
        log_probs = torch.log_softmax(self.log_probs, dim=2)
        dimension = torch.arange(flat.shape[1], device=flat.device)
        discrete = log_probs[:, dimension, codes].movedim(0, 1)
        continuous = gaussian_log_prob(
            flat.to(self.mean.dtype).unsqueeze(1), self.mean, self.log_scale
        )
        there = continuous + torch.where(self.may_miss, functional.logsigmoid(-self.missing), 0)
        real = torch.where(gone, functional.logsigmoid(self.missing), there)
        return torch.where(self.real, real, discrete)

    def draw(self, which: Tensor, noise: Noise) -> Tensor:
        """Elements of the classes ``which`` (n,), shape (n, *shape)."""
        discrete = categorical_draw(self.log_probs[which], noise.uniform(len(self.real)))
        normal = noise.normal(len(self.real))
        continuous = self.mean[which] + self.log_scale[which].exp() * normal
        gone = noise.uniform(len(self.real)) < torch.sigmoid(self.missing[which])
        continuous = torch.where(self.may_miss & gone, torch.nan, continuous)
        flat = torch.where(self.real, continuous, discrete)
        return flat.to(self.space.dtype).reshape(len(which), *self.space.shape)

    @torch.no_grad()
    def count(self, batches: Iterator[tuple[Tensor, Tensor]], prior_weight: float) -> Tensor:
        """The closed form from elements and their classes; gives the data of each class, (classes,).

        The Dirichlet prior of each dimension counts as ``prior_weight`` data.
        """
        counts = torch.zeros_like(self.log_probs, dtype=torch.float64)
        total, square = (torch.zeros_like(self.mean, dtype=torch.float64) for _ in range(2))
        rows = torch.zeros(len(self.mean), dtype=torch.float64, device=self.mean.device)
        there = torch.zeros_like(self.mean, dtype=torch.float64)
        for x, which in batches:
            flat = as_device(x, self).flatten(1)
            own = functional.one_hot(which.to(flat.device), len(self.mean)).double()
            rows += own.sum(0)
            there += own.T @ (~flat.isnan()).double()
            codes = torch.where(self.real, 0, flat).long()
            flat = flat.nan_to_num()
            total += own.T @ flat.double()
            square += own.T @ flat.double().square()
            place = (which.to(flat.device).unsqueeze(1) * counts.shape[1]) + torch.arange(
                flat.shape[1], device=flat.device
            )
            place = place * counts.shape[2] + codes
            counts += torch.bincount(place.flatten(), minlength=counts.numel()).reshape(
                counts.shape
            )
        prior = prior_weight * self.valid / self.valid.sum(1, keepdim=True).clamp(min=1)
        seen = there.clamp(min=1)
        chance = (rows.unsqueeze(1) - there + 0.5 * prior_weight) / (
            rows.unsqueeze(1) + prior_weight
        )
        self.missing.copy_(torch.logit(chance))
        frequencies = (counts * self.valid + prior) / (rows[:, None, None] + prior_weight)
        self.log_probs.copy_(frequencies.log())
        self.mean.copy_(total / seen)
        variance = (square / seen - (total / seen) ** 2).clamp(min=1e-12)
        self.log_scale.copy_(0.5 * variance.log())
        return rows


def dimension_levels(space: Space) -> list[int]:
    """How many values each dimension can take; 0 for a real one."""
    return [space.levels] * space.dimensions if isinstance(space, Images) else column_levels(space)
