"""Clusters of real rows, as a start for mixtures and codebooks, and the rows to look for them in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RandomSubset:
    """At most ``size`` rows of a stream of batches, any such subset equally likely: those of the
    smallest random keys."""

    def __init__(self, size: int, keys: torch.Generator) -> None:
        self.size, self.keys = size, keys
        self._rows: Tensor | None = None
        self._chosen = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Look at more rows, of any shape behind the first dimension."""
        held = rows if self._rows is None else torch.cat([self._rows, rows])
        keys = torch.cat([self._chosen, torch.rand(len(rows), generator=self.keys)])
        self._chosen, order = keys.sort(stable=True)
        self._chosen = self._chosen[: self.size]
        self._rows = held[order[: self.size].to(held.device)]

    def rows(self) -> Tensor:
        """The subset, in random order; there has to have been a batch."""
        assert self._rows is not None
        return self._rows


def k_means(z: Tensor, components: int, seed: int) -> Tensor:
    """Labels (n,) of rows z (n, D): k-means++ (Arthur & Vassilvitskii 2007), then Lloyd's iterations.

    Deterministic for a seed in [0, 2^32).
    """
    from sklearn.cluster import kmeans_plusplus  # a second to import, and only needed here

    start, _ = kmeans_plusplus(z.cpu().numpy(), components, random_state=seed)
    centres, labels = torch.from_numpy(start).to(z), torch.full((len(z),), -1, device=z.device)
    for _ in range(50):
        # |z|^2 is the same for every centre.
        found = (0.5 * centres.square().sum(1) - z @ centres.T).argmin(1)
        if torch.equal(found, labels):
            break
        labels = found
        own = nn.functional.one_hot(labels, components).to(z)
        counts = own.sum(0).unsqueeze(1)
        centres = torch.where(counts > 0, own.T @ z / counts.clamp(min=1), centres)
    return labels
