"""Projections: codes of many numbers as points in the plane, for people to look at.

Principal components (PCA) keep the directions in which codes vary most, and say how much of the variance
that is. t-SNE (van der Maaten & Hinton 2008, by scikit-learn) keeps who is near whom, and nothing else:
sizes of crowds and distances between them mean little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 1000
PERPLEXITY = 30.0
FEWEST = 12
"""Fewer codes have no neighbourhoods to keep."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Points (n, 2), float64, one a code, and how they were made."""

    name: str
    points: Tensor
    how: str


def principal_components(codes: Tensor) -> Projection:
    """The first two principal components of codes (n, d); each axis points where its largest weight does.

    A code of one number has a second component of nought.
    """
    rows = codes.double().flatten(1)
    centred = rows - rows.mean(0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    shares = sizes.square() / sizes.square().sum().clamp(min=1e-300)
    axes, shares = axes[:2], shares[:2]
    largest = axes.abs().argmax(1, keepdim=True)
    points = centred @ (axes * axes.gather(1, largest).sign()).T
    if points.shape[1] < 2:
        points = torch.cat([points, torch.zeros_like(points)], 1)
        shares = torch.cat([shares, torch.zeros(1)])
    told = f"the axes hold {shares[0]:.0%} and {shares[1]:.0%} of the variance"
    return Projection("PCA", points, f"PCA of {_counted(codes)}; {told}")


def neighbour_embedding(codes: Tensor, seed: int) -> Projection:
    """t-SNE of codes (n, d); the same codes and seed give the same points."""
    from sklearn.manifold import TSNE  # a second to import, and only needed here

    rows = codes.double().flatten(1)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    embedding = TSNE(
        perplexity=perplexity,
        init="pca" if rows.shape[1] > 1 and bool(rows.std() > 0) else "random",
        random_state=seed,
    )
    points = torch.from_numpy(embedding.fit_transform(rows.numpy())).double()
    return Projection(
        "t-SNE",
        points,
        f"t-SNE of {_counted(codes)} (scikit-learn, perplexity {perplexity:.3g}, seed {seed}); who is "
        "near whom means something, sizes and distances of crowds do not",
    )


def projections(codes: Tensor, seed: int) -> list[Projection]:
    """Both, of the first codes; too few have principal components only."""
    rows = codes[:MOST]
    found = [principal_components(rows)]
    return found if len(rows) < FEWEST else [*found, neighbour_embedding(rows, seed)]


def _counted(codes: Tensor) -> str:
    return f"{len(codes):,} codes of {codes.flatten(1).shape[1]} numbers"
