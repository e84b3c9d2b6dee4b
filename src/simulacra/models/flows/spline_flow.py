"""Neural spline flow: monotonic rational-quadratic splines, told by networks of the other entries.

Every entry goes through a spline of its own (Durkan et al. 2019, sec. 3.1; ``probability/splines.py``)

    y_i = g(x_i; theta_i),    log |det| = sum log g'(x_i; theta_i),

whose bins and slopes theta_i a network tells: from the entries before it ('autoregressive', a masked
network, one pass a block; the way back is entry by entry), or from the half that a block leaves
as it is ('coupling', one pass both ways). Splines with a few bins are far freer than scales and
shifts: they give one entry several modes, or the flat box of a dequantised pixel. Between blocks,
entries are mixed by an invertible linear map W = P L U (app. B), or put into the opposite order.

Paper: Durkan, Bekasov, Murray & Papamakarios 2019, 'Neural Spline Flows'. Changed: plain perceptrons
for residual ones; blocks that start as the identity; images are vectors of pixels after a logit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from simulacra.contract import Decoder, Density, Encoder, Sampler, Scorer
from simulacra.families.flow import NormalisingFlow
from simulacra.layers.bijections import Bijection, Chain, Flatten, InvertibleLinear
from simulacra.layers.coupling import half_mask, zeroed
from simulacra.layers.flow import Flow
from simulacra.layers.masked_linear import AutoregressiveNet
from simulacra.layers.mlp import multilayer_perceptron
from simulacra.layers.table_reals import real_shape, real_size
from simulacra.probability.splines import inverse_spline, numbers_of_a_spline, spline
from simulacra.spaces import Images, Labels, Space, Table, Vectors


@dataclass(frozen=True)
class Config:
    """``bins`` of each spline on [-``bound``, ``bound``]; ``hidden`` units in each of the ``layers``
    hidden layers of a block. ``linear`` maps between blocks, else the opposite order. ``alpha`` keeps
    the logit of images finite; ``least_scale`` is the least deviation of a pixel, in logits, that is
    stretched to 1; ``importance_samples`` are the draws of u that ``log_prob`` averages p(x + u) over,
    for images."""

    form: Literal["autoregressive", "coupling"] = "autoregressive"
    blocks: int = 5
    bins: int = 8
    bound: float = 5.0
    linear: bool = True
    hidden: int = 128
    layers: int = 2
    dropout: float = 0.0
    alpha: float = 0.05
    least_scale: float = 0.2
    importance_samples: int = 1
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class SplineAutoregressive(Bijection):
    """y_i = g(x_i; theta(x_1 .. x_i-1)), of entries as they come or ``backwards``."""

    def __init__(
        self, network: AutoregressiveNet, bound: float, *, backwards: bool = False
    ) -> None:
        super().__init__()
        self.network, self.bound, self.backwards = network, bound, backwards

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = x.flip(1) if self.backwards else x
        y, log_slope = spline(x, self.network(x, given), self.bound)
        return y, log_slope.sum(1)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        x = self.network.solve(y, given, lambda _, one, told: inverse_spline(one, told, self.bound))
        return x.flip(1) if self.backwards else x


class SplineCoupling(Bijection):
    """Splines for the entries at ``moved``, as those at ``kept`` tell (sec. 3.2)."""

    kept: Tensor
    moved: Tensor

    def __init__(self, mask: Tensor, bins: int, bound: float, network: nn.Module) -> None:
        super().__init__()
        self.bins, self.bound, self.network = bins, bound, network
        self.register_buffer("kept", mask.nonzero().flatten(), persistent=False)
        self.register_buffer("moved", (1 - mask).nonzero().flatten(), persistent=False)

    def _told(self, x: Tensor, given: Tensor | None) -> Tensor:
        # A single entry is told by nothing: by a zero, as a layer needs an input.
        seen = x[:, self.kept] if len(self.kept) else x.new_zeros(len(x), 1)
        flat = self.network(seen if given is None else torch.cat([seen, given], dim=1))
        told: Tensor = flat.unflatten(1, (len(self.moved), numbers_of_a_spline(self.bins)))
        return told

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        changed, log_slope = spline(x[:, self.moved], self._told(x, given), self.bound)
        return x.index_copy(1, self.moved, changed), log_slope.sum(1)

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        changed = inverse_spline(y[:, self.moved], self._told(y, given), self.bound)
        return y.index_copy(1, self.moved, changed)


class SplineFlow(NormalisingFlow, Sampler, Density, Encoder, Decoder, Scorer):
    """Blocks of splines between data and standard normal noise."""

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
        size = real_size(space)
        steps: list[Bijection] = [Flatten(real_shape(space))]
        masks = _masks(size, config.blocks)
        for index in range(config.blocks):
            if index and config.linear:
                steps.append(InvertibleLinear(size))
            if config.form == "coupling":
                steps.append(_coupling(masks[index], config, extra))
            else:
                backwards = index > 0 and not config.linear
                steps.append(_autoregressive(size, config, extra, backwards=backwards))
        self.flow = Flow(
            space, condition, Chain(steps), alpha=config.alpha, least_scale=config.least_scale
        )

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Few wide blocks in opposite orders for images, linear maps between blocks for the rest."""
        if isinstance(space, Images):
            hidden = 512 if space.dimensions >= 256 and num_examples >= 5000 else 128
            config = Config(blocks=2, hidden=hidden, layers=1, linear=False)
        else:
            config = Config(linear=space.dimensions <= 100, importance_samples=10)
        few = num_examples < 5000
        return replace(config, dropout=0.2, weight_decay=0.1) if few else config

    @classmethod
    def toy(cls) -> SplineFlow:
        config = Config(
            blocks=2, bins=4, hidden=8, layers=1, bound=4, batch_size=16, learning_rate=5e-3
        )
        return cls(Vectors(2), config)


def _autoregressive(
    size: int, config: Config, extra: int, *, backwards: bool
) -> SplineAutoregressive:
    network = AutoregressiveNet(
        size,
        numbers_of_a_spline(config.bins),
        config.hidden,
        config.layers,
        extra=extra,
        dropout=config.dropout,
    )
    return SplineAutoregressive(network, config.bound, backwards=backwards)


def _coupling(mask: Tensor, config: Config, extra: int) -> SplineCoupling:
    kept = int(mask.sum())
    told = (len(mask) - kept) * numbers_of_a_spline(config.bins)
    sizes = [max(kept, 1) + extra, *[config.hidden] * config.layers, told]
    network = multilayer_perceptron(sizes, dropout=config.dropout)
    last = network[-1]
    assert isinstance(last, nn.Linear)
    zeroed(last)
    return SplineCoupling(mask, config.bins, config.bound, network)


def _masks(size: int, count: int) -> list[Tensor]:
    """Halves that are kept: one by lot, then its complement, then another by lot."""
    lots = torch.Generator().manual_seed(0)
    masks: list[Tensor] = []
    while len(masks) < count:
        mask = half_mask(size)[torch.randperm(size, generator=lots)]
        masks += [mask, 1 - mask] if size > 1 else [mask]
    return masks
