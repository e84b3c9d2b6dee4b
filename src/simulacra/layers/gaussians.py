"""K Gaussians over real rows: densities, draws, conditionals, and their fit from weighted moments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from simulacra.probability.distributions import categorical_draw
from simulacra.refusals import Refusal

Covariance = Literal["full", "diagonal", "tied"]
NEGLIGIBLE = 1e-12
"""A smaller weight is left out of the scatter, and no component has less."""


@dataclass
class Moments:
    """Sums over data, float64: counts (K,), first (K, D), and second moments.

    ``second`` is (K, D, D) for full, (1, D, D) for tied and (K, D) for diagonal covariances."""

    counts: Tensor
    first: Tensor
    second: Tensor

    def add(self, z: Tensor, shares: Tensor) -> None:
        """Rows z (n, D) with the weights that they have for each Gaussian, (n, K)."""
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
                some = shares[:, k] > NEGLIGIBLE
                rows = z[some]
                second.addmm_((rows * shares[some, k : k + 1]).T, rows)


class Gaussians(nn.Module):
    """N(mu_k, Sigma_k), k < K; buffers hold mu_k and an upper triangular P_k: Sigma_k^-1 = P_k P_k^T."""

    means: Tensor
    precision_cholesky: Tensor

    def __init__(self, count: int, dimensions: int, covariance: Covariance) -> None:
        super().__init__()
        self.covariance = covariance
        self.register_buffer("means", torch.randn(count, dimensions))
        if covariance == "diagonal":
            precision = torch.ones(count, dimensions)
        else:
            precision = torch.eye(dimensions).repeat(count if covariance == "full" else 1, 1, 1)
        self.register_buffer("precision_cholesky", precision)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def free_parameters(self) -> int:
        """How many numbers say everything."""
        count, size = self.means.shape
        of_one = size if self.covariance == "diagonal" else size * (size + 1) // 2
        return count * size + len(self.precision_cholesky) * of_one

    def log_density(self, z: Tensor) -> Tensor:
        """log N(z; mu_k, Sigma_k), rows (n, D) to (n, K)."""
        roots = self.precision_cholesky
        slopes = roots if self.covariance == "diagonal" else roots.diagonal(dim1=1, dim2=2)
        constant = slopes.log().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi)
        squares = [self._distance(z, k) for k in range(len(self))]
        return constant - 0.5 * torch.stack(squares, dim=1)

    def draw(self, which: Tensor, normal: Tensor) -> Tensor:
        """Draws of the Gaussians ``which`` (n,) from standard normal rows (n, D)."""
        z = normal.to(self.means.dtype).clone()
        for k in range(len(self)):
            z[which == k] = self.means[k] + self._coloured(z[which == k], k)
        return z

    def complete(
        self, z: Tensor, known: Tensor, log_weights: Tensor, uniform: Tensor, normal: Tensor
    ) -> Tensor:
        """z (n, D) with the entries that are not ``known`` drawn from the mixture, given the others.

        ``log_weights`` (n, K), ``uniform`` (n,) and ``normal`` (n, D).
        """
        z = z.clone()
        for mask in torch.unique(known, dim=0):
            rows = (known == mask).all(1)
            z[rows] = self._conditional(
                z[rows], mask, log_weights[rows], uniform[rows], normal[rows].to(z.dtype)
            )
        return z

    def _conditional(
        self, z: Tensor, known: Tensor, log_weights: Tensor, uniform: Tensor, normal: Tensor
    ) -> Tensor:
        """All rows share one mask ``known`` (D,).

        With the precision Lambda, b given a is N(mu_b - Lambda_bb^-1 Lambda_ba (a - mu_a), Lambda_bb^-1)
        (Bishop 2006, eq. 2.96), and p(a) = p(a, b) / p(b|a) at the mean of b.
        """
        hidden = ~known
        if not hidden.any():
            return z
        told, drawn = [], []
        for k in range(len(self)):
            precision = self._precision(k)
            root = torch.linalg.cholesky(precision[hidden][:, hidden])
            pull = (z - self.means[k])[:, known] @ precision[known][:, hidden]
            mean = self.means[k, hidden] - torch.cholesky_solve(pull.T, root).T
            filled = z.clone()
            filled[:, hidden] = mean
            own = self.log_density(filled)[:, k] - root.diagonal().log().sum()
            told.append(log_weights[:, k] + own)
            spread = torch.linalg.solve_triangular(root.T, normal[:, hidden].T, upper=True).T
            filled[:, hidden] = mean + spread
            drawn.append(filled)
        which = categorical_draw(torch.stack(told, 1), uniform)
        return torch.stack(drawn, 1)[torch.arange(len(z), device=z.device), which]

    def _precision(self, k: int) -> Tensor:
        if self.covariance == "diagonal":
            return torch.diag(self.precision_cholesky[k].square())
        root = self._root(k)
        return root @ root.T

    def _root(self, k: int) -> Tensor:
        """P_k: one of K, or the tied one."""
        return self.precision_cholesky[min(k, len(self.precision_cholesky) - 1)]

    def _coloured(self, normal: Tensor, k: int) -> Tensor:
        """Standard normal rows into rows of covariance Sigma_k."""
        if self.covariance == "diagonal":
            return normal / self.precision_cholesky[k]
        rows: Tensor = torch.linalg.solve_triangular(self._root(k).T, normal.T, upper=False)
        return rows.T

    def _distance(self, z: Tensor, k: int) -> Tensor:
        """The squared Mahalanobis distance of each row to mu_k, shape (n,)."""
        away = z - self.means[k]
        if self.covariance == "diagonal":
            return (away * self.precision_cholesky[k]).square().sum(1)
        return (away @ self._root(k)).square().sum(1)

    def no_moments(self) -> Moments:
        """Sums over no data yet."""
        shapes = (self.means[:, 0], self.means, self.precision_cholesky)
        return Moments(*(torch.zeros_like(like, dtype=torch.float64) for like in shapes))

    def maximise(self, moments: Moments, *, shrinkage: float, ridge: float) -> None:
        """Means and covariances of the moments (Bishop 2006, eq. 9.24 f.), shrunk to the tied one."""
        counts = moments.counts
        means = torch.where(
            counts.unsqueeze(1) > NEGLIGIBLE,
            moments.first / counts.unsqueeze(1),
            self.means.double(),
        )
        scatter = moments.second.clone()
        for k, mean in enumerate(means):
            square = mean.square() if scatter.ndim == 2 else mean.outer(mean)
            scatter[min(k, len(scatter) - 1)] -= counts[k] * square
        tied = scatter.sum(0) / counts.sum()
        # An empty component gets the tied covariance.
        shrinkage = shrinkage + NEGLIGIBLE
        for k, own in enumerate(scatter):
            weight = counts[k] if len(scatter) == len(counts) else counts.sum()
            covariance = (own + shrinkage * tied) / (weight + shrinkage)
            self.precision_cholesky[k].copy_(_inverse_root(covariance, ridge))
        self.means.copy_(means)


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
