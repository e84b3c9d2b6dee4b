"""What a critic believes, drawn: D(x), the chance that x is a datum rather than made, beside p and q.

In the plane D is a map, from dark (0) to bright (1), with data and samples as points on it. Of single
numbers data and samples are steps, the share of them up to x, beside D at each of them. Where the
generator has won, D is 1/2 wherever there is anything (Goodfellow et al. 2014, proposition 1).
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from simulacra.evaluation.projection import Projection
from simulacra.runs.heat import heat
from simulacra.runs.pictures import MARGIN, embedded, png
from simulacra.runs.scatter import scatter
from simulacra.spaces import Space, Vectors

CELLS, PIXELS, SHOWN = 120, 720, 1000
REAL, MADE = (255, 255, 255), (64, 224, 160)


def can_show(model: Any, space: Space) -> bool:
    """Whether there is a critic that tells chances, of numbers or points of the plane."""
    few = isinstance(space, Vectors) and space.size <= 2
    alone = getattr(model, "condition_space", None) is None
    return few and alone and getattr(model, "tells_chances", False)


def drawn(model: Any, real: Tensor, made: Tensor) -> str:
    """HTML of D, over ``real`` and ``made`` rows (n, 1) or (n, 2), as many of either."""
    if real.shape[1] == 1:
        return _steps(model, real, made)
    return embedded(png(plane(model, real, made)), "D as a map, with data and samples on it")


def plane(model: Any, real: Tensor, made: Tensor) -> Image.Image:
    """D as a map, with points on it, data white and samples green."""
    low, high = real.min(0).values, real.max(0).values
    reach = float((high - low).max()) * (0.5 + MARGIN)
    middle = (low + high) / 2
    across = torch.linspace(-reach, reach, CELLS)
    down, right = torch.meshgrid(-across, across, indexing="ij")
    places = torch.stack([middle[0] + right, middle[1] + down], dim=2).reshape(-1, 2)
    chances = model.chance_of_data(places, beside=real).reshape(CELLS, CELLS)
    sheet = Image.fromarray(heat(chances.cpu(), 0.0, 1.0).numpy()).resize((PIXELS, PIXELS))
    pen = ImageDraw.Draw(sheet)
    for points, colour in ((real, REAL), (made, MADE)):
        put = ((points - middle) / (2 * reach) * torch.tensor([1.0, -1.0]) + 0.5) * PIXELS
        for x, y in put[:SHOWN].tolist():
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    return sheet


def _steps(model: Any, real: Tensor, made: Tensor) -> str:
    both = torch.cat([one.sort(dim=0).values for one in (real, made)])
    up_to = torch.cat([torch.arange(1, len(one) + 1) / len(one) for one in (real, made)])
    chances = model.chance_of_data(both, beside=real).cpu()
    unit = (both - real.min()) / (real.max() - real.min()).clamp(min=1e-12)
    panels = [
        Projection(name, torch.cat([unit, heights[:, None].to(unit)], dim=1), "")
        for name, heights in (("share of them up to x", up_to), ("D(x)", chances))
    ]
    classes = torch.arange(2).repeat_interleave(torch.tensor([len(real), len(made)]))
    return scatter(panels, classes, ("data", "samples"))
