"""Bernoulli mixture: every datum comes from one of K sorts, in each of which dimensions are independent.

    p(x) = sum_k pi_k prod_i theta_ki(x_i)

with Bernoulli factors for two levels and categorical ones for more (latent classes: Lazarsfeld & Henry
1968). Start: k-means++ and Lloyd's iterations on a random subset. Then EM over all data (Bishop 2006,
eq. 9.56 to 9.60):

    r_nk = pi_k p(x_n|k) / sum_j pi_j p(x_n|j),    N_k = sum_n r_nk,
    theta_ki(v) = (sum_n r_nk [x_ni = v] + a m_i(v)) / (N_k + a),    m_i the frequencies of all data.

The prior weight a leaves no level impossible. Given labels y, the weights are pi_yk and the sorts are
shared between the labels. The posterior of k makes completion of any mask exact, and gives the
conditionals p(x_i | x_1 … x_{i-1}) in raster order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Completer, Density, Diagnosable, Factorised, Kind, Sampler
from simulacra.games import Batch, Clock, Game, Rewrite, Stage
from simulacra.layers.front_door import as_device, drawn_labels, one_hot_labels
from simulacra.probability.clustering import RandomSubset, k_means
from simulacra.probability.distributions import categorical_draw
from simulacra.probability.noise import Noise, row_noise
from simulacra.refusals import Refusal
from simulacra.spaces import Images, Labels, Space, Tokens

MOST_LEVELS = 256
_AT_ONCE = 1 << 24
"""Numbers that the conditionals of one chunk of rows may take."""
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Config:
    """``prior_weight`` is a, in data; ``tolerance`` in nats a datum; ``subset`` is the largest number of
    data that the k-means start looks at."""

    components: int = 10
    prior_weight: float = 1.0
    tolerance: float = 1e-3
    rounds: int = 100
    subset: int = 10_000
    batch_size: int = 4000


class BernoulliMixture(nn.Module, Sampler, Density, Factorised, Completer, Diagnosable):
    """K sorts of independent dimensions; buffers hold log pi (labels, K) and log theta (K, D, levels)."""

    spaces: ClassVar = (Images, Tokens)
    conditions: ClassVar = (Labels,)
    log_weights: Tensor
    log_theta: Tensor
    reached: Tensor

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        self.levels = levels = space.levels if isinstance(space, Images) else _vocabulary(space)
        if levels > MOST_LEVELS:
            raise Refusal(
                "CFG-097",
                f"a table of {levels} levels for every sort and dimension is too wide",
                way_out=f"give data of at most {MOST_LEVELS} levels, or choose another model",
            )
        labels = condition.count if condition else 1
        start = torch.randn(config.components, space.dimensions, levels)
        self.register_buffer("log_theta", torch.log_softmax(start, dim=2))
        uniform = torch.full((labels, config.components), -math.log(config.components))
        self.register_buffer("log_weights", uniform)
        self.register_buffer("reached", torch.tensor(torch.finfo(torch.float32).min))

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """One sort for about 50 data, with more weight to the prior where there are few."""
        return Config(components=min(max(num_examples // 50, 1), 500))

    @classmethod
    def toy(cls) -> BernoulliMixture:
        return cls(
            Images(1, 3, 3, levels=2), Config(components=3, tolerance=0.0, rounds=50, batch_size=64)
        )

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
        noise = row_noise(num_samples, generator, self.log_theta.device)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        which = categorical_draw(self._log_weights(condition, num_samples), noise.uniform())
        drawn = categorical_draw(self._log_theta()[which], noise.uniform(self.space.dimensions))
        return drawn.to(self.space.dtype).reshape(num_samples, *self.space.shape)

    def log_prob(
        self,
        x: Tensor,
        *,
        condition: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return torch.logsumexp(self._log_joint(as_device(x, self), condition), dim=1)

    def log_factors(self, x: Tensor, *, condition: Tensor | None = None) -> Tensor:
        flat = as_device(x, self).flatten(1).long()
        weights, log_theta = self._log_weights(condition, len(x)), self._log_theta()
        dimension = torch.arange(flat.shape[1], device=flat.device)
        rows = max(1, _AT_ONCE // log_theta[:, :, 0].numel())
        parts = []
        for codes, log_weights in zip(flat.split(rows), weights.split(rows), strict=True):
            each = log_theta[:, dimension, codes].movedim(0, 1)  # (n, K, D)
            upto = torch.logsumexp(log_weights.unsqueeze(2) + each.cumsum(2), dim=1)
            parts.append(upto.diff(dim=1, prepend=torch.zeros_like(upto[:, :1])))
        return torch.cat(parts).reshape(x.shape) if parts else flat.to(log_theta).reshape(x.shape)

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
        noise = row_noise(len(x), generator, self.log_theta.device)
        x, known = as_device(x, self), as_device(known, self)
        condition = drawn_labels(condition, self.condition_space, noise.uniform())
        posterior = self._log_joint(x, condition, known.flatten(1))
        which = categorical_draw(posterior, noise.uniform())
        drawn = categorical_draw(self._log_theta()[which], noise.uniform(self.space.dimensions))
        return torch.where(known, x, drawn.to(self.space.dtype).reshape(x.shape))

    def diagnose(self, x: Tensor, *, condition: Tensor | None = None) -> dict[str, float]:
        sorts, dimensions, levels = self.log_theta.shape
        labels = len(self.log_weights)
        shares = torch.softmax(self._log_joint(as_device(x, self), condition), dim=1).mean(0)
        return {
            "free parameters": float(labels * (sorts - 1) + sorts * dimensions * (levels - 1)),
            "sorts in use (perplexity)": float(torch.exp(torch.special.entr(shares).sum())),
        }

    def _log_theta(self) -> Tensor:
        # Normalised again, because stored logarithms are rounded.
        return torch.log_softmax(self.log_theta, dim=2)

    def _log_weights(self, condition: Tensor | None, rows: int) -> Tensor:
        """log pi of each row's label, shape (rows, K)."""
        log_weights = torch.log_softmax(self.log_weights, dim=1)
        ones = one_hot_labels(condition, self.condition_space, rows)
        if ones is None:
            return log_weights.expand(rows, -1)
        return log_weights[ones.argmax(1).to(log_weights.device)]

    def _log_joint(
        self, x: Tensor, condition: Tensor | None, known: Tensor | None = None
    ) -> Tensor:
        """log pi_k + log p(x | k), shape (n, K); of the ``known`` dimensions (n, D) alone, if given."""
        log_theta, ones = self._log_theta(), self._ones(x)
        lowest, above = log_theta[:, :, 0], (log_theta[:, :, 1:] - log_theta[:, :, :1]).flatten(1)
        if known is None:
            each = lowest.sum(1) + ones.flatten(1) @ above.T
        else:
            ones = ones * known.unsqueeze(2)
            each = known.to(lowest.dtype) @ lowest.T + ones.flatten(1) @ above.T
        return self._log_weights(condition, len(x)) + each

    def _ones(self, x: Tensor) -> Tensor:
        """A one where a dimension is at a level above the lowest, shape (n, D, levels - 1)."""
        above = torch.arange(1, self.levels, device=x.device)
        return (x.flatten(1).unsqueeze(2) == above).to(self.log_theta.dtype)

    def _counted(self, shares: Tensor, ones: Tensor) -> Tensor:
        """How often each sort has each level: (n, K) and (n, D, levels - 1) to (K, D, levels)."""
        higher = (shares.T @ ones.flatten(1)).unflatten(1, ones.shape[1:]).double()
        lowest = shares.sum(0).double()[:, None, None] - higher.sum(2, keepdim=True)
        return torch.cat([lowest.clamp(min=0), higher], dim=2)

    @torch.no_grad()
    def start(self, batches: Iterator[Batch], noise: Noise, clock: Clock) -> Mapping[str, float]:
        """Frequencies from all data, and the sorts from k-means on a random subset."""
        seed = int(noise.uniform()[0].double() * 2**24)
        subset = RandomSubset(self.config.subset, torch.Generator().manual_seed(seed))
        for batch in batches:
            subset.add(batch.x)
        x = subset.rows()
        if len(x) < self.config.components:
            raise Refusal(
                "DATA-052",
                f"{len(x)} data cannot fill {self.config.components} sorts",
                way_out="set fewer components, or give more data",
            )
        ones = self._ones(as_device(x, self))
        labels = k_means(ones.flatten(1), self.config.components, seed)
        shares = functional.one_hot(labels, self.config.components).to(ones)
        self._maximise(
            self._counted(shares, ones), shares.sum(0).double().expand_as(self.log_weights)
        )
        self.reached.fill_(torch.finfo(torch.float32).min)
        return {"data looked at": float(len(x))}

    @torch.no_grad()
    def expect_maximise(
        self, batches: Iterator[Batch], noise: Noise, clock: Clock
    ) -> Mapping[str, float]:
        """One step of EM; tells the log-likelihood before it, in nats a datum."""
        counts = torch.zeros_like(self.log_theta, dtype=torch.float64)
        weights = torch.zeros_like(self.log_weights, dtype=torch.float64)
        total, rows = 0.0, 0
        for batch in batches:
            x = as_device(batch.x, self)
            log_joint = self._log_joint(x, batch.condition)
            log_prob = torch.logsumexp(log_joint, dim=1)
            total, rows = total + float(log_prob.double().sum()), rows + len(x)
            shares = (log_joint - log_prob.unsqueeze(1)).exp()
            counts += self._counted(shares, self._ones(x))
            ones = one_hot_labels(batch.condition, self.condition_space, len(x))
            of_label = shares.sum(0, keepdim=True) if ones is None else ones.to(shares).T @ shares
            weights += of_label
        gain = total / rows - float(self.reached)
        self.reached.fill_(total / rows)
        self._maximise(counts, weights)
        finished = float(gain < self.config.tolerance)
        return {"log-likelihood (nats)": total / rows, "finished": finished}

    def _maximise(self, counts: Tensor, weights: Tensor) -> None:
        """The M step, from how often sorts have levels (K, D, levels), and labels sorts (labels, K)."""
        frequencies = counts.sum(0) + 1.0  # one datum of each level, so that none is impossible
        frequencies = frequencies / frequencies.sum(1, keepdim=True)
        prior = self.config.prior_weight
        self.log_theta.copy_(
            ((counts + prior * frequencies) / (counts.sum(2, keepdim=True) + prior)).log()
        )
        shares = weights + _NEGLIGIBLE
        self.log_weights.copy_((shares / shares.sum(1, keepdim=True)).log())

    def game(self) -> Game:
        config = self.config
        begin = Stage([Rewrite("start", self.start, sweep=True)], rounds=1)
        climb = Stage([Rewrite("EM", self.expect_maximise, sweep=True)], rounds=config.rounds)
        return Game([begin, climb], batch_size=config.batch_size)


def _vocabulary(space: Space) -> int:
    assert isinstance(space, Tokens)
    return space.vocabulary
