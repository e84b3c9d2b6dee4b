"""Monotonic rational-quadratic splines, forwards and backwards (Durkan et al. 2019, sec. 3.1).

K bins between knots (x_k, y_k) from (-B, -B) to (B, B), with slopes d_k > 0 at the knots (Gregory &
Delbourgo 1982). In bin k, with width w, height h, steepness s = h / w, and xi = (x - x_k) / w,

    y = y_k + h (s xi^2 + d_k xi (1 - xi)) / q,    q = s + (d_k+1 + d_k - 2 s) xi (1 - xi)    (eq. 4)
    dy/dx = s^2 (d_k+1 xi^2 + 2 s xi (1 - xi) + d_k (1 - xi)^2) / q^2.                       (eq. 5)

Beyond [-B, B] the spline is the identity, which its slopes of 1 at the ends meet smoothly. A spline is
told by 3 K - 1 unconstrained numbers: K widths, K heights, K - 1 inner slopes; zeros are the identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

LEAST_BIN, LEAST_SLOPE = 1e-3, 1e-3
"""The least width and height of a bin, as a share of all, and the least slope of a knot."""
_RAW_ONE = math.log(math.expm1(1 - LEAST_SLOPE))
"""softplus of this, and the least slope, make a slope of 1."""


@dataclass(frozen=True)
class _Bin:
    """What a spline is in the bin of each entry, all of the entries' shape."""

    left: Tensor
    width: Tensor
    bottom: Tensor
    height: Tensor
    slope: Tensor
    next_slope: Tensor


def numbers_of_a_spline(bins: int) -> int:
    """How many numbers tell a spline."""
    return 3 * bins - 1


def spline(x: Tensor, told: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """y and log dy/dx entry by entry, both of x's shape; ``told`` is (*x.shape, 3 K - 1)."""
    inside = x.abs() < bound
    part = _bin(x.clamp(-bound, bound), told, bound, of_y=False)
    xi = ((x - part.left) / part.width).clamp(0, 1)
    y, log_slope = _forward(part, xi)
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


def inverse_spline(y: Tensor, told: Tensor, bound: float) -> Tensor:
    """The x that ``spline`` takes to y (eq. 6 to 8)."""
    inside = y.abs() < bound
    part = _bin(y.clamp(-bound, bound), told, bound, of_y=True)
    steep = part.height / part.width
    eta = ((y - part.bottom) / part.height).clamp(0, 1)
    bend = part.next_slope + part.slope - 2 * steep
    # a xi^2 + b xi + c = 0, divided by h; the root in [0, 1], without cancellation.
    a = steep - part.slope + eta * bend
    b = part.slope - eta * bend
    c = -steep * eta
    root = (b.square() - 4 * a * c).clamp(min=0).sqrt()
    xi = -2 * c / (b + root)
    return torch.where(inside, part.left + xi * part.width, y)


def _forward(part: _Bin, xi: Tensor) -> tuple[Tensor, Tensor]:
    """y and log dy/dx at the place xi in [0, 1] of a bin (eq. 4 and 5)."""
    steep = part.height / part.width
    far = 1 - xi
    both = xi * far
    q = steep + (part.next_slope + part.slope - 2 * steep) * both
    y = part.bottom + part.height * (steep * xi.square() + part.slope * both) / q
    rise = part.next_slope * xi.square() + 2 * steep * both + part.slope * far.square()
    return y, torch.log(rise * (steep / q).square())


def _bin(value: Tensor, told: Tensor, bound: float, *, of_y: bool) -> _Bin:
    """The bin that a value in [-B, B] falls into: of x, or of y."""
    bins = (told.shape[-1] + 1) // 3
    widths, heights, raw = told.split([bins, bins, bins - 1], dim=-1)
    widths, heights = _shares(widths, bound), _shares(heights, bound)
    right, top = widths.cumsum(-1), heights.cumsum(-1)
    ends = top if of_y else right
    # How many inner knots lie at or below the value: rounding cannot lead beyond the last bin.
    place = (ends[..., :-1].detach() <= (value.detach() + bound)[..., None]).sum(-1, keepdim=True)
    width, height = widths.gather(-1, place), heights.gather(-1, place)
    left, bottom = right.gather(-1, place) - width, top.gather(-1, place) - height
    # Slopes of the two ends of the whole are 1; only those of this bin need be worked out.
    raw = functional.pad(raw, (1, 1))
    slope, next_slope = (
        functional.softplus(raw.gather(-1, at) + _RAW_ONE) + LEAST_SLOPE
        for at in (place, place + 1)
    )
    found = (left - bound, width, bottom - bound, height, slope, next_slope)
    return _Bin(*(one.squeeze(-1) for one in found))


def _shares(raw: Tensor, bound: float) -> Tensor:
    """Positive numbers whose sum over the last dimension is 2 B."""
    bins = raw.shape[-1]
    return (2 * bound) * (LEAST_BIN + (1 - LEAST_BIN * bins) * torch.softmax(raw, dim=-1))
