"""Pictures of elements: grids as PNG, whatever their channels and levels."""

from __future__ import annotations

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
    tiles = _bytes(x, space)
    gap = 1
    height, width = space.height + gap, space.width + gap
    sheet = torch.full((rows * height + gap, columns * width + gap, 3), 255, dtype=torch.uint8)
    for index in range(count):
        top, left = (index // columns) * height + gap, (index % columns) * width + gap
        sheet[top : top + space.height, left : left + space.width] = tiles[index]
    picture = Image.fromarray(np.ascontiguousarray(sheet.numpy()))
    scale = max(1, pixels // picture.width)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _bytes(x: Tensor, space: Images) -> Tensor:
    """(count, height, width, 3) unsigned bytes."""
    values = x.detach().cpu().float() * (255 / (space.levels - 1))
    if space.channels == 4:
        alpha = values[:, 3:] / 255
        values = values[:, :3] * alpha + 255 * (1 - alpha)
    elif space.channels != 3:
        values = values[:, :1].expand(-1, 3, -1, -1)
    return values.round().to(torch.uint8).permute(0, 2, 3, 1)


def png(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
