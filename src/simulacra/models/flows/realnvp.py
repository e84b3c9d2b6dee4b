"""RealNVP: an invertible map from data to independent normal noise, built of affine couplings.

With f invertible and z = f(x), the change of variables (Dinh et al. 2017, eq. 2) gives

    log p(x) = log N(f(x); 0, I) + log |det df/dx|.

f is a chain of coupling layers, each of which keeps some entries and scales and shifts the others as
the kept ones tell (eq. 7 to 9), so that inverse and determinant (eq. 6) cost no more than f. Images
pass through a multi-scale architecture (sec. 3.6): couplings, half of the entries leave as code, a
squeeze halves the sides, couplings again. Images are integers: uniform noise and a logit make them
reals (sec. 4.1), which turns the density into a lower bound (``layers/flow.py``).

Paper: Dinh, Sohl-Dickstein & Bengio 2017. Changed: checkerboard couplings work on the squeezed grid,
where they are a choice of channels, at a quarter of the cost; no batch normalisation, but data brought
to mean 0 and deviation 1 beforehand, residual blocks that start as the identity, averaged weights;
SiLU for ReLU, AdamW with a cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from simulacra.contract import Decoder, Density, Encoder, Sampler, Scorer
from simulacra.families.flow import NormalisingFlow
from simulacra.layers.bijections import Bijection
from simulacra.layers.coupling import (
    CHECKERBOARD,
    COLUMNS,
    ROWS,
    AffineCoupling,
    ResidualNet,
    VectorNet,
    board_mask,
    corner_mask,
    half_mask,
    squeeze,
    unsqueeze,
)
from simulacra.layers.dequantiser import Dequantisation
from simulacra.layers.flow import Flow
from simulacra.layers.table_reals import real_size
from simulacra.spaces import Images, Labels, Space, Table, Vectors


@dataclass(frozen=True)
class Config:
    """``couplings`` are those of each scale; ``blocks`` are residual blocks of convolutional networks,
    hidden layers of others. ``alpha`` keeps the logit of images finite (sec. 4.1); ``least_scale`` is
    the least deviation of a pixel, in logits, that is stretched to 1 before the first coupling;
    ``importance_samples`` are the draws of u that ``log_prob`` averages p(x + u) over;
    ``dequantisation`` of images is uniform noise or learned (``layers/dequantiser.py``)."""

    scales: int = 2
    couplings: int = 6
    hidden: int = 64
    blocks: int = 2
    dropout: float = 0.0
    alpha: float = 0.05
    least_scale: float = 0.2
    dequantisation: Dequantisation = "variational"
    importance_samples: int = 1
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class Scale(nn.Module):
    """Couplings on one grid of ``shape``, after a squeeze or not; channels where ``kept`` is 0 leave."""

    keep: Tensor
    leave: Tensor
    order: Tensor

    def __init__(
        self,
        couplings: list[AffineCoupling],
        shape: tuple[int, ...],
        *,
        squeezed: bool = False,
        kept: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(couplings)
        self.squeezed, self.grid = squeezed, shape[1:]
        stays = torch.ones(shape[0]) if kept is None else kept.flatten()
        keep, leave = stays.nonzero().flatten(), (1 - stays).nonzero().flatten()
        self.register_buffer("keep", keep, persistent=False)
        self.register_buffer("leave", leave, persistent=False)
        self.register_buffer("order", torch.cat([keep, leave]).argsort(), persistent=False)

    def forward(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What stays (n, K, *grid), what leaves (n, L, *grid), and log |det|, shape (n,)."""
        x = squeeze(x) if self.squeezed else x
        log_det = x.new_zeros(len(x))
        for coupling in self.couplings:
            x, more = coupling(x, given)
            log_det = log_det + more
        return x[:, self.keep], x[:, self.leave], log_det

    def inverse(self, stays: Tensor, leaves: Tensor, given: Tensor | None) -> Tensor:
        x = torch.cat([stays, leaves], dim=1)[:, self.order]
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, AffineCoupling)
            x = coupling.inverse(x, given)
        return unsqueeze(x) if self.squeezed else x


class Scales(Bijection):
    """Reals (n, *shape) to codes (n, D), scale after scale: what leaves a scale stands first."""

    def __init__(self, scales: list[Scale]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        codes = []
        for scale in self.scales:
            x, leaves, more = scale(x, given)
            codes.append(leaves.flatten(1))
            log_det = log_det + more
        return torch.cat([*codes, x.flatten(1)], dim=1), log_det

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        scales: list[Scale] = list(self.scales)  # type: ignore[arg-type]
        cells = [math.prod(scale.grid) for scale in scales]
        leaving = [len(scale.leave) * count for scale, count in zip(scales, cells, strict=True)]
        *codes, last = y.split([*leaving, len(scales[-1].keep) * cells[-1]], dim=1)
        x: Tensor = last.reshape(len(last), len(scales[-1].keep), *scales[-1].grid)
        for scale, leaves in zip(reversed(scales), reversed(codes), strict=True):
            shape = (len(x), len(scale.leave), *scale.grid)
            x = scale.inverse(x, leaves.reshape(shape), given)
        return x


class RealNVP(NormalisingFlow, Sampler, Density, Encoder, Decoder, Scorer):
    """Affine couplings between data and standard normal noise."""

    representative: ClassVar = True
    normal_codes: ClassVar = True
    config: Config
    spaces: ClassVar = (Images, Vectors, Table)
    conditions: ClassVar = (Labels,)

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        extra = condition.count if condition else 0
        if isinstance(space, Images):
            bijection = Scales(_image_scales(space, config, extra))
        else:
            bijection = Scales(_vector_scale(space, config, extra))
        self.flow = Flow(
            space,
            condition,
            bijection,
            alpha=config.alpha,
            least_scale=config.least_scale,
            dequantisation=config.dequantisation,
        )

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Convolutions for images; regularised for few data."""
        config = Config() if isinstance(space, Images) else Config(importance_samples=10)
        few = num_examples < 5000
        return replace(config, dropout=0.2, weight_decay=0.1) if few else config

    @classmethod
    def toy(cls) -> RealNVP:
        return cls(
            Images(1, 2, 4, levels=2), Config(couplings=4, hidden=8, blocks=1, batch_size=16)
        )

    @property
    def gains_by_bf16(self) -> bool:
        return isinstance(self.space, Images) and self.config.hidden >= 32


def _image_scales(space: Images, config: Config, extra: int) -> list[Scale]:
    """Scales while the sides can be halved, at most ``config.scales``; at least one."""
    channels, height, width = space.shape
    scales: list[Scale] = []
    more = True
    while more:
        squeezed = height % 2 == 0 and width % 2 == 0
        masks = _masks(channels, height, width, squeezed=squeezed)
        if squeezed:
            channels, height, width = 4 * channels, height // 2, width // 2
        more = len(scales) + 1 < config.scales and height % 2 == 0 and width % 2 == 0
        chosen = [masks[index % len(masks)] for index in range(config.couplings)]
        scales.append(
            Scale(
                [AffineCoupling(_convolutional(channels, config, extra), one) for one in chosen],
                (channels, height, width),
                squeezed=squeezed,
                kept=masks[0] if more else None,
            )
        )
        channels = channels // 2
    return scales


def _masks(channels: int, height: int, width: int, *, squeezed: bool) -> list[Tensor]:
    """The masks that take turns, each followed by its complement (fig. 3)."""
    if squeezed:
        chosen = [corner_mask(channels, CHECKERBOARD), corner_mask(channels, ROWS)]
        channels *= 4
    else:
        chosen = [board_mask(height, width).repeat(channels, 1, 1)]
    if channels > 4 or (not squeezed and channels > 1):
        chosen.append(half_mask(channels)[:, None, None])
    else:
        chosen += [corner_mask(channels // 4, COLUMNS)] if squeezed else []
    return [one for mask in chosen for one in (mask, 1 - mask)]


def _convolutional(channels: int, config: Config, extra: int) -> ResidualNet:
    return ResidualNet(channels, config.hidden, config.blocks, extra=extra, dropout=config.dropout)


def _vector_scale(space: Space, config: Config, extra: int) -> list[Scale]:
    """Couplings that keep a half of the entries, then the other, then another half by lot."""
    size = real_size(space)
    lots = torch.Generator().manual_seed(0)
    masks: list[Tensor] = []
    while len(masks) < config.couplings:
        mask = half_mask(size)[torch.randperm(size, generator=lots)]
        masks += [mask, 1 - mask]
    couplings = [
        AffineCoupling(
            VectorNet(size, config.hidden, config.blocks, extra=extra, dropout=config.dropout), mask
        )
        for mask in masks[: config.couplings]
    ]
    return [Scale(couplings, (size,))]
