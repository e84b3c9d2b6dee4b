"""Fully convolutional encoders and decoders for images and for sequences, by strided convolutions.

As in van den Oord et al. 2017, sec. 4.1: convolutions of twice the stride go down, residual blocks
stand at the smallest size, and transposed convolutions go up. Sequences are images of one row. Sizes
that the strides do not divide are filled up with zeros before, and cut after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.layout import channels_last
from simulacra.layers.pyramid import Residual
from simulacra.layers.transposed import TransposedConvolution

Size = tuple[int, int]


@dataclass(frozen=True)
class Strides:
    """A ``size`` (height, width) that ``steps`` steps make smaller by ``stride`` each."""

    size: Size
    steps: int
    stride: Size = (2, 2)

    @property
    def small(self) -> Size:
        """The size after all steps, rounded up."""
        height, width = (
            math.ceil(side / stride**self.steps)
            for side, stride in zip(self.size, self.stride, strict=True)
        )
        return height, width

    @property
    def filled(self) -> Size:
        """The size before all steps that gives ``small`` exactly."""
        (height, width), (down, across) = self.small, self.stride
        return height * down**self.steps, width * across**self.steps

    @property
    def around(self) -> Size:
        """The sides of the residual blocks' kernels: three, of one row only one."""
        return (1 if self.stride[0] == 1 else 3, 3)

    def convolution(self, channels: int, outputs: int) -> nn.Conv2d:
        """One step down; the kernel is twice the stride along every axis that gets smaller."""
        kernel, padding = self._kernel()
        return nn.Conv2d(channels, outputs, kernel, stride=self.stride, padding=padding)

    def back(self, channels: int, outputs: int) -> TransposedConvolution:
        """One step up."""
        kernel, padding = self._kernel()
        return TransposedConvolution(channels, outputs, kernel, self.stride, padding)

    def _kernel(self) -> tuple[Size, Size]:
        """The sides of a step's kernel, and what it is padded by."""
        (down, across), (high, wide) = self.stride, (_twice(one) for one in self.stride)
        return (high, wide), ((high - down) // 2, (wide - across) // 2)


def _twice(stride: int) -> int:
    return stride if stride == 1 else 2 * stride


class StridedEncoder(nn.Module):
    """(n, channels, *size) to (n, outputs, *small)."""

    def __init__(
        self, strides: Strides, channels: int, hidden: int, blocks: int, outputs: int
    ) -> None:
        super().__init__()
        self.strides = strides
        parts: list[nn.Module] = []
        for step in range(strides.steps):
            parts += [strides.convolution(hidden if step else channels, hidden), nn.SiLU()]
        around = strides.around
        padding = (around[0] // 2, around[1] // 2)
        reads = hidden if strides.steps else channels
        parts += [nn.Conv2d(reads, hidden, around, padding=padding)]
        parts += [Residual(hidden, around) for _ in range(blocks)]
        self.body = nn.Sequential(*parts, nn.SiLU(), nn.Conv2d(hidden, outputs, 1))
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        (height, width), (high, wide) = self.strides.size, self.strides.filled
        x = functional.pad(x, (0, wide - width, 0, high - height))
        out: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        return out


class StridedDecoder(nn.Module):
    """(n, channels, *small) to (n, outputs, *size)."""

    def __init__(
        self, strides: Strides, channels: int, hidden: int, blocks: int, outputs: int
    ) -> None:
        super().__init__()
        self.strides = strides
        around = strides.around
        padding = (around[0] // 2, around[1] // 2)
        parts: list[nn.Module] = [nn.Conv2d(channels, hidden, around, padding=padding)]
        parts += [Residual(hidden, around) for _ in range(blocks)]
        for step in range(strides.steps):
            last = step == strides.steps - 1
            parts += [nn.SiLU(), strides.back(hidden, outputs if last else hidden)]
        if not strides.steps:
            parts += [nn.SiLU(), nn.Conv2d(hidden, outputs, 1)]
        self.body = nn.Sequential(*parts)
        channels_last(self)

    def forward(self, z: Tensor) -> Tensor:
        height, width = self.strides.size
        out: Tensor = self.body(z.contiguous(memory_format=torch.channels_last))
        return out[:, :, :height, :width]
