"""Representation: how much of the labels do a model's codes hold, beside the raw data?

Two probes learn the labels from codes of training data and are judged on the test split: the k
nearest neighbours (k = 5), and a linear layer fitted to its optimum (multinomial logistic
regression with a fixed weight decay). The control is the same probe on the raw data.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn import functional

from simulacra.contract import Encoder
from simulacra.evaluation.case import SCORED_AT_ONCE, Case
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.manifold import CHUNK, squared_distances
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.networks import flat
from simulacra.evaluation.reading import Reading
from simulacra.games import Batch
from simulacra.probability.clustering import k_means

LINEAR, NEAREST = "linear probe", "nearest-neighbour probe"
MUTUAL, RAND = "clusters, mutual information", "clusters, Rand index"
NEIGHBOURS = 5
WEIGHT_DECAY = 1e-3
MOST_TRAIN, MOST_TEST = 5000, 2000
LEAST, PROBED, SHARE = 50, 16, 0.2
"""Rows that are encoded however slow a model is, rows that tell how slow, and the share of the time of an
evaluation; codes that are found by descent take a thousand times as long as a network's."""

STEPS = 100


def codes_of(model: Encoder, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Codes as rows, shape (n, *shape) to (n, size of a code), float32.

    ``condition`` has a row a datum, and is given to a conditional model only. Where codes are only names
    of vectors (``code_vectors``), as those of a codebook are, they are taken for what they stand for.
    """
    if getattr(model, "condition_space", None) is None:
        condition = None
    vectors = getattr(model, "code_vectors", None)
    parts = []
    for start in range(0, len(x), SCORED_AT_ONCE):
        rows = slice(start, start + SCORED_AT_ONCE)
        with torch.no_grad():
            code = model.encode(x[rows], condition=None if condition is None else condition[rows])
            rows_of = flat(code.cpu(), model.code_space) if vectors is None else vectors(code)
        parts.append(rows_of.cpu().float().flatten(1))
    return torch.cat(parts)


def affordable(model: Encoder, batch: Batch, seconds: float) -> int:
    """How many data like these the model encodes in so many seconds, by the first few."""
    condition = batch.condition

    def encode(rows: int) -> None:
        codes_of(model, batch.x[:rows], None if condition is None else condition[:rows])

    encode(1)  # What only a first call takes.
    begun = time.perf_counter()
    encode(PROBED)
    return int(seconds * min(PROBED, len(batch)) / max(time.perf_counter() - begun, 1e-9))


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


class Representation(Measure):
    """How much of the labels codes hold: probes, clusters, beside the raw data and a random network.

    Roles: ``train`` and ``test`` are codes (n, d); ``raw_train`` and ``raw_test``, ``random_train`` and
    ``random_test`` the controls'; ``train_labels`` and ``test_labels`` (n,), ``told`` says what they are.
    """

    NEEDS = (Encoder,)
    REQUIRED = ("train", "test", "train_labels", "test_labels")
    ROLES = (*REQUIRED, "raw_train", "raw_test", "random_train", "random_test")

    def __init__(self, provenance: Provenance | None = None, *, told: str = "labels") -> None:
        super().__init__(provenance)
        self.told = told

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None for unlabelled data and for a conditional model, whose code may ask for the label."""
        train, test, model = case.train, case.test, case.model
        if case.labels is None or case.conditional:
            return []
        if train.condition is None or test.condition is None:
            return []
        seen, asked = train.x[:MOST_TRAIN], test.x[:MOST_TEST]
        encoded = (len(seen) + len(asked)) * (1 if case.untrained is None else 2)
        share = affordable(model, Batch(asked), SHARE * case.seconds) / encoded
        if share < 1:
            seen, asked = (one[: max(LEAST, int(share * len(one)))] for one in (seen, asked))
        taught, wanted = (y.cpu().long() for y in (train.condition, test.condition))
        told = "labels"
        if case.labels.channel_classes:
            # A thousand combinations have a few data each; a channel's classes have enough.
            channels, told = case.space.shape[0], "classes of the first channel"
            taught, wanted = (case.labels.separated(y, channels)[:, 0] for y in (taught, wanted))
        measure = cls(Provenance(seed=case.seed), told=told).update(
            train=codes_of(model, seen),
            test=codes_of(model, asked),
            raw_train=flat(seen, case.space),
            raw_test=flat(asked, case.space),
            train_labels=taught[: len(seen)],
            test_labels=wanted[: len(asked)],
        )
        untrained = case.untrained
        if untrained is not None:
            measure.update(
                random_train=codes_of(untrained, seen), random_test=codes_of(untrained, asked)
            )
        return measure.compute()

    def compute(self) -> list[Reading]:
        labels, asked = self.rows("train_labels"), self.rows("test_labels")
        size = self.rows("train").shape[1]
        count = len(asked)
        readings = []
        for name, probe in ((LINEAR, linear_hits), (NEAREST, nearest_hits)):
            hits = {
                prefix: probe(Batch(taught, labels), Batch(judged, asked))
                for prefix, (taught, judged) in self._pairs().items()
            }
            others = ", ".join(
                f"{'the raw data' if prefix == 'raw_' else 'the same network untrained'} "
                f"{hits[prefix] / count:.3f}"
                for prefix in hits
                if prefix
            )
            control = max((hits[prefix] / count for prefix in hits if prefix), default=None)
            readings.append(
                self.reading(
                    name,
                    hits[""] / count,
                    unit="accuracy",
                    better="higher",
                    count=count,
                    interval=wilson(hits[""], count),
                    how=(
                        f"{self.told} read from standardised codes of {size} numbers by a {name} "
                        f"taught on {len(labels):,} training data; without a model is the better of: "
                        f"{others}"
                    ),
                    control=control,
                )
            )
        return readings + self._clusters(asked)

    def _pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Standardised codes, and those of the controls that are there, by prefix of their roles."""
        return {
            prefix: _standardised(self.rows(f"{prefix}train"), self.rows(f"{prefix}test"))
            for prefix in ("", "raw_", "random_")
            if self.has(f"{prefix}train")
        }

    def _clusters(self, labels: Tensor) -> list[Reading]:
        """Agreement of k-means clusters of the test codes with the labels (scikit-learn's measures)."""
        # A second to import, and only needed here.
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        classes = int(labels.max()) + 1
        pairs = self._pairs()
        seed = self.provenance.seed
        found = {
            prefix: k_means(judged, min(classes, len(judged)), seed)
            for prefix, (_, judged) in pairs.items()
        }
        told = (
            (MUTUAL, "(0 to 1)", "normalised mutual information", normalized_mutual_info_score),
            (RAND, "(0 by chance, 1 at most)", "adjusted Rand index", adjusted_rand_score),
        )
        return [
            self.reading(
                name,
                score(labels.numpy(), found[""].numpy()),
                unit=unit,
                better="higher",
                count=len(labels),
                how=(
                    f"{words} of {self.told} with {classes} k-means clusters of standardised codes; 0 is "
                    "chance; without a model: the raw data"
                ),
                control=score(labels.numpy(), found["raw_"].numpy()) if "raw_" in found else None,
            )
            for name, unit, words, score in told
        ]
