"""Gaussian mixture: every datum comes from one of K normal distributions, fitted by EM.

p(z) = sum_k pi_k N(z; mu_k, Sigma_k), with full, diagonal or one tied covariance. Start: k-means++
(Arthur & Vassilvitskii 2007) and Lloyd's iterations on a random subset. Then EM (Dempster, Laird &
Rubin 1977) over all data (Bishop 2006, eq. 9.23 to 9.27):

    r_nk = pi_k N(z_n; mu_k, Sigma_k) / sum_j pi_j N(z_n; mu_j, Sigma_j),    N_k = sum_n r_nk,
    mu_k = sum_n r_nk z_n / N_k,    S_k = sum_n r_nk (z_n - mu_k)(z_n - mu_k)^T,    Sigma_k = S_k / N_k.

Real data enter as z = (x - shift) / scale, with variance one. Images are dequantised, which gives a
lower bound: by their front door 'uniform' as x + u (Theis et al. 2016), by 'quantile' through each
pixel's own quantiles (probability/quantiles.py), so that pixels that hardly change cost nothing and one
standard normal is the model of independent pixels. The noise u is the same in every sweep, so that EM
climbs. Changed besides: ``ridge`` is added to every Sigma_k, and it is shrunk towards the tied one,
Sigma = sum_k S_k / N, as in regularised discriminant analysis (Friedman 1989):

    Sigma_k = (S_k + shrinkage Sigma) / (N_k + shrinkage) + ridge I.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from simulacra.contract import Completer, Density, Kind, Sampler
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.front_door import as_device
from simulacra.probability.clustering import RandomSubset, k_means
from simulacra.probability.dequantisation import dequantised, quantised
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import BatchNoise, Noise, row_noise, scoring_noise
from simulacra.probability.quantiles import from_normal_scores, to_normal_scores
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Measure, Space, Table, Vectors

_NEGLIGIBLE = 1e-12  # a smaller responsibility is left out of the scatter


@dataclass(frozen=True)
class Config:
    """``shrinkage`` is in data, ``ridge`` in variances of the data, ``tolerance`` in nats a datum.

    ``front`` is the front door of images, ``draws`` the number of u that EM takes for each image, and
    ``prior_weight`` how many data the uniform prior of one pixel's frequencies counts as. ``subset`` is
    the largest number of data that the k-means start looks at."""

    components: int = 10
    covariance: Literal["full", "diagonal", "tied"] = "full"
    front: Literal["quantile", "uniform"] = "quantile"
    draws: int = 1
    prior_weight: float = 0.5
    shrinkage: float = 0.0
    ridge: float = 1e-6
    tolerance: float = 1e-3
    rounds: int = 100
    subset: int = 20_000
    batch_size: int = 4000


@dataclass
class _Moments:
    """Sums over data, float64: counts (K,), first (K, D), and second moments.

    ``second`` is (K, D, D) for full, (1, D, D) for tied and (K, D) for diagonal covariances."""

    counts: Tensor
    first: Tensor
    second: Tensor

    @classmethod
    def none(cls, means: Tensor, precision: Tensor) -> _Moments:
        shapes = (means[:, 0], means, precision)
        return cls(*(torch.zeros_like(like, dtype=torch.float64) for like in shapes))

    def add(self, z: Tensor, shares: Tensor) -> None:
        """Rows z (n, D) with responsibilities (n, K)."""
        z, shares = z.double(), shares.double()
        self.counts += shares.sum(0)
        self.first += shares.T @ z
        if self.second.ndim == 2:
            self.second += shares.T @ z.square()
        elif len(self.second) == 1 < len(self.counts):
            self.second[0].addmm_(z.T * shares.sum(1), z)
        else:
            for k, second in enumerate(self.second):
                # In many dimensions nearly every datum belongs to one component.
                some = shares[:, k] > _NEGLIGIBLE
                rows = z[some]
                second.addmm_((rows * shares[some, k : k + 1]).T, rows)


class GaussianMixture(nn.Module, Sampler, Density, Completer):
    """K Gaussians; buffers hold log pi_k, mu_k and P_k, upper triangular, with Sigma_k^-1 = P_k P_k^T."""

    representative: ClassVar = True
    spaces: ClassVar = (Images, Vectors, Table)
    conditions: ClassVar = ()
    log_frequencies: Tensor
    shift: Tensor
    scale: Tensor
    log_weights: Tensor
    means: Tensor
    precision_cholesky: Tensor
    reached: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        if isinstance(space, Table) and space.measure is not Measure.LEBESGUE:
            categories = [column.name for column in space.columns if column.kind == "category"]
            raise Refusal(
                "CFG-050",
                f"a Gaussian mixture models real numbers, and {categories[0]!r} is a category",
                way_out="leave such columns out, or choose a model for mixed tables (vae)",
            )
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        count, dimensions = config.components, space.dimensions
        levels = space.levels if isinstance(space, Images) else 0
        self.by_quantile = levels > 0 and config.front == "quantile"
        real = 0 if self.by_quantile else levels
        self.register_buffer("shift", torch.full((dimensions,), real / 2))
        self.register_buffer("scale", torch.full((dimensions,), real / 12**0.5 or 1.0))
        shape = (dimensions, levels) if self.by_quantile else (0, 0)
        self.register_buffer("log_frequencies", torch.full(shape, -math.log(max(levels, 1))))
        self.register_buffer("log_weights", torch.full((count,), -math.log(count)))
        self.register_buffer("means", torch.randn(count, dimensions))
        if config.covariance == "diagonal":
            precision = torch.ones(count, dimensions)
        else:
            matrices = count if config.covariance == "full" else 1
            precision = torch.eye(dimensions).repeat(matrices, 1, 1)
        self.register_buffer("precision_cholesky", precision)
        self.register_buffer("reached", torch.tensor(-math.inf))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Full covariances, one for about 70 data, shrunk by as many data as there are dimensions."""
        return Config(
            components=min(max(num_examples // 70, 1), 60),
            draws=min(max(12_000 // max(num_examples, 1), 1), 8),
            shrinkage=float(min(space.dimensions, 200)),
        )

    @classmethod
    def toy(cls) -> GaussianMixture:
        return cls(Vectors(2), Config(components=3, tolerance=0.0, batch_size=64))

    @property
    def kind(self) -> Kind:
        return Kind.LOWER if isinstance(self.space, Images) else Kind.EXACT

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        noise = row_noise(num_samples, generator, self.means.device)
        which = categorical_draw(self.log_weights.expand(num_samples, -1), noise.uniform())
        z = noise.normal(self.means.shape[1]).to(self.means.dtype)
        for k in range(self.config.components):
            z[which == k] = self.means[k] + self._coloured(z[which == k], k)
        return self._elements(z)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        z, slope = self._coordinates(x, scoring_noise(len(x), generator, self.means.device))
        return torch.logsumexp(self._log_joint(z), dim=1) + slope

    @torch.no_grad()
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The exact conditional distribution of the rest, given the known (dequantised) entries."""
        noise = row_noise(len(x), generator, self.means.device)
        x, known = as_device(x, self), as_device(known, self)
        masks = known.flatten(1)
        # What stands at the unknown places must not matter, even where it is no number.
        z = torch.where(masks, self._coordinates(torch.where(known, x, 0), noise)[0], 0)
        uniform, normal = noise.uniform(), noise.normal(z.shape[1]).to(z.dtype)
        for mask in torch.unique(masks, dim=0):
            rows = (masks == mask).all(1)
            z[rows] = self._conditional(z[rows], mask, uniform[rows], normal[rows])
        return torch.where(known, x, self._elements(z))

    def _conditional(self, z: Tensor, known: Tensor, uniform: Tensor, normal: Tensor) -> Tensor:
        """z (n, D) with the unknown entries drawn; all rows share one mask ``known`` (D,).

        With the precision Lambda, b given a is N(mu_b - Lambda_bb^-1 Lambda_ba (a - mu_a), Lambda_bb^-1)
        (Bishop 2006, eq. 2.96), and p(a) = p(a, b) / p(b|a) at the mean of b.
        """
        hidden = ~known
        if not hidden.any():
            return z
        log_weights, drawn = [], []
        for k in range(self.config.components):
            precision = self._precision(k)
            root = torch.linalg.cholesky(precision[hidden][:, hidden])
            pull = (z - self.means[k])[:, known] @ precision[known][:, hidden]
            mean = self.means[k, hidden] - torch.cholesky_solve(pull.T, root).T
            filled = z.clone()
            filled[:, hidden] = mean
            log_weights.append(self._log_joint(filled)[:, k] - root.diagonal().log().sum())
            spread = torch.linalg.solve_triangular(root.T, normal[:, hidden].T, upper=True).T
            filled[:, hidden] = mean + spread
            drawn.append(filled)
        which = categorical_draw(torch.stack(log_weights, 1), uniform)
        return torch.stack(drawn, 1)[torch.arange(len(z), device=z.device), which]

    def _precision(self, k: int) -> Tensor:
        if self.config.covariance == "diagonal":
            return torch.diag(self.precision_cholesky[k].square())
        root = self._root(k)
        return root @ root.T

    def _root(self, k: int) -> Tensor:
        """P_k: one of K, or the tied one."""
        return self.precision_cholesky[min(k, len(self.precision_cholesky) - 1)]

    def _coloured(self, normal: Tensor, k: int) -> Tensor:
        """Standard normal rows into rows of covariance Sigma_k."""
        if self.config.covariance == "diagonal":
            return normal / self.precision_cholesky[k]
        rows: Tensor = torch.linalg.solve_triangular(self._root(k).T, normal.T, upper=False)
        return rows.T

    def _coordinates(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Elements through the front door: z (n, D), and log |dz / dx| of each row."""
        x = as_device(x, self)
        if self.by_quantile:
            uniform = noise.uniform(self.means.shape[1])
            z, slope = to_normal_scores(x.flatten(1), uniform, self.log_frequencies)
            return z.to(self.means.dtype), slope.to(self.means.dtype)
        values = dequantised(x, noise) if isinstance(self.space, Images) else x
        z = (values.to(self.means.dtype).flatten(1) - self.shift) / self.scale
        return z, -self.scale.log().sum().expand(len(z))

    def _elements(self, z: Tensor) -> Tensor:
        fitted = self.by_quantile
        x = from_normal_scores(z, self.log_frequencies) if fitted else z * self.scale + self.shift
        x = x.reshape(len(z), *self.space.shape)
        if isinstance(self.space, Images):
            return quantised(x, self.space)
        return x.to(self.space.dtype)

    def _log_joint(self, z: Tensor) -> Tensor:
        """log pi_k + log N(z; mu_k, Sigma_k), shape (n, K)."""
        diagonal = self.config.covariance == "diagonal"
        roots = self.precision_cholesky
        slopes = roots if diagonal else roots.diagonal(dim1=1, dim2=2)
        constant = slopes.log().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
        squares = [self._distance(z, k) for k in range(self.config.components)]
        return self.log_weights + constant - 0.5 * torch.stack(squares, dim=1)

    def _distance(self, z: Tensor, k: int) -> Tensor:
        """The squared Mahalanobis distance of each row to mu_k, shape (n,)."""
        away = z - self.means[k]
        if self.config.covariance == "diagonal":
            return (away * self.precision_cholesky[k]).square().sum(1)
        return (away @ self._root(k)).square().sum(1)

    @torch.no_grad()
    def start(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """The front door from all data; means and covariances from k-means on a random subset."""
        seed = int(noise.uniform()[0].double() * 2**24)
        subset = self._set_front_door(batches, torch.Generator().manual_seed(seed))
        if len(subset) < self.config.components:
            raise Refusal(
                "DATA-050",
                f"{len(subset)} data cannot fill {self.config.components} components",
                way_out="set fewer components, or give more data",
            )
        z, _ = self._coordinates(
            subset, BatchNoise(torch.Generator().manual_seed(0), len(subset), subset.device)
        )
        labels = k_means(z, self.config.components, seed)
        moments = _Moments.none(self.means, self.precision_cholesky)
        moments.add(z, nn.functional.one_hot(labels, self.config.components))
        self._maximise(moments)
        self.reached.fill_(-math.inf)
        return {"data looked at": float(len(z))}

    def _set_front_door(self, batches: Iterator[Batch], keys: torch.Generator) -> Tensor:
        """Frequencies or shift and scale; gives a uniformly drawn subset: the smallest keys'."""
        total = torch.zeros_like(self.shift, dtype=torch.float64)
        square, counts = total.clone(), torch.zeros_like(self.log_frequencies, dtype=torch.float64)
        rows, subset = 0, RandomSubset(self.config.subset, keys)
        for batch in batches:
            flat = as_device(batch.x, self).flatten(1)
            rows += len(flat)
            total += flat.double().sum(0)
            square += flat.double().square().sum(0)
            if self.by_quantile:
                ones = torch.ones_like(flat.T, dtype=torch.float64)
                counts.scatter_add_(1, flat.T.long(), ones)
            subset.add(batch.x)
        if self.by_quantile:
            prior = self.config.prior_weight / counts.shape[1]
            self.log_frequencies.copy_(((counts + prior) / (counts + prior).sum(1, True)).log())
        else:
            self._standardise(total / rows, square / rows)
        return subset.rows()

    def _standardise(self, mean: Tensor, square: Tensor) -> None:
        variance = (square - mean.square()).clamp(min=0)
        if isinstance(self.space, Images):
            mean, variance = mean + 0.5, variance + 1 / 12  # those of u
        if not isinstance(self.space, Table):
            # Pixels, and entries of a vector, share their unit; the columns of a table do not.
            variance = variance.mean().expand_as(variance)
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(variance > 0, variance.sqrt(), 1.0))

    @torch.no_grad()
    def expect_maximise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """One step of EM; tells the log-likelihood (or its bound) before it, in nats a datum."""
        moments, total = _Moments.none(self.means, self.precision_cholesky), 0.0
        stream = torch.Generator().manual_seed(0)  # the same u in every sweep
        draws = self.config.draws if isinstance(self.space, Images) else 1
        for batch in batches:
            for _ in range(draws):
                z, slope = self._coordinates(
                    batch.x, BatchNoise(stream, len(batch), self.means.device)
                )
                log_joint = self._log_joint(z)
                log_prob = torch.logsumexp(log_joint, dim=1)
                total += float((log_prob.double() + slope).sum()) / draws
                moments.add(z, (log_joint - log_prob.unsqueeze(1)).exp() / draws)
        log_likelihood = total / float(moments.counts.sum())
        gain = log_likelihood - float(self.reached)
        self.reached.fill_(log_likelihood)
        self._maximise(moments)
        finished = float(gain < self.config.tolerance)
        return {"log-likelihood (nats)": log_likelihood, "finished": finished}

    def _maximise(self, moments: _Moments) -> None:
        """The M step (Bishop 2006, eq. 9.24 to 9.27), with shrinkage and ridge."""
        counts = moments.counts
        means = torch.where(
            counts.unsqueeze(1) > _NEGLIGIBLE,
            moments.first / counts.unsqueeze(1),
            self.means.double(),
        )
        scatter = moments.second
        for k, mean in enumerate(means):
            square = mean.square() if scatter.ndim == 2 else mean.outer(mean)
            scatter[min(k, len(scatter) - 1)] -= counts[k] * square
        tied = scatter.sum(0) / counts.sum()
        # An empty component gets the tied covariance.
        shrinkage = self.config.shrinkage + _NEGLIGIBLE
        for k, own in enumerate(scatter):
            weight = counts[k] if len(scatter) == len(counts) else counts.sum()
            covariance = (own + shrinkage * tied) / (weight + shrinkage)
            self.precision_cholesky[k].copy_(_inverse_root(covariance, self.config.ridge))
        self.means.copy_(means)
        self.log_weights.copy_(((counts + _NEGLIGIBLE) / counts.sum()).log())

    def game(self) -> Game:
        config = self.config
        begin = Stage([Rewrite("start", self.start, sweep=True)], rounds=1)
        climb = Stage([Rewrite("EM", self.expect_maximise, sweep=True)], rounds=config.rounds)
        return Game([begin, climb], batch_size=config.batch_size)


def _inverse_root(covariance: Tensor, ridge: float) -> Tensor:
    """P with (covariance + ridge)^-1 = P P^T, upper triangular (D, D); or (D,) for a diagonal one."""
    if covariance.ndim == 1:
        return (covariance + ridge).rsqrt()
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    root, failed = torch.linalg.cholesky_ex(covariance + ridge * identity)
    if failed:
        raise Refusal(
            "NUM-003",
            "a component's covariance is not positive definite",
            way_out="set a larger ridge, or fewer components",
        )
    inverse: Tensor = torch.linalg.solve_triangular(root, identity, upper=False)
    return inverse.T
