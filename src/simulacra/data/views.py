"""Views of stored images: other sizes, and two levels instead of many."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from simulacra.data.raw import TEST, Raw
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images

Name = Literal["8bit", "binary", "dynamic"]
NAMES: tuple[Name, ...] = ("8bit", "binary", "dynamic")
ALL = "8bit"


def resized(raw: Raw, size: int) -> Raw:
    """Square images of ``size``, by averages over what is shrunk."""
    space = raw.space
    if not isinstance(space, Images):
        return raw
    if (space.height, space.width) == (size, size):
        return raw
    if space.levels > 65536:
        raise Refusal("CFG-071", f"--size cannot resize {space}", way_out="leave it out")
    filter_ = (
        Image.Resampling.BOX if size < min(space.height, space.width) else Image.Resampling.BICUBIC
    )
    source = raw.rows.numpy() if isinstance(raw.rows, Tensor) else raw.rows
    rows = np.empty((len(raw), space.channels, size, size), source.dtype)
    side = min(space.height, space.width)
    left, top = (space.width - side) / 2, (space.height - side) / 2
    box = (left, top, left + side, top + side)
    for index, image in enumerate(source):
        for channel, plane in enumerate(image):
            wide = Image.fromarray(plane.astype(np.float32))
            values = np.asarray(wide.resize((size, size), filter_, box=box))
            rows[index, channel] = np.clip(np.rint(values), 0, space.levels - 1)
    survey = raw.survey
    survey.notes.append(f"images are resized to {size} x {size}")
    space = Images(space.channels, size, size, space.levels)
    return replace(raw, rows=torch.from_numpy(rows), space=space)


def require_view(view: str, raw: Raw) -> None:
    """Refuse a view that these data cannot be shown in."""
    if view not in NAMES:
        reason = f"the view is {shown(view)}"
        raise Refusal("CFG-070", reason, way_out=f"choose one of {', '.join(NAMES)}")
    if view != ALL and not isinstance(raw.space, Images):
        reason = f"the view {view} is one of images, and the data are {raw.space}"
        raise Refusal("CFG-072", reason, way_out="leave --view out")


def thresholded(x: Tensor, levels: int) -> Tensor:
    """1 where a value is in the upper half of the levels."""
    return (x > (levels - 1) // 2).to(torch.uint8)


def binarised(x: Tensor, levels: int, generator: torch.Generator) -> Tensor:
    """1 with probability x / (levels - 1), drawn anew at each call (Salakhutdinov & Murray 2008)."""
    return (torch.rand(x.shape, generator=generator) < x / (levels - 1)).to(torch.uint8)


def binarised_once(raw: Raw, levels: int) -> Tensor:
    """All rows drawn once, for likelihoods that can be compared: numpy's default_rng(0), in order.

    Where the source has a test part of its own, that one is drawn from a stream of its own.
    """
    rows = raw.rows.numpy() if isinstance(raw.rows, Tensor) else raw.rows
    drawn = np.empty(rows.shape, np.uint8)
    test = np.zeros(len(rows), bool) if raw.given is None else raw.given.numpy() == TEST
    for which in (test, ~test):
        part = np.ascontiguousarray(rows[which])
        drawn[which] = np.random.default_rng(0).random(part.shape) < part / (levels - 1)
    return torch.from_numpy(drawn)
