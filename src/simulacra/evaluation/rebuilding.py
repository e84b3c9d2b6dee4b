"""Rebuilding: what comes back of a datum from its code, and of the half that was hidden?

Squared error per datum, summed over elements scaled to [0, 1] (images) or as they are (vectors, signals,
columns of numbers), so that published errors per image compare. The control of reconstruction is the
best that a line can do: the training data's first principal components, as many as a code has numbers
(Hinton & Salakhutdinov 2006); of a code as large as the datum it is the mean of the training data, which
completion fills the hidden half with, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simulacra.contract import Completer, Decoder, Encoder
from simulacra.evaluation.case import Case, scored
from simulacra.evaluation.gaussians import Principal
from simulacra.evaluation.intervals import mean_interval
from simulacra.evaluation.measure import Measure, Provenance
from simulacra.evaluation.reading import Reading
from simulacra.probability.noise import mixed
from simulacra.spaces import Images, Series, Space, Vectors

RECONSTRUCTION, COMPLETION = "reconstruction error", "completion error"
COMPLETED_AT_ONCE = 16
MOST_COMPLETED, SHARE = 100, 0.1
"""Data that are completed; the share of the budget that rebuilding may take."""


def unit_scale(x: Tensor, space: Space) -> Tensor:
    """Images of integers in [0, 1], float64; vectors as they are, what is missing as 0."""
    if isinstance(space, Images):
        return x.double() / (space.levels - 1)
    return x.double().nan_to_num()


def squared_errors(x: Tensor, y: Tensor, space: Space) -> Tensor:
    """The sum of squared differences of each datum, shape (n,)."""
    return (unit_scale(x, space) - unit_scale(y, space)).square().flatten(1).sum(1)


class _Errors(Measure):
    """The mean of ``errors`` (n,), beside that of ``control`` (n,), both of elements of ``space``."""

    ROLES = ("errors", "control")
    REQUIRED = ("errors",)
    NAME = ""

    def __init__(self, provenance: Provenance | None = None, *, space: Space | None = None) -> None:
        super().__init__(provenance)
        images = isinstance(space, Images)
        self.how = ""
        self.unit = f"squared error {'an image, pixels in [0, 1]' if images else 'a datum'}"

    def compute(self) -> list[Reading]:
        errors = self.rows("errors")
        control = float(self.rows("control").mean()) if self.has("control") else None
        return [
            self.reading(
                self.NAME,
                float(errors.mean()),
                unit=self.unit,
                better="lower",
                count=len(errors),
                interval=mean_interval(errors) if len(errors) > 1 else None,
                how=self.how,
                control=control,
            )
        ]


class Reconstruction(_Errors):
    """Errors of decode(encode(x)) on the test split; ``code`` is how many numbers a code has."""

    NEEDS = (Encoder,)
    NAME = RECONSTRUCTION

    def __init__(
        self, provenance: Provenance | None = None, *, space: Space | None = None, code: int = 0
    ) -> None:
        super().__init__(provenance, space=space)
        self.narrow = space is None or code < space.dimensions
        line = f"the training data's first {code} principal components"
        control = line if self.narrow else "the mean of the training data"
        self.how = (
            f"squared error of decode(encode(x)) from {code} numbers, summed over elements (images in "
            f"[0, 1]); without a model: {control}"
        )

    @classmethod
    def read(cls, case: Case) -> list[Reading]:
        """None of a model that cannot decode, and of data whose differences mean nothing."""
        model, space = case.model, case.space
        if not isinstance(model, Decoder) or not isinstance(space, Images | Vectors | Series):
            return []
        code: int = case.model.code_space.dimensions
        measure = cls(Provenance(seed=case.seed), space=space, code=code)

        def error(x: Tensor, condition: Tensor | None, generator: torch.Generator) -> Tensor:
            told = case.model.encode(x, condition=condition)
            return squared_errors(x.cpu(), model.decode(told, condition=condition).cpu(), space)

        errors = scored(
            error,
            case.test,
            conditional=case.conditional,
            seed=case.seed,
            seconds=SHARE * case.seconds,
        )
        line = Principal.of(
            case.train.x.flatten(1).float().cpu(), case.seed, code if measure.narrow else 0
        )
        rows = case.test.x[: len(errors)].flatten(1).float().cpu()
        away = (rows - line.pixels(line.coordinates(rows))).double()
        if isinstance(space, Images):
            away = away / (space.levels - 1)
        return measure.update(errors=errors, control=away.square().sum(1)).compute()


def completed(
    model: Completer,
    x: Tensor,
    known: Tensor,
    condition: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Completions of x (n, *shape), so many at a time that what slopes need stays small."""
    parts = []
    for start in range(0, len(x), COMPLETED_AT_ONCE):
        rows = slice(start, start + COMPLETED_AT_ONCE)
        given = None if condition is None else condition[rows]
        with torch.no_grad():
            filled = model.complete(x[rows], known[rows], condition=given, generator=generator)
        parts.append(filled.cpu())
    return torch.cat(parts)


class Completion(_Errors):
    """Errors of the lower half of test images, filled in from the upper half."""

    NEEDS = (Completer,)
    NAME = COMPLETION

    def __init__(self, provenance: Provenance | None = None, *, space: Space | None = None) -> None:
        super().__init__(provenance, space=space)
        self.how = (
            "squared error of the lower half, filled in from the upper one, summed over pixels in "
            "[0, 1]; one honest draw has about twice the error of the best guess; without a model: "
            "the training data's mean"
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
        filled = completed(case.model, x, known, given, generator)
        mean = unit_scale(case.train.x, case.space).mean(0)
        guess = torch.where(known, unit_scale(x, case.space), mean)
        errors = cls(Provenance(seed=case.seed), space=case.space)
        return errors.update(
            errors=squared_errors(x, filled, case.space),
            control=(unit_scale(x, case.space) - guess).square().flatten(1).sum(1),
        ).compute()
