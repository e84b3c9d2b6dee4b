"""Representation: how much of the labels do a model's codes hold, beside the raw data?

Two probes learn the labels from codes of training data and are judged on the test split: the k
nearest neighbours (k = 5), and a linear layer fitted to its optimum (multinomial logistic
regression with a fixed weight decay). The control is the same probe on the raw data.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from simulacra.contract import Encoder
from simulacra.evaluation.case import SCORED_AT_ONCE, Case
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.manifold import CHUNK, squared_distances
from simulacra.evaluation.networks import flat
from simulacra.evaluation.reading import Reading
from simulacra.games import Batch

NEEDS = (Encoder,)
LINEAR, NEAREST = "linear probe", "nearest-neighbour probe"
NEIGHBOURS = 5
WEIGHT_DECAY = 1e-3
MOST_TRAIN, MOST_TEST = 5000, 2000
STEPS = 100


def codes_of(model: Encoder, x: Tensor) -> Tensor:
    """Codes as rows, shape (n, *shape) to (n, size of a code), float32."""
    with torch.no_grad():
        parts = [
            flat(model.encode(x[start : start + SCORED_AT_ONCE]).cpu(), model.code_space)
            for start in range(0, len(x), SCORED_AT_ONCE)
        ]
    return torch.cat(parts)


def nearest_hits(train: Batch, test: Batch) -> int:
    """How many test rows the majority of their nearest training rows classifies rightly.

    Ties go to the lower class.
    """
    assert train.condition is not None
    assert test.condition is not None
    classes, hits = int(train.condition.max()) + 1, 0
    for start in range(0, len(test), CHUNK):
        rows = slice(start, start + CHUNK)
        distances = squared_distances(test.x[rows], train.x)
        near = distances.topk(min(NEIGHBOURS, len(train)), largest=False).indices
        votes = functional.one_hot(train.condition[near], classes).sum(1)
        hits += int((votes.argmax(1) == test.condition[rows]).sum())
    return hits


def linear_hits(train: Batch, test: Batch) -> int:
    """How many test rows a linear layer, at the optimum of its training loss, classifies rightly."""
    assert train.condition is not None
    assert test.condition is not None
    classes = int(max(train.condition.max(), test.condition.max())) + 1
    labels = train.condition
    weight = torch.zeros((train.x.shape[1], classes), requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(train.x @ weight + bias, labels)
        value = value + WEIGHT_DECAY * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        return int(((test.x @ weight + bias).argmax(1) == test.condition).sum())


def _standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    mean, spread = train.mean(0), train.std(0)
    scale = torch.where(spread > 1e-6, spread, 1.0)
    return (train - mean) / scale, (test - mean) / scale


def read(case: Case) -> list[Reading]:
    """Two readings for labelled data; none for a conditional model, whose code may ask for the label."""
    train, test = case.train, case.test
    if case.labels is None or case.conditional or train.condition is None or test.condition is None:
        return []
    taught = (train.x[:MOST_TRAIN], train.condition[:MOST_TRAIN].cpu().long())
    asked = (test.x[:MOST_TEST], test.condition[:MOST_TEST].cpu().long())
    model: Encoder = case.model
    coded = _standardised(codes_of(model, taught[0]), codes_of(model, asked[0]))
    raw = _standardised(flat(taught[0], case.space), flat(asked[0], case.space))
    size, count = coded[0].shape[1], len(asked[0])
    readings = []
    for name, probe in ((LINEAR, linear_hits), (NEAREST, nearest_hits)):
        hits = probe(Batch(coded[0], taught[1]), Batch(coded[1], asked[1]))
        control = probe(Batch(raw[0], taught[1]), Batch(raw[1], asked[1])) / count
        low, high = wilson(hits, count)
        readings.append(
            Reading(
                name=name,
                value=hits / count,
                unit="accuracy",
                better="higher",
                low=low,
                high=high,
                count=count,
                split="test",
                seed=case.seed,
                how=(
                    f"labels read from standardised codes of {size} numbers by a {name} taught on "
                    f"{len(taught[0]):,} training data; the raw data give {control:.3f}"
                ),
                control=control,
            )
        )
    return readings
