"""A U-Net that is conditioned on a noise level and, optionally, on a class.

Residual blocks with their channels normalised at each position, attention at the lowest resolution,
sizes taken from the space. Tensors are kept channels-last, which is what convolutions on a CPU are
fast with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.dropout import Dropout
from simulacra.layers.layout import channels_last
from simulacra.layers.normalisation import ChannelNorm
from simulacra.layers.pyramid import sides
from simulacra.spaces import Images


class LevelEmbedding(nn.Module):
    """A noise level, given as log-SNR, as features: sines and cosines, then two linear layers.

    Conditioning on log-SNR instead of t leaves the schedule free (Kingma et al. 2021).
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        waves = torch.exp(torch.linspace(math.log(0.05), math.log(4.0), width // 2))
        self.register_buffer("frequencies", waves, persistent=False)
        self.body = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, log_snr: Tensor) -> Tensor:
        angles = log_snr.to(self.frequencies.dtype)[:, None] * self.frequencies
        out: Tensor = self.body(torch.cat([angles.sin(), angles.cos()], dim=1))
        return out


class Block(nn.Module):
    """A residual block that adds the embedding between its convolutions; the last starts at zero."""

    def __init__(self, inputs: int, outputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.before = ChannelNorm(inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shift = nn.Linear(width, outputs)
        self.after = ChannelNorm(outputs)
        self.dropout = Dropout(dropout)
        self.last = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.first(functional.silu(self.before(x)))
        h = h + self.shift(level)[:, :, None, None]
        h = self.last(self.dropout(functional.silu(self.after(h))))
        out: Tensor = self.skip(x) + h
        return out


class Attention(nn.Module):
    """Self-attention over all positions (Vaswani et al. 2017), added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.read = nn.Linear(channels, 3 * channels)
        self.write = nn.Linear(channels, channels)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        query, key, value = self.read(flat).unsqueeze(1).chunk(3, dim=-1)
        seen = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        change = self.write(seen).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        out: Tensor = x + change
        return out


class UNet(nn.Module):
    """(n, C, H, W), log-SNR (n,), classes (n, count) or None, to (n, C, H, W)."""

    def __init__(
        self, space: Images, channels: int, blocks: int, classes: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.sizes = sides(space)
        widths = [channels * min(2**level, 4) for level in range(len(self.sizes))]
        width = 4 * channels
        self.level = LevelEmbedding(width)
        self.label = nn.Linear(classes, width, bias=False) if classes else None
        self.enter = nn.Conv2d(space.channels, channels, 3, padding=1)
        down, shrink, skips = [], [], [channels]
        inputs = channels
        for index, outputs in enumerate(widths):
            for _ in range(blocks):
                down.append(Block(inputs, outputs, width, dropout))
                inputs = outputs
                skips.append(inputs)
            if index < len(widths) - 1:
                shrink.append(nn.Conv2d(inputs, inputs, 3, stride=2, padding=1))
                skips.append(inputs)
        self.down, self.shrink = nn.ModuleList(down), nn.ModuleList(shrink)
        self.middle = nn.ModuleList([Block(inputs, inputs, width, dropout), Attention(inputs)])
        up, grow = [], []
        for index, outputs in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                up.append(Block(inputs + skips.pop(), outputs, width, dropout))
                inputs = outputs
            if index:
                grow.append(nn.Conv2d(inputs, inputs, 3, padding=1))
        self.up, self.grow = nn.ModuleList(up), nn.ModuleList(grow)
        self.leave = nn.Sequential(
            ChannelNorm(inputs),
            nn.SiLU(),
            nn.Conv2d(inputs, space.channels, 3, padding=1),
        )
        self.blocks = blocks
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                channels_last(module)

    def forward(self, x: Tensor, log_snr: Tensor, classes: Tensor | None = None) -> Tensor:
        level = self.level(log_snr)
        if self.label is not None and classes is not None:
            level = level + self.label(classes)
        level = functional.silu(level)
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for index, block in enumerate(self.down):
            h = block(h, level)
            skips.append(h)
            stage, last = divmod(index, self.blocks)
            if last == self.blocks - 1 and stage < len(self.shrink):
                h = self.shrink[stage](h)
                skips.append(h)
        block, attention = self.middle
        h = attention(block(h, level))
        for index, block in enumerate(self.up):
            h = block(torch.cat([h, skips.pop()], dim=1), level)
            stage, last = divmod(index, self.blocks + 1)
            if last == self.blocks and stage < len(self.grow):
                size = self.sizes[len(self.sizes) - 2 - stage]
                h = self.grow[stage](functional.interpolate(h, size=size, mode="nearest"))
        out: Tensor = self.leave(h)
        return out
