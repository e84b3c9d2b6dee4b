"""Token sequences: are short runs of tokens as frequent in samples as in real data?

The Jensen-Shannon divergence, in bits (0 is equal, 1 apart), of the frequencies of runs of n = 1, 2 and 3
tokens (Lin 1991). Finite counts bias it upward, so it only compares at equal counts, beside its floor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.probability.noise import mixed
from simulacra.spaces import Tokens

NAME = "{}-gram divergence"
LENGTHS = (1, 2, 3)
DRAWS = 50


def runs_of(x: Tensor, length: int, vocabulary: int) -> Tensor:
    """Every run of ``length`` tokens of rows (n, tokens) as one number, shape (n, runs)."""
    windows = x.long().unfold(1, length, 1)
    powers = vocabulary ** torch.arange(length - 1, -1, -1)
    return (windows * powers).sum(2)


def jensen_shannon(x: Tensor, y: Tensor) -> float:
    """Divergence, in bits, of the frequencies of two sets of numbers."""
    seen, where = torch.cat([x.flatten(), y.flatten()]).unique(return_inverse=True)
    cut = x.numel()
    p, q = (
        torch.bincount(part, minlength=len(seen)).double() / len(part)
        for part in (where[:cut], where[cut:])
    )
    middle = (p + q) / 2
    nats = (torch.xlogy(p, p) + torch.xlogy(q, q)).sum() / 2 - torch.xlogy(middle, middle).sum()
    return float(nats) / float(torch.tensor(2.0).log())


class NGrams(Measure):
    """Divergences of runs in ``samples`` from those in ``real`` sequences (n, tokens)."""

    NEEDS = (Sampler,)
    ROLES = ("samples", "real", "other_real")
    REQUIRED = ("samples", "real")

    def __init__(self, space: Tokens, provenance: Provenance | None = None) -> None:
        super().__init__(provenance)
        self.space = space

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None of data that are no sequences of tokens."""
        if not isinstance(case.space, Tokens):
            return []
        measure = cls(case.space, Provenance(seed=case.seed)).update(samples=case.drawn.x)
        return measure.update(real=case.test.x, other_real=case.other_data).compute()

    def compute(self) -> list[Reading]:
        count = min(len(self.rows("samples")), len(self.rows("real")))
        samples, real = self.rows("samples")[:count], self.rows("real")[:count]
        readings = []
        for length in LENGTHS:
            if length > samples.shape[1] or self.space.vocabulary**length > 2**62:
                continue
            mine, theirs = (runs_of(x, length, self.space.vocabulary) for x in (samples, real))
            floor = None
            if self.has("other_real") and len(self.rows("other_real")) >= count:
                other = runs_of(self.rows("other_real")[:count], length, self.space.vocabulary)
                floor = jensen_shannon(other, theirs)
            value = jensen_shannon(mine, theirs)
            readings.append(
                self.reading(
                    NAME.format(length),
                    value,
                    unit="bits",
                    better="lower",
                    count={"samples": count, "real": count},
                    interval=self._interval(value, mine, theirs),
                    how=(
                        f"Jensen-Shannon divergence of the frequencies of runs of {length} tokens; "
                        "biased upward by finite counts as the floor is"
                    ),
                    floor=floor,
                )
            )
        return readings

    def _interval(self, value: float, mine: Tensor, theirs: Tensor) -> tuple[float, float]:
        """The bootstrap's interval over sequences, moved by what resampling itself adds."""
        stream = torch.Generator().manual_seed(mixed(self.provenance.seed, 95))
        draws = [torch.randint(len(mine), (len(mine),), generator=stream) for _ in range(DRAWS)]
        found = torch.tensor([jensen_shannon(mine[rows], theirs) for rows in draws])
        shift = value - float(found.mean())
        low, high = (float(found.quantile(q)) + shift for q in (0.025, 0.975))
        return max(0.0, low), high
