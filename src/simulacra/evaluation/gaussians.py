"""What needs no model: images drawn from Gaussians in the space of their principal components.

The images' first hundred principal components; in them a mean and a full covariance, of each class where
there are labels and of all data where there are none; draws as frequent as the classes, put back into
pixels and rounded to levels. It has the right means, colours and soft shapes, and no sharp ones: the
control that a distance is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulacra.games import Batch
from simulacra.probability.noise import global_noise, mixed
from simulacra.spaces import Images

COMPONENTS = 100
SPARE, POWERS = 20, 4
"""Directions beside the wanted ones, and rounds, of the iteration that finds them (Halko et al. 2011)."""


@dataclass(frozen=True)
class Principal:
    """A mean row (D,) and orthonormal directions (D, k) of most variance."""

    mean: Tensor
    directions: Tensor

    @classmethod
    def of(cls, rows: Tensor, seed: int, components: int = COMPONENTS) -> Principal:
        """The first ``components`` directions of rows (n, D), or as many as those have."""
        mean = rows.mean(0)
        kept = min(components, *rows.shape)
        with global_noise(mixed(seed, 86)):  # its first directions are random
            tried = min(kept + SPARE, *rows.shape)
            directions = torch.pca_lowrank(rows - mean, q=tried, center=False, niter=POWERS)[2]
        return cls(mean, directions[:, :kept])

    def coordinates(self, rows: Tensor) -> Tensor:
        """Rows (n, D) to (n, k), float64."""
        return ((rows - self.mean) @ self.directions).double()

    def pixels(self, coordinates: Tensor) -> Tensor:
        """The way back; what lies outside the components is the mean's."""
        return self.mean + coordinates.to(self.mean) @ self.directions.T


def gaussian_images(
    train: Batch, space: Images, *, count: int, seed: int, by_class: bool = True
) -> Tensor:
    """``count`` elements of ``space`` from Gaussians fitted to ``train``, shape (count, *shape).

    One Gaussian a class where ``train`` has labels and ``by_class`` is left on; a class comes as often
    as among them.
    """
    rows = train.x.flatten(1).float().cpu()
    principal = Principal.of(rows, seed)
    coordinates = principal.coordinates(rows)
    classes = torch.zeros(len(rows), dtype=torch.long)
    if by_class and train.condition is not None:
        classes = train.condition.long().cpu()
    stream = torch.Generator().manual_seed(mixed(seed, 87))
    wanted = classes[torch.randint(len(classes), (count,), generator=stream)]
    noise = torch.randn((count, coordinates.shape[1]), generator=stream, dtype=torch.float64)
    drawn = torch.empty_like(noise)
    for one in wanted.unique():
        own, here = coordinates[classes == one], wanted == one
        drawn[here] = own.mean(0) + noise[here] @ _root(own).T
    levels = principal.pixels(drawn).round().clamp(0, space.levels - 1)
    return levels.reshape(-1, *space.shape).to(space.dtype)


def _root(rows: Tensor) -> Tensor:
    """The symmetric root of the covariance of rows (n, k); nought of a single row."""
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(rows) - 1))
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
