"""Pictures of elements: grids as PNG, whatever their channels and levels."""

from __future__ import annotations

import base64
import html
import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simulacra.spaces import Images


def grid(x: Tensor, space: Images, *, columns: int = 8, pixels: int = 480) -> Image.Image:
    """Elements of ``space``, (count, channels, height, width), side by side; about ``pixels`` wide.

    Whole-number enlargement keeps every pixel of the data a square. One channel is shown gray, two or
    more than four as their first one, four as colour with transparency on white.
    """
    count = len(x)
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    tiles = colours(x, space)
    gap = 1
    height, width = space.height + gap, space.width + gap
    sheet = torch.full((rows * height + gap, columns * width + gap, 3), 255, dtype=torch.uint8)
    for index in range(count):
        top, left = (index // columns) * height + gap, (index % columns) * width + gap
        sheet[top : top + space.height, left : left + space.width] = tiles[index]
    picture = Image.fromarray(np.ascontiguousarray(sheet.numpy()))
    scale = max(1, pixels // picture.width)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def colours(x: Tensor, space: Images) -> Tensor:
    """Elements as colour, (count, height, width, 3) unsigned bytes."""
    values = x.detach().cpu().float() * (255 / (space.levels - 1))
    if space.channels == 4:
        alpha = values[:, 3:] / 255
        values = values[:, :3] * alpha + 255 * (1 - alpha)
    elif space.channels != 3:
        values = values[:, :1].expand(-1, 3, -1, -1)
    return values.round().to(torch.uint8).permute(0, 2, 3, 1)


HEAT = ((10, 10, 30), (88, 24, 110), (200, 60, 70), (250, 165, 50), (255, 250, 205))
"""From dark to bright, each step lighter than the one before, so that a gray print reads the same."""


def heat(values: Tensor, low: float, high: float) -> Tensor:
    """Numbers as colours of ``HEAT``: ``low`` and less dark, ``high`` and more bright.

    Shape (…) to (…, 3), unsigned bytes.
    """
    stops = torch.tensor(HEAT, dtype=torch.float64)
    place = ((values.double() - low) / max(high - low, 1e-300)).clamp(0, 1) * (len(HEAT) - 1)
    below = place.long().clamp(max=len(HEAT) - 2)
    share = (place - below).unsqueeze(-1)
    return (stops[below] * (1 - share) + stops[below + 1] * share).round().to(torch.uint8)


def png(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def embedded(content: bytes, name: str) -> str:
    """A PNG as an element of a page that stands alone."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
