"""Convolutional encoders and decoders that halve and double the sides of an image."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.layout import channels_last
from simulacra.layers.normalisation import ChannelNorm
from simulacra.spaces import Images


def sides(space: Images, smallest: int = 4) -> list[tuple[int, int]]:
    """The sizes from the image down, each half of the last rounded up, to sides of about ``smallest``."""
    found = [(space.height, space.width)]
    while min(found[-1]) > smallest + 3:
        height, width = found[-1]
        found.append(((height + 1) // 2, (width + 1) // 2))
    return found


FULL = 32
"""The smaller side up to which a size has residual layers and all its channels."""


def _widths(sizes: list[tuple[int, int]], channels: int) -> list[int]:
    """The channels of every size: ``channels`` where the smaller side first is at most ``FULL``, twice
    as many at each of the next two sizes, and half as many, 8 at least, at each larger one.

    A size of a large image then costs no more than one of a small image, instead of four times as much
    for each doubling of the sides; most of what a pixel says its neighbours say too.
    """
    first = next(level for level, size in enumerate(sizes) if min(size) <= FULL)
    least = min(channels, 8)
    steps = [min(level - first, 2) for level in range(len(sizes))]
    return [channels << step if step >= 0 else max(least, channels >> -step) for step in steps]


class Residual(nn.Module):
    """x + conv(act(conv(norm(x)))), the norm over channels; ``kernel`` has odd sides."""

    def __init__(self, channels: int, kernel: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.body = nn.Sequential(
            ChannelNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, kernel, padding=padding),
            nn.SiLU(),
            nn.Conv2d(channels, channels, kernel, padding=padding),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _body(size: tuple[int, int], width: int) -> nn.Module:
    """What a size does beside its convolution to the next: little where its pixels are many."""
    return Residual(width) if min(size) <= FULL else nn.SiLU()


class PyramidEncoder(nn.Module):
    """Images in [-1, 1], (n, C, H, W), and optional extra features to (n, outputs)."""

    def __init__(self, space: Images, channels: int, extra: int, outputs: int) -> None:
        super().__init__()
        sizes = sides(space)
        widths = _widths(sizes, channels)
        parts: list[nn.Module] = [nn.Conv2d(space.channels + extra, widths[0], 3, padding=1)]
        for size, (width, following) in zip(sizes, itertools.pairwise(widths), strict=False):
            parts += [_body(size, width), nn.Conv2d(width, following, 3, stride=2, padding=1)]
        self.body = nn.Sequential(*parts, Residual(widths[-1]), nn.SiLU())
        self.out = nn.Linear(widths[-1] * sizes[-1][0] * sizes[-1][1], outputs)
        channels_last(self)

    def forward(self, x: Tensor, extra: Tensor | None) -> Tensor:
        if extra is not None:
            planes = extra[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, planes], dim=1)
        x = self.body(x.contiguous(memory_format=torch.channels_last))
        out: Tensor = self.out(x.flatten(1))
        return out


class PyramidDecoder(nn.Module):
    """(n, inputs) to (n, outputs, H, W)."""

    def __init__(self, space: Images, channels: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.sizes = sides(space)[::-1]
        widths = _widths(self.sizes[::-1], channels)[::-1]
        self.start = nn.Linear(inputs, widths[0] * self.sizes[0][0] * self.sizes[0][1])
        self.first = widths[0]
        self.bodies = nn.ModuleList(map(_body, self.sizes, widths))
        self.between = nn.ModuleList(
            nn.Conv2d(width, following, 3, padding=1)
            for width, following in itertools.pairwise(widths)
        )
        # A large size ends in its own activation.
        self.last = nn.SiLU() if min(self.sizes[-1]) <= FULL else nn.Identity()
        self.out = nn.Conv2d(widths[-1], outputs, 3, padding=1)
        channels_last(self)

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z).reshape(len(z), self.first, *self.sizes[0])
        x = x.contiguous(memory_format=torch.channels_last)
        for index, body in enumerate(self.bodies):
            x = body(x)
            if index < len(self.between):
                x = functional.interpolate(x, size=self.sizes[index + 1], mode="nearest")
                x = self.between[index](x)
        out: Tensor = self.out(self.last(x))
        return out
