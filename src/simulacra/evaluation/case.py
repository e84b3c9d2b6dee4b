"""A case before the ruler: a model, the three splits, the features, and samples drawn once for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from simulacra.evaluation.features import FeatureNet
from simulacra.evaluation.gaussians import gaussian_images
from simulacra.games import Batch
from simulacra.probability.mixtures import RoundMixture
from simulacra.probability.noise import mixed
from simulacra.spaces import Images, Labels, Space

DRAWN_AT_ONCE = 100
SCORED_FIRST, SCORED_AT_ONCE = 20, 200
MOST_REAL = 10_000
SLOW = 0.1  # of the budget for the first sample alone: draw fewer at once

Score = Callable[[Tensor, Tensor | None, torch.Generator], Tensor]
"""(x, condition, generator) to one number a datum."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples of a model: elements, their conditions, and the seconds that each batch took."""

    x: Tensor
    condition: Tensor | None = None
    seconds: tuple[float, ...] = ()
    at_once: int = DRAWN_AT_ONCE


@dataclass(frozen=True, eq=False)
class Case:
    """What every measure reads from; features are computed once, in float64.

    ``drawn`` are the samples of a model that draws any.
    """

    model: Any
    space: Space
    train: Batch
    valid: Batch
    test: Batch
    features: FeatureNet
    seed: int
    seconds: float
    labels: Labels | None = None
    judge: FeatureNet | None = None
    drawing: Samples | None = None
    untrained: Any = None
    noise_floor: float | None = None
    truth: RoundMixture | None = None
    cost: Mapping[str, float] = field(default_factory=dict)

    @property
    def conditional(self) -> bool:
        """Whether the model wants a condition for every datum."""
        return getattr(self.model, "condition_space", None) is not None

    @property
    def drawn(self) -> Samples:
        """The samples of a model that draws any."""
        assert self.drawing is not None
        return self.drawing

    @cached_property
    def real(self) -> Tensor:
        """Features of the test split, shape (n, d)."""
        return self._seen(self.test.x[:MOST_REAL])

    @cached_property
    def other_real(self) -> Tensor:
        """Features of as many other real data as there are samples, for the floor."""
        return self._seen(self.other_data)

    @cached_property
    def samples(self) -> Tensor:
        """Features of the samples, as many as the floor has data at most."""
        return self._seen(self.drawn.x[: len(self.other_data)])

    @cached_property
    def gaussian(self) -> Tensor | None:
        """Features of draws from Gaussians; see ``gaussian_data``."""
        drawn: Tensor | None = self.gaussian_data
        return None if drawn is None else self._seen(drawn)

    def rows(self, role: str) -> Tensor | None:
        """Features by role: 'real', 'other_real', 'samples' or 'gaussian'."""
        rows: Any = getattr(self, role)
        return rows if isinstance(rows, Tensor) else None

    @cached_property
    def other_data(self) -> Tensor:
        """As many real data that are not in the test split as there are samples."""
        source = self.valid if self._valid_is_enough else self.train
        stream = torch.Generator().manual_seed(mixed(self.seed, 81))
        return source.x[torch.randperm(len(source), generator=stream)[: len(self.drawn.x)]]

    @cached_property
    def gaussian_data(self) -> Tensor | None:
        """Draws from Gaussians in the principal components of the training images, one a class where
        there are labels, as many as samples; None of data that are no images."""
        if not isinstance(self.space, Images):
            return None
        return gaussian_images(
            self.train,
            self.space,
            count=len(self.samples),
            seed=self.seed,
            by_class=self.labels is not None,
        )

    def _seen(self, x: Tensor) -> Tensor:
        return self.features.features(x).double()

    @property
    def _valid_is_enough(self) -> bool:
        return len(self.valid) >= min(len(self.drawn.x), len(self.train))

    @property
    def eyes(self) -> str:
        """In which features, and what the floor is made of."""
        other = "validation" if self._valid_is_enough else "training"
        return (
            f"in the {self.features.dimension} features of kind '{self.features.kind}', against the "
            f"test split; the floor puts as many data of the {other} split in the samples' place"
        )


def shuffled(batch: Batch, seed: int) -> Batch:
    """The same data in a random order, so that any first part of them is a fair one."""
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(mixed(seed, 82)))
    return Batch(batch.x[order], None if batch.condition is None else batch.condition[order])


def draw(
    model: Any, count: int, *, space: Space, train: Batch, seed: int, seconds: float
) -> Samples:
    """At most ``count`` samples, and fewer (but some) where ``seconds`` do not allow them.

    They are what a person is handed: numbers of a table have as many decimals as its data. Conditions
    follow the training labels' frequencies. One sample is drawn first, as a warm-up.
    """
    conditions = None
    if getattr(model, "condition_space", None) is not None:
        assert train.condition is not None
        stream = torch.Generator().manual_seed(mixed(seed, 83))
        conditions = train.condition[torch.randint(len(train), (count,), generator=stream)]
    generator = torch.Generator().manual_seed(mixed(seed, 84))
    begun = time.perf_counter()
    first = None if conditions is None else conditions[:1]
    with torch.no_grad():
        model.sample(1, condition=first, generator=torch.Generator().manual_seed(seed))
    slow = time.perf_counter() - begun > SLOW * seconds
    at_once = DRAWN_AT_ONCE // 10 if slow else DRAWN_AT_ONCE
    parts, times = [], list[float]()
    for start in range(0, count, at_once):
        size = min(at_once, count - start)
        given = None if conditions is None else conditions[start : start + size]
        before = time.perf_counter()
        with torch.no_grad():
            parts.append(model.sample(size, condition=given, generator=generator).cpu())
        times.append((time.perf_counter() - before) / size)
        if time.perf_counter() - begun + times[-1] * at_once > seconds:
            break
    # By its own space: a run from before has none of the decimals that its data are read with today.
    handed: Space = getattr(model, "space", space)
    x = space.require(handed.rounded(torch.cat(parts)), who="the ruler")
    return Samples(x, None if conditions is None else conditions[: len(x)], tuple(times), at_once)


def scored(score: Score, batch: Batch, *, conditional: bool, seed: int, seconds: float) -> Tensor:
    """Scores of the first data of ``batch``, as many as ``seconds`` allow, shape (n,), float64.

    Parts have fixed borders and each its own generator: the time decides how many data are scored,
    and never what a score is.
    """
    begun, parts, start, size = time.perf_counter(), list[Tensor](), 0, SCORED_FIRST
    while start < len(batch):
        before = time.perf_counter()
        rows = slice(start, start + size)
        given = batch.condition[rows] if conditional and batch.condition is not None else None
        generator = torch.Generator().manual_seed(mixed(seed, 85, start))
        with torch.no_grad():
            parts.append(score(batch.x[rows], given, generator).double().cpu())
        now, per_row = time.perf_counter(), (time.perf_counter() - before) / len(parts[-1])
        start, size = start + size, SCORED_AT_ONCE
        if now - begun + per_row * min(size, len(batch) - start) > seconds:
            break
    return torch.cat(parts)
