"""Modes: how many sorts of data do samples reach, and in which shares?

For labelled data the modes are the classes, as a judge sees them; for stacked digits the judge says one
class a channel, and a mode is their combination (Metz et al. 2017, sec. 3.3: 1,000 modes). Where data are
drawn from a known mixture (rings and grids of Gaussians), a mode is a centre, and a sample counts within
three deviations of the nearest one (Srivastava et al. 2017; Lin et al. 2018).

    reverse KL = sum_m q(m) log q(m) / p(m)            q of the samples, p of the real data; nats

Both depend on how many samples there are: a perfect model misses modes by chance, and its shares of them
are never p itself. What it is expected to come to, from counts of Binomial(n, p(m)), stands beside as the
floor; for many samples of K modes the divergence's is the well-known (K - 1) / 2n (Miller 1955).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simulacra.contract import Kind, Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.manifold import squared_distances
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.probability.mixtures import RoundMixture

COUNT, DIVERGENCE, QUALITY = "modes reached", "reverse KL of modes", "high-quality samples"
REACH = 3.0
OUTSIDE = -1


def reverse_divergence(samples: Tensor, reference: Tensor) -> float:
    """KL(q | p) in nats of counts (modes,) of samples and p (modes,) of the data; infinite where the
    data have none of a mode that samples do."""
    q = samples.double() / samples.sum()
    return float((torch.xlogy(q, q) - torch.xlogy(q, reference.double())).sum())


def expected_reached(shares: Tensor, count: int) -> float:
    """How many modes of ``shares`` (modes,) a perfect model's ``count`` samples are expected in."""
    return float((1 - (1 - shares.double()) ** count).sum())


def expected_divergence(shares: Tensor, count: int) -> float:
    """The reverse KL that a perfect model's ``count`` samples are expected to have, nats."""
    hits = torch.arange(1, count + 1, dtype=torch.float64)
    ways = math.lgamma(count + 1) - torch.lgamma(hits + 1) - torch.lgamma(count - hits + 1)
    total = 0.0
    for share, modes in zip(*shares.double().unique(return_counts=True), strict=True):
        if share > 0:
            log_chance = ways + hits * share.log() + torch.xlogy(count - hits, 1 - share)
            terms = hits / count * (hits / (count * share)).log()
            total += float(modes * (log_chance.exp() * terms).sum())
    return total


def nearest_centre(x: Tensor, centres: Tensor, deviation: float) -> Tensor:
    """The index of the centre within three deviations of each row (n, d), else -1."""
    distances, which = squared_distances(x.double(), centres.double()).min(1)
    return torch.where(distances <= (REACH * deviation) ** 2, which, OUTSIDE)


class Modes(Measure):
    """Modes of ``samples`` against those of ``real`` data, each (n,), whole numbers; -1 lies in none.

    ``shares``: p of each mode where it is known; else the real data's frequencies are taken.
    ``inside``: the share of a perfect model's samples that lie in a mode, where not all do.
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
        inside: float | None = None,
        told: str = "modes",
    ) -> None:
        super().__init__(provenance)
        self.modes, self.shares, self.inside, self.told = modes, shares, inside, told

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """The modes that a model draws without being told which; none for a conditional one."""
        if case.conditional:
            return []
        if case.truth is not None:
            known = Provenance(split="known mixture", seed=case.seed)
            return cls.of_truth(case.truth, case.drawn.x, known)
        if case.judge is None or case.labels is None:
            return []
        seen = Provenance(seed=case.seed, features=case.judge.identity)
        said, real = (case.judge.probabilities(x).argmax(1) for x in (case.drawn.x, case.test.x))
        told, shares = "classes, as a held-out classifier sees them", None
        if case.labels.channel_classes:
            told = "combinations of classes, as a held-out classifier of single channels sees them"
            shares = _product(case.labels.separated(real, case.space.shape[0]))
        measure = cls(case.labels.count, seen, shares=shares, told=told)
        return measure.update(samples=said, real=real).compute()

    @classmethod
    def of_truth(cls, truth: RoundMixture, x: Tensor, provenance: Provenance) -> list[Reading]:
        """The readings of samples x (n, d) of a mixture that is known."""
        measure = cls(
            len(truth.centres),
            provenance,
            shares=truth.shares,
            inside=truth.share_within(REACH),
            told="Gaussians that the data are drawn from",
        )
        return measure.update(samples=nearest_centre(x, truth.centres, truth.deviation)).compute()

    def compute(self) -> list[Reading]:
        samples, shares = self.rows("samples"), self._reference()
        inside = samples[samples != OUTSIDE]
        counts = torch.bincount(inside, minlength=self.modes)
        total = len(samples)
        perfect = total if self.inside is None else round(self.inside * total)
        readings = [
            self.reading(
                COUNT,
                int((counts > 0).sum()),
                unit=f"of {self.modes:,}",
                kind=Kind.EXACT if self.inside is not None else Kind.ESTIMATE,
                better="higher",
                count=self._counted(total),
                how=(
                    f"{self.told} that at least one sample is of; the floor is what a perfect model is "
                    "expected to reach with as many samples"
                ),
                floor=expected_reached(shares, perfect),
            )
        ]
        if self.inside is not None or len(inside) < total:
            readings.append(
                self.reading(
                    QUALITY,
                    len(inside) / total,
                    unit="share",
                    better="higher",
                    count={"samples": total},
                    interval=wilson(len(inside), total),
                    how=f"share of samples within {REACH:g} deviations of a centre",
                    floor=self.inside,
                )
            )
        if len(inside):
            chance = expected_divergence(shares, len(inside))
            readings.append(
                self.reading(
                    DIVERGENCE,
                    reverse_divergence(counts, shares),
                    unit="nats",
                    better="lower",
                    count=self._counted(len(inside)),
                    how=(
                        f"KL of the samples' shares of {self.told} to the data's; the floor is what a "
                        "perfect model gets by chance with as many samples"
                    ),
                    floor=chance,
                )
            )
        return readings

    def _counted(self, samples: int) -> dict[str, int]:
        """So many samples, and the real data that p was read off where there were any."""
        real = {"real": len(self.rows("real"))} if self.has("real") else {}
        return {"samples": samples} | real

    def _reference(self) -> Tensor:
        if self.shares is not None:
            return self.shares
        # A mode that the few real data lack is not impossible: half a datum stands in for it.
        counts = torch.bincount(self.rows("real"), minlength=self.modes).double()
        counts = torch.where(counts > 0, counts, 0.5)
        return counts / counts.sum()


def _product(per_channel: Tensor) -> Tensor:
    """p of each combination of the channels' classes (n, channels), which are drawn independently."""
    joint = torch.ones(1, dtype=torch.float64)
    classes = int(per_channel.max()) + 1
    for one in per_channel.T:
        share = torch.bincount(one, minlength=classes).double() / len(one)
        joint = (joint[:, None] * share).flatten()
    return joint
