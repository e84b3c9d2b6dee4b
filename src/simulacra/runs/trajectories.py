"""The way from noise to data of a model that samples step by step, as a strip and as an animation."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from simulacra.contract import Gradual
from simulacra.runs.pictures import animation, grid, picture
from simulacra.spaces import Images, Space

ROWS, SHOWN, FRAMES = 8, 9, 30
"""Samples of a strip, its columns, and pictures of an animation at most."""


def way(
    model: Gradual, count: int, generator: torch.Generator, condition: Tensor | None = None
) -> Tensor:
    """States from noise to data, (steps, count, *shape), on the CPU."""
    with torch.no_grad():
        return model.trajectory(count, condition=condition, generator=generator).cpu()


def thinned(states: Tensor, count: int) -> Tensor:
    """At most ``count`` states, evenly, the first and the last among them."""
    places = torch.linspace(0, len(states) - 1, min(count, len(states))).round().long()
    return states[places]


def strip(states: Tensor, space: Images, *, pixels: int = 720) -> Image.Image:
    """A row for each of the first samples, noise on the left and data on the right."""
    some = thinned(states[:, :ROWS], SHOWN)
    flat = some.transpose(0, 1).flatten(0, 1)
    return grid(flat, space, columns=len(some), pixels=pixels)


def moving(states: Tensor, space: Space, real: Tensor | None = None) -> list[Image.Image]:
    """A picture of all samples for each state; points are drawn over ``real`` ones."""
    return [picture(one, space, real) for one in thinned(states, FRAMES)]


def gif(states: Tensor, space: Space, real: Tensor | None = None) -> bytes:
    """The animation as the bytes of a GIF file."""
    return animation(moving(states, space, real))
