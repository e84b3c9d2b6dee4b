"""Layers with equalised learning rates, and what stands between them (Karras et al. 2018, sec. 4).

    y = (g / sqrt(fan in)) W x + b,    W ~ N(0, 1)

The scale that other networks give their first weights is a factor here, so that Adam's steps, whose size
does not depend on that of gradients, change all weights at one relative speed. A ``rate`` below one
slows a layer down (Karras et al. 2019, app. C): W ~ N(0, 1 / rate^2), and the factor is ``rate`` of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.adversarial_rules import Rules, for_images
from simulacra.processes import of_all_processes, own_rows
from simulacra.refusals import Refusal
from simulacra.spaces import Images

GAIN = math.sqrt(2)
GROUP = 4
"""So many data are compared at once by ``with_deviation``."""


class EqualisedLinear(nn.Module):
    """(n, inputs) to (n, outputs); the bias starts at ``start``."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, *, rate: float = 1.0, start: float = 0.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), start / rate)) if bias else None
        self.scale, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.rate
        return functional.linear(x, self.weight * self.scale, bias)


class EqualisedConv2d(nn.Module):
    """(n, inputs, H, W) to (n, outputs, H, W), the ``kernel`` odd."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, bias: bool = True) -> None:
        super().__init__()
        weight = torch.randn(outputs, inputs, kernel, kernel)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[2] // 2
        return functional.conv2d(x, self.weight * self.scale, self.bias, padding=padding)


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times a gain that keeps the size of what passes.

    The gain comes first, the same to rounding: the one tensor that is kept for gradients is the result.
    """
    return functional.leaky_relu(x * GAIN, 0.2, inplace=True)


def pixel_norm(x: Tensor) -> Tensor:
    """x / sqrt(mean_c x_c^2), over the channels (n, C, …) of each place (ibid., sec. 4.2)."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def with_deviation(x: Tensor) -> Tensor:
    """(n, C, H, W) and a channel more: how much a group of data deviates, on average (ibid., sec. 3).

    A group is every (n / 4)-th datum, or as near to four as divides n.
    """
    whole = of_all_processes(x.float(), dim=0)
    size = next(size for size in range(min(GROUP, len(whole)), 0, -1) if len(whole) % size == 0)
    groups = whole.reshape(size, -1, *x.shape[1:])
    # Far faster than var(0), whose rows lie apart in memory.
    variance = (groups - groups.mean(0)).square().mean(0)
    deviation = (variance + 1e-8).sqrt().mean((1, 2, 3))
    own = own_rows(deviation.repeat(size), len(x)).to(x)
    plane = own.reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
    return torch.cat([x, plane], dim=1)


def for_equalised(space: Images, num_examples: int) -> dict[str, Any]:
    """What is recommended for images, with a quarter of the penalty: of runs on flowers, those with less
    of it came nearer to the data."""
    found = for_images(space, num_examples)
    return found | {"penalty": found["penalty"] / 4}


def require_no_norm(rules: Rules) -> None:
    """Refuse spectral norms of weights whose size is a factor of its own."""
    if rules.spectral:
        reason = "the critic's weights have equalised learning rates, and no norms of their own"
        raise Refusal("CFG-185", reason, way_out="leave spectral out; R1 keeps its slope in check")
