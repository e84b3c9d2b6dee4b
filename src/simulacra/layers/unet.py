"""A U-Net that is conditioned on a noise level and, optionally, on what a datum goes with.

Residual blocks with their channels normalised at each position, attention at the lowest resolution,
sizes taken from the space. Tensors are kept channels-last, which is what convolutions on a CPU are
fast with.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.layers.attention import attended
from simulacra.layers.conditions import channels_beside, condition_reader, with_beside
from simulacra.layers.dropout import Dropout
from simulacra.layers.layout import channels_last
from simulacra.layers.normalisation import ChannelNorm
from simulacra.layers.pyramid import sides
from simulacra.spaces import Images, Space


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
        seen = attended(query, key, value).squeeze(1)
        change = self.write(seen).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        out: Tensor = x + change
        return out


class UNet(nn.Module):
    """(n, C, H, W), log-SNR (n,), what a ``ConditionDoor`` tells or None, to (n, outputs x C, H, W).

    Blocks stand where they cost least: the lowest resolution has ``blocks`` on either way, each larger
    one half as many, at least one, and the convolutions between two resolutions work on the smaller
    one (after the Efficient U-Net of Saharia et al. 2022, app. B.1). What a block of the way down gave
    is added to what its partner on the way up is given, instead of standing beside it.
    """

    def __init__(
        self,
        space: Images,
        channels: int,
        blocks: int,
        condition: Space | None = None,
        dropout: float = 0.0,
        *,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.sizes = sides(space)
        widths = [channels * min(2**level, 4) for level in range(len(self.sizes))]
        width = 4 * channels
        self.level = LevelEmbedding(width)
        self.label = condition_reader(condition, width)
        self.beside = channels_beside(condition)
        self.enter = nn.Conv2d(space.channels + self.beside, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for index, own in enumerate(widths):
            for way in (self.down, self.up):
                count = max(1, blocks >> (len(widths) - 1 - index))
                way.append(nn.ModuleList(Block(own, own, width, dropout) for _ in range(count)))
            if index < len(widths) - 1:
                self.shrink.append(nn.Conv2d(own, widths[index + 1], 3, stride=2, padding=1))
                self.grow.append(nn.Conv2d(widths[index + 1], own, 3, padding=1))
        self.before, self.after = (Block(own, own, width, dropout) for _ in range(2))
        self.attention = Attention(own)
        self.leave = nn.Sequential(
            ChannelNorm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, outputs * space.channels, 3, padding=1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                channels_last(module)

    def forward(self, x: Tensor, log_snr: Tensor, context: Tensor | None = None) -> Tensor:
        level = self.level(log_snr)
        if self.label is not None and context is not None:
            level = level + self.label(context)
        level = functional.silu(level)
        h = with_beside(x, context, self.beside)
        h = self.enter(h.contiguous(memory_format=torch.channels_last))
        skips = []
        for index, down in enumerate(self.down):
            assert isinstance(down, nn.ModuleList)
            if index:
                h = self.shrink[index - 1](h)
            for block in down:
                h = block(h, level)
                skips.append(h)
        h = self.after(self.attention(self.before(h, level)), level)
        for index, up in reversed(list(enumerate(self.up))):
            assert isinstance(up, nn.ModuleList)
            for block in up:
                h = block((h + skips.pop()) * 0.5**0.5, level)
            if index:
                size = self.sizes[index - 1]
                h = functional.interpolate(self.grow[index - 1](h), size=size, mode="nearest")
        out: Tensor = self.leave(h)
        return out


class NoisyClassifier(nn.Module):
    """log p(y | x_t) of noised images (n, C, H, W) with log-SNR (n,), shape (n, classes): a U-Net's way
    down with one block at each resolution, attention, and a mean over positions."""

    def __init__(self, space: Images, channels: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        width = 4 * channels
        widths = [channels * min(2**level, 4) for level in range(len(sides(space)))]
        self.level = LevelEmbedding(width)
        self.enter = nn.Conv2d(space.channels, channels, 3, padding=1)
        self.blocks = nn.ModuleList(Block(own, own, width, dropout) for own in widths)
        self.shrink = nn.ModuleList(
            nn.Conv2d(own, following, 3, stride=2, padding=1)
            for own, following in itertools.pairwise(widths)
        )
        self.attention = Attention(widths[-1])
        self.leave = nn.Sequential(ChannelNorm(widths[-1]), nn.SiLU())
        self.say = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                channels_last(module)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        level = functional.silu(self.level(log_snr))
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        for index, block in enumerate(self.blocks):
            h = block(self.shrink[index - 1](h) if index else h, level)
        logits: Tensor = self.say(self.leave(self.attention(h)).mean((2, 3)))
        if logits.dtype is torch.bfloat16:
            logits = logits.float()
        return torch.log_softmax(logits, dim=1)
