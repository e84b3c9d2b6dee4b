"""Differentiable augmentation: what a critic sees, real or not, moved about.

DiffAugment (Zhao et al. 2020) always moves, all data alike: shifts, a square cut out, colours. ADA
(Karras et al. 2020a) makes each move with a probability p only, so that what is learnt is of the data as
they are (a mixture of the identity with moves can be inverted while p is below one, their sec. 2.2), and
raises p while the critic is surer of the training data than ``target``, lowers it else (their sec. 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from simulacra.probability.noise import Noise

MOST = 0.8
"""The largest p: above, moves begin to be taken for the data's own (Karras et al. 2020a, sec. 2.2)."""

ADAPT_EVERY = 4
"""Rounds between two looks at how sure the critic is."""

IMAGES_TO_ONE = 100_000
"""Data in which p can rise from nought to one; theirs are 500,000, of runs of 25 million."""


def translated(x: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Images (n, C, H, W) shifted by up to ``share`` of their sides, the edge repeated.

    ``uniform``: numbers in [0, 1), shape (n, 2), that choose the shifts. Gradients pass through.
    """
    height, width = x.shape[2:]
    reach_y, reach_x = round(share * height), round(share * width)
    if not (reach_y or reach_x):
        return x
    down = (uniform[:, :1] * (2 * reach_y + 1)).long()
    across = (uniform[:, 1:] * (2 * reach_x + 1)).long()
    padded = functional.pad(x, (reach_x, reach_x, reach_y, reach_y), mode="replicate")
    rows = down + torch.arange(height, device=x.device)
    columns = across + torch.arange(width, device=x.device)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def cut_out(x: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Images (n, C, H, W) with a rectangle of ``share`` of their sides set to 0, anywhere, even partly
    outside; ``uniform`` (n, 2) says where its middle is."""
    inside = []
    for side, middle in zip(x.shape[2:], uniform.T, strict=True):
        place = torch.arange(side, device=x.device)
        away = (place - (middle[:, None] * (side + 1) - 1)).abs()
        inside.append(away < round(share * side) / 2)
    return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)


def recoloured(x: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Images (n, C, H, W) in [-1, 1] of another brightness, saturation and contrast; ``share`` 1 is as
    Zhao et al. 2020 (their app. A); ``uniform`` (n, 3)."""
    bright, saturated, contrast = (share * (2 * uniform - 1)).T[..., None, None, None]
    x = x + bright / 2
    grey, mean = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    x = grey + (x - grey) * (1 + saturated)
    changed: Tensor = mean + (x - mean) * (1 + contrast / 2)
    return changed


TURN, SLANT, STRETCH, SHIFT = 0.25, 0.5, 0.2, 0.15
"""How far ``distorted`` goes with a share of one: radians, slopes, logarithms of sides' lengths, parts of
half a side."""


def distorted(x: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Images (n, C, H, W) turned, slanted, stretched and shifted, the edge repeated; ``uniform`` (n, 6)
    says how.

    What is seen at p, in pixels from the middle, comes from diag(wide, high) R(turn) [[1, slope], [0, 1]]
    p + shift, between pixels by linear interpolation. Gradients pass through.
    """
    height, width = x.shape[2:]
    turn, slant, wide, high, across, down = (share * (2 * uniform.float() - 1)).T
    cos, sin, slope = (TURN * turn).cos(), (TURN * turn).sin(), SLANT * slant
    wide, high = (STRETCH * wide).exp(), (STRETCH * high).exp()
    # The grid counts in halves of sides, and a slope is one of pixels.
    first = [wide * cos, wide * (slope * cos - sin) * height / width, SHIFT * across]
    second = [high * sin * width / height, high * (slope * sin + cos), SHIFT * down]
    places = torch.stack(first + second, dim=1).reshape(-1, 2, 3)
    # Under bfloat16 autocast the grid is rounded, by up to about a three-hundredth of a side.
    grid = functional.affine_grid(places, list(x.shape), align_corners=False)
    seen = functional.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)
    return seen.to(x.dtype)


STROKE = 0.5
"""How far ``thickened`` goes with a share of one: the part of the way to the brightest, or darkest, of
the eight neighbours."""


def thickened(x: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Images (n, C, H, W) whose bright strokes are thicker or thinner, as ``uniform`` (n,) says: pixels
    go to their greatest or least neighbour (grey dilation and erosion). Gradients pass through."""
    way = (STROKE * share * (2 * uniform - 1)).clamp(-1, 1).to(x.dtype)[:, None, None, None]
    greatest = functional.max_pool2d(x, 3, stride=1, padding=1)
    least = -functional.max_pool2d(-x, 3, stride=1, padding=1)
    changed: Tensor = x + way.clamp(min=0) * (greatest - x) + (-way).clamp(min=0) * (least - x)
    return changed


class Augmentation(nn.Module):
    """Moves of images (n, C, H, W): shares of ``shift``, ``cut`` and ``colour``, 0 for none of it.

    ``target``: 0, and every image is moved; else ADA's, and ``strength``, its p, is a buffer that only
    ``adapt`` moves.
    """

    strength: Tensor

    def __init__(self, shift: float, cut: float, colour: float, target: float = 0.0) -> None:
        super().__init__()
        moves = ((translated, 2, shift), (cut_out, 2, cut), (recoloured, 3, colour))
        self.moves = [one for one in moves if one[2]]
        self.target = target
        if target:
            self.register_buffer("strength", torch.zeros(()))

    def forward(self, x: Tensor, noise: Noise) -> Tensor:
        for move, draws, share in self.moves:
            moved = move(x, noise.uniform(draws), share)
            if self.target:
                chosen = noise.uniform() < self.strength
                moved = torch.where(chosen[:, None, None, None], moved, x)
            x = moved
        return x

    @torch.no_grad()
    def adapt(self, sure: float, data: int) -> dict[str, float]:
        """Move p after ``data`` more data; ``sure`` is E sign c(x) of training data, their r_t."""
        step = data / IMAGES_TO_ONE * (1 if sure > self.target else -1)
        self.strength.add_(step).clamp_(0, MOST)
        return {"strength of augmentation": float(self.strength), "sureness of data": sure}
