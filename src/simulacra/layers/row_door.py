"""The front door of models of real rows: elements as z (n, D) of about unit variance, and back.

Real data enter as z = (x - shift) / scale, and tables by ``layers/table_reals.py``. Images are
dequantised, which turns a density into a lower bound: 'uniform' as x + u (Theis et al. 2016), 'quantile'
through each pixel's own quantiles (``probability/quantiles.py``), so that pixels that hardly change cost
nothing and one standard normal is the model of independent pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from simulacra.layers.front_door import as_device, centred, levels_of
from simulacra.layers.table_reals import TableReals, real_size
from simulacra.probability.clustering import RandomSubset
from simulacra.probability.dequantisation import dequantised, quantised
from simulacra.probability.noise import Noise
from simulacra.probability.quantiles import from_normal_scores, to_normal_scores
from simulacra.spaces import Images, Measure, Space, Table

Front = Literal["quantile", "uniform"]


class RowDoor(nn.Module):
    """``front`` is how images enter; ``size`` the number of reals that an element becomes."""

    log_frequencies: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, space: Space, front: Front) -> None:
        super().__init__()
        self.space, self.size = space, real_size(space)
        self.table = TableReals(space) if isinstance(space, Table) else None
        levels = space.levels if isinstance(space, Images) else 0
        self.by_quantile = levels > 0 and front == "quantile"
        real = 0 if self.by_quantile else levels
        self.register_buffer("shift", torch.full((space.dimensions,), real / 2))
        self.register_buffer("scale", torch.full((space.dimensions,), real / 12**0.5 or 1.0))
        shape = (space.dimensions, levels) if self.by_quantile else (0, 0)
        self.register_buffer("log_frequencies", torch.full(shape, -math.log(max(levels, 1))))

    @property
    def bounds(self) -> bool:
        """Whether noise enters, which makes a density of z a lower bound of that of x."""
        return self.space.measure is not Measure.LEBESGUE

    @property
    def free_parameters(self) -> int:
        """Frequencies, each dimension's but one."""
        own = self.log_frequencies[:, 1:].numel()
        return own if self.table is None else self.table.free_parameters

    def known(self, x: Tensor, known: Tensor) -> Tensor:
        """Which entries of z the known entries of x determine, shape (n, ``size``)."""
        return known.flatten(1) if self.table is None else self.table.known(x, known)

    def enter(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Elements as z (n, ``size``), and log |dz / dx| of each row."""
        if self.table is not None:
            return self.table.enter(x, noise)
        x = as_device(x, self)
        if self.by_quantile:
            uniform = noise.uniform(len(self.shift))
            z, slope = to_normal_scores(x.flatten(1), uniform, self.log_frequencies)
            return z.to(self.shift.dtype), slope.to(self.shift.dtype)
        values = dequantised(x, noise) if isinstance(self.space, Images) else x
        z = (values.to(self.shift.dtype).flatten(1) - self.shift) / self.scale
        return z, -self.scale.log().sum().expand(len(z))

    def leave(self, z: Tensor) -> Tensor:
        """Elements of the space that z stands for."""
        if self.table is not None:
            return self.table.leave(z)
        fitted = self.by_quantile
        x = from_normal_scores(z, self.log_frequencies) if fitted else z * self.scale + self.shift
        x = x.reshape(len(z), *self.space.shape)
        if isinstance(self.space, Images):
            return quantised(x, self.space)
        return x.to(self.space.dtype)

    def fit(self, batches: Iterator[Tensor], subset: RandomSubset, prior_weight: float) -> None:
        """Frequencies, or shift and scale, from all data, which ``subset`` looks at too.

        ``prior_weight``: how many data the uniform prior of one pixel's frequencies counts as.
        """
        if self.table is not None:
            self.table.fit(_shown_to(subset, batches), prior_weight)
            return
        total = torch.zeros_like(self.shift, dtype=torch.float64)
        square, counts = total.clone(), torch.zeros_like(self.log_frequencies, dtype=torch.float64)
        rows = 0
        for x in batches:
            flat = as_device(x, self).flatten(1)
            rows += len(flat)
            total += flat.double().sum(0)
            square += flat.double().square().sum(0)
            if self.by_quantile:
                ones = torch.ones_like(flat.T, dtype=torch.float64)
                counts.scatter_add_(1, flat.T.long(), ones)
            subset.add(x)
        if self.by_quantile:
            prior = prior_weight / counts.shape[1]
            self.log_frequencies.copy_(((counts + prior) / (counts + prior).sum(1, True)).log())
        else:
            self._standardise(total / rows, square / rows)

    def _standardise(self, mean: Tensor, square: Tensor) -> None:
        variance = (square - mean.square()).clamp(min=0)
        if isinstance(self.space, Images):
            mean, variance = mean + 0.5, variance + 1 / 12  # those of u
        # Pixels, and entries of a vector, share their unit; the columns of a table do not.
        variance = variance.mean().expand_as(variance)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(variance > 0, variance.sqrt(), 1.0))


class PixelDoor(nn.Module):
    """Images as rows of pixels in [-1, 1], (n, ``size``), and back."""

    def __init__(self, space: Images) -> None:
        super().__init__()
        self.space, self.size = space, space.dimensions

    def enter(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """As the row door's."""
        z = centred(x, self.space.levels).flatten(1)
        return z, z.new_zeros(len(z))

    def leave(self, z: Tensor) -> Tensor:
        """The nearest levels."""
        return levels_of(z.reshape(-1, *self.space.shape), self.space)


def _shown_to(subset: RandomSubset, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The batches, at each of which ``subset`` looks too."""
    for x in batches:
        subset.add(x)
        yield x
