"""Conformal thresholds: an alarm for a chosen share of false alarms, from clean data alone.

A score s of a new datum has the p-value

    p(s) = (1 + #{i : s_i >= s}) / (n + 1)                          (Vovk et al. 2005; Laxhammar 2014)

among the scores s_1..n of clean data that the model has not trained on. Of new clean data at most a share
alpha has p <= alpha, whatever the score and its distribution are; the share that one calibration set
really gives varies around alpha as a Beta(k, n + 1 - k) with k = floor(alpha (n + 1)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simulacra.refusals import Refusal


@dataclass(frozen=True, eq=False)
class Calibration:
    """Scores of clean data, shape (n,), higher is stranger."""

    clean: Tensor

    def p_values(self, scores: Tensor) -> Tensor:
        """How rare among clean data each score is, shape (m,), in (0, 1]."""
        ordered = self.clean.double().sort().values.contiguous()
        below = torch.searchsorted(ordered, scores.double().contiguous())
        return (1 + len(ordered) - below).double() / (len(ordered) + 1)

    def threshold(self, false_alarms: float) -> float:
        """The score above which an alarm is raised: at most this share of clean data lie above it.

        Refused where there are too few clean data to promise so small a share.
        """
        if not 0 < false_alarms < 1:
            raise Refusal(
                "CFG-080",
                f"a share of false alarms of {false_alarms:g}",
                way_out="give one between 0 and 1, such as 0.05",
            )
        count = len(self.clean)
        rank = math.ceil((1 - false_alarms) * (count + 1) - 1e-9)
        if rank > count:
            raise Refusal(
                "NUM-026",
                f"{count} clean data cannot promise {false_alarms:.3g} of false alarms",
                way_out=f"take at least {math.ceil(1 / false_alarms) - 1} clean data, or allow more",
            )
        return float(self.clean.double().sort().values[rank - 1])

    def alarms(self, scores: Tensor, false_alarms: float) -> Tensor:
        """Which data raise an alarm, shape (m,) bool."""
        return scores.double() > self.threshold(false_alarms)
