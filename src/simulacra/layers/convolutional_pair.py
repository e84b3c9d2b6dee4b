"""A convolutional generator and a convolutional critic (Radford et al. 2016).

The generator is transposed convolutions with batch normalisation and ReLU, the critic strided
convolutions with leaky ReLU and no normalisation, which a gradient penalty would not allow (Gulrajani et
al. 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.adversarial_rules import Rules
from simulacra.layers.critic_head import CriticHead, Opinion
from simulacra.layers.layout import channels_last
from simulacra.layers.normalisation import BatchNorm
from simulacra.layers.pyramid import sides
from simulacra.layers.transposed import TransposedConvolution
from simulacra.spaces import Images


class ConvolutionalGenerator(nn.Module):
    """Codes (n, inputs) to images in [-1, 1]; ``channels`` are those at full size."""

    def __init__(self, space: Images, inputs: int, channels: int) -> None:
        super().__init__()
        self.sizes = sides(space)[::-1]
        widths = [channels * 2**level for level in range(len(self.sizes))][::-1]
        self.first = widths[0]
        self.start = nn.Linear(inputs, widths[0] * self.sizes[0][0] * self.sizes[0][1], bias=False)
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths)
        self.grow = nn.ModuleList(
            TransposedConvolution(width, width // 2, (4, 4), (2, 2), (1, 1), bias=False)
            for width in widths[:-1]
        )
        self.out = nn.Conv2d(widths[-1], space.channels, 3, padding=1)
        start_small(self)

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z).reshape(len(z), self.first, *self.sizes[0])
        x = functional.relu(self.norms[0](x.contiguous(memory_format=torch.channels_last)))
        for index, grow in enumerate(self.grow):
            height, width = self.sizes[index + 1]
            x = grow(x)[:, :, :height, :width]
            x = functional.relu(self.norms[index + 1](x))
        return torch.tanh(self.out(x))


class ConvolutionalCritic(CriticHead):
    """Images in [-1, 1] and classes (n, ``classes``) to an opinion of ``rules``' kind."""

    def __init__(self, space: Images, classes: int, channels: int, rules: Rules) -> None:
        sizes = sides(space)
        widths = [channels * 2**level for level in range(len(sizes))]
        features = widths[-1] * sizes[-1][0] * sizes[-1][1]
        super().__init__()
        self.concatenates = classes > 0 and rules.conditioning == "concatenation"
        enters = (space.channels + classes * self.concatenates) * rules.pack
        parts: list[nn.Module] = [nn.Conv2d(enters, channels, 3, padding=1)]
        for width in widths[:-1]:
            parts += [in_place(), nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)]
        self.body = nn.Sequential(*parts, in_place())
        self.read = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 3, padding=1), in_place(), nn.Flatten()
        )
        self.add_head(features, classes, rules)
        start_small(self)

    def forward(self, x: Tensor, classes: Tensor | None) -> Opinion:
        if self.concatenates and classes is not None:
            x = torch.cat([x, classes[:, :, None, None].expand(-1, -1, *x.shape[2:]).to(x)], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        for part in self.body:
            if isinstance(part, nn.Conv2d) and part.stride == (2, 2):
                # A stride of two loses the last row of an odd side, which is padded to keep it.
                down, right = x.shape[2] % 2, x.shape[3] % 2
                x = functional.pad(x, (0, right, 0, down)) if down or right else x
            x = part(x)
        return self.opinion(self.read(x), classes)


def in_place() -> nn.LeakyReLU:
    """Between convolutions, which keep what it makes for their gradients: kept once, not twice."""
    return nn.LeakyReLU(0.2, inplace=True)


def start_small(module: nn.Module) -> None:
    """Weights of convolutions from N(0, 0.02^2) (Radford et al. 2016, sec. 4), channels last."""
    for one in module.modules():
        if isinstance(one, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(one.weight, 0.0, 0.02)
            channels_last(one)
