"""Detecting: a trained run, a score, and an alarm that holds its promise of false alarms.

The score is calibrated on the run's validation data, which are taken to be clean and which no weight
was fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from simulacra import shelf
from simulacra.evaluation.anomaly import Detection
from simulacra.evaluation.conformal import Calibration
from simulacra.evaluation.measure import Provenance
from simulacra.evaluation.reading import Reading
from simulacra.evaluation.scores import (
    AnomalyScore,
    able,
    default_score,
    make_score,
    no_map,
    with_maps,
)
from simulacra.games import Batch
from simulacra.probability.noise import mixed
from simulacra.runs.recipe import own_data

MOST = 2000


@dataclass(frozen=True, eq=False)
class Detector:
    """A score with the scores that clean data have."""

    name: str
    score: AnomalyScore
    calibration: Calibration
    ordinary: Batch
    seed: int

    @classmethod
    def of(
        cls,
        folder: Path,
        *,
        score: str = "auto",
        maps: bool = False,
        background: Path | None = None,
        seed: int = 0,
    ) -> Detector:
        """The detector of a run; ``background`` is the run that a likelihood ratio needs.

        ``maps``: of the scores that suit the model, one that has maps.
        """
        model = shelf.from_pretrained(folder)
        name = default_score(model, maps=maps) if score == "auto" else score
        if maps and name in able(model) and name not in with_maps(model):
            raise no_map(model, name)
        other = None if background is None else shelf.from_pretrained(background)
        made = make_score(name, model, background=other)
        data = own_data(folder)
        clean = data.valid.first(MOST)
        stream = torch.Generator().manual_seed(mixed(seed, 120))
        made.fit(data.train.first(MOST), stream)
        calibration = Calibration(made.of(clean, stream))
        return cls(name, made, calibration, data.test.first(MOST), seed)

    def scores(self, batch: Batch) -> Tensor:
        """Scores of a batch, shape (n,), higher is stranger."""
        return self.score.of(batch, torch.Generator().manual_seed(mixed(self.seed, 121)))

    def maps(self, batch: Batch) -> Tensor:
        """What each entry of each datum adds to its score, shape (n, *shape)."""
        return self.score.maps(batch, torch.Generator().manual_seed(mixed(self.seed, 121)))

    def lines(self, scores: Tensor, false_alarms: float) -> Iterator[str]:
        """CSV: each datum's score, how rare it is among clean data, and whether it raises an alarm."""
        alarms = self.calibration.alarms(scores, false_alarms)
        clean = len(self.calibration.clean)
        yield f"index,score ({self.score.source}),p_value (n = {clean} clean),alarm"
        p_values = self.calibration.p_values(scores)
        rows = zip(scores.tolist(), p_values.tolist(), alarms.tolist(), strict=True)
        for index, (score, p_value, alarm) in enumerate(rows):
            yield f"{index},{score:.6g},{p_value:.4g},{int(alarm)}"

    def told_apart(self, strange: Tensor) -> list[Reading]:
        """How well the run's own test data are told from data with these scores."""
        measure = Detection(
            self.score.source, Provenance(seed=self.seed), strange="given", ordinary="test"
        )
        return measure.update(strange=strange, ordinary=self.scores(self.ordinary)).compute()
