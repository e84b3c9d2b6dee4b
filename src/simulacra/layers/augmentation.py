"""Differentiable augmentation: what a critic sees, real or not, moved about (Zhao et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def translated(x: Tensor, uniform: Tensor, share: float) -> Tensor:
    """Images (n, C, H, W) shifted by up to ``share`` of their sides, the edge repeated.

    ``uniform``: numbers in [0, 1), shape (n, 2), that choose the shifts. Gradients pass through.
    """
    height, width = x.shape[2:]
    reach_y, reach_x = round(share * height), round(share * width)
    if not (reach_y or reach_x):
        return x
    reach = torch.tensor([2 * reach_y + 1, 2 * reach_x + 1], device=x.device)
    shift = (uniform * reach).long()
    padded = functional.pad(x, (reach_x, reach_x, reach_y, reach_y), mode="replicate")
    rows = shift[:, :1] + torch.arange(height, device=x.device)
    columns = shift[:, 1:] + torch.arange(width, device=x.device)
    which = torch.arange(len(x), device=x.device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)
