"""Scatter pictures as SVG text: points in the plane, a colour for each class, names on hover."""

from __future__ import annotations

import html
from collections.abc import Sequence

import torch
from torch import Tensor

from simulacra.evaluation.projection import Projection
from simulacra.runs.curves import COLOURS

PANEL, GAP, TOP, LEGEND = 380, 24, 26, 150
MARGIN = 10
MOST_NAMED = 20
"""Classes with a line in the legend; points say their class on hover, however many there are."""

ALONE = """
<style>text{fill:#5d6772;font:12px system-ui,sans-serif}.axis{stroke:#dfe4ea}.named{fill:#1c2128;
stroke:#fff}.ground{fill:#fff}
@media(prefers-color-scheme:dark){text{fill:#9aa5b1}.axis{stroke:#333b45}.named{fill:#e6eaef;
stroke:#15191e}.ground{fill:#15191e}}</style><rect class="ground" width="100%" height="100%"/>
"""


def palette(count: int) -> list[str]:
    """Colours that are told apart on light and on dark paper; neighbours differ in lightness too."""
    return [
        f"hsl({360 * index / count:.0f} 65% {47 if index % 2 else 60}%)" for index in range(count)
    ]


def scatter(
    panels: Sequence[Projection],
    classes: Tensor | None = None,
    names: Sequence[str] = (),
    *,
    alone: bool = False,
) -> str:
    """An SVG with one panel a projection and a legend.

    ``classes``: one number a point, shape (n,), of ``names``. ``alone``: as a file of its own, rather
    than in a page that has a style.
    """
    shown = [] if classes is None else [int(one) for one in classes.unique()]
    colours = dict(zip(shown, palette(len(shown)), strict=True))
    width = len(panels) * (PANEL + GAP) + (LEGEND if shown else 0)
    parts = [
        _panel(panel, index * (PANEL + GAP), classes, names, colours)
        for index, panel in enumerate(panels)
    ]
    parts.append(_legend(len(panels) * (PANEL + GAP), colours, names))
    space = ' xmlns="http://www.w3.org/2000/svg"' if alone else ""
    return (
        f'<svg{space} viewBox="0 0 {width} {PANEL + TOP + 2}" role="img">'
        f"{ALONE if alone else ''}{''.join(parts)}</svg>"
    )


def _panel(
    one: Projection,
    left: float,
    classes: Tensor | None,
    names: Sequence[str],
    colours: dict[int, str],
) -> str:
    places = _placed(one.points, left)
    parts = [
        f'<text x="{left + 2}" y="16">{html.escape(one.name)}</text>',
        f'<rect class="axis" fill="none" x="{left + 1}" y="{TOP}" width="{PANEL}" height="{PANEL}"/>',
    ]
    for index, (x, y) in enumerate(places.tolist()):
        known = None if classes is None else int(classes[index])
        colour = COLOURS[0] if known is None else colours[known]
        told = f"datum {index}" if known is None else f"{_name(known, names)} (datum {index})"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}" fill-opacity=".75">'
            f"<title>{html.escape(told)}</title></circle>"
        )
    if classes is not None and 1 < len(colours) <= MOST_NAMED:
        parts += [_named(places[classes == one], _name(one, names)) for one in colours]
    return "".join(parts)


def _placed(points: Tensor, left: float) -> Tensor:
    """Where points fall in a panel, both axes at one scale."""
    low, high = points.min(0).values, points.max(0).values
    scale = (PANEL - 2 * MARGIN) / float((high - low).max().clamp(min=1e-12))
    centred = (points - (low + high) / 2) * scale * torch.tensor([1.0, -1.0])
    return centred + torch.tensor([left + 1 + PANEL / 2, TOP + PANEL / 2])


def _named(places: Tensor, name: str) -> str:
    """A class's name at the one of its points that is nearest to all of them, with a halo."""
    x, y = places[torch.cdist(places, places).sum(1).argmin()].tolist()
    return (
        f'<text class="named" style="font-weight:600;paint-order:stroke;stroke-width:3px" '
        f'x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{html.escape(name[:12])}</text>'
    )


def _legend(left: float, colours: dict[int, str], names: Sequence[str]) -> str:
    parts = []
    for index, (one, colour) in enumerate(list(colours.items())[:MOST_NAMED]):
        y = TOP + 12 + 17 * index
        parts.append(f'<circle cx="{left + 8}" cy="{y - 4}" r="5" fill="{colour}"/>')
        name = html.escape(_name(one, names)[:18])
        parts.append(f'<text x="{left + 20}" y="{y}">{name}</text>')
    if len(colours) > MOST_NAMED:
        y = TOP + 12 + 17 * MOST_NAMED
        parts.append(f'<text x="{left + 20}" y="{y}">and {len(colours) - MOST_NAMED} more</text>')
    return "".join(parts)


def _name(one: int, names: Sequence[str]) -> str:
    return names[one] if one < len(names) else str(one)
