"""The networks that denoise images, by name, all with the same call and much the same size."""

from __future__ import annotations

from typing import Literal

from simulacra.layers.dit import DiT
from simulacra.layers.unet import UNet
from simulacra.spaces import Images, Space

Backbone = Literal["unet", "dit"]


def denoising_network(
    kind: Backbone,
    space: Images,
    channels: int,
    blocks: int,
    condition: Space | None,
    dropout: float,
    *,
    outputs: int = 1,
) -> UNet | DiT:
    """(n, C, H, W), log-SNR (n,), what a ``ConditionDoor`` tells or None, to (n, outputs x C, H, W).

    ``channels`` are the U-Net's at full size; a transformer is as wide as a U-Net at its narrowest grid.
    """
    if kind == "dit":
        return DiT(space, 4 * channels, blocks, condition, dropout, outputs=outputs)
    return UNet(space, channels, blocks, condition, dropout, outputs=outputs)
