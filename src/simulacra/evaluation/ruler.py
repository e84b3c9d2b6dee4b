"""The ruler: every measure that a model's capabilities allow, on the same data and features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch import nn

from simulacra.contract import Sampler
from simulacra.evaluation import (
    anomaly,
    class_accuracy,
    cost,
    frechet,
    kernel_distance,
    likelihood,
    manifold,
    representation,
)
from simulacra.evaluation.case import Case, Samples, draw, shuffled
from simulacra.evaluation.features import FeatureNet, learn_features, learn_judge
from simulacra.evaluation.reading import Reading
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.spaces import Labels, Space

__all__ = ["MEASURES", "Measure", "Samples", "learn_features", "learn_judge", "measure"]

SAMPLING_SHARE = 0.5


class Measure(Protocol):
    """One file of this room."""

    @property
    def NEEDS(self) -> tuple[type, ...]:  # noqa: N802
        """The capabilities of which a model needs one; empty where every model is measured."""
        ...

    def read(self, case: Case) -> list[Reading]:
        """The readings; an empty list where the question does not arise."""
        ...


MEASURES: tuple[Measure, ...] = (
    likelihood,
    frechet,
    kernel_distance,
    manifold,
    class_accuracy,
    anomaly,
    representation,
    cost,
)


def measure(
    model: Any,
    *,
    space: Space,
    train: Batch,
    valid: Batch,
    test: Batch,
    features: FeatureNet,
    labels: Labels | None = None,
    judge: FeatureNet | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    budget_seconds: float = 60.0,
    training_cost: Mapping[str, float] | None = None,
    samples: Samples | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Reading]:
    """All readings of ``model``.

    The batches hold elements and, where data are labelled, labels as their conditions (whether or
    not the model is conditional). ``judge``: see ``learn_judge``, for the class accuracy of samples.
    ``budget_seconds``: what sampling and scoring may take together, about; a slow model is measured
    on fewer data, and its readings say on how many. ``training_cost``: 'training_seconds' and
    'peak_memory_mib'. ``samples``: drawn before; else drawn here. ``say`` hears, in a line each,
    which measures had to refuse, and why.
    """
    with evaluating(model):
        if samples is None and isinstance(model, Sampler):
            allowed = SAMPLING_SHARE * budget_seconds
            samples = draw(model, num_samples, space=space, train=train, seed=seed, seconds=allowed)
        case = Case(
            model=model,
            space=space,
            train=shuffled(train, seed),
            valid=shuffled(valid, seed),
            test=shuffled(test, seed),
            features=features,
            seed=seed,
            seconds=budget_seconds,
            labels=labels,
            judge=judge,
            samples=samples,
            cost=training_cost or {},
        )
        readings: list[Reading] = []
        for one in MEASURES:
            if one.NEEDS and not isinstance(model, one.NEEDS):
                continue
            try:
                readings += one.read(case)
            except Refusal as refusal:
                say(f"not measured: {refusal.line()}")
    return readings


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model as it is used, not trained; afterwards as it was."""
    training = isinstance(model, nn.Module) and model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
