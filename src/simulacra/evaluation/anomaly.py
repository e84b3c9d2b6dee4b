"""Anomaly detection: does the model find what was spliced from two data?

Planted anomalies are test data with one half taken from another datum: for images a random one of
left, right, top and bottom, for everything else a random half of the entries. Each entry alone
stays as likely as before, so a model that knows no dependence scores near 0.5. The area under the ROC
curve is the chance that a spliced datum scores stranger than an intact one; its variance is that of
placements (DeLong et al. 1988), summed by datum since each comes intact and spliced (Obuchowski 1997).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simulacra.contract import Density, Scorer
from simulacra.evaluation.case import Case, Score, scored
from simulacra.evaluation.intervals import around
from simulacra.evaluation.reading import Reading
from simulacra.games import Batch
from simulacra.probability.noise import mixed

NEEDS = (Scorer, Density)
NAME = "anomaly detection"
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


def area_under_curve(stranger: Tensor, ordinary: Tensor) -> tuple[float, float]:
    """The area under the ROC curve of scores that come in pairs, both of shape (n,), and its variance.

    Ties count one half.
    """
    beaten = _placements(stranger, ordinary)
    beating = 1 - _placements(ordinary, stranger)
    return float(beaten.mean()), float((beaten + beating).var()) / len(beaten)


def _placements(scores: Tensor, among: Tensor) -> Tensor:
    """For each score, the share of ``among`` below it."""
    ordered = among.double().sort().values.contiguous()
    wanted = scores.double().contiguous()
    below = torch.searchsorted(ordered, wanted) + torch.searchsorted(ordered, wanted, right=True)
    return below.double() / (2 * len(ordered))


def read(case: Case) -> list[Reading]:
    """One reading, by the model's own score where it has one, else by -log p."""
    model = case.model
    if len(case.test) < FEWEST:
        return []

    def strangeness(x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
        if isinstance(model, Scorer):
            return model.anomaly_score(x, generator=generator)
        return -model.log_prob(x, condition=condition, generator=generator)  # type: ignore[no-any-return]

    intact = Batch(case.test.x[:MOST], _first(case.test.condition))
    stream = torch.Generator().manual_seed(mixed(case.seed, 86))
    planted = Batch(spliced(intact.x, stream), intact.condition)
    seconds = SHARE * case.seconds / 2
    strange = _scored(strangeness, planted, case, seconds)
    count = len(strange)
    same = Batch(intact.x[:count], _first(intact.condition, count))
    ordinary = _scored(strangeness, same, case, math.inf)
    value, variance = area_under_curve(strange, ordinary)
    low, high = around(value, variance)
    source = model.score_source if isinstance(model, Scorer) else "-log_prob"
    return [
        Reading(
            name=NAME,
            value=value,
            unit="area under ROC",
            better="higher",
            low=max(0.0, low),
            high=min(1.0, high),
            count={"intact": count, "spliced": count},
            split="test",
            seed=case.seed,
            how=(
                f"chance that {source} ranks a test datum with half of another above an intact one; "
                "every entry alone stays as likely, and 0.5 is guessing"
            ),
            control=GUESSING,
        )
    ]


def _scored(score: Score, batch: Batch, case: Case, seconds: float) -> Tensor:
    return scored(score, batch, conditional=case.conditional, seed=case.seed, seconds=seconds)


def _first(condition: Tensor | None, count: int = MOST) -> Tensor | None:
    return None if condition is None else condition[:count]
