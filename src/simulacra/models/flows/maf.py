"""MAF: a flow of masked networks, each of which tells every entry's mean and scale from those before.

A block is an autoregressive Gaussian, read as a map from data to noise (Papamakarios et al. 2017,
eq. 3 to 5):

    u_i = (x_i - mu_i) exp(-alpha_i),    mu_i, alpha_i = f(x_1 .. x_i-1),    log |det| = -sum alpha_i.

One masked network (MADE) gives all mu and alpha in one pass, so a density costs one pass a block.
The way back is one entry after the other, but as each hidden unit is worked out once, a sample
costs no more products than a density. The blocks stand in opposite orders (sec. 3.2). With one block
and a linear network the model holds every Gaussian with a full covariance.

Paper: Papamakarios, Pavlakou & Murray 2017. Changed: no batch normalisation, but data brought to mean
0 and deviation 1 beforehand (the biases of a block scale and shift as freely as it does); blocks that
start as the identity; alpha within a learned reach; a logit with alpha 0.05 for 1e-6; labels may be
given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Decoder, Density, Encoder, Sampler, Scorer
from simulacra.families.flow import NormalisingFlow
from simulacra.layers.bijections import Bijection, Chain, Flatten
from simulacra.layers.flow import Flow
from simulacra.layers.masked_linear import AutoregressiveNet
from simulacra.layers.table_reals import real_shape, real_size
from simulacra.spaces import Images, Labels, Space, Table, Vectors


@dataclass(frozen=True)
class Config:
    """``hidden`` units in each of the ``layers`` hidden layers of a block. ``alpha`` keeps the logit of
    images finite; ``least_scale`` is the least deviation of a pixel, in logits, that is stretched to
    1; ``importance_samples`` are the draws of u that ``log_prob`` averages p(x + u) over."""

    blocks: int = 5
    hidden: int = 128
    layers: int = 1
    dropout: float = 0.0
    alpha: float = 0.05
    least_scale: float = 0.2
    importance_samples: int = 1
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class AffineAutoregressive(Bijection):
    """u_i = (x_i - mu_i) exp(-alpha_i) (eq. 4), of entries as they come or ``backwards``.

    -alpha = r tanh(raw), with a learned reach r of each entry, so that no outlier makes it run away.
    """

    def __init__(self, network: AutoregressiveNet, *, backwards: bool = False) -> None:
        super().__init__()
        self.network, self.backwards = network, backwards
        self.reach = nn.Parameter(torch.ones(network.size))

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = x.flip(1) if self.backwards else x
        mean, raw = self.network(x, given).unbind(-1)
        log_slope = self.reach * torch.tanh(raw)
        return (x - mean) * log_slope.exp(), log_slope.sum(1)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        x = self.network.solve(y, given, self._entry)
        return x.flip(1) if self.backwards else x

    def _entry(self, index: int, y: Tensor, told: Tensor) -> Tensor:
        """x_i = u_i exp(alpha_i) + mu_i (eq. 3)."""
        mean, raw = told.unbind(-1)
        return y * torch.exp(-self.reach[index] * torch.tanh(raw)) + mean


class MAF(NormalisingFlow, Sampler, Density, Encoder, Decoder, Scorer):
    """Masked autoregressive blocks between data and standard normal noise."""

    spaces: ClassVar = (Images, Vectors, Table)
    conditions: ClassVar = (Labels,)
    normal_codes: ClassVar = True

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        extra = condition.count if condition else 0
        steps: list[Bijection] = [Flatten(real_shape(space))]
        for index in range(config.blocks):
            network = AutoregressiveNet(
                real_size(space),
                2,
                config.hidden,
                config.layers,
                extra=extra,
                dropout=config.dropout,
            )
            steps.append(AffineAutoregressive(network, backwards=index > 0))
        self.flow = Flow(
            space, condition, Chain(steps), alpha=config.alpha, least_scale=config.least_scale
        )

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Wide blocks for images, dropout for few data."""
        if isinstance(space, Images):
            hidden = 1024 if space.dimensions >= 256 and num_examples >= 5000 else 256
            config = Config(hidden=hidden)
        else:
            config = Config(layers=2, importance_samples=10)
        few = num_examples < 5000
        return replace(config, dropout=0.2, weight_decay=0.1) if few else config

    @classmethod
    def toy(cls) -> MAF:
        return cls(Vectors(2), Config(blocks=3, hidden=8, batch_size=16, learning_rate=5e-3))
