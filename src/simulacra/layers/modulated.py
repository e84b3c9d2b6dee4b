"""Convolutions whose weights a style modulates (Karras et al. 2020, sec. 2.2).

    w'_ijk = s_i w_ijk,    w''_ijk = w'_ijk / sqrt(sum_ik w'_ijk^2 + eps)              (eq. 1 and 3)

i an input, j an output, k a place of the kernel; each datum has its own s. As s_i belongs to an input
and the root to an output, scaling both around one shared convolution gives the same without a weight
tensor a datum, which a group a datum would need.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.equalised import EqualisedLinear, leaky
from simulacra.layers.resampling import Resampling


class ModulatedConv2d(nn.Module):
    """x (n, inputs, H, W) and styles (n, ``style``) to (n, outputs, H, W).

    Without demodulation, ``gain`` scales the styles.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style: int,
        *,
        kernel: int = 3,
        demodulates: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        weight = torch.randn(outputs, inputs, kernel, kernel)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.affine = EqualisedLinear(style, inputs, start=1.0)
        self.scale = gain / math.sqrt(inputs * kernel**2)
        self.demodulates = demodulates

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles, weight = self.affine(w), self.weight * self.scale
        x = x * styles[:, :, None, None].to(x)
        x = functional.conv2d(x, weight, padding=weight.shape[2] // 2)
        if self.demodulates:
            squares = styles.to(weight).square() @ weight.square().sum((2, 3)).T
            x = x * (squares + 1e-8).rsqrt()[:, :, None, None].to(x)
        return x


class StyledLayer(nn.Module):
    """One layer of a synthesis: double the sides, perhaps, convolve, add noise and bias, leaky ReLU."""

    def __init__(
        self, inputs: int, outputs: int, style: int, grow: Resampling | None = None
    ) -> None:
        super().__init__()
        self.grow = grow
        self.convolve = ModulatedConv2d(inputs, outputs, style)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """``noise``: (n, 1, H, W), or None for none of it."""
        x = self.convolve(x if self.grow is None else self.grow(x), w)
        if noise is not None:
            x = x + (noise.to(self.strength) * self.strength).to(x)
        return leaky(x + self.bias[:, None, None].to(x))
