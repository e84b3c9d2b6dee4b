"""Learning curves as SVG text, so that a page needs no library and no picture file."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#0b6e4f", "#c8553d", "#3d6fb6", "#b0841d", "#7a4fa3", "#2a9aa8", "#8c5a3c", "#5d6772")
WIDTH, HEIGHT = 900, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 28, 28


@dataclass(frozen=True)
class Curve:
    """A name, and (x, y) points in order."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Frame:
    """Where values fall on the sheet."""

    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (min(max(value, self.y0), self.y1) - self.y0) / (self.y1 - self.y0)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def chart(curves: Sequence[Curve], title: str) -> str:
    """An SVG of the curves with a legend; '' when there is nothing to draw.

    The vertical range leaves out the highest twentieth of the values, so that the first steps of one
    model do not flatten all the others; lines that leave it run along its edge.
    """
    values = sorted(y for curve in curves for _, y in curve.points if math.isfinite(y))
    if not values:
        return ""
    top = values[min(len(values) - 1, int(0.95 * len(values)))]
    low, top = values[0], top if top > values[0] else values[0] + 1
    longest = max(x for curve in curves for x, _ in curve.points) or 1.0
    frame = _Frame(0.0, longest, low - 0.05 * (top - low), top + 0.05 * (top - low))
    lines = [_axes(frame, title)]
    for index, curve in enumerate(curves):
        lines.append(_line(frame, curve, COLOURS[index % len(COLOURS)], TOP + 18 * index + 8))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(lines)}</svg>'


def _axes(frame: _Frame, title: str) -> str:
    parts = [f'<text x="{LEFT}" y="14">{html.escape(title)}</text>']
    for step in range(5):
        value = frame.y0 + (frame.y1 - frame.y0) * step / 4
        y = frame.y(value)
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        seconds = frame.x1 * step / 4
        x = frame.x(seconds)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{seconds:.0f} s</text>'
        )
    return "".join(parts)


def _line(frame: _Frame, curve: Curve, colour: str, legend: float) -> str:
    finite = [(x, y) for x, y in curve.points if math.isfinite(y)]
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in finite)
    name = html.escape(curve.name)
    return (
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}">'
        f"<title>{name}</title></polyline>"
        f'<rect x="{WIDTH - RIGHT + 12}" y="{legend - 8}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{WIDTH - RIGHT + 28}" y="{legend + 1}">{name}</text>'
    )
