"""Glow: actnorm, an invertible mixing of the channels, and an affine coupling, on several scales.

One step of the flow (Kingma & Dhariwal 2018, fig. 2a and table 1) is

    actnorm:            y = s * x + b, channel by channel,
    1x1 convolution:    y = W x, log |det| = H W sum log |s|, with W = P L (U + diag(s)) (eq. 9 to 11),
    affine coupling:    y_b = exp(log s) * x_b + t, with log s and t told by x_a, half of the channels.

``steps`` of them work on each scale after a squeeze (2 x 2 pixels become channels); then half of the
channels leave as code, after those that stay have told their mean and scale (fig. 2b). Actnorms start
with what brings the first images to mean 0 and deviation 1. Images are integers: uniform noise and
a logit make them reals, which turns the density into a lower bound.

Paper: Kingma & Dhariwal 2018. Changed: scales limited as r tanh(.) for a sigmoid; a logit and
standardised pixels for images in [-1/2, 1/2]; narrower networks; weights averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.contract import Decoder, Density, Encoder, Sampler, Scorer
from simulacra.families.flow import NormalisingFlow
from simulacra.layers.bijections import ActNorm, Bijection, Chain, InvertibleLinear
from simulacra.layers.coupling import AffineCoupling, half_mask, squeeze, unsqueeze, zeroed
from simulacra.layers.dequantiser import Dequantisation
from simulacra.layers.dropout import Dropout
from simulacra.layers.flow import Flow
from simulacra.layers.layout import channels_last
from simulacra.spaces import Images, Labels, Space


@dataclass(frozen=True)
class Config:
    """``steps`` of flow on each of the ``scales``; ``hidden`` channels of the coupling networks.
    ``alpha`` keeps the logit of images finite; ``least_scale`` is the least deviation of a pixel, in
    logits, that is stretched to 1; ``importance_samples`` are the draws of u that ``log_prob`` averages
    p(x + u) over; ``dequantisation`` is uniform noise or learned (``layers/dequantiser.py``)."""

    scales: int = 2
    steps: int = 8
    hidden: int = 96
    dropout: float = 0.0
    alpha: float = 0.05
    least_scale: float = 0.2
    dequantisation: Dequantisation = "variational"
    importance_samples: int = 1
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.0


class CouplingNet(nn.Module):
    """(n, C, H, W) to (n, 2 C, H, W): 3x3, 1x1 and 3x3 convolutions, the last starting at zero."""

    def __init__(self, channels: int, hidden: int, *, extra: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, 3, padding=1)
        self.given = nn.Linear(extra, hidden, bias=False) if extra else None
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.last = zeroed(nn.Conv2d(hidden, 2 * channels, 3, padding=1))
        self.dropout = Dropout(dropout)
        channels_last(self)

    def forward(self, x: Tensor, given: Tensor | None) -> Tensor:
        h = self.first(x.contiguous(memory_format=torch.channels_last))
        if self.given is not None and given is not None:
            h = h + self.given(given)[:, :, None, None]
        h = functional.relu(self.middle(functional.relu(h)))
        # The last layer is small, and what it says is as precise as the likelihood.
        with torch.autocast(h.device.type, enabled=False):
            out: Tensor = self.last(self.dropout(h).to(self.last.weight.dtype))
        return out


class Scale(nn.Module):
    """Steps on one grid of ``channels``, after a squeeze or not; then the first half may leave."""

    def __init__(
        self, channels: int, config: Config, extra: int, *, squeezed: bool, splits: bool
    ) -> None:
        super().__init__()
        self.squeezed, self.leaving = squeezed, channels // 2 if splits else 0
        steps: list[Bijection] = []
        for _ in range(config.steps):
            steps += [ActNorm(channels), InvertibleLinear(channels)]
            steps.append(_coupling(half_mask(channels), channels, config, extra))
        if splits:
            # Whatever stays tells the mean and scale of what leaves.
            stays = (torch.arange(channels) >= self.leaving).float()
            steps.append(_coupling(stays, channels, config, extra))
        self.chain = Chain(steps)

    def forward(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What stays, what leaves, and log |det|, shape (n,)."""
        y, log_det = self.chain(squeeze(x) if self.squeezed else x, given)
        return y[:, self.leaving :], y[:, : self.leaving], log_det

    def inverse(self, stays: Tensor, leaves: Tensor, given: Tensor | None) -> Tensor:
        x = self.chain.inverse(torch.cat([leaves, stays], dim=1), given)
        return unsqueeze(x) if self.squeezed else x


class MultiScale(Bijection):
    """Images (n, C, H, W) to codes (n, D), through scales while the sides can be halved."""

    def __init__(self, space: Images, config: Config, extra: int) -> None:
        super().__init__()
        channels, height, width = space.shape
        self.grids: list[tuple[int, int, int]] = []
        self.scales = nn.ModuleList()
        more = True
        while more:
            squeezed = height % 2 == 0 and width % 2 == 0
            if squeezed:
                channels, height, width = 4 * channels, height // 2, width // 2
            halves = height % 2 == 0 and width % 2 == 0
            more = squeezed and halves and len(self.scales) + 1 < config.scales
            scale = Scale(channels, config, extra, squeezed=squeezed, splits=more)
            self.scales.append(scale)
            self.grids.append((scale.leaving, height, width))
            channels -= scale.leaving
        self.last = (channels, height, width)

    def forward(self, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det, codes = x.new_zeros(len(x)), []
        for scale in self.scales:
            x, leaves, more = scale(x, given)
            codes.append(leaves.flatten(1))
            log_det = log_det + more
        return torch.cat([*codes, x.flatten(1)], dim=1), log_det

    def inverse(self, y: Tensor, given: Tensor | None = None) -> Tensor:
        sizes = [math.prod(grid) for grid in [*self.grids, self.last]]
        *codes, last = y.split(sizes, dim=1)
        x: Tensor = last.reshape(len(y), *self.last)
        for scale, code, grid in zip(
            reversed(self.scales), reversed(codes), reversed(self.grids), strict=True
        ):
            assert isinstance(scale, Scale)
            x = scale.inverse(x, code.reshape(len(y), *grid), given)
        return x


def _coupling(mask: Tensor, channels: int, config: Config, extra: int) -> AffineCoupling:
    network = CouplingNet(channels, config.hidden, extra=extra, dropout=config.dropout)
    return AffineCoupling(network, mask[:, None, None])


class Glow(NormalisingFlow, Sampler, Density, Encoder, Decoder, Scorer):
    """Steps of actnorm, 1x1 convolution and coupling between images and standard normal noise."""

    config: Config
    spaces: ClassVar = (Images,)
    conditions: ClassVar = (Labels,)
    normal_codes: ClassVar = True

    def __init__(
        self, space: Space, config: Config | None = None, *, condition: Labels | None = None
    ) -> None:
        super().__init__()
        assert isinstance(space, Images)
        self.space, self.condition_space = space, condition
        self.config = config = config or Config()
        extra = condition.count if condition else 0
        self.flow = Flow(
            space,
            condition,
            MultiScale(space, config, extra),
            alpha=config.alpha,
            least_scale=config.least_scale,
            dequantisation=config.dequantisation,
        )

    @classmethod
    def recommend(cls, space: Space, num_examples: int) -> Config:
        """Regularised for few data."""
        if num_examples < 5000:
            return Config(dropout=0.2, weight_decay=0.1)
        return Config()

    @classmethod
    def toy(cls) -> Glow:
        return cls(Images(1, 2, 4, levels=2), Config(steps=2, hidden=8, batch_size=16))

    @property
    def gains_by_bf16(self) -> bool:
        return self.config.hidden >= 32
