"""Anomaly detectors that scikit-learn and PyOD code can use as it is.

    from simulacra.adapters.scikit import AnomalyDetector
    detector = AnomalyDetector().fit(x)
    detector.predict(new)               # 1 ordinary, -1 strange
    detector.decision_function(new)     # below 0: strange

``PyODDetector`` is the same with PyOD's signs: 1 is strange, and higher scores are stranger.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from simulacra.data.dataset import Dataset, Part
from simulacra.evaluation.conformal import Calibration
from simulacra.evaluation.scores import AnomalyScore, default_score, make_score
from simulacra.games import Batch
from simulacra.probability.noise import mixed
from simulacra.runs.conductor import Run
from simulacra.runs.recipe import Recipe
from simulacra.shelf import build
from simulacra.spaces import Vectors

FOLDS = 5
MANY, MOST = 2000, 20_000
"""Rows from which a fifth is set aside for the threshold, instead of five fits; rows of one fit."""

COMPONENTS, ROWS_EACH = (1, 5, 20), 10
"""Sizes of the mixtures whose scores are averaged, and the rows that each component has at least."""

CLIPPED = 10.0
"""Standard deviations beyond which a column says nothing new."""

Numbers = NDArray[np.float64]


class AnomalyDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """A density of the training rows, and the threshold above which new rows raise an alarm.

    ``model``: a model of the shelf that can score vectors; ``settings``: one or several of its settings,
    of which each gives a model, and their scores are averaged. Without either, mixtures of 1, 5 and 20
    Gaussians: few see what is far from everything, many what is between the crowds.
    ``anomaly_score``: one of ``simulacra.evaluation.scores``, or 'auto'. ``false_alarms``: the share of
    rows like the training ones that may raise an alarm; the threshold that holds it is conformal, from
    the scores of rows that were left out of a fit. ``budget``: training, for models that train.
    ``random_state``: a whole number; the same one gives the same detector.
    """

    def __init__(
        self,
        model: str = "gaussian-mixture",
        *,
        anomaly_score: str = "auto",
        false_alarms: float = 0.1,
        budget: str = "1000steps",
        settings: dict[str, Any] | list[dict[str, Any]] | None = None,
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.anomaly_score = anomaly_score
        self.false_alarms = false_alarms
        self.budget = budget
        self.settings = settings
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None) -> Self:  # noqa: N803
        """Learn rows (n, d); ``y`` is not looked at."""
        x: Numbers = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self._mean, spread = x.mean(0), x.std(0)
        self._scale = np.where(spread > 1e-12, spread, 1.0)
        rows = self._standard(x)
        stream = torch.Generator().manual_seed(mixed(self.random_state, 130))
        order = torch.randperm(len(rows), generator=stream)
        if len(rows) >= MANY:
            # Enough to set a fifth aside for good: the promise then holds exactly.
            kept, taught = order[: len(rows) // FOLDS], order[len(rows) // FOLDS :][:MOST]
            self._score = self._learned(rows[taught])
            held_out = self._scored(self._score, rows[kept])
        else:
            held_out = torch.zeros(len(rows), dtype=torch.float64)
            for fold in order.chunk(min(FOLDS, len(rows))):
                others = torch.ones(len(rows), dtype=torch.bool)
                others[fold] = False
                held_out[fold] = self._scored(self._learned(rows[others]), rows[fold])
            self._score = self._learned(rows)
        self._calibration = Calibration(held_out)
        share = max(self.false_alarms, 1.0 / (len(held_out) + 1))
        self.offset_ = -self._calibration.threshold(share)
        return self

    def score_samples(self, X: ArrayLike) -> Numbers:  # noqa: N803
        """How ordinary rows are, shape (n,): higher is more ordinary."""
        check_is_fitted(self)
        x: Numbers = validate_data(self, X, dtype=np.float64, reset=False)
        return -self._scored(self._score, self._standard(x)).numpy()

    def decision_function(self, X: ArrayLike) -> Numbers:  # noqa: N803
        """``score_samples`` less the threshold, shape (n,): below 0 raises an alarm."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:  # noqa: N803
        """1 for ordinary rows, -1 for those that raise an alarm, shape (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: ArrayLike) -> Numbers:  # noqa: N803
        """How rare among rows like the training ones each row is, shape (n,), in (0, 1]."""
        scores = torch.from_numpy(-self.score_samples(X))
        return self._calibration.p_values(scores).numpy()

    def _standard(self, x: Numbers) -> torch.Tensor:
        rows = ((x - self._mean) / self._scale).clip(-CLIPPED, CLIPPED)
        return torch.from_numpy(rows).float()

    def _learned(self, rows: torch.Tensor) -> list[AnomalyScore]:
        return [self._one(rows, settings) for settings in self._all_settings(len(rows))]

    def _all_settings(self, count: int) -> list[dict[str, Any]]:
        if isinstance(self.settings, dict):
            return [self.settings]
        if self.settings is not None:
            return list(self.settings)
        if self.model != "gaussian-mixture":
            return [{}]
        sizes = dict.fromkeys(min(size, max(1, count // ROWS_EACH)) for size in COMPONENTS)
        return [{"components": size} for size in sizes]

    def _one(self, rows: torch.Tensor, settings: dict[str, Any]) -> AnomalyScore:
        space = Vectors(rows.shape[1])
        model = build(self.model, space, settings=settings, num_examples=len(rows))
        index = torch.arange(len(rows))
        part = Part(rows, index, space)
        held = Part(rows, index[: max(1, len(rows) // 10)], space)
        data = Dataset("rows", space, part, held, held)
        recipe = Recipe(
            self.model, budget=self.budget, seed=self.random_state, batch_size=min(128, len(rows))
        )
        Run(model, data, recipe, None, device="cpu").go()
        wanted = self.anomaly_score
        name = default_score(model) if wanted == "auto" else wanted
        stream = torch.Generator().manual_seed(mixed(self.random_state, 131))
        return make_score(name, model).fit(Batch(rows), stream)

    def _scored(self, scores: list[AnomalyScore], rows: torch.Tensor) -> torch.Tensor:
        stream = torch.Generator().manual_seed(mixed(self.random_state, 132))
        return torch.stack([one.of(Batch(rows), stream) for one in scores]).mean(0)


class PyODDetector(AnomalyDetector):
    """The same with PyOD's names and signs: labels 0 and 1, and higher scores are stranger.

    After ``fit``, ``decision_scores_`` and ``labels_`` are the training rows', ``threshold_`` what parts
    them; ``contamination`` is PyOD's name for ``false_alarms``.
    """

    @property
    def contamination(self) -> float:
        """The share of rows like the training ones that may raise an alarm."""
        return self.false_alarms

    def fit(self, X: ArrayLike, y: object = None) -> Self:  # noqa: N803
        """Learn rows (n, d), and label them."""
        super().fit(X, y)
        self.decision_scores_ = self.decision_function(X)
        self.threshold_ = -self.offset_
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def decision_function(self, X: ArrayLike) -> Numbers:  # noqa: N803
        """How strange rows are, shape (n,): higher is stranger."""
        return -self.score_samples(X)

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:  # noqa: N803
        """0 for ordinary rows, 1 for those that raise an alarm, shape (n,)."""
        return (self.decision_function(X) > -self.offset_).astype(np.int64)

    def predict_proba(self, X: ArrayLike) -> Numbers:  # noqa: N803
        """One less the p-value in column 1 and the p-value in column 0, shape (n, 2)."""
        p_values = self.p_values(X)
        return np.stack([p_values, 1 - p_values], axis=1)
