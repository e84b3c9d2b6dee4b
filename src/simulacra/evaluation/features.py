"""Features: the eyes that the ruler looks with, and the judge that it asks for classes.

Labelled images are seen by a small classifier trained on the training split; its 64 penultimate
features carry what tells the classes apart. Unlabelled images are seen by a net of the same shape
that has learnt to know an image again in another crop of it (``self_supervised.py``); where there are
under a hundred, by an untrained one, its weights fixed by the seed. Where each channel of an image shows
a class by itself (stacked digits), one classifier looks at each channel. Everything else is standardised
(categories and tokens one-hot), and projected at random where it is wide. A distance in features is
only comparable to another in the very same ones, so they are named by their SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from simulacra.evaluation.dinov2 import DINOv2, Sizes
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.networks import (
    DIMENSION,
    ChannelClassifier,
    Classifier,
    ConvolutionalBody,
    Standardise,
    calibrate,
    train_classifier,
)
from simulacra.evaluation.pretrained import Inception, open_pretrained
from simulacra.evaluation.self_supervised import train_self_supervised
from simulacra.files import read_json, sha256, write_bytes, write_json
from simulacra.games import Batch
from simulacra.probability.noise import global_noise, mixed
from simulacra.refusals import Refusal, shown
from simulacra.spaces import Images, Labels, Space, space_from_json

DESCRIPTION = "features.json"
WEIGHTS = "features.safetensors"
CHUNK = 500
CALIBRATED_ON = 2000
LEAST_TAUGHT = 100
"""Unlabelled images, under which a net is left as it was drawn."""

CLASSIFIERS = (Classifier, ChannelClassifier)

Eyes = Literal[
    "classifier", "self-supervised", "random convolutions", "standardised", "inception", "dinov2"
]


@dataclass(frozen=True, eq=False)
class FeatureNet:
    """A fixed map from elements of ``space`` to features, and for a classifier to classes.

    ``accuracy`` is held-out, with its 95 % interval; ``trained_on`` says on which data.
    """

    space: Space
    kind: Eyes
    network: nn.Module
    labels: Labels | None = None
    trained_on: str = ""
    accuracy: float | None = None
    accuracy_interval: tuple[float, float] | None = None
    accuracy_count: int = 0

    @property
    def dimension(self) -> int:
        """How many features a datum has."""
        net = self.network
        if isinstance(net, Standardise | Inception | DINOv2 | ChannelClassifier):
            return int(net.dimension)
        return DIMENSION

    @cached_property
    def identity(self) -> str:
        """What kind of net this is, and the start of its weights' SHA-256."""
        return f"{self.kind} {sha256(self._weights())[:12]}"

    def features(self, x: Tensor) -> Tensor:
        """Features of elements, shape (n, *shape) to (n, dimension), float32."""
        net = self.network
        return self._in_chunks(net.body if isinstance(net, CLASSIFIERS) else net, x)

    def probabilities(self, x: Tensor) -> Tensor:
        """p(class | x), shape (n, classes); only a classifier has them."""
        if not isinstance(self.network, CLASSIFIERS):
            raise Refusal(
                "CAN-010",
                f"features that are {self.kind} know no classes",
                way_out="train a classifier on labelled data",
            )
        return torch.softmax(self._in_chunks(self.network, x), dim=1)

    def _in_chunks(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self.space.require(x[:1], who="the feature net")
        with torch.no_grad():
            size = network.at_once if isinstance(network, Inception | DINOv2) else CHUNK
            parts = [network(x[start : start + size].cpu()) for start in range(0, len(x), size)]
        return torch.cat(parts) if parts else torch.empty((0, self.dimension))

    def judged(self, held_out: Batch) -> FeatureNet:
        """The same net, with its accuracy on labelled data that it has never seen."""
        labels = held_out.condition
        assert labels is not None
        hits = int((self.probabilities(held_out.x).argmax(1) == labels.cpu()).sum())
        return replace(
            self,
            accuracy=hits / len(labels),
            accuracy_interval=wilson(hits, len(labels)),
            accuracy_count=len(labels),
        )

    def describe(self) -> dict[str, Any]:
        """What a report says about these features."""
        return {
            "kind": self.kind,
            "dimension": self.dimension,
            "space": self.space.to_json(),
            "labels": None if self.labels is None else self.labels.to_json(),
            "trained_on": self.trained_on,
            "accuracy": self.accuracy,
            "accuracy_interval": self.accuracy_interval,
            "accuracy_count": self.accuracy_count,
            "sha256": sha256(self._weights()),
        }

    def _weights(self) -> bytes:
        state = {name: one.contiguous() for name, one in self.network.state_dict().items()}
        packed: bytes = safetensors.torch.save(state)
        return packed

    def save(self, folder: Path) -> None:
        """Keep the net in ``folder``: its weights, then what describes them."""
        write_bytes(folder / WEIGHTS, self._weights())
        write_json(folder / DESCRIPTION, json.loads(json.dumps(self.describe())))

    @classmethod
    def load(cls, folder: Path) -> FeatureNet:
        """The net that ``save`` kept; weights that are not the described ones are refused."""
        told = read_json(folder / DESCRIPTION)
        path = folder / WEIGHTS
        content = path.read_bytes() if path.is_file() else b""
        if sha256(content) != told.get("sha256"):
            reason = f"{shown(path)} does not hold the weights that {DESCRIPTION} names"
            raise Refusal("CKPT-020", reason, way_out="remove the folder, they are made again")
        space, interval = space_from_json(told["space"]), told["accuracy_interval"]
        labels = None if told["labels"] is None else space_from_json(told["labels"])
        assert labels is None or isinstance(labels, Labels)
        state = safetensors.torch.load(content)
        if told["kind"] == "dinov2" and isinstance(space, Images):
            network: nn.Module = DINOv2(space, Sizes.of(state))
        else:
            network = _network(space, told["kind"], labels, seed=0)
        network.load_state_dict(state)
        return cls(
            space=space,
            kind=told["kind"],
            network=network.eval(),
            labels=labels,
            trained_on=told["trained_on"],
            accuracy=told["accuracy"],
            accuracy_interval=None if interval is None else (interval[0], interval[1]),
            accuracy_count=told["accuracy_count"],
        )


def _network(space: Space, kind: Eyes, labels: Labels | None, seed: int) -> nn.Module:
    """An untrained network, its first weights drawn from ``seed``."""
    with global_noise(mixed(seed, 71)):
        if kind == "classifier" and labels is not None:
            if labels.channel_classes and isinstance(space, Images):
                return ChannelClassifier(space, labels)
            return Classifier(space, labels.count)
        if kind in ("random convolutions", "self-supervised") and isinstance(space, Images):
            return ConvolutionalBody(space)
        if kind == "inception" and isinstance(space, Images):
            return Inception(space)
        return Standardise(space, 2 * DIMENSION)


def learn_features(
    space: Space,
    *,
    train: Batch,
    labels: Labels | None = None,
    held_out: Batch | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> FeatureNet:
    """The features for data of this kind, from the training split alone.

    ``held_out``: labelled data that only measure the classifier's accuracy. ``weights``: a file with
    those of Inception or DINOv2, which sees images in place of what would be learnt here.
    """
    if weights is not None:
        if not isinstance(space, Images):
            reason = f"pretrained eyes see images, and these are {space}"
            raise Refusal("DATA-060", reason, way_out="leave --features out")
        opened = open_pretrained(weights, space)
        kind: Eyes = "inception" if isinstance(opened, Inception) else "dinov2"
        told = f"images elsewhere, by whoever made {weights.name}"
        return FeatureNet(space, kind, opened, trained_on=told)
    if not isinstance(space, Images):
        standard = _network(space, "standardised", None, seed)
        assert isinstance(standard, Standardise)
        standard.fit(train.x)
        return FeatureNet(space, "standardised", standard.eval(), trained_on=_told(train))
    if labels is None or train.condition is None:
        return _unlabelled(space, train, seed)
    return _classifier(space, train, labels, held_out, seed, _told(train))


def _unlabelled(space: Images, train: Batch, seed: int) -> FeatureNet:
    eyes = _network(space, "self-supervised", None, seed)
    assert isinstance(eyes, ConvolutionalBody)
    if len(train) >= LEAST_TAUGHT:
        train_self_supervised(eyes, train.x, mixed(seed, 74))
        told = f"{_told(train)}, without labels"
        return FeatureNet(space, "self-supervised", eyes, trained_on=told)
    calibrate(eyes, train.x[:CALIBRATED_ON])
    told = f"nothing; scaled on {min(len(train), CALIBRATED_ON):,} of the training split"
    return FeatureNet(space, "random convolutions", eyes, trained_on=told)


def _told(train: Batch) -> str:
    return f"{len(train):,} of the training split"


def learn_judge(
    space: Space, *, valid: Batch, test: Batch, labels: Labels | None, seed: int = 0
) -> FeatureNet | None:
    """A second classifier, of data that no model and no feature net has trained on.

    It learns the validation split and a random half of the test split; its own accuracy is that on
    the other half. None where there are no labels. Where classes are combinations of the channels',
    it learns the validation split alone, since the same digits stand in both halves of the test split.
    """
    if labels is None or valid.condition is None or test.condition is None:
        return None
    if labels.channel_classes:
        told = f"the channels of the {len(valid):,} of the validation split"
        return _classifier(space, valid, labels, test, mixed(seed, 73), told)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(mixed(seed, 72)))
    taught, kept = order[: len(test) // 2], order[len(test) // 2 :]
    lesson = Batch(
        torch.cat([valid.x, test.x[taught]]), torch.cat([valid.condition, test.condition[taught]])
    )
    held_out = Batch(test.x[kept], test.condition[kept])
    told = f"the {len(valid):,} of the validation split and {len(taught):,} of the test split"
    return _classifier(space, lesson, labels, held_out, mixed(seed, 73), told)


def _classifier(
    space: Space, train: Batch, labels: Labels, held_out: Batch | None, seed: int, told: str
) -> FeatureNet:
    assert train.condition is not None
    network = _network(space, "classifier", labels, seed)
    x, classes = train.x.cpu(), train.condition.cpu().long()
    if isinstance(network, ChannelClassifier):
        network.learn(x, classes, mixed(seed, 74))
    else:
        assert isinstance(network, Classifier)
        train_classifier(network, x, classes, mixed(seed, 74))
    net = FeatureNet(space, "classifier", network, labels, told)
    return net if held_out is None or held_out.condition is None else net.judged(held_out)
