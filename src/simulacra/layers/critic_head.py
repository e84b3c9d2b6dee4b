"""The critic's last layer: from features of a datum to a logit, with all that may enter there.

    logit = w . h + b                 h(x) the features, positive for what looks real
          + (V y) . h / sqrt(F)       projection of the class (Miyato & Koyama 2018, eq. 3)

Statistics of the whole batch join h where a critic is to see that samples are alike: minibatch
discrimination, o(x_i)_b = sum_{j != i} exp(-|M_ib - M_jb|_1), M = T h (Salimans et al. 2016, sec. 3.2),
or the mean deviation of the features over the batch (Karras et al. 2018, sec. 3). An auxiliary
classifier reads p(y|x) off h (Odena et al. 2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simulacra.layers.adversarial_rules import Rules
from simulacra.probability.adversarial import LOSSES
from simulacra.processes import of_all_processes

KERNELS, KERNEL_SIZE = 16, 4


@dataclass(frozen=True)
class Opinion:
    """What a critic says of data: logits (n,), the features (n, F) it read, class logits (n, K)."""

    logit: Tensor
    features: Tensor
    classes: Tensor | None


class MinibatchDiscrimination(nn.Module):
    """Features (n, F) to how near the other rows of the batch are, (n, kernels)."""

    def __init__(self, features: int, kernels: int = KERNELS, size: int = KERNEL_SIZE) -> None:
        super().__init__()
        self.tensor = nn.Linear(features, kernels * size, bias=False)
        self.kernels, self.size = kernels, size

    def forward(self, features: Tensor) -> Tensor:
        rows = self.tensor(features).reshape(-1, self.kernels, self.size)
        others = of_all_processes(rows, dim=0)
        apart = (rows[:, None] - others[None]).abs().sum(3)
        return torch.exp(-apart).sum(1) - 1  # but itself


def batch_deviation(features: Tensor) -> Tensor:
    """The deviation of features (n, F) over the batch, its mean for every row, (n, 1)."""
    whole = of_all_processes(features, dim=0)
    deviation = (whole.var(0, unbiased=False) + 1e-8).sqrt().mean()
    return deviation.expand(len(features), 1)


class CriticHead(nn.Module):
    """What a critic ends in: ``add_head``, when all before it is built, then ``opinion``."""

    def add_head(
        self,
        features: int,
        classes: int,
        rules: Rules,
        linear: Callable[..., nn.Module] = nn.Linear,
    ) -> None:
        """Layers that read ``features`` of a datum, which is of one of ``classes``, 0 for none.

        ``linear`` makes those that give logits, from sizes and whether there is a bias.
        """
        self.feature_size = joined = features
        self.alike = None
        if rules.minibatch == "discrimination":
            self.alike = MinibatchDiscrimination(features)
            joined += KERNELS
        self.deviates = rules.minibatch == "deviation"
        # A loss of differences has no use for a constant.
        self.out = linear(joined + self.deviates, 1, bias=LOSSES[rules.loss].has_level)
        packed = classes * rules.pack
        projects, tells = (rules.conditioning == one for one in ("projection", "auxiliary"))
        self.project = linear(packed, features, bias=False) if classes and projects else None
        self.classify = linear(features, classes) if classes and tells else None

    def opinion(self, features: Tensor, classes: Tensor | None) -> Opinion:
        """What is said of features."""
        parts = [features]
        if self.alike is not None:
            parts.append(self.alike(features))
        if self.deviates:
            parts.append(batch_deviation(features))
        logit = self.out(torch.cat(parts, dim=1)).squeeze(1)
        if self.project is not None and classes is not None:
            logit = logit + (self.project(classes) * features).sum(1) / features.shape[1] ** 0.5
        told = None if self.classify is None else self.classify(features)
        return Opinion(logit, features, told)
