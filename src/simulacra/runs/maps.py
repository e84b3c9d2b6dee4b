"""Anomaly maps to look at: which entries make a datum strange.

Images become pictures, each strange datum above its map; rows of a table become lines, one column a
column; anything becomes an array.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from simulacra.runs.heat import heat
from simulacra.runs.pictures import colours, grid
from simulacra.runs.using import beside, cell
from simulacra.spaces import Images, Table

SHOWN, COLUMNS = 16, 8
BRIGHTEST = 0.995
"""The share of all entries below the bright end, so that a single one does not darken the rest."""


@dataclass(frozen=True)
class Scale:
    """What dark and bright stand for; the same for all maps of a picture."""

    low: float
    high: float
    unit: str

    @classmethod
    def of(cls, maps: Tensor, unit: str) -> Scale:
        """From the least entry to nearly the largest."""
        values = maps.double().flatten().sort().values
        high = float(values[min(len(values) - 1, int(BRIGHTEST * len(values)))])
        return cls(float(values[0]), high, unit)

    def __str__(self) -> str:
        low = self.low if abs(self.low) > 1e-3 * abs(self.high) else 0.0
        return f"dark {low:.3g} to bright {self.high:.3g} {self.unit}, and more as bright"


def strangest(scores: Tensor, count: int = SHOWN) -> Tensor:
    """Positions of the highest scores, highest first; more than a row of a picture fill whole rows."""
    count = min(count, len(scores))
    count = count // COLUMNS * COLUMNS if count > COLUMNS else count
    return scores.argsort(descending=True, stable=True)[:count]


def by_pixel(maps: Tensor) -> Tensor:
    """Maps of images (n, channels, height, width), summed over the channels."""
    return maps.sum(1)


def picture(
    x: Tensor, maps: Tensor, scale: Scale, space: Images, *, pixels: int = 480
) -> Image.Image:
    """Each image above its map."""
    tiles = torch.cat([colours(x, space), heat(by_pixel(maps), scale.low, scale.high)])
    originals, heated = tiles.permute(0, 3, 1, 2).chunk(2)
    shown = Images(3, space.height, space.width)
    return grid(beside(originals, heated, COLUMNS), shown, columns=COLUMNS, pixels=pixels)


def lines(scores: Tensor, maps: Tensor, space: Table, *, source: str, unit: str) -> Iterator[str]:
    """CSV: each row's score, and what every column adds to it."""
    heads = [f"{column.name} ({unit})" for column in space.columns]
    yield ",".join(["index", f"score ({source})", *map(cell, heads)])
    for index, (score, row) in enumerate(zip(scores.tolist(), maps.tolist(), strict=True)):
        yield ",".join([str(index), f"{score:.6g}", *(f"{value:.6g}" for value in row)])
