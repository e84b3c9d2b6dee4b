"""Diversity: how far are two samples from one another, beside how far two real data are?

The mean distance of all pairs in feature space, an unbiased U-statistic with its first-order variance
(Hoeffding 1948). Samples that are all alike have a ratio near 0, and noise can have one above 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.intervals import around
from simulacra.evaluation.manifold import squared_distances
from simulacra.evaluation.measure import SetMeasure
from simulacra.evaluation.reading import Reading
from simulacra.refusals import Refusal

NAME = "pairwise diversity"
CHUNK = 1000


def mean_distances(x: Tensor) -> Tensor:
    """The mean distance of each row to all others, shape (n, d) to (n,)."""
    if len(x) < 2:
        reason = "a single datum has no distance to another"
        raise Refusal("NUM-024", reason, way_out="take at least two of each")
    centred = x.double() - x.double().mean(0)
    sums = []
    for start in range(0, len(x), CHUNK):
        distances = squared_distances(centred[start : start + CHUNK], centred)
        distances.diagonal(offset=start).zero_()
        sums.append(distances.sqrt().sum(1))
    return torch.cat(sums) / (len(x) - 1)


class Diversity(SetMeasure):
    """The ratio of the mean distance between samples (n, d) to that between real data (m, d)."""

    NEEDS = (Sampler,)
    ROLES = ("samples", "real", "other_real")

    def compute(self) -> list[Reading]:
        own, real = mean_distances(self.rows("samples")), mean_distances(self.rows("real"))
        ratio = float(own.mean() / real.mean())
        # A row's mean stands in two places of every pair that it is in.
        relative = 4 * float(own.var()) / len(own) / float(own.mean()) ** 2
        relative += 4 * float(real.var()) / len(real) / float(real.mean()) ** 2
        floor = None
        if self.has("other_real"):
            floor = float(mean_distances(self.rows("other_real")).mean() / real.mean())
        about = f"mean distance of two samples over that of two real data {self.provenance.about}"
        return [
            self.reading(
                NAME,
                ratio,
                unit="of the real data's",
                better="nearer",
                count=self.counts(),
                interval=around(ratio, ratio**2 * relative),
                how=f"{about.rstrip()}; 0 is collapse, and noise can lie above 1",
                floor=floor,
            )
        ]
