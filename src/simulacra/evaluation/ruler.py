"""The ruler: every measure that a model's capabilities allow, on the same data and features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from simulacra.contract import Sampler
from simulacra.evaluation.annealed import Annealing
from simulacra.evaluation.anomaly import Detection
from simulacra.evaluation.case import Case, Samples, draw, shuffled
from simulacra.evaluation.class_accuracy import ClassAccuracy
from simulacra.evaluation.cost import Cost
from simulacra.evaluation.diversity import Diversity
from simulacra.evaluation.downstream import Downstream
from simulacra.evaluation.features import FeatureNet, learn_features, learn_judge
from simulacra.evaluation.frechet import FrechetDistance
from simulacra.evaluation.inception_score import InceptionScore
from simulacra.evaluation.kernel_distance import KernelDistance
from simulacra.evaluation.likelihood import Likelihood
from simulacra.evaluation.manifold import Neighbourhoods
from simulacra.evaluation.measure import Measure
from simulacra.evaluation.memorisation import Memorisation
from simulacra.evaluation.modes import Modes
from simulacra.evaluation.ngrams import NGrams
from simulacra.evaluation.prediction import Prediction
from simulacra.evaluation.reading import Reading
from simulacra.evaluation.rebuilding import Completion, Reconstruction
from simulacra.evaluation.representation import Representation
from simulacra.evaluation.second_opinion import SecondOpinion
from simulacra.evaluation.synthetic_training import SyntheticTraining
from simulacra.evaluation.tables import Columns
from simulacra.evaluation.two_sample import TwoSample
from simulacra.games import Batch
from simulacra.probability.mixtures import RoundMixture
from simulacra.refusals import Refusal
from simulacra.spaces import Labels, Space

__all__ = ["MEASURES", "Measure", "Samples", "learn_features", "learn_judge", "measure"]

SAMPLING_SHARE = 0.5

MEASURES: tuple[type[Measure], ...] = (
    Likelihood,
    Annealing,
    FrechetDistance,
    KernelDistance,
    SecondOpinion,
    Neighbourhoods,
    TwoSample,
    Diversity,
    InceptionScore,
    ClassAccuracy,
    SyntheticTraining,
    Modes,
    Columns,
    Downstream,
    NGrams,
    Memorisation,
    Detection,
    Prediction,
    Representation,
    Reconstruction,
    Completion,
    Cost,
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
    untrained: Any = None,
    noise_floor: float | None = None,
    truth: RoundMixture | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Reading]:
    """All readings of ``model``.

    The batches hold elements and, where data are labelled, labels as their conditions (whether or
    not the model is conditional). ``judge``: see ``learn_judge``, for the class accuracy of samples.
    ``budget_seconds``: what sampling and scoring may take together, about; a slow model is measured
    on fewer data, and its readings say on how many. ``training_cost``: 'training_seconds' and
    'peak_memory_mib'. ``samples``: drawn before; else drawn here. ``untrained``: the same
    network with its first weights, the control of codes. ``noise_floor``: nats a datum that no model
    can get below. ``truth``: what the data are drawn from, where it is known. ``say`` hears, in a line
    each, which measures had to refuse, and why.
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
            drawing=samples,
            untrained=untrained,
            noise_floor=noise_floor,
            truth=truth,
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
