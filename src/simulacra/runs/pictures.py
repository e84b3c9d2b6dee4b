"""Pictures as PNG: grids of images, whatever their channels and levels, points of the plane, signals."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from simulacra.runs.signals import COLUMNS, panels
from simulacra.spaces import Images, Measure, Series, Space, Tokens

POINTS = 2000
"""So many points of the plane are drawn at most, of samples and of real data."""
FRAME, HELD = 80, 1500
"""Milliseconds of a picture in an animation, and of its last one."""
SOFT, PLAIN, RADIUS, SHARPER, MARGIN = (176, 184, 194), (11, 110, 79), 1.6, 3, 0.12


def on_plane(space: Space) -> bool:
    """Whether elements are points of the plane."""
    return space.measure is Measure.LEBESGUE and space.shape == (2,)


def has_picture(space: Space) -> bool:
    """Whether elements can be looked at."""
    return isinstance(space, Images | Series) or on_plane(space)


def columns_of(space: Space) -> int:
    """How many elements stand side by side in a picture of them; texts stand alone."""
    if isinstance(space, Tokens):
        return 1
    return COLUMNS if isinstance(space, Series) else 8


def picture(
    x: Tensor, space: Space, real: Tensor | None, *, columns: int = 8, pixels: int = 480
) -> Image.Image:
    """Elements (count, *shape) of a space that has pictures; points are drawn over ``real`` ones."""
    if isinstance(space, Images):
        return grid(x, space, columns=columns, pixels=pixels)
    if isinstance(space, Series):
        return panels(x, space)
    return scatter(x, x if real is None else real)


def scatter(x: Tensor, real: Tensor, *, pixels: int = 720) -> Image.Image:
    """Points (count, 2) in green over real ones in gray.

    The frame holds the real points, so that pictures of one set compare; others lie on its edge.
    """
    low, high = real.min(0).values, real.max(0).values
    reach = max(float((high - low).max()), 1e-12) * (0.5 + MARGIN)
    middle = (low + high) / 2
    side, radius = pixels * SHARPER, RADIUS * SHARPER
    sheet = Image.new("RGB", (side, side), "white")
    pen = ImageDraw.Draw(sheet)
    for points, colour in ((real[:POINTS], SOFT), (x[:POINTS], PLAIN)):
        places = ((points.cpu() - middle) / reach).clamp(-1, 1)
        for right, up in ((places + 1) / 2 * (side - 1)).tolist():
            down = side - 1 - up
            box = (right - radius, down - radius, right + radius, down + radius)
            pen.ellipse(box, fill=colour)
    return sheet.resize((pixels, pixels), Image.Resampling.BOX)


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


def png(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def animation(pictures: Sequence[Image.Image], *, kind: Literal["GIF", "PNG"] = "GIF") -> bytes:
    """Pictures one after the other for ever, the last one held, as a GIF or an animated PNG."""
    buffer = io.BytesIO()
    times = [FRAME] * (len(pictures) - 1) + [HELD]
    pictures[0].save(
        buffer,
        format=kind,
        save_all=True,
        append_images=list(pictures[1:]),
        duration=times,
        loop=0,
    )
    return buffer.getvalue()


def embedded(content: bytes, name: str) -> str:
    """A PNG as an element of a page that stands alone."""
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
