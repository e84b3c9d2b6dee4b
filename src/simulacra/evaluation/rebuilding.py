"""Rebuilding: what comes back of a datum from its code, and of the half that was hidden?

Squared error per datum, summed over elements scaled to [0, 1] (images) or as they are (vectors, signals,
columns of numbers), so that published errors per image compare. The control of reconstruction is the mean
of the training data; that of completion fills the hidden half with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simulacra.contract import Completer, Decoder, Encoder
from simulacra.evaluation.case import SCORED_AT_ONCE, Case
from simulacra.evaluation.intervals import mean_interval
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.probability.noise import mixed
from simulacra.spaces import Images, Series, Space, Vectors

RECONSTRUCTION, COMPLETION = "reconstruction error", "completion error"
MOST, MOST_COMPLETED = 1000, 100


def unit_scale(x: Tensor, space: Space) -> Tensor:
    """Images of integers in [0, 1], float64; vectors as they are, what is missing as 0."""
    if isinstance(space, Images):
        return x.double() / (space.levels - 1)
    return x.double().nan_to_num()


def squared_errors(x: Tensor, y: Tensor, space: Space) -> Tensor:
    """The sum of squared differences of each datum, shape (n,)."""
    return (unit_scale(x, space) - unit_scale(y, space)).square().flatten(1).sum(1)


class _Errors(Measure):
    """The mean of ``errors`` (n,), beside that of ``control`` (n,)."""

    ROLES = ("errors", "control")
    REQUIRED = ("errors",)
    NAME, HOW = "", ""

    def compute(self) -> list[Reading]:
        errors = self.rows("errors")
        control = float(self.rows("control").mean()) if self.has("control") else None
        return [
            self.reading(
                self.NAME,
                float(errors.mean()),
                unit="squared error a datum",
                better="lower",
                count=len(errors),
                interval=mean_interval(errors) if len(errors) > 1 else None,
                how=self.HOW,
                control=control,
            )
        ]


class Reconstruction(_Errors):
    """Errors of decode(encode(x)) on the test split."""

    NEEDS = (Encoder,)
    NAME = RECONSTRUCTION
    HOW = (
        "squared error of decode(encode(x)), summed over elements (images in [0, 1]); without a "
        "model: the mean of the training data in its place"
    )

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None of a model that cannot decode, and of data whose differences mean nothing."""
        model: Any = case.model
        if not isinstance(case.model, Decoder) or not isinstance(
            case.space, Images | Vectors | Series
        ):
            return []
        errors = cls(Provenance(seed=case.seed))
        mean = unit_scale(case.train.x, case.space).mean(0)
        for start in range(0, min(MOST, len(case.test)), SCORED_AT_ONCE):
            rows = slice(start, min(start + SCORED_AT_ONCE, MOST))
            x, given = case.test.x[rows].cpu(), None
            if case.conditional and case.test.condition is not None:
                given = case.test.condition[rows]
            with torch.no_grad():
                again = model.decode(model.encode(x, condition=given), condition=given).cpu()
            errors.update(
                errors=squared_errors(x, again, case.space),
                control=(unit_scale(x, case.space) - mean).square().flatten(1).sum(1),
            )
        return errors.compute()


class Completion(_Errors):
    """Errors of the lower half of test images, filled in from the upper half."""

    NEEDS = (Completer,)
    NAME = COMPLETION
    HOW = (
        "squared error of the lower half, filled in from the upper one, summed over pixels in [0, 1]; "
        "one honest draw has about twice the error of the best guess; without a model: the training "
        "data's mean"
    )

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None of data that are no images."""
        if not isinstance(case.space, Images):
            return []
        x = case.test.x[:MOST_COMPLETED].cpu()
        known = torch.zeros_like(x, dtype=torch.bool)
        known[:, :, : case.space.height // 2] = True
        given = None
        if case.conditional and case.test.condition is not None:
            given = case.test.condition[:MOST_COMPLETED]
        generator = torch.Generator().manual_seed(mixed(case.seed, 96))
        with torch.no_grad():
            filled = case.model.complete(x, known, condition=given, generator=generator).cpu()
        mean = unit_scale(case.train.x, case.space).mean(0)
        guess = torch.where(known, unit_scale(x, case.space), mean)
        errors = cls(Provenance(seed=case.seed))
        return errors.update(
            errors=squared_errors(x, filled, case.space),
            control=(unit_scale(x, case.space) - guess).square().flatten(1).sum(1),
        ).compute()
