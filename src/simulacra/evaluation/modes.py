"""Modes: how many sorts of data do samples reach, and in which shares?

For labelled data the modes are the classes, as a judge sees them; for stacked digits the judge says one
class a channel, and a mode is their combination (Metz et al. 2017, sec. 3.3: 1,000 modes); on rings and
grids of Gaussians a mode is a centre, and a sample counts within three deviations of the nearest one.

    reverse KL = sum_m q(m) log q(m) / p(m)            q of the samples, p of the real data; nats
"""

from __future__ import annotations

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.manifold import squared_distances
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading

COUNT, DIVERGENCE, QUALITY = "modes reached", "reverse KL of modes", "high-quality samples"
REACH = 3.0
OUTSIDE = -1


def reverse_divergence(samples: Tensor, reference: Tensor) -> float:
    """KL(q | p) in nats of counts (modes,) of samples and p (modes,) of the data; infinite where the
    data have none of a mode that samples do."""
    q = samples.double() / samples.sum()
    return float((torch.xlogy(q, q) - torch.xlogy(q, reference.double())).sum())


def nearest_centre(x: Tensor, centres: Tensor, deviation: float) -> Tensor:
    """The index of the centre within three deviations of each row (n, d), else -1."""
    distances, which = squared_distances(x.double(), centres.double()).min(1)
    return torch.where(distances <= (REACH * deviation) ** 2, which, OUTSIDE)


def stacked_classes(per_channel: Tensor, classes: int) -> Tensor:
    """One mode from the classes of each channel, shape (n, channels) to (n,)."""
    powers = classes ** torch.arange(per_channel.shape[1] - 1, -1, -1)
    return (per_channel.long() * powers).sum(1)


class Modes(Measure):
    """Modes of ``samples`` against those of ``real`` data, each (n,), whole numbers; -1 lies in none.

    ``shares``: p of each mode where it is known; else the real data's frequencies are taken.
    """

    NEEDS = (Sampler,)
    ROLES = ("samples", "real")
    REQUIRED = ("samples",)

    def __init__(
        self,
        modes: int,
        provenance: Provenance | None = None,
        *,
        shares: Tensor | None = None,
        told: str = "modes",
    ) -> None:
        super().__init__(provenance)
        self.modes, self.shares, self.told = modes, shares, told

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """The classes that a model draws without being told which; none for a conditional one."""
        if case.judge is None or case.labels is None or case.conditional:
            return []
        seen = Provenance(seed=case.seed, features=case.judge.identity)
        measure = cls(case.labels.count, seen, told="classes, as a held-out classifier sees them")
        measure.update(samples=case.judge.probabilities(case.drawn.x).argmax(1))
        return measure.update(real=case.judge.probabilities(case.test.x).argmax(1)).compute()

    def compute(self) -> list[Reading]:
        samples = self.rows("samples")
        inside = samples[samples != OUTSIDE]
        counts = torch.bincount(inside, minlength=self.modes)
        reached, total = int((counts > 0).sum()), len(samples)
        readings = [
            self.reading(
                COUNT,
                reached,
                unit=f"of {self.modes:,}",
                better="higher",
                count=total,
                how=f"{self.told} that at least one sample is of",
                floor=float(self._known()),
            )
        ]
        if len(inside) < total:
            readings.append(
                self.reading(
                    QUALITY,
                    len(inside) / total,
                    unit="share",
                    better="higher",
                    count=total,
                    interval=wilson(len(inside), total),
                    how=f"share of samples within {REACH:g} deviations of a centre",
                )
            )
        if len(inside):
            # What a perfect model's own finite counts come to (Miller & Madow).
            chance = (self._known() - 1) / (2 * len(inside))
            reference = self._reference()
            readings.append(
                self.reading(
                    DIVERGENCE,
                    reverse_divergence(counts, reference),
                    unit="nats",
                    better="lower",
                    count=len(inside),
                    how=(
                        f"KL of the samples' shares of {self.told} to the data's; a perfect model gets "
                        f"{chance:.2g} by chance"
                    ),
                    floor=chance,
                )
            )
        return readings

    def _known(self) -> int:
        """How many modes the data have."""
        if self.shares is not None:
            return int((self.shares > 0).sum())
        return len(self.rows("real").unique())

    def _reference(self) -> Tensor:
        if self.shares is not None:
            return self.shares
        # A mode that the few real data lack is not impossible: half a datum stands in for it.
        counts = torch.bincount(self.rows("real"), minlength=self.modes).double()
        counts = torch.where(counts > 0, counts, 0.5)
        return counts / counts.sum()
