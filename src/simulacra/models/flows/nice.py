"""NICE: additive couplings, which keep volumes, and one scale for every entry at the end.

A coupling keeps a half of the entries and shifts the others as the kept ones tell (Dinh et al. 2015,
eq. 3 and 4), and at the end every entry has a scale of its own (sec. 3.3):

    y_I2 = x_I2 + m(x_I1),    z_i = S_ii h_i,    log p(x) = sum_i log p_Z(z_i) + log S_ii,

with p_Z a logistic, log p_Z(z) = -log(1 + e^z) - log(1 + e^-z). The halves, even and odd entries, take
turns. Images are integers: uniform noise and a division by the levels make them reals in [0, 1), which
turns the density into a lower bound; vectors and real tables have it exactly.

Paper: Dinh, Krueger & Bengio 2015. Changed: vectors are brought to mean 0 and deviation 1 beforehand;
networks that start at zero and scales that start from the data; AdamW with a cosine and averaged
weights for Adam; labels may be given.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Decoder, Density, Encoder, Sampler, Scorer
from simulacra.families.flow import NormalisingFlow
from simulacra.layers.bijections import ActNorm, Bijection, Chain, Flatten
from simulacra.layers.coupling import zeroed
from simulacra.layers.dropout import Dropout
from simulacra.layers.flow import Flow
from simulacra.layers.table_reals import real_shape, real_size
from simulacra.spaces import Images, Labels, Space, Table, Vectors


@dataclass(frozen=True)
class Config:
    """``hidden`` rectified units in each of the ``layers`` hidden layers of a coupling.
    ``importance_samples`` are the draws of u that ``log_prob`` averages p(x + u) over."""

    couplings: int = 4
    hidden: int = 1000
    layers: int = 5
    dropout: float = 0.0
    importance_samples: int = 1
    batch_size: int = 200
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class AdditiveCoupling(Bijection):
    """y = x + m(kept half) on the other half; the ``kept`` entries are 0, 2, 4, .. or 1, 3, 5, .."""

    def __init__(self, size: int, config: Config, extra: int, *, odd: bool) -> None:
        super().__init__()
        self.kept, self.moved = slice(int(odd), None, 2), slice(1 - int(odd), None, 2)
        inputs = len(range(size)[self.kept]) + extra
        sizes = [inputs, *[config.hidden] * config.layers]
        parts: list[nn.Module] = []
        for inside, outside in itertools.pairwise(sizes):
            parts += [nn.Linear(inside, outside), nn.ReLU(), Dropout(config.dropout)]
        last = zeroed(nn.Linear(sizes[-1], len(range(size)[self.moved])))
        self.network = nn.Sequential(*parts, last)

    def _shift(self, x: Tensor, given: Tensor | None) -> Tensor:
        """m(x_I1) where entries move, 0 elsewhere."""
        seen = x[:, self.kept]
        told = self.network(seen if given is None else torch.cat([seen, given], dim=1))
        shift = torch.zeros_like(x)
        shift[:, self.moved] = told.to(x.dtype)
        return shift

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x + self._shift(x, given), x.new_zeros(len(x))

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        return y - self._shift(y, given)


class NICE(NormalisingFlow, Sampler, Density, Encoder, Decoder, Scorer):
    """Additive couplings between data and logistic noise."""

    spaces: ClassVar = (Images, Vectors, Table)
    conditions: ClassVar = (Labels,)

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        extra = condition.count if condition else 0
        size = real_size(space)
        # A single entry has no other to tell its shift, and only its scale is left.
        couplings = [
            AdditiveCoupling(size, config, extra, odd=index % 2 == 1)
            for index in range(config.couplings if size > 1 else 0)
        ]
        steps = [Flatten(real_shape(space)), *couplings, ActNorm(size)]
        self.flow = Flow(space, condition, Chain(steps), alpha=None, prior="logistic")

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """The paper's networks for images, small ones for the rest; regularised for few data."""
        large = isinstance(space, Images) and space.dimensions >= 256 and num_examples >= 5000
        draws = 1 if isinstance(space, Images) else 10
        small = Config(hidden=128, layers=2, importance_samples=draws)
        config = Config() if large else small
        few = num_examples < 5000
        return replace(config, dropout=0.2, weight_decay=0.1) if few else config

    @classmethod
    def toy(cls) -> NICE:
        return cls(Vectors(2), Config(hidden=8, layers=1, batch_size=16, learning_rate=1e-2))
