"""The generator of StyleGAN2: a mapping from noise to styles, and a synthesis that draws by them.

Karras, Laine & Aila 2019 (the mapping); Karras et al. 2020 (modulation; sums over all sizes, fig. 7b).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from simulacra.layers.equalised import EqualisedLinear, leaky, pixel_norm
from simulacra.layers.modulated import ModulatedConv2d, StyledLayer
from simulacra.layers.pyramid import sides
from simulacra.layers.resampling import Resampling
from simulacra.probability.noise import Noise
from simulacra.spaces import Images


class StyleRules(Protocol):
    """The settings that the networks need."""

    @property
    def latent(self) -> int: ...
    @property
    def style(self) -> int: ...
    @property
    def mapping_layers(self) -> int: ...
    @property
    def mapping_rate(self) -> float: ...
    @property
    def channels(self) -> int: ...
    @property
    def widest(self) -> int: ...


def style_pyramid(space: Images, config: StyleRules) -> tuple[list[tuple[int, int]], list[int]]:
    """Sizes from the image down, and how many channels there are at each."""
    sizes = sides(space)
    return sizes, [min(config.channels * 2**level, config.widest) for level in range(len(sizes))]


class Mapping(nn.Module):
    """f: z (n, latent) and classes (n, K) to styles w (n, style)."""

    def __init__(self, config: StyleRules, classes: int) -> None:
        super().__init__()
        widths = [config.latent + classes] + [config.style] * config.mapping_layers
        self.layers = nn.ModuleList(
            EqualisedLinear(width, config.style, rate=config.mapping_rate) for width in widths[:-1]
        )

    def forward(self, z: Tensor, classes: Tensor | None) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            x = pixel_norm(z.to(next(self.parameters())))
            if classes is not None:
                x = torch.cat([x, classes.to(x) * math.sqrt(classes.shape[1])], dim=1)
            for layer in self.layers:
                x = leaky(layer(x))
            return x


class Synthesis(nn.Module):
    """g: a style for each layer, (n, layers, style), to images about [-1, 1]."""

    def __init__(self, space: Images, config: StyleRules) -> None:
        super().__init__()
        sizes, widths = style_pyramid(space, config)
        sizes, widths = sizes[::-1], widths[::-1]
        self.start = nn.Parameter(torch.randn(widths[0], *sizes[0]))
        self.first = StyledLayer(widths[0], widths[0], config.style)
        self.layers = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level in range(1, len(sizes)):
            grow = Resampling(sizes[level - 1], sizes[level])
            self.grow.append(grow)
            self.layers.append(StyledLayer(widths[level - 1], widths[level], config.style, grow))
            self.layers.append(StyledLayer(widths[level], widths[level], config.style))
        self.pictures = nn.ModuleList(
            ModulatedConv2d(width, space.channels, config.style, kernel=1, demodulates=False)
            for width in widths
        )
        # One level of every channel is enough: doubled, it stays what it is.
        self.level = nn.Parameter(torch.zeros(space.channels, 1, 1))
        self.sizes, self.depth = sizes, 1 + len(self.layers)

    def forward(self, w: Tensor, noise: Noise | None) -> Tensor:
        """``noise`` may serve more rows than there are; None is its mean."""

        def drawn(size: tuple[int, int]) -> Tensor | None:
            return None if noise is None else noise.normal(1, *size)[: len(w)]

        x = self.start.expand(len(w), *self.start.shape)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.first(x, w[:, 0], drawn(self.sizes[0]))
        image = self.pictures[0](x, w[:, 0])
        for level, size in enumerate(self.sizes[1:]):
            place = 1 + 2 * level
            x = self.layers[2 * level](x, w[:, place], drawn(size))
            x = self.layers[2 * level + 1](x, w[:, place + 1], drawn(size))
            image = self.grow[level](image) + self.pictures[level + 1](x, w[:, place + 1])
        whole: Tensor = image + self.level
        return whole


class StyleGenerator(nn.Module):
    """The mapping and the synthesis."""

    def __init__(self, space: Images, config: StyleRules, classes: int) -> None:
        super().__init__()
        self.mapping = Mapping(config, classes)
        self.synthesis = Synthesis(space, config)
