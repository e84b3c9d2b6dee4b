"""Prediction: how well does p(y | x) of a model that predicts labels hold on the test split?

The accuracy, and the mean of -log p(y | x), which also asks how sure it may be. The controls know the
labels' shares in the training split alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simulacra.contract import Predictor
from simulacra.evaluation.case import SCORED_AT_ONCE, Case
from simulacra.evaluation.intervals import mean_interval, wilson
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.spaces import Labels

ACCURACY, SURPRISE = "predicted labels", "surprise at labels"
SMALLEST = 1e-12


class Prediction(Measure):
    """Accuracy and surprise of ``chances`` (n, classes) for ``labels`` (n,); ``taught`` are training
    labels, for the controls."""

    NEEDS = (Predictor,)
    ROLES = REQUIRED = ("chances", "labels", "taught")

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None where the model predicts something else than the data's labels."""
        train, test = case.train.condition, case.test.condition
        same = isinstance(case.model.target_space, Labels) and (
            case.labels is not None and case.model.target_space.count == case.labels.count
        )
        if not same or train is None or test is None:
            return []
        with torch.no_grad():
            parts = [case.model.predict(x).cpu() for x in case.test.x.split(SCORED_AT_ONCE)]
        measure = cls(Provenance(seed=case.seed))
        return measure.update(chances=torch.cat(parts), labels=test, taught=train).compute()

    def compute(self) -> list[Reading]:
        chances, labels = self.rows("chances").double(), self.rows("labels").long()
        count = len(labels)
        hits = int((chances.argmax(1) == labels).sum())
        taught = torch.bincount(self.rows("taught").long(), minlength=chances.shape[1]).double()
        shares = (taught + 1) / (taught + 1).sum()
        surprise = _surprise(chances, labels)
        return [
            self.reading(
                ACCURACY,
                hits / count,
                unit="accuracy",
                better="higher",
                count=count,
                interval=wilson(hits, count),
                how="share of data whose likeliest label is theirs; without a model: the commonest",
                control=float((labels == shares.argmax()).double().mean()),
            ),
            self.reading(
                SURPRISE,
                float(surprise.mean()),
                unit="nats",
                better="lower",
                count=count,
                interval=mean_interval(surprise),
                how=(
                    f"mean of -log p(label | x), chances below {SMALLEST:g} counting as that; without "
                    "a model: the labels' shares in the training split"
                ),
                control=float(_surprise(shares.expand_as(chances), labels).mean()),
            ),
        ]


def _surprise(chances: Tensor, labels: Tensor) -> Tensor:
    """-log p(y | x) of each row, nats."""
    return -chances.gather(1, labels.unsqueeze(1))[:, 0].clamp(min=SMALLEST).log()
