"""The ladder: planted faults on which the ruler tests itself before it judges anybody.

Real data that no model made are put in the samples' place, first whole and then with more and more of
their entries replaced by anything at all. Distances have to grow with the strength of the fault,
coverage has to fall when sorts of data are left out, a classifier must not tell fresh real data from
real data, and a memoriser must be found by the copy test, while its samples stay at no distance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from simulacra.evaluation.features import FeatureNet
from simulacra.evaluation.frechet import SANE, frechet_distance
from simulacra.evaluation.kernel_distance import with_variance
from simulacra.evaluation.manifold import compare
from simulacra.evaluation.measure import Provenance
from simulacra.evaluation.memorisation import Memorisation, standardiser
from simulacra.evaluation.two_sample import LEAST, TwoSample
from simulacra.games import Batch
from simulacra.probability.clustering import k_means
from simulacra.probability.noise import mixed
from simulacra.spaces import Space, Table

STRENGTHS = (0.0, 0.03, 0.08, 0.15, 0.3, 0.6)
MOST = 2000
SORTS = 10
SORTED = 120
EXPLAINED = 0.2
"""Share of the spread that sorts have to explain to be any."""
MOST_TRAINED = 10_000
JUDGED, CUTS = 3000, 8
"""Judgements of the classifier between real data that are asked for, in at most so many cuts."""


@dataclass(frozen=True)
class Check:
    """One thing that the ruler has to see: in words, with the numbers, and whether it did."""

    name: str
    expected: str
    seen: str
    passed: bool


@dataclass(frozen=True)
class Ladder:
    """What the ruler said of each planted fault, and whether that is in order."""

    checks: tuple[Check, ...]
    count: int
    features: str

    @property
    def passed(self) -> bool:
        """Whether all is as it has to be."""
        return all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        """One line a check."""
        head = f"on {self.count:,} real data in features of {self.features}"
        if not self.checks:
            return [f"{head}: not tested, that takes {LEAST} validation and {LEAST} test data"]
        return [head] + [
            f"{'ok    ' if one.passed else 'FAILED'}  {one.name}: {one.seen} (expected {one.expected})"
            for one in self.checks
        ]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that ``from_json`` turns back."""
        return {**asdict(self), "checks": [asdict(check) for check in self.checks]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Ladder:
        """The ladder that ``to_json`` described."""
        checks = tuple(Check(**one) for one in values["checks"])
        return cls(checks, values["count"], values["features"])


def corrupted(x: Tensor, strength: float, space: Space, generator: torch.Generator) -> Tensor:
    """Elements of which a share of the entries is anything at all.

    Anything at all of a real number is twice as wide as the data: in their unit, not in that of a
    standard normal, beside which a column of lengths in metres has no spread.
    """
    noise = space.random(len(x), generator)
    if x.is_floating_point():
        there = ~x.isnan()
        counts = there.sum(0).clamp(min=1)
        mean = x.nan_to_num().sum(0) / counts
        spread = (torch.where(there, x - mean, 0.0).square().sum(0) / counts).sqrt()
        real = torch.ones(x.shape[1:], dtype=torch.bool)
        if isinstance(space, Table):
            real = torch.tensor([column.kind == "real" for column in space.columns])
        noise = torch.where(real, mean + 2 * spread * noise, noise)
    hit = torch.rand(x.shape, generator=generator) < strength
    return torch.where(hit, noise.to(x), x)


def climb(
    space: Space, *, train: Batch, valid: Batch, test: Batch, features: FeatureNet, seed: int = 0
) -> Ladder:
    """Let the ruler judge planted faults in data of this kind; too few data test nothing."""
    if min(len(valid), len(test)) < LEAST:
        return Ladder((), min(len(valid), len(test)), features.identity)
    stream = torch.Generator().manual_seed(mixed(seed, 110))
    fresh = valid.x if len(valid) >= min(len(test), MOST) else train.x
    fresh = fresh[torch.randperm(len(fresh), generator=stream)[:MOST]].cpu()
    real = test.x[torch.randperm(len(test), generator=stream)[:MOST]].cpu()
    seen = features.features(real).double()
    # The same noise at every rung, so that only its strength changes.
    rungs = [
        features.features(
            corrupted(fresh, s, space, torch.Generator().manual_seed(mixed(seed, 111)))
        ).double()
        for s in STRENGTHS
    ]
    kernel = [with_variance(rung, seen) for rung in rungs]
    noise = math.sqrt(kernel[0][1])
    checks = [
        _nothing(seen),
        _monotone("kernel distance (KID)", [value for value, _ in kernel], noise),
    ]
    if min(len(fresh), len(real)) >= SANE * features.dimension:
        growing = [frechet_distance(r, seen) for r in rungs]
        checks.append(_monotone("Fréchet distance", growing))
    checks += _coverage(rungs[0], seen, seed)
    checks.append(_told_apart(space, torch.cat([valid.x, test.x]).cpu(), seed))
    checks.append(_copies(space, train, valid, test, seed))
    return Ladder(tuple(checks), len(real), features.identity)


def _nothing(seen: Tensor) -> Check:
    value = frechet_distance(seen, seen) if len(seen) > SANE * seen.shape[1] else 0.0
    scale = float(seen.var(0).sum())
    return Check(
        "a set against itself",
        "no Fréchet distance",
        f"{value:.2g}",
        value <= 1e-6 * max(scale, 1.0),
    )


def _monotone(name: str, values: Sequence[float], noise: float = 0.0) -> Check:
    """``noise``: the deviation of real data's own value, within which rungs may change places."""
    shown = ", ".join(f"{s:.0%} {value:.3g}" for s, value in zip(STRENGTHS, values, strict=True))
    # The first rung is real data: noise may swap it with the weakest fault, and nothing else.
    ordered = all(a < b + noise for a, b in itertools.pairwise(values[1:]))
    ordered = ordered and values[-1] > values[0] + 4 * noise
    return Check(
        f"{name} by share of entries replaced",
        "growing with the fault",
        shown,
        ordered and values[0] < values[2] + noise,
    )


def _coverage(fresh: Tensor, seen: Tensor, seed: int) -> list[Check]:
    """Half of the sorts that k-means finds in the fresh data left out, at an equal count.

    No check where the data have no sorts, as runs of text have none, nor where neighbours are so few that
    each covers most of what was left out.
    """
    if min(len(fresh), len(seen)) < SORTED:
        return []
    sorts = k_means(fresh.float(), min(SORTS, len(fresh) // 10 + 2), mixed(seed, 112) % 2**32)
    own = torch.nn.functional.one_hot(sorts).double()
    sizes = own.sum(0)
    centres = own.T @ fresh / sizes.clamp(min=1)[:, None]
    within = (fresh - centres[sorts]).square().sum()
    if within > (1 - EXPLAINED) * (fresh - fresh.mean(0)).square().sum():
        return []
    kept = fresh[torch.isin(sorts, sizes.argsort(descending=True)[::2])]
    count = min(len(kept), len(seen))
    whole = compare(fresh[torch.arange(count) * len(fresh) // count], seen[:count])
    half = compare(kept[:count], seen[:count])
    before, after = (float(one.covered.double().mean()) for one in (whole, half))
    check = Check(
        "coverage when half of the sorts are left out",
        "falling",
        f"{before:.3f} to {after:.3f}",
        after < before - 0.05,
    )
    return [check]


def _told_apart(space: Space, held_out: Tensor, seed: int) -> Check:
    """Random halves of what was held out: nothing can tell them apart.

    Few data are cut in halves again and again: one cut's accuracy scatters too widely to show a lean.
    """
    stream = torch.Generator().manual_seed(mixed(seed, 114))
    asked = min(len(held_out) // 2, MOST) * 2
    cuts = min(CUTS, math.ceil(JUDGED / asked))
    total = 0.0
    for cut in range(cuts):
        order = torch.randperm(len(held_out), generator=stream)[:asked]
        fresh, real = held_out[order].chunk(2)
        provenance = Provenance(seed=mixed(seed, 115, cut))
        measure = TwoSample(space, provenance, halvings=1).update(samples=fresh, real=real)
        total += measure.compute()[0].value
    # The two halves' errors go together a little: more spread than as many coins have.
    reach = max(0.03, 3 * 0.6 / math.sqrt(cuts * asked))
    return Check(
        "a classifier between real and fresh real data",
        f"0.5 ± {reach:.2f}",
        f"{total / cuts:.3f}",
        abs(total / cuts - 0.5) <= reach,
    )


def _copies(space: Space, train: Batch, valid: Batch, test: Batch, seed: int) -> Check:
    """A memoriser draws training data, an entry replaced in about every fourth."""
    stream = torch.Generator().manual_seed(mixed(seed, 113))
    trained = train.x[:MOST_TRAINED].cpu()
    scaled = standardiser(trained, space)
    which = torch.randint(len(trained), (500,), generator=stream)
    planted = corrupted(trained[which], 0.25 / trained[0].numel(), space, stream)

    def share(x: Tensor) -> float:
        return float(Memorisation.copied(scaled(x), scaled(trained)).double().mean())

    found = share(planted)
    ordinary = share(torch.cat([valid.x, test.x])[:1000])
    return Check(
        "copies of training data, of a planted memoriser and of held-out data",
        "most, and hardly any",
        f"{found:.3f} and {ordinary:.3f}",
        found > 0.5 and ordinary < 0.1 * found,
    )
