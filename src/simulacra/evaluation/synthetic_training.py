"""Train on synthetic, test on real: are samples as good as data to learn classes from?

A classifier learns labelled samples alone and is judged on the test split (the classification accuracy
score of Ravuri & Vinyals 2019). The floor is the same classifier taught as many real data. It rewards
what no distance does: that each class's samples teach what the class is.
"""

from __future__ import annotations

import torch

from simulacra.contract import Sampler
from simulacra.evaluation.case import Case
from simulacra.evaluation.intervals import wilson
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.networks import Classifier, train_classifier
from simulacra.evaluation.reading import Reading
from simulacra.games import Batch
from simulacra.probability.noise import global_noise, mixed
from simulacra.spaces import Labels, Space

NAME = "trained on samples"
EXAMPLES = 40_000


class SyntheticTraining(Measure):
    """Accuracy on ``real`` elements of a classifier taught on ``samples``, each with its labels.

    ``other_real`` elements, as many as samples, give the floor. Every role has a partner with
    ``_labels`` at its end.
    """

    NEEDS = (Sampler,)
    REQUIRED = ("samples", "samples_labels", "real", "real_labels")
    ROLES = (*REQUIRED, "other_real", "other_real_labels")

    def __init__(self, space: Space, labels: Labels, provenance: Provenance | None = None) -> None:
        super().__init__(provenance)
        self.space, self.labels = space, labels

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None for a model that is not conditioned on labels."""
        drawn, labels = case.drawn, case.labels
        if labels is None or drawn.condition is None:
            return []
        if case.test.condition is None or case.train.condition is None:
            return []
        stream = torch.Generator().manual_seed(mixed(case.seed, 91))
        which = torch.randperm(len(case.train), generator=stream)[: len(drawn.x)]
        measure = cls(case.space, labels, Provenance(seed=case.seed))
        measure.update(samples=drawn.x, samples_labels=drawn.condition)
        measure.update(real=case.test.x, real_labels=case.test.condition)
        return measure.update(
            other_real=case.train.x[which], other_real_labels=case.train.condition[which]
        ).compute()

    def compute(self) -> list[Reading]:
        hits, count = self._hits("samples"), len(self.rows("real"))
        floor = self._hits("other_real") / count if self.has("other_real") else None
        taught = len(self.rows("samples"))
        return [
            self.reading(
                NAME,
                hits / count,
                unit="accuracy",
                better="higher",
                count={"samples": taught, "real": count},
                interval=wilson(hits, count),
                how=(
                    f"accuracy on real data of a classifier taught on {taught:,} samples and their "
                    "classes; the floor is taught on as many real data"
                ),
                floor=floor,
            )
        ]

    def _hits(self, role: str) -> int:
        seed = self.provenance.seed
        taught = Batch(self.rows(role), self.rows(f"{role}_labels").long())
        with global_noise(mixed(seed, 92)):
            net = Classifier(self.space, self.labels.count)
        assert taught.condition is not None
        train_classifier(net, taught.x, taught.condition, mixed(seed, 93), examples=EXAMPLES)
        with torch.no_grad():
            said = torch.cat([net(part).argmax(1) for part in self.rows("real").split(500)])
        return int((said == self.rows("real_labels")).sum())
