"""Anomaly detection: does the model find what was spliced from two data?

Planted anomalies are test data with one half taken from another datum: for images a random one of
left, right, top and bottom, for everything else a random half of the entries. Each entry alone
stays as likely as before, so a model that knows no dependence scores near 0.5. The area under the ROC
curve is the chance that a spliced datum scores stranger than an intact one; its variance is that of
placements (DeLong et al. 1988), summed by datum since each comes intact and spliced (Obuchowski 1997).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from simulacra.contract import Density, Scorer
from simulacra.evaluation.case import Case, Score, scored
from simulacra.evaluation.intervals import around
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.games import Batch
from simulacra.probability.noise import mixed

NAME, PRECISION = "anomaly detection", "anomaly detection, precision"
GUESSING = 0.5
MOST, FEWEST = 1000, 10
SHARE = 0.15


def spliced(x: Tensor, generator: torch.Generator) -> Tensor:
    """Elements of which one half is another row's, shape (n, *shape) as given, n at least 2."""
    shift = 1 + torch.randint(len(x) - 1, (len(x),), generator=generator)
    donors = x[(torch.arange(len(x)) + shift) % len(x)]
    return torch.where(_halves(x, generator), donors, x)


def _halves(x: Tensor, generator: torch.Generator) -> Tensor:
    """For each row, true on one half of it."""
    if x.ndim != 4:
        entries = x[0].numel()
        ranks = torch.rand((len(x), entries), generator=generator).argsort(1)
        return (ranks < entries // 2).reshape(x.shape)
    height, width = x.shape[2:]
    left = (torch.arange(width) < width // 2).expand(height, width)
    top = (torch.arange(height) < height // 2)[:, None].expand(height, width)
    masks = torch.stack([left, ~left, top, ~top])
    which = torch.randint(4, (len(x),), generator=generator)
    return masks[which][:, None].expand(x.shape)


def area_under_curve(
    stranger: Tensor, ordinary: Tensor, *, paired: bool = False
) -> tuple[float, float]:
    """The area under the ROC curve of scores (n,) and (m,), and its variance; ties count one half.

    ``paired``: row i of both comes from the same datum, which the variance takes into account.
    """
    beaten = _placements(stranger, ordinary)
    beating = 1 - _placements(ordinary, stranger)
    value = float(beaten.mean())
    if paired:
        return value, float((beaten + beating).var()) / len(beaten)
    return value, _mean_variance(beaten) + _mean_variance(beating)


def average_precision(stranger: Tensor, ordinary: Tensor) -> float:
    """The area under the precision-recall curve, as a sum over thresholds (no interpolation)."""
    scores = torch.cat([stranger, ordinary]).double()
    strange = torch.cat([torch.ones(len(stranger)), torch.zeros(len(ordinary))]).double()
    order = scores.argsort(descending=True, stable=True)
    scores, found = scores[order], strange[order].cumsum(0)
    last = torch.ones(
        len(scores), dtype=torch.bool
    )  # of a run of equal scores, the whole run counts
    last[:-1] = scores[1:] != scores[:-1]
    at = last.nonzero()[:, 0]
    precision = found[at] / (at + 1).double()
    recall = found[at] / len(stranger)
    gained = torch.diff(recall, prepend=torch.zeros(1, dtype=torch.float64))
    return float((precision * gained).sum())


def _mean_variance(values: Tensor) -> float:
    return float(values.var()) / len(values) if len(values) > 1 else 0.25


def _placements(scores: Tensor, among: Tensor) -> Tensor:
    """For each score, the share of ``among`` below it."""
    ordered = among.double().sort().values.contiguous()
    wanted = scores.double().contiguous()
    below = torch.searchsorted(ordered, wanted) + torch.searchsorted(ordered, wanted, right=True)
    return below.double() / (2 * len(ordered))


class Detection(Measure):
    """How well scores tell ``strange`` data (n,) from ``ordinary`` ones (m,); higher is stranger.

    ``source``: what the score is. ``among``: what the two sorts are. ``paired``: row i of both comes
    from one datum.
    """

    NEEDS = (Scorer, Density)
    ROLES = REQUIRED = ("strange", "ordinary")

    def __init__(
        self,
        source: str,
        provenance: Provenance | None = None,
        *,
        strange: str = "strange",
        ordinary: str = "ordinary",
        told: str = "",
        paired: bool = False,
    ) -> None:
        super().__init__(provenance)
        self.source, self.told, self.paired = source, told, paired
        self.names = {"ordinary": ordinary, "strange": strange}

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """On planted anomalies, by the model's own score where it has one, else by -log p."""
        if len(case.test) < FEWEST:
            return []
        score = own_score(case.model)
        intact = Batch(case.test.x[:MOST], _first(case.test.condition))
        stream = torch.Generator().manual_seed(mixed(case.seed, 86))
        planted = Batch(spliced(intact.x, stream), intact.condition)
        strange = _scored(score, planted, case, SHARE * case.seconds / 2)
        same = Batch(intact.x[: len(strange)], _first(intact.condition, len(strange)))
        measure = cls(
            own_source(case.model),
            Provenance(seed=case.seed),
            strange="spliced",
            ordinary="intact",
            told=(
                "; a spliced datum has half of another, every entry alone stays as likely, and 0.5 "
                "is guessing"
            ),
            paired=True,
        )
        ordinary = _scored(score, same, case, math.inf)
        return measure.update(strange=strange, ordinary=ordinary).compute()

    def compute(self) -> list[Reading]:
        strange, ordinary = self.rows("strange"), self.rows("ordinary")
        value, variance = area_under_curve(strange, ordinary, paired=self.paired)
        low, high = around(value, variance)
        count = {self.names[role]: len(self.rows(role)) for role in ("ordinary", "strange")}
        ranks = f"{self.source} ranks a {self.names['strange']} datum above an "
        ranks += f"{self.names['ordinary']} one"
        share = len(strange) / (len(strange) + len(ordinary))
        return [
            self.reading(
                NAME,
                value,
                unit="area under ROC",
                better="higher",
                count=count,
                interval=(max(0.0, low), min(1.0, high)),
                how=f"chance that {ranks}{self.told}",
                control=GUESSING,
            ),
            self.reading(
                PRECISION,
                average_precision(strange, ordinary),
                unit="average precision",
                better="higher",
                count=count,
                how=(
                    f"area under the precision-recall curve of {self.source}; without a model: the "
                    f"share of {self.names['strange']} data"
                ),
                control=share,
            ),
        ]


def own_source(model: Any) -> str:
    """What ``own_score`` is made of."""
    return model.score_source if isinstance(model, Scorer) else "-log_prob"


def own_score(model: Any) -> Score:
    """The model's own anomaly score where it has one, else -log p."""

    def strangeness(x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        if isinstance(model, Scorer):
            return model.anomaly_score(x, generator=generator)
        return -model.log_prob(x, condition=condition, generator=generator)  # type: ignore[no-any-return]

    return strangeness


def _scored(score: Score, batch: Batch, case: Case, seconds: float) -> Tensor:
    return scored(score, batch, conditional=case.conditional, seed=case.seed, seconds=seconds)


def _first(condition: Tensor | None, count: int = MOST) -> Tensor | None:
    return None if condition is None else condition[:count]
