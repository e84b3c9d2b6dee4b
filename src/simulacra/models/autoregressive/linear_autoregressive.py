"""Linear autoregression AR(k): each entry is a linear function of the k before it, and Gaussian noise.

    x_i = b_i + sum_{j=1..k} w_ij x_{i-j} + s_i e_i,      e_i ~ N(0, 1)

in the order of the columns, or along a signal with its channels side by side. Fitted in closed form by
least squares from second moments, one pass over the data (Hamilton 1994, sec. 5.2, conditional on the
start). With k = D - 1 it is the Gaussian with a full covariance, with k = 0 independence. ``shared`` has
one rule for all places of a signal but the first k, as a stationary process has.

All entries together are Gaussian with precision A^T diag(1/s^2) A, where A has a unit diagonal and -w_ij
beside it, so completion of any mask is exact (Bishop 2006, eq. 2.96).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Diagnosable, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.front_door import as_device, require_no_missing
from simulacra.layers.order import in_order, out_of_order
from simulacra.probability.distributions import gaussian_log_prob
from simulacra.probability.noise import row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Labels, Measure, Series, Space, Table, Vectors


@dataclass(frozen=True)
class Config:
    """``order`` is k; ``ridge`` is added to the diagonal of second moments, as a share of it."""

    order: int = 1
    shared: bool = False
    ridge: float = 1e-6


class LinearAutoregressive(nn.Module, Sampler, Density, Factorised, Completer, Diagnosable):
    """Rules (R, k) of weights, the nearest entry first, with intercepts and noise (R,)."""

    spaces: ClassVar = (Vectors, Table, Series)
    conditions: ClassVar = ()
    weights: Tensor
    intercept: Tensor
    log_scale: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        require_no_missing(space, who="a linear autoregression")
        if space.measure is not Measure.LEBESGUE:
            reason = f"a linear autoregression models real numbers, and these are {space}"
            raise Refusal(
                "CFG-095", reason, way_out="leave categories out, or choose another model"
            )
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        if not 0 <= config.order < space.dimensions:
            reason = f"{space.dimensions} entries cannot have order {config.order}"
            raise Refusal("CFG-098", reason, way_out=f"set 0 to {space.dimensions - 1}")
        place = torch.arange(space.dimensions)
        period = space.channels if isinstance(space, Series) else 1
        later = config.order + place % period
        self.rule = torch.where(place < config.order, place, later) if config.shared else place
        rules = int(self.rule.max()) + 1
        self.register_buffer("weights", torch.zeros(rules, config.order))
        self.register_buffer("intercept", torch.zeros(rules))
        self.register_buffer("log_scale", torch.zeros(rules))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """All that stands before, as far as some ten data a weight go; one rule along a signal."""
        shared = isinstance(space, Series)
        data = num_examples * (space.dimensions if shared else 1)
        return Config(order=max(min(space.dimensions - 1, data // 10, 64), 0), shared=shared)

    @classmethod
    def toy(cls) -> LinearAutoregressive:
        return cls(Vectors(2), Config(order=1))

    @property
    def kind(self) -> Kind:
        return Kind.EXACT

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.weights.device)
        normal = noise.normal(self.space.dimensions).to(self.weights)
        order = self.config.order
        # Columns 0..order-1 are zeros before the start, which the rules give no weight.
        drawn = normal.new_zeros((num_samples, order + self.space.dimensions))
        for i, rule in enumerate(self.rule.tolist()):
            before = drawn[:, i : i + order].flip(1)
            mean = self.intercept[rule] + before @ self.weights[rule]
            drawn[:, order + i] = mean + self.log_scale[rule].exp() * normal[:, i]
        return out_of_order(drawn[:, order:], self.space).to(self.space.dtype)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.log_factors(x).flatten(1).sum(1)

    def log_factors(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        flat = in_order(as_device(x, self), self.space).to(self.weights.dtype)
        told = (self._before(flat) * self.weights[self.rule]).sum(2) + self.intercept[self.rule]
        factors = gaussian_log_prob(flat, told, self.log_scale[self.rule].expand_as(told))
        return out_of_order(factors, self.space)

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The exact conditional distribution of the rest, whatever is known."""
        noise = row_noise(len(x), generator, self.weights.device)
        normal = noise.normal(self.space.dimensions).double()
        flat = in_order(as_device(x, self), self.space).double()
        held = in_order(as_device(known, self), self.space)
        mean, precision = self._joint()
        for mask in torch.unique(held, dim=0):
            rows, hidden = (held == mask).all(1), ~mask
            if not hidden.any():
                continue
            root = torch.linalg.cholesky(precision[hidden][:, hidden])
            pull = (flat[rows] - mean)[:, mask] @ precision[mask][:, hidden]
            centre = mean[hidden] - torch.cholesky_solve(pull.T, root).T
            spread = torch.linalg.solve_triangular(root.T, normal[rows][:, hidden].T, upper=True)
            flat[rows.nonzero(), hidden.nonzero().T] = centre + spread.T
        filled = out_of_order(flat, self.space).to(self.space.dtype)
        return torch.where(as_device(known, self), as_device(x, self), filled)

    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        order, rules = self.config.order, len(self.intercept)
        weights = sum(min(rule, order) for rule in range(rules))
        return {"free parameters": float(weights + 2 * rules)}

    def _joint(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and precision (D, D) of all entries, float64."""
        size, order = self.space.dimensions, self.config.order
        lower = torch.eye(size, dtype=torch.float64, device=self.weights.device)
        for i, rule in enumerate(self.rule.tolist()):
            nearest = self.weights[rule].double()[: min(order, i)]
            lower[i, i - len(nearest) : i] = -nearest.flip(0)
        intercept = self.intercept[self.rule].double().unsqueeze(1)
        mean = torch.linalg.solve_triangular(lower, intercept, upper=False)[:, 0]
        scaled = lower * (-self.log_scale[self.rule].double()).exp().unsqueeze(1)
        return mean, scaled.T @ scaled

    def _before(self, flat: Tensor) -> Tensor:
        """The k entries before each, the nearest first and zeros before the start, (n, D, k)."""
        padded = functional.pad(flat, (self.config.order, 0))
        return padded.unfold(1, self.config.order + 1, 1)[:, :, :-1].flip(2)

    @torch.no_grad()
    def solve(self, batches: Iterator[Batch], noise: object, clock: Clock) -> Mapping[str, float]:
        """Least squares of each rule, from the moments of (1, the k before, the entry)."""
        rules, width = len(self.intercept), self.config.order + 2
        moments = torch.zeros((rules, width, width), dtype=torch.float64)
        counts, rows = torch.zeros(rules, dtype=torch.float64), 0
        for batch in batches:
            flat = in_order(batch.x.cpu(), self.space).double()
            parts = torch.ones_like(flat).unsqueeze(2), self._before(flat), flat.unsqueeze(2)
            z = torch.cat(parts, dim=2).movedim(0, 1)
            moments.index_add_(0, self.rule, z.mT @ z)
            counts.index_add_(0, self.rule, torch.full_like(self.rule, len(flat)).double())
            rows += len(flat)
        moments /= counts[:, None, None]
        mean = moments[:, 0, 1:]
        covariance = moments[:, 1:, 1:] - mean.unsqueeze(2) * mean.unsqueeze(1)
        inner, towards = covariance[:, :-1, :-1], covariance[:, :-1, -1]
        square = covariance[:, -1, -1].clamp(min=0)
        ridge = self.config.ridge * torch.diag_embed(inner.diagonal(dim1=1, dim2=2))
        # Entries before the start are always zero: the pseudo-inverse gives them no weight.
        solved = torch.linalg.lstsq(inner + ridge, towards.unsqueeze(2), driver="gelsd").solution
        weights = solved[:, :, 0]
        self.weights.copy_(weights)
        self.intercept.copy_(mean[:, -1] - (weights * mean[:, :-1]).sum(1))
        rest = square - (weights * towards).sum(1)
        floor = 1e-9 * moments[:, -1, -1] + 1e-30
        self.log_scale.copy_(0.5 * torch.maximum(rest, floor).log())
        return {"counted": float(rows), "finished": 1.0}

    def game(self) -> Game:
        size = max(1, min(1000, (1 << 24) // (self.space.dimensions * (self.config.order + 2))))
        return Game([Stage([Rewrite("solve", self.solve, sweep=True)], rounds=1)], batch_size=size)
