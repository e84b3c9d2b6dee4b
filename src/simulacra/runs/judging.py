"""Judging: a trained run before the ruler, and what is kept of it.

The ruler's eyes (a feature net, and where there are labels a second classifier as judge of classes)
are learned once from the data and kept beside the runs that they look at, so that all of a
comparison's models are seen with the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from simulacra import shelf
from simulacra.contract import Diagnosable, Encoder
from simulacra.data.dataset import Dataset, Part
from simulacra.evaluation.features import DESCRIPTION, FeatureNet
from simulacra.evaluation.ladder import Ladder, climb
from simulacra.evaluation.reading import Reading
from simulacra.evaluation.ruler import evaluating, learn_features, learn_judge, measure
from simulacra.files import read_json, write_json
from simulacra.games import Batch
from simulacra.refusals import Refusal
from simulacra.runs.budget import Budget
from simulacra.runs.machine import choose_device
from simulacra.runs.recipe import own_data
from simulacra.runs.show import QUIET, Show

READINGS = "readings.json"
FEATURES, JUDGE, LADDER = "features", "judge", "ladder.json"

MOST_LEARNED, MOST_HELD_OUT, DIAGNOSED = 20_000, 10_000, 1_000
"""Data that the ruler's nets learn from, data that models are judged on, data for diagnoses."""


@dataclass(frozen=True)
class Judgement:
    """What a run came to: readings, the numbers that only its own family has, and what could not be
    measured, with the reason and the way out, a line each."""

    readings: tuple[Reading, ...]
    diagnoses: Mapping[str, float]
    refused: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that ``from_json`` turns back."""
        return {
            "readings": [reading.to_json() for reading in self.readings],
            "diagnoses": dict(self.diagnoses),
            "refused": list(self.refused),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Judgement:
        """The judgement that ``to_json`` described."""
        readings = tuple(Reading.from_json(one) for one in values.get("readings", ()))
        refused = tuple(str(one) for one in values.get("refused", ()))
        return cls(readings, dict(values.get("diagnoses", {})), refused)

    @classmethod
    def read(cls, folder: Path) -> Judgement:
        """The judgement that is kept in a run's folder."""
        return cls.from_json(read_json(folder / READINGS))


@dataclass(frozen=True)
class _Splits:
    train: Batch
    valid: Batch
    test: Batch

    @classmethod
    def of(cls, data: Dataset) -> _Splits:
        return cls(
            _some(data.train, MOST_LEARNED),
            _some(data.valid, MOST_HELD_OUT),
            _some(data.test, MOST_HELD_OUT),
        )


def _some(part: Part, most: int) -> Batch:
    """At most so many elements, evenly from all over the part, whose order may mean something."""
    if len(part) <= most:
        return part.all()
    which = torch.arange(most) * len(part) // most
    return Batch(part.take(which, 0), part.condition(which))


def ruler_features(
    data: Dataset, out: Path, seed: int, show: Show = QUIET, *, weights: Path | None = None
) -> tuple[FeatureNet, FeatureNet | None]:
    """The ruler's feature net and judge of classes, learned once and kept in ``out``.

    What the ruler said of planted faults in these data is kept beside them. ``weights``: a file with
    Inception's or DINOv2's, for the feature net; one that was kept before with other eyes is made anew.
    """
    described = out / FEATURES / DESCRIPTION
    splits = _Splits.of(data)
    if weights is not None or not described.is_file():
        if weights is None:
            show.line(f"the ruler learns its features from {len(splits.train):,} training data")
        learnt = learn_features(
            data.space,
            train=splits.train,
            labels=data.labels,
            held_out=splits.test,
            weights=weights,
            seed=seed,
        )
        before = read_json(described).get("sha256") if described.is_file() else None
        if learnt.describe()["sha256"] != before:
            (out / LADDER).unlink(missing_ok=True)
            learnt.save(out / FEATURES)
    if data.labels is not None and not (out / JUDGE / DESCRIPTION).is_file():
        net = learn_judge(
            data.space, valid=splits.valid, test=splits.test, labels=data.labels, seed=seed
        )
        if net is not None:
            net.save(out / JUDGE)
    if not (out / LADDER).is_file():
        show.line("the ruler tests itself on planted faults")
        eyes = FeatureNet.load(out / FEATURES)
        ladder = climb(
            data.space,
            train=splits.train,
            valid=splits.valid,
            test=splits.test,
            features=eyes,
            seed=seed,
        )
        for line in ladder.lines() if not ladder.passed else ():
            show.line(line)
        write_json(out / LADDER, ladder.to_json())
    judged = (out / JUDGE / DESCRIPTION).is_file()
    return FeatureNet.load(out / FEATURES), FeatureNet.load(out / JUDGE) if judged else None


def judge(
    folder: Path,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    budget: str = "60s",
    settings: Mapping[str, Any] = {},
    data: Dataset | None = None,
    ruler: Path | None = None,
    weights: Path | None = None,
    device: str = "auto",
    show: Show = QUIET,
) -> Judgement:
    """Measure the run in ``folder`` on its held-out data, and keep what was read there.

    ``budget`` is the time that sampling and scoring may take together, about; a model too slow for it
    is measured on fewer data. ``settings`` go over the run's own for this once (more importance
    samples, fewer steps). ``ruler``: the folder with the ruler's nets, of a comparison; else the
    run's own. ``weights``: a file with Inception's or DINOv2's, to see images with.
    """
    limit = Budget.parse(budget)
    if limit.unit != "seconds":
        reason = f"judging got a budget of {budget}"
        raise Refusal("CFG-045", reason, way_out="give it in seconds, minutes or hours")
    card = shelf.read_card(folder)
    data = data or own_data(folder)
    model = shelf.from_pretrained(folder, settings=settings).to(choose_device(device))
    data.space.require(data.test.first(1).x, who="the ruler")
    features, judging_net = ruler_features(data, ruler or folder, seed, show, weights=weights)
    splits, refused = _Splits.of(data), list[str]()
    readings = measure(
        model,
        space=data.space,
        train=splits.train,
        valid=splits.valid,
        test=splits.test,
        features=features,
        labels=data.labels,
        judge=judging_net,
        num_samples=num_samples,
        seed=seed,
        budget_seconds=limit.amount,
        training_cost=card.get("numbers", {}),
        untrained=_untrained(model, card, data, seed),
        noise_floor=_noise_floor(data),
        truth=data.truth,
        say=refused.append,
    )
    for line in refused:
        show.line(line)
    judgement = Judgement(tuple(readings), _diagnosed(model, splits.test), tuple(refused))
    write_json(folder / READINGS, judgement.to_json())
    return judgement


def _untrained(model: Any, card: Mapping[str, Any], data: Dataset, seed: int) -> Any:
    """The same network with its first weights: what codes owe to training shows beside it."""
    if not isinstance(model, Encoder) or model.condition_space is not None:  # type: ignore[attr-defined]
        return None
    return shelf.build(
        str(card["model"]),
        data.space,
        settings=card["config"],
        num_examples=len(data.train),
        seed=seed,
    ).eval()


def _noise_floor(data: Dataset) -> float | None:
    """The nats a datum that pixels' own coin flips cost, where images are binarised at random."""
    levels = data.source.get("grey_levels")
    if levels is None:
        return None
    # The test part's own rows are drawn already; those of training are the grey ones of all data.
    grey = _some(replace(data.train, index=data.test.index, view=None), MOST_HELD_OUT).x
    chance = grey.double() / (levels - 1)
    flips = -torch.xlogy(chance, chance) - torch.xlogy(1 - chance, 1 - chance)
    return float(flips.flatten(1).sum(1).mean())


def ladder_of(folder: Path) -> Ladder | None:
    """What the ruler in a folder said of planted faults; None where it was not asked."""
    path = folder / LADDER
    return Ladder.from_json(read_json(path)) if path.is_file() else None


def _diagnosed(model: Any, test: Batch) -> dict[str, float]:
    if not isinstance(model, Diagnosable):
        return {}
    conditional = model.condition_space is not None  # type: ignore[attr-defined]
    given = test.condition if conditional else None
    with evaluating(model), torch.no_grad():
        told = model.diagnose(
            test.x[:DIAGNOSED], condition=None if given is None else given[:DIAGNOSED]
        )
    return {name: float(value) for name, value in told.items()}
